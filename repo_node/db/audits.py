"""What the owners of shards find out about their replicas, and what becomes of those."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg

from repo_node.db import blobs
from repo_node.db.pool import Database, Statement
from sharding.maintenance.audit_catalogue import (
    REPLICA_COST_BYTES,
    Dropped,
    Fault,
    HeldReplica,
    ScrubKind,
    ScrubPass,
    Sentence,
    Volume,
)
from sharding.model import BLOCK_BYTES, BlobName, Generation, ShardId

DIGESTS_ALONG_BYTES = 64 * BLOCK_BYTES
"""Blobs up to this size have their block digests come along with the row."""

SUSPECTS = Statement(
    "audit_suspects",
    """
    SELECT r.generation, b.sha256, b.id, b.size, NULL::bytea AS blocks
      FROM replicas r JOIN blobs b ON b.id = r.blob_id
     WHERE r.shard_id = $1 AND r.generation > $2 AND r.state = 'suspect'
     ORDER BY r.generation LIMIT $3
    """,
)
REINSTATE = Statement("audit_reinstate", "SELECT reinstate_replica($1, $2) AS done")
CORRECT_DIGESTS = Statement("audit_correct_digests", "SELECT correct_block_digests($1, $2, $3) AS done")
CONDEMN = Statement("audit_condemn", "SELECT condemn_replica($1, $2, $3) AS sentence")
DROP_ABSENT = Statement("audit_drop_absent", "SELECT dropped, kept FROM drop_absent_replicas($1, $2::uuid[])")
UNMOVED = Statement(
    "quarantine_unmoved",
    "SELECT sha256, generation FROM quarantine WHERE shard_id = $1 AND moved_at IS NULL LIMIT $2",
)
NOTE_MOVED = Statement(
    "quarantine_moved",
    "UPDATE quarantine SET moved_at = now() WHERE shard_id = $1 AND generation = ANY ($2::uuid[]) AND moved_at IS NULL",
)
EXPIRED = Statement(
    "quarantine_expired",
    """
    SELECT sha256, generation FROM quarantine
     WHERE shard_id = $1 AND moved_at < now() - $2::interval ORDER BY moved_at LIMIT $3
    """,
)
FORGET = Statement(
    "quarantine_forget",
    """
    WITH gone AS (
        DELETE FROM quarantine WHERE shard_id = $1 AND generation = ANY ($2::uuid[]) RETURNING shard_id, generation
    )
    DELETE FROM replicas r USING gone g
     WHERE r.shard_id = g.shard_id AND r.generation = g.generation AND r.state = 'condemned'
    """,
)

PASSES = Statement(
    "scrub_passes",
    """
    WITH wanted AS (
        SELECT s AS shard_id, k AS kind FROM unnest($1::smallint[]) AS s, unnest(ARRAY['blocks', 'proof']) AS k
    ), made AS (
        INSERT INTO scrubs (shard_id, kind) SELECT w.shard_id, w.kind FROM wanted w
         WHERE NOT EXISTS (SELECT 1 FROM scrubs p WHERE p.shard_id = w.shard_id AND p.kind = w.kind)
        ON CONFLICT DO NOTHING RETURNING *
    )
    SELECT p.*, extract(epoch FROM clock_timestamp() - p.started_at)::double precision AS age,
           extract(epoch FROM clock_timestamp() - p.covered_since)::double precision AS covered_age
      FROM (SELECT * FROM scrubs WHERE shard_id = ANY ($1) UNION ALL SELECT * FROM made) AS p
     ORDER BY p.shard_id, p.kind
    """,
)
BEGIN_PASS = Statement(
    "scrub_begin",
    """
    UPDATE scrubs SET started_at = now(), position = '00000000-0000-0000-0000-000000000000', finished_at = NULL,
           done_replicas = 0, done_bytes = 0, total_replicas = NULL, total_bytes = NULL
     WHERE shard_id = $1 AND kind = $2
    """,
)
SURVEY = Statement(
    "scrub_survey",
    """
    SELECT (array_agg(p.generation ORDER BY p.generation DESC))[1] AS last, count(*) AS rows,
           count(*) FILTER (WHERE p.state = 'live') AS replicas,
           coalesce(sum(greatest(b.size, $4)) FILTER (WHERE p.state = 'live'), 0)::bigint AS cost_bytes
      FROM (SELECT r.generation, r.blob_id, r.state FROM replicas r
             WHERE r.shard_id = $1 AND r.generation > $2 ORDER BY r.generation LIMIT $3) AS p
      LEFT JOIN blobs b ON b.id = p.blob_id
    """,
)
NOTE_TOTAL = Statement(
    "scrub_total",
    "UPDATE scrubs SET total_replicas = $3, total_bytes = $4 WHERE shard_id = $1 AND kind = $2",
)
LIVE = Statement(
    "scrub_replicas",
    """
    SELECT r.generation, b.sha256, b.id, b.size, CASE WHEN b.size <= $4 THEN b.block_digests END AS blocks
      FROM replicas r JOIN blobs b ON b.id = r.blob_id
     WHERE r.shard_id = $1 AND r.generation > $2 AND r.state = 'live'
     ORDER BY r.generation LIMIT $3
    """,
)
ADVANCE = Statement(
    "scrub_advance",
    """
    UPDATE scrubs SET position = $3, done_replicas = done_replicas + $4, done_bytes = done_bytes + $5
     WHERE shard_id = $1 AND kind = $2
    """,
)
FINISH_PASS = Statement(
    "scrub_finish",
    "UPDATE scrubs SET finished_at = now(), covered_since = started_at WHERE shard_id = $1 AND kind = $2",
)


class AuditRows:
    """Satisfies ``SuspectCatalogue`` and ``ScrubCatalogue`` over a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def suspects(self, shard: ShardId, after: Generation, count: int) -> list[HeldReplica]:
        return [held_replica(shard, row) for row in await self._database.fetch(SUSPECTS, shard, after, count)]

    async def block_digests(self, blob: int, first: int, count: int) -> bytes:
        return await blobs.block_digests(self._database, blob, first, count)

    async def mark_suspect(self, shard: ShardId, generation: Generation) -> bool:
        return await blobs.mark_suspect(self._database, shard, generation)

    async def reinstate(self, shard: ShardId, generation: Generation) -> bool:
        row: Any = await self._database.write(REINSTATE, shard, generation)
        return bool(row["done"])

    async def correct_digests(self, shard: ShardId, generation: Generation, blocks: bytes) -> bool:
        row: Any = await self._database.write(CORRECT_DIGESTS, shard, generation, blocks)
        return bool(row["done"])

    async def condemn(self, shard: ShardId, generation: Generation, fault: Fault) -> Sentence:
        row: Any = await self._database.write(CONDEMN, shard, generation, fault.value)
        return Sentence(row["sentence"])

    async def drop_absent(self, shard: ShardId, generations: Sequence[Generation]) -> Dropped:
        row: Any = await self._database.write(DROP_ABSENT, shard, generations)
        return Dropped(row["dropped"], row["kept"])

    async def unmoved(self, shard: ShardId, count: int) -> list[BlobName]:
        return [blob_name(row) for row in await self._database.fetch(UNMOVED, shard, count)]

    async def note_moved(self, shard: ShardId, generations: Sequence[Generation]) -> None:
        await self._database.write(NOTE_MOVED, shard, generations)

    async def expired(self, shard: ShardId, quarantine_seconds: float, count: int) -> list[BlobName]:
        rows = await self._database.fetch(EXPIRED, shard, timedelta(seconds=quarantine_seconds), count)
        return [blob_name(row) for row in rows]

    async def forget(self, shard: ShardId, generations: Sequence[Generation]) -> None:
        await self._database.write(FORGET, shard, generations)

    async def passes(self, shards: Sequence[ShardId]) -> list[ScrubPass]:
        # A write, for those that are not there yet; not ``write``, which gives one row.
        async def work(connection: asyncpg.Connection) -> list[asyncpg.Record]:
            return list(await connection.fetch(PASSES.sql, shards))

        return [scrub_pass(row) for row in await self._database.transact(PASSES, work)]

    async def begin_pass(self, shard: ShardId, kind: ScrubKind) -> None:
        await self._database.write(BEGIN_PASS, shard, kind.value)

    async def survey(self, shard: ShardId, after: Generation, count: int) -> tuple[Generation | None, Volume]:
        row: Any = await self._database.fetchrow(SURVEY, shard, after, count, REPLICA_COST_BYTES)
        end = Generation(row["last"]) if row["rows"] == count else None
        return end, Volume(row["replicas"], row["cost_bytes"])

    async def note_total(self, shard: ShardId, kind: ScrubKind, total: Volume) -> None:
        await self._database.write(NOTE_TOTAL, shard, kind.value, total.replicas, total.cost_bytes)

    async def live_replicas(self, shard: ShardId, after: Generation, count: int) -> list[HeldReplica]:
        rows = await self._database.fetch(LIVE, shard, after, count, DIGESTS_ALONG_BYTES)
        return [held_replica(shard, row) for row in rows]

    async def advance(self, shard: ShardId, kind: ScrubKind, position: Generation, done: Volume) -> None:
        await self._database.write(ADVANCE, shard, kind.value, position, done.replicas, done.cost_bytes)

    async def finish_pass(self, shard: ShardId, kind: ScrubKind) -> None:
        await self._database.write(FINISH_PASS, shard, kind.value)


def scrub_pass(row: asyncpg.Record) -> ScrubPass:
    total = None if row["total_replicas"] is None else Volume(row["total_replicas"], row["total_bytes"])
    return ScrubPass(
        shard=ShardId(row["shard_id"]),
        kind=ScrubKind(row["kind"]),
        age_seconds=row["age"],
        position=Generation(row["position"]),
        done=Volume(row["done_replicas"], row["done_bytes"]),
        total=total,
        is_finished=row["finished_at"] is not None,
        covered_age_seconds=row["covered_age"],
    )


def held_replica(shard: ShardId, row: asyncpg.Record) -> HeldReplica:
    blocks = row["blocks"]
    return HeldReplica(shard, blob_name(row), row["id"], row["size"], None if blocks is None else bytes(blocks))


def blob_name(row: asyncpg.Record) -> BlobName:
    return BlobName(bytes(row["sha256"]), Generation(row["generation"]))
