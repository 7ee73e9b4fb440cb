"""Comparisons of shards with their rows: orders and reports, sightings, and what is condemned."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import asyncpg

from repo_node.db.pool import Database, Statement
from repo_node.db.presence import PresenceRows
from repo_node.db.repair_queue import HOPELESS
from sharding.identifiers import mint_uid
from sharding.listing import FoundReplica
from sharding.maintenance.reconcile_catalogue import CheckOrder
from sharding.model import BlobDigests, Generation, ShardId

NEXT = Statement(
    "check_next",
    """
    UPDATE checks c SET started_at = clock_timestamp(), done = 0, total = NULL
     WHERE c.id = (SELECT o.id FROM checks o WHERE o.shard_id = ANY ($1::smallint[]) AND o.finished_at IS NULL
                    ORDER BY o.id LIMIT 1)
    RETURNING c.id, c.shard_id, c.dry_run, c.repair, c.rebuild
    """,
)
# A shard is due when its last whole check is older than the period, or than the run an operator asked its
# node for; one that could not be looked at, some time after that.
ORDER_DUE = Statement(
    "check_order_due",
    """
    INSERT INTO checks (request, shard_id, principal)
    SELECT gen_random_uuid(), s.id, 'holdfast'
      FROM shards s
      LEFT JOIN LATERAL (
           SELECT max(c.started_at) FILTER (WHERE c.error IS NULL) AS done_at, max(c.finished_at) AS tried_at
             FROM checks c WHERE c.shard_id = s.id AND NOT c.dry_run AND c.finished_at IS NOT NULL
      ) AS last ON true
      LEFT JOIN jobs j ON j.node_id = s.node_id AND j.job = 'reconcile'
     WHERE s.id = ANY ($1::smallint[])
       AND NOT EXISTS (SELECT 1 FROM checks o WHERE o.shard_id = s.id AND o.finished_at IS NULL)
       AND coalesce(last.done_at, s.created_at)
           < greatest(clock_timestamp() - $2::interval, coalesce(j.requested_at, '-infinity'))
       AND coalesce(last.tried_at, '-infinity')
           < greatest(clock_timestamp() - $3::interval, coalesce(j.requested_at, '-infinity'))
     ORDER BY s.id
    """,
)
PROGRESS = Statement("check_progress", "UPDATE checks SET done = $2, total = $3 WHERE id = $1")
# The reports of a shard's last checks are kept. After a rebuild the census finds what lacks copies.
FINISH = Statement(
    "check_finish",
    """
    WITH finished AS (
        UPDATE checks SET finished_at = clock_timestamp(), report = $2::jsonb, error = $3
         WHERE id = $1 RETURNING id, shard_id, rebuild
    ), counted AS (
        UPDATE census SET asked = asked + 1, due_at = least(due_at, clock_timestamp())
         WHERE EXISTS (SELECT 1 FROM finished f WHERE f.rebuild)
    )
    DELETE FROM checks c USING finished f
     WHERE c.shard_id = f.shard_id AND c.finished_at IS NOT NULL AND c.id <> f.id AND c.id NOT IN (
           SELECT o.id FROM checks o WHERE o.shard_id = f.shard_id ORDER BY o.id DESC LIMIT 20)
    """,
)
NOTE_SIGHTINGS = Statement(
    "sightings_note",
    """
    INSERT INTO sightings AS s (shard_id, path, inode)
    SELECT $1, f.path, f.inode FROM unnest($2::bytea[], $3::bigint[]) AS f (path, inode) ORDER BY f.path
    ON CONFLICT (shard_id, path) DO UPDATE
       SET last_seen_at = now(), inode = excluded.inode,
           first_seen_at = CASE WHEN s.inode = excluded.inode THEN s.first_seen_at ELSE now() END
    RETURNING path, extract(epoch FROM now() - first_seen_at)::double precision AS age
    """,
)
SIGHTINGS = Statement(
    "sightings_read",
    """
    SELECT s.path, extract(epoch FROM now() - s.first_seen_at)::double precision AS age
      FROM sightings s JOIN unnest($2::bytea[], $3::bigint[]) AS f (path, inode)
        ON s.path = f.path AND s.inode = f.inode
     WHERE s.shard_id = $1
    """,
)
FORGET_UNSEEN = Statement(
    "sightings_forget",
    "DELETE FROM sightings WHERE shard_id = $1 AND last_seen_at < (SELECT started_at FROM checks WHERE id = $2)",
)
CONDEMN_STRAYS = Statement(
    "check_condemn",
    "SELECT condemn_strays($1, $2::uuid[], $3::bytea[], $4::bigint[]) AS generation",
)
STRAYS_HELD = Statement("check_strays_held", "SELECT strays_are_held() AS held")
ADOPT = Statement("check_adopt", "SELECT adopt_found($1, $2, $3, $4, $5, $6, $7, $8, $9) AS outcome")
ASIDE_AGAIN = Statement(
    "check_aside_again",
    """
    INSERT INTO quarantine (shard_id, generation, sha256, reason) VALUES ($1, $2, $3, 'stray')
    ON CONFLICT (shard_id, generation) DO UPDATE SET moved_at = NULL
    """,
)
ASIDE_KNOWN = Statement(
    "quarantine_known", "SELECT generation FROM quarantine WHERE shard_id = $1 AND generation = ANY ($2::uuid[])"
)
LEFTOVERS_MAY_GO = Statement(
    "quarantine_may_go",
    "SELECT NOT strays_are_held() AND NOT EXISTS (SELECT 1 FROM repair_queue WHERE urgency = $1) AS may_go",
)


class CheckRows(PresenceRows):
    """Satisfies ``ReconcileCatalogue`` over a database. ``redundancy`` is that of blobs a rebuild finds."""

    def __init__(self, database: Database, redundancy: Callable[[], int] = lambda: 2) -> None:
        super().__init__(database)
        self.redundancy = redundancy

    async def next_check(self, shards: Sequence[ShardId]) -> CheckOrder | None:
        row = await self.database.write(NEXT, shards)
        if row is None:
            return None
        return CheckOrder(row["id"], ShardId(row["shard_id"]), row["dry_run"], row["repair"], row["rebuild"])

    async def order_due(self, shards: Sequence[ShardId], period_seconds: float, retry_seconds: float) -> None:
        period, retry = timedelta(seconds=period_seconds), timedelta(seconds=retry_seconds)
        await self.database.write(ORDER_DUE, shards, period, retry)

    async def note_progress(self, check: int, done: int, total: int | None) -> None:
        await self.database.write(PROGRESS, check, done, total)

    async def finish_check(self, check: int, report: Mapping[str, Any], error: str | None) -> None:
        await self.database.write(FINISH, check, json.dumps(report), error)

    async def sighting_ages(
        self, shard: ShardId, seen: Sequence[tuple[bytes, int]], *, note: bool
    ) -> dict[bytes, float]:
        arguments = shard, [path for path, _ in seen], [signed(inode) for _, inode in seen]

        async def work(connection: asyncpg.Connection) -> list[asyncpg.Record]:
            return list(await connection.fetch(NOTE_SIGHTINGS.sql, *arguments))

        found = await (
            self.database.transact(NOTE_SIGHTINGS, work) if note else self.database.fetch(SIGHTINGS, *arguments)
        )
        return {**{path: 0.0 for path, _ in seen}, **{bytes(row["path"]): row["age"] for row in found}}

    async def forget_unseen(self, shard: ShardId, check: int) -> None:
        await self.database.write(FORGET_UNSEEN, shard, check)

    async def strays_are_held(self) -> bool:
        row: Any = await self.database.fetchrow(STRAYS_HELD)
        return bool(row["held"])

    async def condemn_strays(self, shard: ShardId, strays: Sequence[tuple[FoundReplica, int]]) -> list[Generation]:
        names = [file.name for file, _ in strays]

        async def work(connection: asyncpg.Connection) -> list[asyncpg.Record]:
            columns = [one.generation for one in names], [one.sha256 for one in names], [size for _, size in strays]
            return list(await connection.fetch(CONDEMN_STRAYS.sql, shard, *columns))

        return [Generation(row["generation"]) for row in await self.database.transact(CONDEMN_STRAYS, work)]

    async def adopt(self, shard: ShardId, file: FoundReplica, digests: BlobDigests) -> str:
        row: Any = await self.database.write(
            ADOPT,
            shard,
            file.name.generation,
            mint_uid(),
            digests.sha256,
            digests.sha1,
            digests.md5,
            digests.size,
            digests.blocks,
            self.redundancy(),
        )
        return str(row["outcome"])

    async def aside_again(self, shard: ShardId, file: FoundReplica) -> None:
        await self.database.write(ASIDE_AGAIN, shard, file.name.generation, file.name.sha256)

    async def aside_known(self, shard: ShardId, generations: Sequence[Generation]) -> set[Generation]:
        rows = await self.database.fetch(ASIDE_KNOWN, shard, generations)
        return {Generation(row["generation"]) for row in rows}

    async def leftovers_may_go(self) -> bool:
        row: Any = await self.database.fetchrow(LEFTOVERS_MAY_GO, HOPELESS)
        return bool(row["may_go"])


def signed(inode: int) -> int:
    """Return an inode's 64 bits as the signed number that Postgres keeps."""
    return inode - (1 << 64) if inode >= 1 << 63 else inode
