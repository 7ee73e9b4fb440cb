"""A small cluster as rows, and uploads as a node commits them: what the metadata tests share."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast
from uuid import UUID, uuid4

import asyncpg
import xxhash

from repo_node.config import DatabaseSection
from repo_node.db import blobs, lease
from repo_node.db.blobs import CommitOutcome, CommitResult, Deployment
from repo_node.db.lease import Lease
from repo_node.db.pool import Database, Statement, open_database
from repo_node.origin import Origin
from sharding.model import BLOCK_BYTES, BlobDigests, Generation, NodeId, Replica, ShardId

REPOSITORY = "generic-local"
DAY_SECONDS = 86_400.0
WAIT_SECONDS = 10.0

NODES_SQL = """
    INSERT INTO nodes (id, zone, url, internal_url, version, incarnation, heartbeat_at)
    SELECT 'n' || i, 'z' || i, 'http://n' || i, 'http://n' || i || ':1', '0', gen_random_uuid(),
           now() + interval '1 day'
      FROM generate_series(1, 3) AS i
"""
SHARDS_SQL = """
    INSERT INTO shards (uid, node_id, path, owner)
    SELECT gen_random_uuid(), n.id, '/disk' || d, n.incarnation
      FROM nodes n, generate_series(1, 2) AS d ORDER BY n.id, d
"""
BLOCKED_SQL = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


@dataclass
class Queries:
    """A ``QueryObserver`` that remembers."""

    seen: list[tuple[str, str]] = field(default_factory=list)

    def observe_query(self, name: str, seconds: float, outcome: str) -> None:
        assert seconds >= 0
        self.seen.append((name, outcome))


class OneConnection:
    """Runs what is written for a ``Database`` on one connection, so that a test can hold its transaction open."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def write(self, statement: Statement, *args: Any) -> asyncpg.Record | None:
        return await self._connection.fetchrow(statement.sql, *args)


@dataclass
class Scene:
    """Shards 1 and 2 are on node n1 in zone z1, 3 and 4 on n2 in z2, 5 and 6 on n3 in z3; all nodes are up."""

    dsn: str
    database: Database
    repository: int

    def deployment(self, path: str, data: bytes = b"bytes", **overrides: Any) -> Deployment:
        """Return an upload of ``data`` to ``path``, begun a second ago."""
        folder, _, name = path.rpartition("/")
        values: dict[str, Any] = {
            "upload": uuid4(),
            "started_at": datetime.now().astimezone(),
            "repository_id": self.repository,
            "folder": folder,
            "name": name,
            "properties": {},
            "by": Origin("alice", "request-1"),
            "blob_uid": uuid4(),
            "digests": digests_of(data),
            "redundancy": 2,
        }
        return Deployment(**(values | overrides))

    async def commit(
        self,
        deployment: Deployment,
        replicas: Sequence[Replica],
        confirmed: Sequence[Replica] | None = None,
        **more: Any,
    ) -> CommitResult:
        return await commit(self.database, deployment, replicas, confirmed, **more)

    async def upload(
        self, path: str, data: bytes = b"bytes", shards: Sequence[int] = (1, 3), **overrides: Any
    ) -> tuple[CommitOutcome, list[Replica]]:
        """Upload as a node does, with every existing replica confirmed; return the outcome and what was written."""
        deployment = self.deployment(path, data, **overrides)
        written = copies(*shards) if data else []
        result = await self.commit(deployment, written)
        if result.outcome is CommitOutcome.CONFIRM:
            result = await self.commit(deployment, written, result.existing)
        return result.outcome, written


@asynccontextmanager
async def open_scene(dsn: str, queries: Queries, **config: Any) -> AsyncIterator[Scene]:
    async with open_database(database_section(dsn, **config), queries) as database:
        await database.write(Statement("nodes", NODES_SQL))
        await database.write(Statement("shards", SHARDS_SQL))
        row = await database.fetchrow(Statement("repository", "SELECT id FROM repositories WHERE key = $1"), REPOSITORY)
        assert row is not None
        queries.seen.clear()
        yield Scene(dsn, database, row["id"])


def database_section(dsn: str, **overrides: Any) -> DatabaseSection:
    values = {"dsn": dsn, "pool_connections_max": 8, "connect_timeout_seconds": 5.0, "statement_timeout_seconds": 10.0}
    return DatabaseSection.model_validate(values | overrides)


async def commit(
    database: Database | OneConnection,
    deployment: Deployment,
    replicas: Sequence[Replica],
    confirmed: Sequence[Replica] | None = None,
    *,
    short: bool = False,
    age_max_seconds: float = DAY_SECONDS,
) -> CommitResult:
    return await blobs.commit_upload(
        cast(Database, database),
        deployment,
        replicas,
        age_max_seconds=age_max_seconds,
        properties_json=json.dumps(deployment.properties),
        short=short,
        confirmed=None if confirmed is None else [replica.generation for replica in confirmed],
    )


def digests_of(data: bytes) -> BlobDigests:
    blocks = b"".join(
        xxhash.xxh3_64_digest(data[start : start + BLOCK_BYTES]) for start in range(0, len(data), BLOCK_BYTES)
    )
    sha1, md5 = hashlib.sha1(data).digest(), hashlib.md5(data).digest()
    return BlobDigests(len(data), hashlib.sha256(data).digest(), sha1, md5, blocks)


def copies(*shards: int) -> list[Replica]:
    """Return new replicas, one on each of ``shards``."""
    return [Replica(ShardId(shard), Generation(uuid4())) for shard in shards]


async def replicas_in(connection: asyncpg.Connection, data: bytes = b"bytes") -> dict[UUID, tuple[int, str]]:
    """Return the replicas of a blob: by generation, the shard and the state."""
    rows = await connection.fetch(
        "SELECT r.generation, r.shard_id, r.state FROM replicas r JOIN blobs b ON b.id = r.blob_id WHERE b.sha256 = $1",
        hashlib.sha256(data).digest(),
    )
    return {row["generation"]: (row["shard_id"], row["state"]) for row in rows}


async def table(connection: asyncpg.Connection, sql: str, *args: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await connection.fetch(sql, *args)]


async def only_row(connection: asyncpg.Connection, sql: str, *args: Any) -> asyncpg.Record:
    [row] = await connection.fetch(sql, *args)
    return row


async def paths(connection: asyncpg.Connection, condition: str = "true") -> list[str]:
    """Return the paths of the artifacts and folders, in the order of their bytes."""
    rows = await connection.fetch(f"SELECT concat_ws('/', nullif(folder, ''), name) FROM artifacts WHERE {condition}")
    return sorted(row[0] for row in rows)


async def become_primary(connection: asyncpg.Connection) -> Lease:
    token = uuid4()
    epoch = await lease.acquire(connection, NodeId("n1"), token, known=0, seconds=60)
    assert epoch is not None
    return Lease(epoch, token)


async def until_blocked(watcher: asyncpg.Connection, count: int = 1) -> None:
    """Return once ``count`` connections to this database wait for a lock."""
    async with asyncio.timeout(WAIT_SECONDS):
        while await watcher.fetchval(BLOCKED_SQL) < count:
            # The statistics of a transaction are read once in it, unless told otherwise.
            await watcher.execute("SELECT pg_stat_clear_snapshot()")
            await asyncio.sleep(0.005)
