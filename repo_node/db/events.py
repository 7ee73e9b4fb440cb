"""Events: what changed, who asked for it, from where. Their rows are only added.

Ids are given when an event is written, and events are seen when their transactions end, so a high id may be seen
before a low one. NOTIFY in the commit of an upload, which would tell of each, takes a global lock. So who follows
events polls, and is never handed one before another with a lower id.

No index but that of the ids: each would cost every upload. A search reads a bounded stretch of the log, and says where
the next one goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from repo_node.db.garbage import as_primary
from repo_node.db.lease import Lease
from repo_node.db.pool import Database, Statement


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; what does not belong to its kind is None."""

    id: int
    at: datetime
    kind: str
    repository: str | None
    path: str | None
    sha256: bytes | None
    principal: str
    request_id: str
    address: str | None
    detail: Any


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events; None and nothing stand for all.

    ``path``, which needs a ``repository``, wants what was done to it and below it, and to the folders around it as
    wholes; as the source of a copy, a move or a restore too.
    """

    kinds: Sequence[str] | None = None
    principal: str | None = None
    repository: str | None = None
    path: str | None = None


EVERYTHING = Wanted()


@dataclass(frozen=True, slots=True)
class Page:
    """``next`` is the id from which to go on in the same direction; ``more``: something may be there now."""

    events: Sequence[Event]
    next: int
    more: bool


BEYOND_ALL_IDS = (1 << 63) - 1

CLOCK = "SELECT clock_timestamp()"
RUNNING = """
    SELECT pid, xact_start FROM pg_stat_activity
     WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()
"""
WRITING = """
    SELECT DISTINCT l.pid FROM pg_locks l
     WHERE l.relation = 'events'::regclass AND l.mode = 'RowExclusiveLock'
       AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
"""
# Of a tree, what was done to a folder around it counts, but for what made that folder. What a copy, a move or a restore
# took is told in "from".
MATCHES = """
    ($4::text[] IS NULL OR e.kind = ANY ($4))
    AND ($5::text IS NULL OR e.principal = $5)
    AND ($6::text IS NULL OR e.repository = $6 OR starts_with((e.detail ->> 'from') || '/', $6 || '/'))
    AND ($7::text IS NULL OR EXISTS (
        SELECT 1 FROM unnest(ARRAY[concat_ws('/', e.repository, nullif(e.path, '')), e.detail ->> 'from']) AS u (place)
         WHERE u.place = $7 OR starts_with(u.place, $7 || '/')
            OR (e.kind NOT IN ('deploy', 'folder', 'repository_create', 'repository_change')
                AND starts_with($7, u.place || '/'))))
"""
COLUMNS = "e.id, e.at, e.kind, e.repository, e.path, e.sha256, e.principal, e.request_id, e.address, e.detail"
# The stretch that is read at most comes first, by ids alone; what is wanted of it in a second look.
AFTER_STRETCH = """
    SELECT max(s.id) FILTER (WHERE s.at < $4) AS last, count(*) FILTER (WHERE s.at < $4) AS settled
      FROM (SELECT id, at FROM events WHERE id > $1 AND id < $2 ORDER BY id LIMIT $3) s
"""
AFTER = Statement(
    "events_after",
    f"""
    SELECT {COLUMNS} FROM events e WHERE e.id > $1 AND e.id <= $2 AND {MATCHES} ORDER BY e.id LIMIT $3
    """,
)
BEFORE_STRETCH = "SELECT min(s.id) FROM (SELECT id FROM events WHERE id < $1 ORDER BY id DESC LIMIT $2) s"
BEFORE = Statement(
    "events_before",
    f"""
    SELECT {COLUMNS} FROM events e WHERE e.id < $1 AND e.id >= $2 AND {MATCHES} ORDER BY e.id DESC LIMIT $3
    """,
)
FORGET = Statement("events_forget", "SELECT forget_events($1, $2, $3) AS gone")


async def after(
    database: Database,
    start: int,
    count: int,
    wanted: Wanted = EVERYTHING,
    *,
    end: int = BEYOND_ALL_IDS,
    rows_max: int = 100_000,
) -> Page:
    """Return events after the id ``start`` and before ``end``, oldest first, from at most ``rows_max`` rows.

    What is younger than a transaction that writes events comes later: whoever goes on from ``next`` misses nothing, as
    long as all nodes use one role of the database and its clock does not go back.
    """

    async def work(connection: asyncpg.Connection) -> Page:
        settled = await settled_until(connection)
        stretch: Any = await connection.fetchrow(AFTER_STRETCH, start, end, rows_max, settled)
        if stretch["last"] is None:
            return Page((), start, False)
        rows = await connection.fetch(AFTER.sql, start, stretch["last"], count, *conditions(wanted))
        if len(rows) == count:
            return Page([event(row) for row in rows], rows[-1]["id"], True)
        return Page([event(row) for row in rows], stretch["last"], stretch["settled"] == rows_max)

    return await database.transact(AFTER, work)


async def before(
    database: Database,
    start: int | None,
    count: int,
    wanted: Wanted = EVERYTHING,
    *,
    rows_max: int = 100_000,
) -> Page:
    """Return events before the id ``start``, or the last ones, newest first, from at most ``rows_max`` rows."""

    async def work(connection: asyncpg.Connection) -> Page:
        begin = BEYOND_ALL_IDS if start is None else start
        low = await connection.fetchval(BEFORE_STRETCH, begin, rows_max)
        if low is None:
            return Page((), begin, False)
        rows = await connection.fetch(BEFORE.sql, begin, low, count, *conditions(wanted))
        reached = rows[-1]["id"] if len(rows) == count else low
        more = await connection.fetchval(BEFORE_STRETCH, reached, 1) is not None
        return Page([event(row) for row in rows], reached, more)

    return await database.transact(BEFORE, work)


def conditions(wanted: Wanted) -> tuple[Any, ...]:
    kinds = None if wanted.kinds is None else list(wanted.kinds)
    place = None if wanted.path is None else f"{wanted.repository}/{wanted.path}"
    return kinds, wanted.principal, wanted.repository, place


async def settled_until(connection: asyncpg.Connection) -> datetime:
    """Return a time: below the id of any event written before it, every event is seen by the next statement.

    An event's ``at`` is read after its id was given, and its id after its transaction has locked the table. So who
    may still show an id below that of an event older than now holds the lock, and began before that event: the clock
    is read first, then who runs, then who of them holds the lock. A lock is let go after its rows can be seen.
    """
    times: list[datetime] = [await connection.fetchval(CLOCK)]
    running = {row["pid"]: row["xact_start"] for row in await connection.fetch(RUNNING)}
    times += [running[row["pid"]] for row in await connection.fetch(WRITING) if row["pid"] in running]
    return min(times)


async def forget(database: Database, lease: Lease, count: int) -> int:
    """Let go of the oldest events beyond what ``audit_days`` keeps; return how many. Raises ``NotPrimary``."""
    row = await as_primary(database.write(FORGET, lease.epoch, lease.token, count))
    return 0 if row is None else int(row["gone"])


def event(row: asyncpg.Record) -> Event:
    return Event(
        id=row["id"],
        at=row["at"],
        kind=row["kind"],
        repository=row["repository"],
        path=row["path"],
        sha256=row["sha256"],
        principal=row["principal"],
        request_id=row["request_id"],
        address=None if row["address"] is None else str(row["address"]),
        detail=None if row["detail"] is None else json.loads(row["detail"]),
    )
