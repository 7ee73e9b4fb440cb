"""Brings a database to the schema this release needs; run by ``init-db`` and ``up``, never by a node.

A new database gets ``schema.sql`` whole; an older one the numbered files of ``migrations/``, each in
a transaction of its own, all under one advisory lock.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import asyncpg

from repo_node.auth import passwords
from repo_node.db.errors import CatalogueUnavailable, NoSchema, SchemaTooOld
from repo_node.db.pool import Database, Statement
from repo_node.db.servers import Servers

log = logging.getLogger("holdfast.migrate")

CONNECT_SECONDS = 10.0
LOCK_KEY = 0x486F6C64  # any number no other use of advisory locks takes
LOCK_WAIT_MILLISECONDS = 2_000
"""Below the deadline of a node's statement, which may have to wait behind a migration's."""

LOCK_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str


@dataclass(frozen=True, slots=True)
class InitResult:
    """What ``init_db`` did. ``admin_password`` is set when it made the admin user just now."""

    version: int
    applied: tuple[str, ...]
    admin_password: str | None = field(repr=False)


def schema_text() -> str:
    """Return ``schema.sql``: beside the packages in a checkout, inside this package when installed."""
    packaged = resources.files("repo_node.db") / "schema.sql"
    if packaged.is_file():
        return packaged.read_text("utf-8")
    return (Path(__file__).parents[2] / "schema.sql").read_text("utf-8")


def migrations() -> list[Migration]:
    """Return the migrations in order."""
    found = []
    for entry in (resources.files("repo_node.db") / "migrations").iterdir():
        if match := re.fullmatch(r"(\d{4})_(\w+)\.sql", entry.name):
            found.append(Migration(int(match[1]), match[2], entry.read_text("utf-8")))
    return sorted(found, key=lambda migration: migration.version)


def version_needed() -> int:
    """Return the schema version this code was written for."""
    return migrations()[-1].version


VERSION = Statement("schema_version", "SELECT coalesce(max(version), 0) AS version FROM schema_migrations")

RECORD = "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)"
HAS_SCHEMA = "SELECT to_regclass('schema_migrations') IS NOT NULL"
FIRST_CLUSTER = "INSERT INTO cluster DEFAULT VALUES ON CONFLICT DO NOTHING"
FIRST_SETTING = """
    INSERT INTO settings (key, value, updated_by) VALUES ($1, $2, 'init-db') ON CONFLICT (key) DO NOTHING
"""
FIRST_REPOSITORY = """
    INSERT INTO repositories (key, description, created_by)
    SELECT 'generic-local', 'The first repository', 'init-db' WHERE NOT EXISTS (SELECT 1 FROM repositories)
"""
FIRST_ANONYMOUS = """
    INSERT INTO users (name, password_hash) VALUES ('anonymous', '!') ON CONFLICT (name) DO NOTHING
"""
HAS_USERS = "SELECT EXISTS (SELECT 1 FROM users)"
FIRST_USER = "INSERT INTO users (name, password_hash, is_admin) VALUES ('admin', $1, true)"


async def init_db(
    dsn: str, *, first_settings: Mapping[str, Any] | None = None, admin_password: str | None = None
) -> InitResult:
    """Create or upgrade the schema and, once, what a new cluster starts from.

    That is the cluster id, the repository ``generic-local``, the settings in ``first_settings`` and
    the user ``admin`` with ``admin_password`` or a random one. Safe to run at any time and from several places.
    """
    connection = await Servers(dsn, timeout_seconds=CONNECT_SECONDS).connect()
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
        applied = await apply(connection, migrations(), schema_text())
        password = await seed(connection, first_settings or {}, admin_password)
        version = await connection.fetchval(VERSION.sql)
        return InitResult(version, tuple(applied), password)
    finally:
        await connection.close()


async def apply(connection: asyncpg.Connection, steps: Sequence[Migration], whole: str | None) -> list[str]:
    """Bring the schema to the last of ``steps``; a new database gets ``whole`` at once, where given.

    Returns the names of what was applied. The caller holds the advisory lock.
    """
    if not await connection.fetchval(HAS_SCHEMA) and whole is not None:
        async with connection.transaction():
            await connection.execute(whole)
            await connection.executemany(RECORD, [(step.version, step.name) for step in steps])
        return ["schema.sql"]
    known = await connection.fetchval(VERSION.sql) if await connection.fetchval(HAS_SCHEMA) else 0
    applied = []
    for step in steps:
        if step.version > known:
            await apply_step(connection, step)
            applied.append(step.name)
    return applied


async def apply_step(connection: asyncpg.Connection, step: Migration) -> None:
    """Apply one migration beside nodes that work.

    Whoever waits for a table's lock keeps those behind waiting too: so a step that does not get it soon, because a
    backup reads, lets go and comes again.
    """
    while True:
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {LOCK_WAIT_MILLISECONDS}")
                await connection.execute(step.sql)
                await connection.execute(RECORD, step.version, step.name)
            return
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            log.warning("migration %s waits for a lock; again in %.0f s", step.name, LOCK_PAUSE_SECONDS)
        await asyncio.sleep(LOCK_PAUSE_SECONDS)


async def seed(
    connection: asyncpg.Connection, first_settings: Mapping[str, Any], admin_password: str | None
) -> str | None:
    async with connection.transaction():
        await connection.execute(FIRST_CLUSTER)
        await connection.execute(FIRST_REPOSITORY)
        for key, value in first_settings.items():
            await connection.execute(FIRST_SETTING, key, json.dumps(value))
        if await connection.fetchval(HAS_USERS):
            return None
        password = admin_password or secrets.token_urlsafe(18)
        await connection.execute(FIRST_USER, passwords.hash_password(password))
        await connection.execute(FIRST_ANONYMOUS)
        return password


async def apply_schema(dsn: str) -> None:
    """Apply the schema and the first rows; what tests make their template database with."""
    await init_db(dsn)


async def check_version(database: Database) -> int:
    """Return the database's schema version.

    Raises ``SchemaTooOld`` when it is older than this code needs; a newer one is welcome, because
    every migration keeps the release before it working. ``CatalogueUnavailable`` when this role may not read it.
    """
    try:
        row = await database.fetchrow(VERSION)
    except NoSchema:
        raise SchemaTooOld(
            "the database has no Holdfast schema; run: holdfast init-db --dsn ... for a new cluster, or, if this "
            "cluster's database was lost: holdfast restore"
        ) from None
    except asyncpg.InsufficientPrivilegeError as error:
        raise CatalogueUnavailable(
            f"{error}; as the owner of the database run: holdfast init-db --dsn ... --node-role ROLE"
        ) from None
    version = int(row["version"]) if row else 0
    needed = version_needed()
    if version < needed:
        raise SchemaTooOld(
            f"the schema is at version {version} and this node needs {needed}; run: holdfast init-db --dsn ..."
        )
    return version
