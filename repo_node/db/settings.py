"""Cluster settings as rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import asyncpg

from repo_node.db.pool import Database, Statement
from repo_node.origin import Origin

READ = Statement("settings_read", "SELECT key, value FROM settings")
WRITE = Statement(
    "settings_write",
    """
    INSERT INTO settings (key, value, updated_by) VALUES ($1, $2, $3)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = now(), updated_by = excluded.updated_by
    """,
)
# The trigger that tells the census of a changed redundancy does not see a row go.
RESET = Statement(
    "settings_reset",
    """
    WITH gone AS (
        DELETE FROM settings WHERE key = $1 RETURNING key
    ), counted AS (
        UPDATE census SET asked = asked + 1, due_at = least(due_at, clock_timestamp())
         WHERE EXISTS (SELECT 1 FROM gone WHERE key = 'redundancy')
    )
    INSERT INTO events (kind, principal, request_id, address, detail)
    SELECT 'setting', $2, $3, $4, jsonb_build_object('key', g.key, 'reset', true) FROM gone g
    """,
)
LOCK = "LOCK TABLE settings IN SHARE ROW EXCLUSIVE MODE"
RECORD = """
    INSERT INTO events (kind, principal, request_id, address, detail)
    VALUES ('setting', $1, $2, $3, jsonb_build_object('key', $4::text, 'value', $5::jsonb))
"""


def decode(rows: list[asyncpg.Record]) -> dict[str, Any]:
    return {row["key"]: json.loads(row["value"]) for row in rows}


async def read(database: Database) -> dict[str, Any]:
    """Return the settings that were ever set; the others have their defaults."""
    return decode(await database.fetch(READ))


async def write(
    database: Database,
    key: str,
    value: Any,
    *,
    by: Origin,
    check: Callable[[dict[str, Any]], object],
) -> None:
    """Set one setting; ``check`` sees all of them together before, and refuses by raising."""

    async def work(connection: asyncpg.Connection) -> None:
        await connection.execute(LOCK)
        check({**decode(await connection.fetch(READ.sql)), key: value})
        text = json.dumps(value)
        await connection.execute(WRITE.sql, key, text, by.principal)
        await connection.execute(RECORD, *by, key, text)

    await database.transact(WRITE, work)


async def reset(database: Database, key: str, *, by: Origin, check: Callable[[dict[str, Any]], object]) -> None:
    """Give one setting its default back; ``check`` sees all the others together before, as in ``write``."""

    async def work(connection: asyncpg.Connection) -> None:
        await connection.execute(LOCK)
        check({name: value for name, value in decode(await connection.fetch(READ.sql)).items() if name != key})
        await connection.execute(RESET.sql, key, *by)

    await database.transact(RESET, work)
