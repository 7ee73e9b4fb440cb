"""The removal list: files to be removed from their shards, not before a time, by the nodes that own them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from repo_node.db.pool import Database, Statement
from sharding.maintenance.removal import Backlog, DueRemovals, ListedFile
from sharding.model import BlobName, Generation, ShardId

# One look: the epoch is that of the very moment at which the files were seen to be due.
DUE = Statement(
    "removals_due",
    """
    SELECT coalesce((SELECT epoch FROM lease), 0) AS epoch, (SELECT deletions_held()) AS held,
           d.generations, d.digests, d.sizes, d.reasons, d.live
      FROM (SELECT array_agg(m.generation) AS generations, array_agg(m.sha256) AS digests,
                   array_agg(m.size) AS sizes, array_agg(m.reason) AS reasons,
                   coalesce(bool_or(r.state <> 'condemned'), false) AS live
              FROM (SELECT * FROM removals
                     WHERE shard_id = $1 AND not_before <= clock_timestamp() ORDER BY not_before LIMIT $2) AS m
              JOIN replicas r ON r.shard_id = m.shard_id AND r.generation = m.generation) AS d
    """,
)
DONE = Statement(
    "removals_done",
    """
    WITH done AS (
        DELETE FROM removals WHERE shard_id = $1 AND generation = ANY ($2::uuid[]) RETURNING generation
    )
    DELETE FROM replicas
     WHERE shard_id = $1 AND generation IN (SELECT generation FROM done) AND state = 'condemned'
    """,
)
FAILED = Statement(
    "removals_failed",
    """
    UPDATE removals
       SET attempts = attempts + 1,
           not_before = clock_timestamp() + make_interval(secs => least(3600, 5 * 2 ^ least(attempts, 10)))
     WHERE shard_id = $1 AND generation = ANY ($2::uuid[])
    """,
)
BACKLOG = Statement(
    "removals_backlog",
    """
    SELECT count(*) AS files, coalesce(sum(size), 0)::bigint AS bytes
      FROM removals WHERE shard_id = ANY ($1::smallint[])
    """,
)
HOLD = Statement("hold_place", "SELECT place_hold($1, $2)")


class RemovalRows:
    """The removal list in Postgres. Satisfies ``RemovalList``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(self, shard: ShardId, files_max: int) -> DueRemovals:
        row: Any = await self._database.fetchrow(DUE, shard, files_max)
        columns = (row["generations"] or (), row["digests"] or (), row["sizes"] or (), row["reasons"] or ())
        files = tuple(
            ListedFile(BlobName(sha256, Generation(generation)), size, reason)
            for generation, sha256, size, reason in zip(*columns, strict=True)
        )
        return DueRemovals(row["epoch"], row["held"], row["live"], files)

    async def done(self, shard: ShardId, generations: Sequence[Generation]) -> None:
        await self._database.write(DONE, shard, list(generations))

    async def failed(self, shard: ShardId, generations: Sequence[Generation]) -> None:
        await self._database.write(FAILED, shard, list(generations))

    async def backlog(self, shards: Collection[ShardId]) -> Backlog:
        row: Any = await self._database.fetchrow(BACKLOG, list(shards))
        return Backlog(row["files"], row["bytes"])

    async def hold(self, reason: str, detail: str) -> None:
        await self._database.write(HOLD, reason, detail)
