"""The queue of blobs that lack copies, as rows: claims, ends of repairs, figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from repo_node.db.garbage import UNREFERENCED
from repo_node.db.pool import Database, Statement
from sharding.maintenance.catalogue import Claim, Repaired, RepairOutcome, Settled, StoredBlob, StoredReplica
from sharding.model import Generation, NodeId, ShardId

CLAIM = Statement(
    "repair_claim",
    """
    SELECT blob_id, uid, sha256, size, redundancy, first_digests, urgency, attempts, renewed_at
      FROM claim_repairs($1, $2, $3, $4)
    """,
)
REPLICAS = Statement(
    "repair_replicas",
    """
    SELECT r.blob_id, r.shard_id, r.generation, r.state = 'suspect' AS suspect,
           s.state IN ('active', 'read_only', 'offline') AS stays
      FROM replicas r JOIN shards s ON s.id = r.shard_id
     WHERE r.blob_id = ANY ($1::bigint[]) AND s.state <> 'lost'
    """,
)
RENEW = Statement(
    "repair_renew",
    """
    UPDATE repair_queue SET due_at = clock_timestamp() + make_interval(secs => $3)
     WHERE claim = $1 AND blob_id = ANY ($2::bigint[])
    """,
)
SETTLE = Statement(
    "repair_settle", "SELECT blob_id, adopted, outcome FROM settle_repairs($1, $2, $3, $4, $5, $6, $7, $8)"
)
HASTEN = Statement(
    "repair_hasten",
    """
    WITH put_off AS (
        SELECT blob_id FROM repair_queue WHERE claim IS NULL AND due_at > clock_timestamp()
         LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
    ), hastened AS (
        UPDATE repair_queue q SET due_at = clock_timestamp() FROM put_off p WHERE q.blob_id = p.blob_id RETURNING 1
    )
    SELECT count(*) AS blobs FROM hastened
    """,
)
BACKLOG = Statement(
    "repair_backlog",
    f"""
    SELECT q.urgency, {UNREFERENCED} AS unreferenced, count(*) AS blobs, sum(q.size)::bigint AS bytes,
           extract(epoch FROM clock_timestamp() - min(q.queued_at))::double precision AS oldest_seconds
      FROM repair_queue q LEFT JOIN gc_candidates c ON c.blob_id = q.blob_id GROUP BY 1, 2
    """,
)
# Of those that are copied next: what is not among them would not be copied in time either. They are cut off before it
# is asked which of them anything refers to, so that no more of the queue is read. Where no other node could take
# copies, there are none to wait for.
SOLE = Statement(
    "repair_sole",
    f"""
    WITH staying AS MATERIALIZED (
        SELECT n.id FROM nodes n WHERE n.id <> $1 AND node_is_up(n) AND n.leaving IS DISTINCT FROM n.incarnation
    ), next AS MATERIALIZED (
        SELECT q.blob_id FROM repair_queue q ORDER BY q.urgency, q.due_at LIMIT $2
    ), endangered AS (
        SELECT q.blob_id FROM next q LEFT JOIN gc_candidates c ON c.blob_id = q.blob_id WHERE NOT {UNREFERENCED}
    ), sole AS (
        SELECT e.blob_id
          FROM endangered e CROSS JOIN LATERAL live_replicas(e.blob_id) l JOIN shards s ON s.id = l.shard_id
         WHERE s.state NOT IN ('offline', 'lost') GROUP BY e.blob_id
        HAVING bool_or(s.node_id = $1) AND NOT bool_or(s.node_id IN (SELECT t.id FROM staying t))
    )
    SELECT count(*) AS blobs FROM sole
     WHERE EXISTS (SELECT FROM staying t JOIN shards s ON s.node_id = t.id WHERE s.state = 'active')
    """,
)

HOPELESS = 99
"""The urgency of a blob without a good copy."""

SOLE_LOOKED_AT_MAX = 10_000
"""Queued blobs that one look for sole copies goes through, in tens of milliseconds."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """The queued blobs that have ``good`` good copies, apart from those that nothing refers to any more."""

    good: int
    unreferenced: bool
    blobs: int
    bytes: int
    oldest_seconds: float


async def claim(database: Database, token: UUID, *, seconds: float, count: int, bytes_max: int) -> list[Claim]:
    """Claim up to ``count`` blobs for ``seconds``, most endangered first."""

    # All its rows are wanted, and a claim whose answer is lost is only one that expires.
    async def work(connection: asyncpg.Connection) -> list[asyncpg.Record]:
        return list(await connection.fetch(CLAIM.sql, token, seconds, count, bytes_max))

    rows = await database.transact(CLAIM, work)
    if not rows:
        return []
    replicas = await replicas_of(database, [row["blob_id"] for row in rows])
    return [
        Claim(
            blob=blob_from(row),
            replicas=tuple(replicas.get(row["blob_id"], ())),
            good=0 if row["urgency"] == HOPELESS else row["urgency"],
            attempts=row["attempts"],
            renewed_at=row["renewed_at"],
        )
        for row in rows
    ]


async def replicas_of(database: Database, blobs: Sequence[int]) -> dict[int, list[StoredReplica]]:
    """Return the replicas of ``blobs`` that are not on a lost shard."""
    found: dict[int, list[StoredReplica]] = {}
    for row in await database.fetch(REPLICAS, blobs):
        replica = StoredReplica(ShardId(row["shard_id"]), Generation(row["generation"]), row["suspect"], row["stays"])
        found.setdefault(row["blob_id"], []).append(replica)
    return found


def blob_from(row: asyncpg.Record) -> StoredBlob:
    return StoredBlob(
        id=row["blob_id"],
        uid=row["uid"],
        sha256=bytes(row["sha256"]),
        size=row["size"],
        redundancy=row["redundancy"],
        first_digests=bytes(row["first_digests"]),
    )


async def renew(database: Database, token: UUID, blobs: Sequence[int], seconds: float) -> None:
    """Hold claims for ``seconds`` from now."""
    await database.write(RENEW, token, blobs, seconds)


async def settle(database: Database, token: UUID, repaired: Sequence[Repaired]) -> dict[int, Settled]:
    """End the repairs of a batch, in one round trip; safe to repeat with the same copies.

    Raises ``OutcomeUnknown``, ``CatalogueUnavailable``.
    """
    copies = [(one.claim.blob.id, copy) for one in repaired for copy in one.copies]

    async def work(connection: asyncpg.Connection) -> list[asyncpg.Record]:
        rows = await connection.fetch(
            SETTLE.sql,
            token,
            [one.claim.blob.id for one in repaired],
            [one.claim.renewed_at for one in repaired],
            [one.retry_seconds for one in repaired],
            [one.note for one in repaired],
            [blob for blob, _ in copies],
            [copy.shard for _, copy in copies],
            [copy.generation for _, copy in copies],
        )
        return list(rows)

    return {
        row["blob_id"]: Settled(RepairOutcome(row["outcome"]), frozenset(Generation(one) for one in row["adopted"]))
        for row in await database.transact(SETTLE, work)
    }


async def hasten(database: Database, count: int) -> int:
    """Make up to ``count`` blobs that were put off due now; return how many there were."""
    row: Any = await database.write(HASTEN, count)
    return int(row["blobs"])


async def sole_copies(database: Database, node: NodeId) -> int:
    """Return how many blobs that wait for copies could not be read without ``node``, as far as others could help."""
    row: Any = await database.fetchrow(SOLE, node, SOLE_LOOKED_AT_MAX)
    return int(row["blobs"])


async def backlog(database: Database) -> list[Backlog]:
    """Return the queue by number of good copies, and by whether anything refers to the blobs."""
    return [
        Backlog(
            good=0 if row["urgency"] == HOPELESS else row["urgency"],
            unreferenced=row["unreferenced"],
            blobs=row["blobs"],
            bytes=row["bytes"],
            oldest_seconds=row["oldest_seconds"],
        )
        for row in await database.fetch(BACKLOG)
    ]
