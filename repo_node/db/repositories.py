"""Repositories as rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

import asyncpg

from repo_node.auth.path_patterns import EVERYTHING, NEVER, PathPatterns, expression_of, reach_of
from repo_node.db.artifacts import DELETE_PAGE
from repo_node.db.errors import CatalogueError
from repo_node.db.pool import Database, Statement
from repo_node.origin import Origin
from sharding.model import ALL_DIGESTS

ALL = "**/*"
"""The include pattern of who says nothing: it keeps nothing out."""

PATTERNS_KEPT = 4_096


@lru_cache(PATTERNS_KEPT)
def patterns_of(includes: str, excludes: str) -> PathPatterns:
    """Read lists of patterns, separated by commas."""
    listed = [pattern.strip() for pattern in includes.split(",")]
    # Every artifact has a name: this is everything, and costs no comparison.
    listed = [EVERYTHING if pattern == ALL else pattern for pattern in listed]
    return PathPatterns.of(listed, [pattern.strip() for pattern in excludes.split(",")])


class RepositoryExists(CatalogueError):
    """There is a repository of that key already."""


class BadRepository(CatalogueError):
    """A repository cannot be like this; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What an administrator says of a repository."""

    description: str = ""
    notes: str = ""
    layout: str = "simple-default"
    includes_pattern: str = ALL
    excludes_pattern: str = ""
    checksum_policy: str = "client-checksums"
    blacked_out: bool = False
    priority: bool = False
    """Whether a virtual repository looks here before it looks into members without."""
    allow_overwrite: bool = True
    allow_delete: bool = True
    redundancy: int | None = None
    trash: bool = True
    digests: tuple[str, ...] = ALL_DIGESTS
    """Which are computed of every upload; the sha256 is among them."""
    quota_bytes: int | None = None
    members: tuple[str, ...] = ()
    """The keys of what a virtual repository shows, in the order in which it is looked through."""
    default_deployment: str | None = None
    """The key of the member that an upload to a virtual repository goes to."""

    def accepts(self, path: str) -> bool:
        """Say whether the patterns let in an artifact at ``path``."""
        return not self.blacked_out and patterns_of(self.includes_pattern, self.excludes_pattern).allow(path)

    @property
    def paths_regex(self) -> str | None:
        """The same as Postgres reads it; None where nothing is kept out."""
        if self.blacked_out:
            return NEVER
        return expression_of([patterns_of(self.includes_pattern, self.excludes_pattern)])

    @property
    def reach_regex(self) -> str | None:
        """What a folder must match for the patterns to let in anything below it; None where all do."""
        return NEVER if self.blacked_out else reach_of([patterns_of(self.includes_pattern, self.excludes_pattern)])

    @property
    def roots(self) -> tuple[str, ...]:
        """Folders at or below one of which lies all that the patterns let in; '' is the whole repository."""
        return patterns_of(self.includes_pattern, self.excludes_pattern).roots


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository(Configuration):
    id: int
    key: str
    rclass: str
    package_type: str
    created_at: datetime

    @property
    def is_virtual(self) -> bool:
        return self.rclass == VIRTUAL

    @property
    def trusts_itself(self) -> bool:
        """Whether what a client declares of its bytes is compared, and refuses nothing."""
        return self.checksum_policy == "server-generated-checksums"


LOCAL, VIRTUAL = "local", "virtual"

# In the order of ``values_of``.
CONFIGURED = (
    "description, notes, layout, includes_pattern, excludes_pattern, paths_regex, checksum_policy, "
    "blacked_out, priority, allow_overwrite, allow_delete, redundancy, trash, digests, quota_bytes"
)
COLUMNS = """
    r.id, r.key, r.rclass, r.package_type, r.created_at, r.description, r.notes, r.layout, r.includes_pattern,
    r.excludes_pattern, r.checksum_policy, r.blacked_out, r.priority, r.allow_overwrite, r.allow_delete, r.redundancy,
    r.trash, r.digests, r.quota_bytes,
    ARRAY(SELECT k.key FROM repository_members m JOIN repositories k ON k.id = m.member_id
           WHERE m.virtual_id = r.id ORDER BY m.position) AS members,
    (SELECT d.key FROM repositories d WHERE d.id = r.default_deployment_id) AS default_deployment
"""
LIST = Statement("repositories_list", f"SELECT {COLUMNS} FROM repositories r ORDER BY r.key")
FIND = Statement("repository_find", f"SELECT {COLUMNS} FROM repositories r WHERE r.key = $1")
# UNION ends where what is reached has been reached before.
REACHED = """
    WITH RECURSIVE reached AS (
        SELECT m.member_id AS id FROM repository_members m WHERE m.virtual_id = $1
        UNION SELECT m.member_id FROM repository_members m JOIN reached p ON m.virtual_id = p.id
    )
