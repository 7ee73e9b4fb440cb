"""Events in the order of their ids, for readers who poll: none is ever handed out before one with a lower id.

Ids are given when an event is written, and events are seen when their transactions end, so a high id may be seen
before a low one. NOTIFY in the commit of an upload, which would tell of each, takes a global lock.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

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
PAGE = Statement(
    "events_page",
    """
    SELECT id, at, kind, repository, path, sha256, principal, request_id, address, detail
      FROM events WHERE id > $1 ORDER BY id LIMIT $2
    """,
)


async def page(database: Database, after: int, count: int) -> list[Event]:
    """Return at most ``count`` events after an id; what is younger than a transaction that writes events comes later.

    Whoever goes on from the last id returned misses nothing, as long as all nodes use one role of the database and
    its clock does not go back.
    """

    async def work(connection: asyncpg.Connection) -> list[asyncpg.Record]:
        settled = await settled_until(connection)
        rows = list(await connection.fetch(PAGE.sql, after, count))
        while rows and rows[-1]["at"] >= settled:
            rows.pop()
        return rows

    return [event(row) for row in await database.transact(PAGE, work)]


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
