"""How far scrub has come on each shard, and the rows it walks over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg

from repo_node.db.audits import AuditRows, held_replica
from repo_node.db.pool import Statement
from sharding.maintenance.audit_catalogue import REPLICA_COST_BYTES, HeldReplica, ScrubKind, ScrubPass, Volume
from sharding.model import BLOCK_BYTES, Generation, ShardId

DIGESTS_ALONG_BYTES = 64 * BLOCK_BYTES
"""Blobs up to this size have their block digests come along with the row."""

# Each by name: a newer schema may have more, and a statement of a node that is at work must not change its form.
COLUMNS = """
    shard_id, kind, started_at, position, done_replicas, done_bytes, total_replicas, total_bytes, finished_at,
    covered_since
"""
PASSES = Statement(
    "scrub_passes",
    f"""
    WITH wanted AS (
        SELECT s AS shard_id, k AS kind FROM unnest($1::smallint[]) AS s, unnest(ARRAY['blocks', 'proof']) AS k
    ), made AS (
        INSERT INTO scrubs (shard_id, kind) SELECT w.shard_id, w.kind FROM wanted w
         WHERE NOT EXISTS (SELECT 1 FROM scrubs p WHERE p.shard_id = w.shard_id AND p.kind = w.kind)
        ON CONFLICT DO NOTHING RETURNING {COLUMNS}
    )
    SELECT p.shard_id, p.kind, p.started_at, p.position, p.done_replicas, p.done_bytes, p.total_replicas, p.total_bytes,
           p.finished_at, p.covered_since,
           extract(epoch FROM clock_timestamp() - p.started_at)::double precision AS age,
           extract(epoch FROM clock_timestamp() - p.covered_since)::double precision AS covered_age,
           coalesce(j.requested_at > p.started_at, false) AS asked_for,
           coalesce(j.requested_at > coalesce(j.answered_at, '-infinity'), false) AS in_haste
      FROM (SELECT {COLUMNS} FROM scrubs WHERE shard_id = ANY ($1) UNION ALL SELECT {COLUMNS} FROM made) AS p
      JOIN shards s ON s.id = p.shard_id
      LEFT JOIN jobs j ON j.node_id = s.node_id AND j.job = 'scrub'
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
      -- One by one: a page is a small part of a large table.
      LEFT JOIN LATERAL (SELECT o.size FROM blobs o WHERE o.id = p.blob_id OFFSET 0) AS b ON true
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


class ScrubRows(AuditRows):
    """Satisfies ``ScrubCatalogue`` over a database."""

    async def passes(self, shards: Sequence[ShardId]) -> list[ScrubPass]:
        # A write, for those that are not there yet; not ``write``, which gives one row.
        async def work(connection: asyncpg.Connection) -> list[asyncpg.Record]:
            return list(await connection.fetch(PASSES.sql, shards))

        return [scrub_pass(row) for row in await self.database.transact(PASSES, work)]

    async def begin_pass(self, shard: ShardId, kind: ScrubKind) -> None:
        await self.database.write(BEGIN_PASS, shard, kind.value)

    async def survey(self, shard: ShardId, after: Generation, count: int) -> tuple[Generation | None, Volume]:
        row: Any = await self.database.fetchrow(SURVEY, shard, after, count, REPLICA_COST_BYTES)
        end = Generation(row["last"]) if row["rows"] == count else None
        return end, Volume(row["replicas"], row["cost_bytes"])

    async def note_total(self, shard: ShardId, kind: ScrubKind, total: Volume) -> None:
        await self.database.write(NOTE_TOTAL, shard, kind.value, total.replicas, total.cost_bytes)

    async def live_replicas(self, shard: ShardId, after: Generation, count: int) -> list[HeldReplica]:
        rows = await self.database.fetch(LIVE, shard, after, count, DIGESTS_ALONG_BYTES)
        return [held_replica(shard, row) for row in rows]

    async def advance(self, shard: ShardId, kind: ScrubKind, position: Generation, done: Volume) -> None:
        await self.database.write(ADVANCE, shard, kind.value, position, done.replicas, done.cost_bytes)

    async def finish_pass(self, shard: ShardId, kind: ScrubKind) -> None:
        await self.database.write(FINISH_PASS, shard, kind.value)


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
        is_asked_for=row["asked_for"],
        in_haste=row["in_haste"],
    )