"""
MEMBERS = Statement(
    "repository_members", f"{REACHED} SELECT {COLUMNS} FROM reached p JOIN repositories r ON r.id = p.id"
)
USED = Statement("repository_used", "SELECT used_bytes($1) AS bytes")
USED_BESIDE = Statement(
    "repository_used_beside",
    """
    SELECT used_bytes($1) - size_of((SELECT a.blob_id FROM artifacts a
                                     WHERE a.repo_id = $1 AND a.folder = $2 AND a.name = $3)) AS bytes
    """,
)
INSERT = f"""
    INSERT INTO repositories (key, rclass, package_type, created_by, {CONFIGURED})
    VALUES ($1, $2, $3, $4, {", ".join(f"${n}" for n in range(5, 20))}) RETURNING id
"""
UPDATE = f"""
    UPDATE repositories SET ({CONFIGURED}) = ROW({", ".join(f"${n}" for n in range(2, 17))}) WHERE id = $1
"""
# Whoever makes or changes a virtual repository does so alone: two could make a circle together.
LOCK_MEMBERS = "SELECT pg_advisory_xact_lock(5, 0)"
REPLACE_MEMBERS = """
    WITH gone AS (DELETE FROM repository_members WHERE virtual_id = $1)
    SELECT r.key, r.id, r.rclass, r.package_type FROM unnest($2::text[]) AS k JOIN repositories r ON r.key = k
"""
ADD_MEMBER = "INSERT INTO repository_members (virtual_id, position, member_id) VALUES ($1, $2, $3)"
REACHED_IDS = f"{REACHED} SELECT r.id, r.key, r.rclass FROM reached p JOIN repositories r ON r.id = p.id"
SET_DEPLOYMENT = "UPDATE repositories SET default_deployment_id = $2 WHERE id = $1"
COUNTED = "INSERT INTO repository_usage (repo_id, bytes) VALUES ($1, 0)"
UNCOUNTED = """
    WITH gone AS (DELETE FROM usage_changes WHERE repo_id = $1) DELETE FROM repository_usage WHERE repo_id = $1
"""
RECORD = """
    INSERT INTO events (kind, repository, principal, request_id, address, detail)
    VALUES ($1, $2, $3, $4, $5, $6::jsonb)
"""
CREATE = Statement("repository_create", INSERT)
CHANGE = Statement("repository_change", UPDATE)
DELETE = Statement("repository_delete", "DELETE FROM repositories WHERE id = $1 RETURNING id")
# Before the other one, for which uploads wait: whoever counts its artifacts may take long.
LOCK_USAGE = "SELECT pg_advisory_xact_lock(4, id) FROM repositories WHERE key = $1"
LOCK = "SELECT id, pg_advisory_xact_lock(1, id) FROM repositories WHERE key = $1"
# Every folder lies between these two: no segment is long enough to be above the second.
EMPTY = Statement(
    "repository_empty", "SELECT take_out($1, '', repeat(chr(1114111), 100), $2, $3) AS gone FROM require_writable()"
)
# Whoever saves one at this moment is waited for: what has another repository of this key is not given by it.
LOCK_TARGETS = "LOCK TABLE permission_targets IN SHARE ROW EXCLUSIVE MODE"
TARGETS = "SELECT array_agg(name ORDER BY name) FROM permission_targets WHERE repositories @> ARRAY[$1::text]"
LEAVE_TARGETS = "UPDATE permission_targets SET repositories = array_remove(repositories, $1) WHERE name = ANY ($2)"
RECORD_DELETE = """
    INSERT INTO events (kind, repository, principal, request_id, address, detail)
    VALUES ('repository_delete', $1, $2, $3, $4, jsonb_build_object('permission_targets', $5::text[]))
