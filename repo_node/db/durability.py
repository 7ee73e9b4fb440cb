"""Finds out a Postgres that is set to forget: an acknowledged upload must survive a crash of the database too.

A node refuses to start on one. Later it looks again with every heartbeat: a server that was promoted, or told to read
its configuration anew, may be set otherwise than the one the node started on.
"""

from __future__ import annotations

from typing import Any

import asyncpg

from repo_node.db.errors import NotDurable
from repo_node.db.pool import Database, Statement

DURABILITY = Statement(
    "durability",
    """
    SELECT current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
           current_setting('synchronous_commit') AS synchronous_commit
    """,
)


async def check_durability(database: Database) -> None:
    """Make sure that a commit, once answered, is on disk. Raises ``NotDurable``, ``CatalogueUnavailable``.

    Asked on a connection of the pool, because a role or a database may have settings of its own.
    """
    if (fault := fault_in(await database.fetchrow(DURABILITY))) is not None:
        raise NotDurable(fault)


async def find_fault(connection: asyncpg.Connection) -> str | None:
    """Return what ``check_durability`` would refuse this server for, None for nothing."""
    return fault_in(await connection.fetchrow(DURABILITY.sql))


def fault_in(row: Any) -> str | None:
    """Return what is wrong with these settings and what to do. Whether there is a standby is the operator's matter."""
    for name in ("fsync", "full_page_writes"):
        if row[name] != "on":
            return f"Postgres runs with {name} = {row[name]}: a crash would lose data; turn it on"
    if row["synchronous_commit"] not in ("on", "remote_apply"):
        return (
            f"Postgres runs with synchronous_commit = {row['synchronous_commit']}: a crash would lose acknowledged "
            "uploads; set it to on, or to remote_apply, also where it is set for this role or database"
        )
    return None
