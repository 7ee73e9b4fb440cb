"""Repositories as rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from repo_node.db.errors import CatalogueError
from repo_node.db.pool import Database, Statement


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


COLUMNS = "r.id, r.key, r.rclass, r.package_type, r.description, r.redundancy, r.created_at"
LIST = Statement("repositories_list", f"SELECT {COLUMNS} FROM repositories r ORDER BY r.key")
FIND = Statement("repository_find", f"SELECT {COLUMNS} FROM repositories r WHERE r.key = $1")
CREATE = Statement(
    "repository_create",
    """
    WITH made AS (
        INSERT INTO repositories (key, rclass, package_type, description, redundancy, created_by)
        VALUES ($1, $2, $3, $4, $5, $6) RETURNING id
    )
    INSERT INTO events (kind, repository, principal, request_id) SELECT 'repository_create', $1, $6, $7 FROM made
    """,
)
DELETE = Statement("repository_delete", "DELETE FROM repositories WHERE id = $1 RETURNING id")
LOCK = "SELECT id, pg_advisory_xact_lock(1, id) FROM repositories WHERE key = $1"
EMPTY = """
    WITH gone AS (DELETE FROM artifacts WHERE repo_id = $1 RETURNING blob_id)
    SELECT count(release_blob(b)) FROM (
        SELECT DISTINCT blob_id AS b FROM gone WHERE blob_id IS NOT NULL ORDER BY 1
    ) AS distinct_blobs
"""
RECORD_DELETE = "INSERT INTO events (kind, repository, principal, request_id) VALUES ('repository_delete', $1, $2, $3)"


def repository_from(row: asyncpg.Record) -> Repository:
    return Repository(
        id=row["id"],
        key=row["key"],
        rclass=row["rclass"],
        package_type=row["package_type"],
        description=row["description"],
        redundancy=row["redundancy"],
        created_at=row["created_at"],
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
    principal: str,
    request_id: str,
) -> None:
    """Make a repository. Raises ``RepositoryExists``."""
    try:
        await database.write(CREATE, key, rclass, package_type, description, redundancy, principal, request_id)
    except asyncpg.UniqueViolationError:
        raise RepositoryExists(key) from None


async def delete(database: Database, key: str, *, principal: str, request_id: str) -> bool:
    """Delete a repository with everything in it; False when there is none of that key.

    Its blobs become candidates for removal; their bytes stay until gc has made sure of each.
    """

    async def work(connection: asyncpg.Connection) -> bool:
        repository = await connection.fetchval(LOCK, key)
        if repository is None:
            return False
        await connection.execute(EMPTY, repository)
        if await connection.fetchval(DELETE.sql, repository) is None:
            return False
        await connection.execute(RECORD_DELETE, key, principal, request_id)
        return True

    return await database.transact(DELETE, work)
