"""A consistent snapshot of the metadata as a stream of rows, and an empty database filled from one.

Every table is taken but those that only make sense while the cluster runs. What the tables are is read
from the database itself: a later release's snapshot has its own, and rows are named by their columns.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg

from repo_node.db import migrate

LEFT_OUT = frozenset(
    {
        "schema_migrations",
        "events",
        "jobs",
        "schedules",
        "lease",
        "checks",
        "backups",
        "sightings",
        "scrubs",
        "shard_space",
        "shard_walks",
        "shard_cursors",
        "census",
        "repair_queue",
        "transfers",
        "storage_summary",
        "support_bundles",
        "support_bundle_parts",
    }
)
"""Tables of the moment: progress, orders, the audit trail. The census finds again what lacks copies."""

SEEDED = ("cluster", "settings", "repositories", "users")
"""Tables in which a fresh database has rows of its own, which those of the snapshot replace."""

# Parents come before their children: a table's depth is the longest chain of references below it.
TABLES = """
    WITH RECURSIVE refs AS (
        SELECT conrelid AS child, confrelid AS parent FROM pg_constraint
         WHERE contype = 'f' AND connamespace = 'public'::regnamespace AND conrelid <> confrelid
    ), depths AS (
        SELECT c.oid, 0 AS depth FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
        UNION
        SELECT r.child, d.depth + 1 FROM depths d JOIN refs r ON r.parent = d.oid
    )
    SELECT c.relname AS name, max(d.depth) AS depth, greatest(c.reltuples, 0)::bigint AS rows_about,
           (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '') AS columns
      FROM depths d JOIN pg_class c ON c.oid = d.oid
     GROUP BY c.oid, c.relname, c.reltuples ORDER BY 2, 1
"""
BEGIN_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
DESCRIBE = "SELECT cluster_id, clock_timestamp() AS now, current_setting('server_version') AS server FROM cluster"
SEQUENCES = """
    SELECT s.seqrelid::regclass::text AS sequence, d.refobjid::regclass::text AS "table", a.attname AS "column"
      FROM pg_sequence s
      JOIN pg_depend d ON d.objid = s.seqrelid AND d.deptype = 'i'
      JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
"""
HOLD = "SELECT place_hold('rebuild', $1)"
RECORD = "INSERT INTO events (kind, principal, request_id, detail) VALUES ('restore', 'holdfast', '', $1::jsonb)"
LOCK = "SELECT pg_advisory_lock($1)"
UNLOCK = "SELECT pg_advisory_unlock($1)"
VERSION = migrate.VERSION.sql


Sink = Callable[[bytes], Coroutine[Any, Any, None]]


class NotEmpty(Exception):
    """The database holds a cluster already."""


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    columns: tuple[str, ...]
    rows_about: int


@asynccontextmanager
async def locked(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Keep out whoever else would change the schema."""
    await connection.execute(LOCK, migrate.LOCK_KEY)
    try:
        yield
    finally:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError):
            await connection.execute(UNLOCK, migrate.LOCK_KEY)


async def tables(connection: asyncpg.Connection) -> list[Table]:
    """Return the tables of a snapshot, parents first."""
    return [
        Table(row["name"], tuple(row["columns"]), row["rows_about"])
        for row in await connection.fetch(TABLES)
        if row["name"] not in LEFT_OUT
    ]


async def describe(connection: asyncpg.Connection) -> Mapping[str, Any]:
    """Return what a snapshot says of itself."""
    row = await connection.fetchrow(DESCRIBE)
    if row is None:
        raise ValueError("this database holds no cluster; was it made by holdfast init-db?")
    return {
        "cluster_id": str(row["cluster_id"]),
        "taken_at": row["now"].isoformat(),
        "server_version": row["server"],
        "schema_version": await connection.fetchval(VERSION),
    }


async def read_table(
    connection: asyncpg.Connection, table: Table, write: Callable[[bytes], Coroutine[Any, Any, None]]
) -> int:
    """Pass every row of a table on, as COPY's text; return how many there are."""
    columns = ", ".join(map(quoted, table.columns))
    status = await connection.copy_from_query(f"SELECT {columns} FROM {quoted(table.name)}", output=write)
    return int(status.split()[-1])


# Each node has a connection for its heartbeats that bears its name.
NODES_CONNECTED = """
    SELECT string_agg(application_name, ', ' ORDER BY application_name) FROM pg_stat_activity
     WHERE datname = current_database() AND application_name LIKE 'holdfast %' AND pid <> pg_backend_pid()
"""


async def check_empty(connection: asyncpg.Connection, found: Sequence[Table]) -> None:
    """Raise ``NotEmpty`` when the database holds more than a fresh one does, or nodes are connected to it."""
    if (connected := await connection.fetchval(NODES_CONNECTED)) is not None:
        raise NotEmpty(f"the database is in use: {connected} are connected; stop every node first")
    for table in found:
        if table.name not in SEEDED and await connection.fetchval(
            f"SELECT EXISTS (SELECT 1 FROM {quoted(table.name)})"
        ):
            hint = "restore into an empty one (DROP DATABASE, then CREATE DATABASE)"
            raise NotEmpty(f"the database is in use: there are rows in {table.name}; {hint}")


# Whoever follows events has ids that the lost database gave and this one does not know: milliseconds are above them.
EVENTS_AHEAD = """
    SELECT setval(pg_get_serial_sequence('events', 'id'),
                  greatest((SELECT coalesce(max(id), 0) FROM events),
                           (extract(epoch FROM clock_timestamp()) * 1000)::bigint))
"""


async def clear_seeds(connection: asyncpg.Connection, found: Sequence[Table]) -> None:
    """Remove the rows that a fresh database is made with."""
    for table in reversed(found):
        if table.name in SEEDED:
            await connection.execute(f"DELETE FROM {quoted(table.name)}")


async def write_table(
    connection: asyncpg.Connection, name: str, columns: Sequence[str], rows: AsyncIterator[bytes]
) -> int:
    """Fill a table with rows as COPY's text; return how many there were."""
    status = await connection.copy_to_table(name, columns=list(columns), source=rows)
    return int(status.split()[-1])


async def finish(connection: asyncpg.Connection, detail: str) -> None:
    """Let ids go on where the snapshot's end, and hold deletions until an operator has looked."""
    for row in await connection.fetch(SEQUENCES):
        top = f"SELECT max({quoted(row['column'])}) FROM {row['table']}"
        if (last := await connection.fetchval(top)) is not None:
            await connection.fetchval("SELECT setval($1::text::regclass, $2)", row["sequence"], last)
    await connection.fetchval(EVENTS_AHEAD)
    await connection.fetchval(HOLD, "restored from a backup: files may belong to what came after it")
    await connection.execute(RECORD, detail)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
