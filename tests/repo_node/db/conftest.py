"""Fixtures of the metadata tests: a small cluster in a database that is emptied before each test.

Making a database of its own for each of these tests would take most of their time; those that change
the schema, or fill it, ask for ``dsn`` instead.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from tests.postgres import TestServer
from tests.repo_node.db.scene import Queries, Scene, open_scene

# Children before parents: nothing cascades.
EMPTIED = (
    "events",
    "jobs",
    "schedules",
    "removals",
    "shard_walks",
    "shard_cursors",
    "repair_queue",
    "gc_candidates",
    "scrubs",
    "quarantine",
    "sightings",
    "checks",
    "backups",
    "removals",
    "trash",
    "transfers",
    "artifacts",
    "replicas",
    "blobs",
    "shard_space",
    "shards",
    "nodes",
    "used_refresh_tokens",
    "tokens",
    "login_failures",
    "permission_grants",
    "permission_targets",
    "group_members",
    "groups",
    "settings",
    "usage_changes",
    "repository_usage",
    "repository_members",
    "repositories",
    "lease",
    "storage_summary",
    "support_bundle_parts",
    "support_bundles",
    "holds",
)
UNGUARDED_SQL = "SET LOCAL session_replication_role = replica"
"""Triggers keep events from being deleted."""
GUARDED_SQL = "SET LOCAL session_replication_role = origin"
KEPT = ("schema_migrations", "cluster", "users", "census")
TABLES_SQL = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
LEAVE_SQL = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> $1"
)
RESTART_SQL = """
    SELECT setval(seqrelid, 1, false) FROM pg_sequence WHERE seqrelid <> pg_get_serial_sequence('users', 'id')::regclass
"""
PERMIT_SQL = "UPDATE repositories SET allow_delete = true WHERE NOT allow_delete"
# Without a trash: most of these tests look at what leaves for good.
SEED_SQL = "INSERT INTO repositories (key, created_by, trash) VALUES ('generic-local', 'init-db', false)"
ADMIN_SQL = """
    UPDATE users SET is_admin = true, is_enabled = true, must_change_password = false WHERE name = 'admin'
"""


@pytest.fixture(scope="session")
def shared_dsn(postgres: TestServer) -> Iterator[str]:
    with postgres.database(postgres.template()) as value:
        yield value


@pytest.fixture
async def clean_dsn(shared_dsn: str) -> str:
    """A database with the schema and its first rows, shared by tests that run one after the other."""
    connection = await asyncpg.connect(shared_dsn, timeout=10)
    try:
        assert {row[0] for row in await connection.fetch(TABLES_SQL)} == {*EMPTIED, *KEPT}, "a table is not emptied"
        await connection.execute(LEAVE_SQL, connection.get_server_pid())
        async with connection.transaction():
            await connection.execute(PERMIT_SQL)
            await connection.execute(UNGUARDED_SQL)
            for name in EMPTIED:
                await connection.execute(f"DELETE FROM {name}")
            await connection.execute(GUARDED_SQL)
            for statement in (RESTART_SQL, SEED_SQL, ADMIN_SQL):
                await connection.execute(statement)
    finally:
        await connection.close()
    return shared_dsn


@pytest.fixture
def queries() -> Queries:
    """What the database of ``scene`` told its observer."""
    return Queries()


@pytest.fixture
async def scene(clean_dsn: str, queries: Queries) -> AsyncIterator[Scene]:
    """Three nodes in three zones with two shards each, and the repository ``generic-local``."""
    async with open_scene(clean_dsn, queries) as value:
        yield value


@pytest.fixture
async def connection(clean_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection beside the pool of ``scene``, to the same database."""
    value = await asyncpg.connect(clean_dsn, timeout=10)
    try:
        yield value
    finally:
        value.terminate()


@pytest.fixture
async def watcher(clean_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Another connection, for ``until_blocked``."""
    value = await asyncpg.connect(clean_dsn, timeout=10)
    yield value
    value.terminate()
