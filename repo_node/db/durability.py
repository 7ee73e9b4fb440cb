"""Refuses a Postgres that is set to forget: an acknowledged upload must survive a crash of the database too."""

from __future__ import annotations

from repo_node.db.errors import NotDurable
from repo_node.db.pool import Database, Statement

DURABILITY = Statement(
    "durability",
    "SELECT current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS synchronous_commit",
)


async def check_durability(database: Database) -> None:
    """Make sure that a commit, once answered, is on disk. Raises ``NotDurable``, ``CatalogueUnavailable``.

    Asked on a connection of the pool, because a role or a database may have settings of its own.
    """
    row = await database.fetchrow(DURABILITY)
    assert row is not None
    if row["fsync"] != "on":
        raise NotDurable(f"Postgres runs with fsync = {row['fsync']}: a crash would lose data; turn it on")
    if row["synchronous_commit"] not in ("on", "remote_apply"):
        raise NotDurable(
            f"Postgres runs with synchronous_commit = {row['synchronous_commit']}: a crash would lose acknowledged "
            "uploads; set it to on, or to remote_apply, also where it is set for this role or database"
        )
