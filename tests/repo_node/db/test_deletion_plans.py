"""No step of gc, of the trash or of removals reads a whole table, however the planner plans it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import asyncpg
import pytest

from repo_node.db import garbage, removals, trash
from tests.repo_node.db.test_plans import REPLICA_SQL, filled_dsn, large

__all__ = ["filled_dsn", "large"]

TOKEN = UUID("00000000-0000-4000-8000-000000000001")
LEASE = "SELECT lease_acquire('n1', $1, 0, 3600)"
AT_ONCE = "'0'::interval"
READS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "count": (garbage.COUNT.sql.replace("$3::interval", AT_ONCE), (100, 50)),
    "page": (garbage.PAGE.sql.replace("$3::interval", AT_ONCE), (100, 50)),
    "dry run": (garbage.CANDIDATES.sql.replace("$3::interval", AT_ONCE), (100, 50)),
    "feed": (garbage.FEED.sql, (1, TOKEN, 100, 50)),
    "due removals": (removals.DUE.sql, (1, 20)),
    "trash": (trash.LIST.sql, ("generic-local", "d7", "f7", 7, 20)),
    "trash below a folder": (trash.LIST_TREE.sql, ("generic-local", "d7", "", 0, 20, "d7", "d70")),
    "trash at a path": (trash.LIST_PATH.sql, ("generic-local", "d7", "f7", 0, 20)),
    "last of the trash at a path": (trash.LAST_AT.sql, ("generic-local", "d7", "f7")),
    "expiry": (trash.EXPIRE.sql, (1, TOKEN, 0.0, 20)),
}


@pytest.fixture
async def thrown_away(large: asyncpg.Connection) -> asyncpg.Connection:
    """The primary's connection to a database in which much is in the trash and listed for removal."""
    await large.fetchval(LEASE, TOKEN)
    await large.execute(
        "INSERT INTO trash (repository, folder, name, blob_id, created_at, created_by, modified_at, modified_by,"
        " properties, reason, trashed_by) SELECT 'generic-local', folder, name, blob_id, now(), '', now(), '', '{}',"
        " 'deleted', '' FROM artifacts WHERE blob_id % 3 = 0"
    )
    await large.execute(
        "SELECT remove_later(shard_id, generation, sha256(''), 'trim', 1, '0') FROM replicas WHERE blob_id % 5 = 0"
    )
    await large.execute("ANALYZE trash; ANALYZE removals")
    return large


async def counted(connection: asyncpg.Connection, sql: str, *args: Any) -> list[str]:
    """Return the tables that were scanned whole while ``sql`` ran."""
    before = await connection.fetch("SELECT relname, seq_scan FROM pg_stat_xact_user_tables")
    await connection.fetch(sql, *args)
    after = await connection.fetch("SELECT relname, seq_scan FROM pg_stat_xact_user_tables")
    was = {row["relname"]: row["seq_scan"] for row in before}
    small = {"lease", "holds", "settings", "repositories", "nodes", "shards"}
    return [row["relname"] for row in after if row["seq_scan"] > was.get(row["relname"], 0)
            and row["relname"] not in small]  # fmt: skip


@pytest.mark.parametrize("read", READS)
async def test_step_uses_indexes_alone(thrown_away: asyncpg.Connection, read: str) -> None:
    sql, args = READS[read]
    assert await counted(thrown_away, sql, *args) == []


async def test_collection_and_removal_use_indexes_alone(thrown_away: asyncpg.Connection) -> None:
    await thrown_away.execute("DELETE FROM trash WHERE blob_id <= 40")
    await thrown_away.execute("DELETE FROM artifacts WHERE blob_id <= 40")
    rows = await thrown_away.fetch("SELECT blob_id, since FROM gc_candidates WHERE blob_id <= 40")
    collect = garbage.COLLECT.sql.replace("$5", AT_ONCE)
    blobs, since = [row["blob_id"] for row in rows], [row["since"] for row in rows]
    assert await counted(thrown_away, collect, 1, TOKEN, blobs, since) == []
    listed = await thrown_away.fetch("SELECT generation FROM removals WHERE shard_id = 2 LIMIT 20")
    generations = [row["generation"] for row in listed]
    assert await counted(thrown_away, removals.FAILED.sql, 2, generations) == []
    assert await counted(thrown_away, removals.DONE.sql, 2, generations) == []
    first = await thrown_away.fetchrow(REPLICA_SQL, 121)
    assert first is not None
    later = "SELECT remove_later($1, $2, sha256(''), 'trim')"
    assert await counted(thrown_away, later, first["shard_id"], first["generation"]) == []
    thrown = await thrown_away.fetch("SELECT id FROM trash LIMIT 20")
    assert await counted(thrown_away, trash.EMPTY.sql, [row["id"] for row in thrown]) == []
    restored = await thrown_away.fetchval("SELECT max(id) FROM trash")
    restore = (restored, 1, "back", "here", True, "x", "r", None, False)
    assert await counted(thrown_away, trash.RESTORE.sql, *restore) == []
