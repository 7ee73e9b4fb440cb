"""Refuses a Postgres that may forget what it acknowledged."""

from __future__ import annotations

import asyncpg

READ = "SELECT current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS synchronous_commit"
SAFE_COMMITS = frozenset({"on", "remote_apply"})


class UnsafeDatabase(Exception):
    """Postgres is set up to lose acknowledged commits."""


async def check_durability(connection: asyncpg.Connection) -> None:
    """Raise ``UnsafeDatabase`` unless Postgres syncs every commit before it acknowledges it."""
    row = await connection.fetchrow(READ)
    assert row is not None
    if row["fsync"] != "on":
        raise UnsafeDatabase("Postgres runs with fsync = off and can lose everything; set fsync = on")
    if row["synchronous_commit"] not in SAFE_COMMITS:
        raise UnsafeDatabase(
            f"Postgres runs with synchronous_commit = {row['synchronous_commit']} and can lose acknowledged uploads; "
            "set synchronous_commit = on"
        )
