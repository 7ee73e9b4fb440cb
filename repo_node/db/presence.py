"""What a node should hold on a shard of its own: samples of it, and all of it in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repo_node.db.audits import AuditRows, held_replica
from repo_node.db.pool import Statement
from sharding.maintenance.audit_catalogue import HeldReplica
from sharding.maintenance.comparison import Row, RowState
from sharding.model import Generation, ShardId

BOUNDS = Statement(
    "presence_bounds",
    """
    SELECT (SELECT generation FROM replicas WHERE shard_id = $1 ORDER BY generation LIMIT 1) AS first,
           (SELECT generation FROM replicas WHERE shard_id = $1 ORDER BY generation DESC LIMIT 1) AS last
    """,
)
SAMPLE = Statement(
    "presence_sample",
    """
    SELECT DISTINCT p.generation, b.sha256, b.id, b.size, NULL::bytea AS blocks
      FROM unnest($2::uuid[]) AS start
     CROSS JOIN LATERAL (
           SELECT r.generation, r.blob_id FROM replicas r
            WHERE r.shard_id = $1 AND r.generation > start AND r.state = 'live' ORDER BY r.generation LIMIT $3
     ) AS p
      JOIN blobs b ON b.id = p.blob_id
     ORDER BY p.generation
    """,
)
KNOWN = Statement(
    "reconcile_known",
    """
    SELECT k.generation, coalesce(b.sha256, x.sha256, q.sha256) AS sha256, b.size,
           CASE WHEN x.generation IS NOT NULL THEN 'removal'
                WHEN k.state = 'condemned' AND (q.generation IS NULL OR q.moved_at IS NOT NULL) THEN 'aside'
                ELSE k.state END AS state
      FROM (SELECT r.generation, r.state, r.blob_id FROM replicas r
             WHERE r.shard_id = $1 AND r.generation > $2 ORDER BY r.generation LIMIT $3) AS k
      -- One by one: a page is a small part of a large table.
      LEFT JOIN LATERAL (SELECT o.sha256, o.size FROM blobs o WHERE o.id = k.blob_id OFFSET 0) AS b ON true
      LEFT JOIN removals x ON x.shard_id = $1 AND x.generation = k.generation
      LEFT JOIN quarantine q ON q.shard_id = $1 AND q.generation = k.generation
     ORDER BY k.generation
    """,
)


class PresenceRows(AuditRows):
    """Satisfies ``PresenceCatalogue`` and ``RowSource`` over a database."""

    async def bounds(self, shard: ShardId) -> tuple[Generation, Generation] | None:
        row: Any = await self.database.fetchrow(BOUNDS, shard)
        return None if row["first"] is None else (Generation(row["first"]), Generation(row["last"]))

    async def sample(self, shard: ShardId, after: Sequence[Generation], count: int) -> list[HeldReplica]:
        return [held_replica(shard, row) for row in await self.database.fetch(SAMPLE, shard, after, count)]

    async def known(self, shard: ShardId, after: Generation, count: int) -> list[Row]:
        return [
            Row(Generation(row["generation"]), RowState(row["state"]), bytes(row["sha256"] or b""), row["size"])
            for row in await self.database.fetch(KNOWN, shard, after, count)
        ]