"""


def repository_from(row: asyncpg.Record) -> Repository:
    values = dict(row)
    return Repository(**values | {"digests": tuple(row["digests"]), "members": tuple(row["members"])})


def values_of(one: Configuration) -> tuple[Any, ...]:
    """Return the values of the columns ``CONFIGURED``."""
    return (
        one.description,
        one.notes,
        one.layout,
        one.includes_pattern,
        one.excludes_pattern,
        one.paths_regex,
        one.checksum_policy,
        one.blacked_out,
        one.priority,
        one.allow_overwrite,
        one.allow_delete,
        one.redundancy,
        one.trash,
        list(one.digests),
        one.quota_bytes,
    )


async def list_all(database: Database) -> list[Repository]:
    """Return every repository, by key."""
    return [repository_from(row) for row in await database.fetch(LIST)]


async def find(database: Database, key: str) -> Repository | None:
    """Return the repository named ``key``, or None."""
    row = await database.fetchrow(FIND, key)
    return None if row is None else repository_from(row)


async def find_members(database: Database, repository_id: int) -> list[Repository]:
    """Return what a virtual repository shows, and what those show that are virtual themselves, in no order."""
    return [repository_from(row) for row in await database.fetch(MEMBERS, repository_id)]


async def used_bytes(database: Database, repository_id: int) -> int | None:
    """Return the bytes of the artifacts in a repository with a quota; None for another, and until they are counted."""
    row: Any = await database.fetchrow(USED, repository_id)
    used: int | None = row["bytes"]
    return used


async def used_beside(database: Database, repository_id: int, folder: str, name: str) -> int | None:
    """Return the bytes of all artifacts in a repository with a quota but the one at a path; None as ``used_bytes``."""
    row: Any = await database.fetchrow(USED_BESIDE, repository_id, folder, name)
    used: int | None = row["bytes"]
    return used


async def create(
    database: Database,
    key: str,
    configuration: Configuration,
    *,
    rclass: str = LOCAL,
    package_type: str = "generic",
    by: Origin,
) -> None:
    """Make a repository. Raises ``RepositoryExists``, ``BadRepository``."""

    async def work(connection: asyncpg.Connection) -> None:
        made = await connection.fetchval(INSERT, key, rclass, package_type, by.principal, *values_of(configuration))
        if configuration.quota_bytes is not None:
            await connection.execute(COUNTED, made)
        if rclass == VIRTUAL:
            await set_members(connection, made, package_type, configuration)
        await connection.execute(RECORD, "repository_create", key, *by, None)

    try:
        await database.transact(CREATE, work)
    except asyncpg.UniqueViolationError:
        raise RepositoryExists(key) from None


async def set_members(connection: asyncpg.Connection, virtual: int, package_type: str, one: Configuration) -> None:
    """Let a virtual repository show these members. Raises ``BadRepository``."""
    await connection.execute(LOCK_MEMBERS)
    found = {row["key"]: row for row in await connection.fetch(REPLACE_MEMBERS, virtual, list(one.members))}
    for position, key in enumerate(one.members):
        if key not in found:
            raise BadRepository(f"there is no repository {key} that could be its member")
        if found[key]["package_type"] != package_type:
            raise BadRepository(f"the member {key} is of the package type {found[key]['package_type']}")
        await connection.execute(ADD_MEMBER, virtual, position, found[key]["id"])
    reached = {row["key"]: row for row in await connection.fetch(REACHED_IDS, virtual)}
    if any(row["id"] == virtual for row in reached.values()):
        raise BadRepository("it would be a member of itself")
    target = one.default_deployment
    if target is not None and (target not in reached or reached[target]["rclass"] != LOCAL):
        raise BadRepository(f"its default deployment repository {target} is no local repository among its members")
    await connection.execute(SET_DEPLOYMENT, virtual, None if target is None else reached[target]["id"])


async def change(database: Database, key: str, changes: Mapping[str, Any], *, by: Origin) -> Repository | None:
    """Change fields of ``Configuration`` of a repository; None when there is none of that key.

    It waits for the commits that are under way there: what comes after it finds the repository as it is now.
    Raises ``BadRepository``.
    """

    async def work(connection: asyncpg.Connection) -> Repository | None:
        if "quota_bytes" in changes:
            await connection.execute(LOCK_USAGE, key)
        if await connection.fetchval(LOCK, key) is None:
            return None
        row: Any = await connection.fetchrow(FIND.sql, key)
        before = repository_from(row)
        after = replace(before, **changes)
        if after.is_virtual:
            # Before its row, which whoever deletes a member of it changes.
            await connection.execute(LOCK_MEMBERS)
        await connection.execute(UPDATE, after.id, *values_of(after))
        if (before.quota_bytes is None) != (after.quota_bytes is None):
            await connection.execute(UNCOUNTED, after.id)
        if after.is_virtual and changes.keys() & {"members", "default_deployment"}:
            await set_members(connection, after.id, after.package_type, after)
        await connection.execute(RECORD, "repository_change", key, *by, json.dumps(changes))
        return after

    return await database.transact(CHANGE, work)


async def delete(database: Database, key: str, *, by: Origin, check: Callable[[], object] = lambda: None) -> bool:
    """Delete a repository with everything in it, and from permission targets; False when there is none of that key.

    A large one is emptied in steps before. What its trash does not keep becomes a candidate for removal;
    the bytes stay until gc has made sure of each. ``check`` is asked before each step, and ends the rest by raising.
    """

    async def work(connection: asyncpg.Connection) -> bool | None:
        """Return whether there was such a repository, None while something is left in it."""
        await connection.execute(LOCK_USAGE, key)
        repository = await connection.fetchval(LOCK, key)
        if repository is None:
            return False
        if await connection.fetchval(EMPTY.sql, repository, DELETE_PAGE, by.principal) == DELETE_PAGE:
            return None
        # Nor does anybody make it a member at this moment.
        await connection.execute(LOCK_MEMBERS)
        if await connection.fetchval(DELETE.sql, repository) is None:
            return False
        await connection.execute(RECORD_DELETE, key, *by, await leave_targets(connection, key))
        return True

    check()
    while (deleted := await database.transact(DELETE, work)) is None:
        check()
    return deleted


async def leave_targets(connection: asyncpg.Connection, key: str) -> list[str]:
    """Take a repository out of the permission targets that name it; return which these were."""
    await connection.execute(LOCK_TARGETS)
    names: list[str] = await connection.fetchval(TARGETS, key) or []
    # None, and the nodes are told of nothing.
    if names:
        await connection.execute(LEAVE_TARGETS, key, names)
    return names
