"""Repositories as rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from repo_node.db.artifacts import DELETE_PAGE
from repo_node.db.errors import CatalogueError
from repo_node.db.pool import Database, Statement
from repo_node.origin import Origin
from sharding.model import ALL_DIGESTS


class RepositoryExists(CatalogueError):
    """There is a repository of that key already."""


@dataclass(frozen=True, slots=True)
class Repository:
    id: int
    key: str
    rclass: str
    package_type: str
    description: str
    redundancy: int | None
    created_at: datetime
    trash: bool = True
    digests: tuple[str, ...] = ALL_DIGESTS
    """Which are computed of every upload; the sha256 is among them."""


COLUMNS = "r.id, r.key, r.rclass, r.package_type, r.description, r.redundancy, r.created_at, r.trash, r.digests"
LIST = Statement("repositories_list", f"SELECT {COLUMNS} FROM repositories r ORDER BY r.key")
FIND = Statement("repository_find", f"SELECT {COLUMNS} FROM repositories r WHERE r.key = $1")
CREATE = Statement(
    "repository_create",
    """
    WITH made AS (
        INSERT INTO repositories (key, rclass, package_type, description, redundancy, created_by, trash, digests)
        VALUES ($1, $2, $3, $4, $5, $6, $9, $10) RETURNING id
    )
    INSERT INTO events (kind, repository, principal, request_id, address)
    SELECT 'repository_create', $1, $6, $7, $8 FROM made
    """,
)
CHANGE = Statement(
    "repository_change",
    """
    WITH changed AS (
        UPDATE repositories SET trash = coalesce($2, trash), digests = coalesce($3, digests) WHERE key = $1
        RETURNING key
    ), event AS (
        INSERT INTO events (kind, repository, principal, request_id, address, detail)
        SELECT 'repository_change', key, $4, $5, $6,
               jsonb_strip_nulls(jsonb_build_object('trash', $2::boolean, 'digests', $3::text[]))
          FROM changed
    )
    SELECT key FROM changed
    """,
)
DELETE = Statement("repository_delete", "DELETE FROM repositories WHERE id = $1 RETURNING id")
LOCK = "SELECT id, pg_advisory_xact_lock(1, id) FROM repositories WHERE key = $1"
# Every folder lies between these two: no segment is long enough to be above the second.
EMPTY = Statement(
    "repository_empty", "SELECT take_out($1, '', repeat(chr(1114111), 100), $2, $3) AS gone FROM require_writable()"
)
RECORD_DELETE = """
    INSERT INTO events (kind, repository, principal, request_id, address) VALUES ('repository_delete', $1, $2, $3, $4)
"""


def repository_from(row: asyncpg.Record) -> Repository:
    return Repository(
        id=row["id"],
        key=row["key"],
        rclass=row["rclass"],
        package_type=row["package_type"],
        description=row["description"],
        redundancy=row["redundancy"],
        created_at=row["created_at"],
        trash=row["trash"],
        digests=tuple(row["digests"]),
    )


async def list_all(database: Database) -> list[Repository]:
    """Return every repository, by key."""
    return [repository_from(row) for row in await database.fetch(LIST)]


async def find(database: Database, key: str) -> Repository | None:
    """Return the repository named ``key``, or None."""
    row = await database.fetchrow(FIND, key)
    return None if row is None else repository_from(row)


async def create(
    database: Database,
    key: str,
    *,
    rclass: str,
    package_type: str,
    description: str,
    redundancy: int | None,
    by: Origin,
    trash: bool = True,
    digests: Sequence[str] = ALL_DIGESTS,
) -> None:
    """Make a repository. Raises ``RepositoryExists``."""
    values = (rclass, package_type, description, redundancy, *by, trash, digests)
    try:
        await database.write(CREATE, key, *values)
    except asyncpg.UniqueViolationError:
        raise RepositoryExists(key) from None


async def change(
    database: Database,
    key: str,
    *,
    trash: bool | None,
    digests: Sequence[str] | None,
    by: Origin,
) -> bool:
    """Change what is not None of a repository; False when there is none of that key."""
    return await database.write(CHANGE, key, trash, digests, *by) is not None


async def delete(database: Database, key: str, *, by: Origin, check: Callable[[], object] = lambda: None) -> bool:
    """Delete a repository with everything in it; False when there is none of that key.

    A large one is emptied in steps before. What its trash does not keep becomes a candidate for removal;
    the bytes stay until gc has made sure of each. ``check`` is asked before each step, and ends the rest by raising.
    """

    async def work(connection: asyncpg.Connection) -> bool | None:
        """Return whether there was such a repository, None while something is left in it."""
        repository = await connection.fetchval(LOCK, key)
        if repository is None:
            return False
        if await connection.fetchval(EMPTY.sql, repository, DELETE_PAGE, by.principal) == DELETE_PAGE:
            return None
        if await connection.fetchval(DELETE.sql, repository) is None:
            return False
        await connection.execute(RECORD_DELETE, key, *by)
        return True

    check()
    while (deleted := await database.transact(DELETE, work)) is None:
        check()
    return deleted
