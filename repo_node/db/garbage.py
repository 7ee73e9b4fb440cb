"""Garbage as rows: the candidates, what would become of them, and the functions that make an end of them."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import asyncpg

from repo_node.db.lease import Lease, NotPrimary
from repo_node.db.pool import Database, Statement
from sharding.maintenance.gc import Candidate, Collected, Count, Page

ALLOWANCE_HOURS = 24
"""How long after its release a hold's allowance is good for."""

# Not EXISTS, which the planner may answer by hashing a whole table.
REFERENCED = """
    ((SELECT 1 FROM artifacts a WHERE a.blob_id = c.blob_id LIMIT 1) IS NOT NULL
     OR (SELECT 1 FROM trash t WHERE t.blob_id = c.blob_id LIMIT 1) IS NOT NULL)
"""
# Whether a blob, left joined with gc_candidates c, waits for gc. Looked up for the candidates alone: what nobody has
# released counts as in use until gc's feed finds it.
UNREFERENCED = f"(c.blob_id IS NOT NULL AND NOT {REFERENCED})"
# Pages are cut by id alone, so that each is read in bounded time however few of it are due.
COUNT = Statement(
    "gc_count",
    f"""
    WITH page AS (SELECT c.blob_id, c.since FROM gc_candidates c WHERE c.blob_id > $1 ORDER BY c.blob_id LIMIT $2)
    SELECT count(*) AS seen, max(c.blob_id) AS last,
           count(*) FILTER (WHERE c.since <= clock_timestamp() - $3::interval AND NOT {REFERENCED}) AS going
      FROM page c
    """,
)
PAGE = Statement(
    "gc_page",
    """
    WITH page AS (SELECT c.blob_id, c.since FROM gc_candidates c WHERE c.blob_id > $1 ORDER BY c.blob_id LIMIT $2)
    SELECT count(*) AS seen, max(c.blob_id) AS last,
           array_agg(c.blob_id ORDER BY c.blob_id) FILTER (WHERE c.since <= clock_timestamp() - $3::interval) AS blobs,
           array_agg(c.since ORDER BY c.blob_id) FILTER (WHERE c.since <= clock_timestamp() - $3::interval) AS since
      FROM page c
    """,
)
CANDIDATES = Statement(
    "gc_candidates",
    f"""
    SELECT c.blob_id, c.since, c.reason, b.sha256, b.size, {REFERENCED} AS referenced,
           c.since <= clock_timestamp() - $3::interval AS due,
           (SELECT count(*) FROM replicas r WHERE r.blob_id = c.blob_id) AS files
      FROM gc_candidates c JOIN blobs b ON b.id = c.blob_id
     WHERE c.blob_id > $1 ORDER BY c.blob_id LIMIT $2
    """,
)
# The planner's estimate, because a count reads every row; a table it has not looked at yet is small.
BLOBS = Statement(
    "blobs_about",
    """
    SELECT greatest((SELECT reltuples::bigint FROM pg_class WHERE oid = 'blobs'::regclass),
                    (SELECT count(*) FROM (SELECT 1 FROM blobs LIMIT 100000) AS sample)) AS blobs
    """,
)
ALLOWANCE = Statement(
    "gc_allowance",
    """
    SELECT coalesce(max(allowance), 0) AS allowance FROM holds
     WHERE reason = 'volume' AND released_at > clock_timestamp() - make_interval(hours => $1)
    """,
)
HELD = Statement("deletions_held", "SELECT deletions_held() AS held")
HOLD = Statement("hold_place", "SELECT place_hold('volume', $1, $2)")
COLLECT = Statement(
    "gc_collect", "SELECT g.* FROM require_writable(), gc_collect($1, $2, $3::bigint[], $4::timestamptz[], $5) g"
)
FEED = Statement("gc_feed", "SELECT * FROM gc_feed($1, $2, $3, $4)")


class DeletionsHeld(Exception):
    """Deletions were held in the middle of a run."""


class GarbageRows:
    """The candidates in Postgres. Satisfies ``GarbageCatalogue[Lease]``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def held(self) -> bool:
        row: Any = await self._database.fetchrow(HELD)
        return bool(row["held"])

    async def count(self, after: int, candidates_max: int, grace_seconds: float) -> Count:
        row: Any = await self._database.fetchrow(COUNT, after, candidates_max, timedelta(seconds=grace_seconds))
        return Count(row["seen"], row["going"], row["last"] if row["seen"] == candidates_max else None)

    async def blobs(self) -> int:
        row: Any = await self._database.fetchrow(BLOBS)
        return int(row["blobs"])

    async def allowance(self) -> int:
        row: Any = await self._database.fetchrow(ALLOWANCE, ALLOWANCE_HOURS)
        return int(row["allowance"])

    async def page(self, after: int, candidates_max: int, grace_seconds: float) -> Page:
        row: Any = await self._database.fetchrow(PAGE, after, candidates_max, timedelta(seconds=grace_seconds))
        last = row["last"] if row["seen"] == candidates_max else None
        return Page(row["blobs"] or (), row["since"] or (), last)

    async def candidates(self, after: int, candidates_max: int, grace_seconds: float) -> list[Candidate]:
        """Return candidates in the order of a run, and what would become of each; nothing is locked or written."""
        rows = await self._database.fetch(CANDIDATES, after, candidates_max, timedelta(seconds=grace_seconds))
        return [
            Candidate(
                blob=row["blob_id"],
                since=row["since"],
                reason=row["reason"],
                sha256=row["sha256"],
                size=row["size"],
                files=row["files"],
                due=row["due"],
                referenced=row["referenced"],
            )
            for row in rows
        ]

    async def collect(self, lease: Lease, page: Page, grace_seconds: float) -> Collected:
        arguments = (lease.epoch, lease.token, list(page.blobs), list(page.since), timedelta(seconds=grace_seconds))
        row: Any = await as_primary(self._database.write(COLLECT, *arguments))
        return Collected(row["removed_blobs"], row["removed_bytes"], row["removed_files"], row["referenced"])

    async def feed(self, lease: Lease, after: int, blobs_max: int) -> tuple[int | None, int]:
        row: Any = await as_primary(self._database.write(FEED, lease.epoch, lease.token, after, blobs_max))
        return row["last"], row["missed"]

    async def hold_for_volume(self, detail: str, blobs: int) -> None:
        await self._database.write(HOLD, detail, blobs)


async def as_primary(write: Awaitable[asyncpg.Record | None]) -> asyncpg.Record | None:
    """Await a write of the primary's. Raises ``NotPrimary``, ``DeletionsHeld``."""
    try:
        return await write
    except asyncpg.PostgresError as error:
        match error.sqlstate:
            case "HF003":
                raise NotPrimary(str(error)) from None
            case "HF005":
                raise DeletionsHeld(str(error)) from None
        raise
