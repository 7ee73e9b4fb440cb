"""Passes over the copies on a shard: how far they are, and the flips and trims they lead to."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from repo_node.db import repair_queue
from repo_node.db.pool import Database, Statement
from sharding.maintenance.catalogue import Held, MoveOutcome
from sharding.model import Generation, Replica, ShardId

START = UUID(int=0)

CURSOR = Statement(
    "walk_cursor",
    """
    SELECT c.cursor FROM (SELECT 1) AS always
      LEFT JOIN shard_cursors c ON c.shard_id = $1 AND c.job = $2
     WHERE c.shard_id IS NULL OR c.cursor IS NOT NULL OR c.ring <> $3 OR c.finished_at IS NULL
        OR c.finished_at < clock_timestamp() - make_interval(secs => $4)
    """,
)
BATCH = Statement(
    "walk_batch",
    """
    SELECT r.generation, b.id AS blob_id, b.uid, b.sha256, b.size, b.redundancy,
           substring(b.block_digests FROM 1 FOR 512) AS first_digests
      FROM (SELECT generation, blob_id FROM replicas
             WHERE shard_id = $1 AND generation > $2 AND state = 'live' ORDER BY generation LIMIT $3) AS r
      JOIN blobs b ON b.id = r.blob_id ORDER BY r.generation
    """,
)
# A pass serves the ring it began for: one that changes under it makes another pass due.
ADVANCE = Statement(
    "walk_advance",
    """
    INSERT INTO shard_cursors AS c (shard_id, job, cursor, ring, finished_at)
    VALUES ($1, $2, $4, $3, CASE WHEN $4::uuid IS NULL THEN clock_timestamp() END)
    ON CONFLICT (shard_id, job) DO UPDATE
       SET ring = CASE WHEN c.cursor IS NULL THEN excluded.ring ELSE c.ring END, cursor = excluded.cursor,
           finished_at = coalesce(excluded.finished_at, c.finished_at)
    """,
)
MOVE = Statement("replica_move", "SELECT move_replica($1, $2, $3, $4, $5) AS outcome")
TRIM = Statement("replica_trim", "SELECT trim_replica($1, $2, $3, $4) AS trimmed")


async def next_batch(
    database: Database, job: str, shard: ShardId, ring: str, *, count: int, period_seconds: float
) -> list[Held] | None:
    """Return the live copies on ``shard`` after the cursor of ``job``; None when no pass is due."""
    row = await database.fetchrow(CURSOR, shard, job, ring, period_seconds)
    if row is None:
        return None
    rows = await database.fetch(BATCH, shard, row["cursor"] or START, count)
    replicas = await repair_queue.replicas_of(database, [one["blob_id"] for one in rows]) if rows else {}
    return [
        Held(repair_queue.blob_from(one), Generation(one["generation"]), tuple(replicas.get(one["blob_id"], ())))
        for one in rows
    ]


async def advance(database: Database, job: str, shard: ShardId, ring: str, cursor: Generation | None) -> None:
    """Remember how far a pass is; None: it has ended."""
    await database.write(ADVANCE, shard, job, ring, cursor)


async def move(database: Database, blob: int, old: Replica, new: Replica) -> MoveOutcome:
    """Flip ``old`` to ``new``, in one round trip; safe to repeat. Raises ``OutcomeUnknown``."""
    row: Any = await database.write(MOVE, blob, old.shard, old.generation, new.shard, new.generation)
    return MoveOutcome(row["outcome"])


async def trim(database: Database, blob: int, surplus: Replica, reason: str) -> bool:
    """Take a surplus copy out of service; False when it is needed after all."""
    row: Any = await database.write(TRIM, blob, surplus.shard, surplus.generation, reason)
    return bool(row["trimmed"])
