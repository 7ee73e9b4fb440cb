"""Plans that a connection has kept since the tables were nearly empty, as in a young cluster, read no whole table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from repo_node.db import artifacts, blobs, known, principals, totals
from repo_node.db.commit_groups import COMMIT_GROUP, UploadToCommit, columns
from repo_node.db.pool import Statement
from repo_node.origin import Origin
from tests.postgres import TestServer
from tests.repo_node.db.scene import DAY_SECONDS, REPOSITORY, Queries, Scene, copies, open_scene
from tests.repo_node.db.test_plans import FILL_SQL, LARGE

KEPT_AFTER = 8
"""Postgres makes a plan for all arguments at the sixth use, and asyncpg keeps the statement from the first."""

GROW_SQL = f"DELETE FROM repair_queue; DELETE FROM gc_candidates; {FILL_SQL}"
ENTRIES_MAX = 600
"""Of indexes with 4,000 entries and more, about a hundred statements read so few."""

ENTRIES_SQL = "SELECT sum(idx_tup_read)::bigint AS entries FROM pg_stat_user_indexes WHERE relname = ANY ($1)"
TABLES_SQL = "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname = ANY ($1)"


@pytest.fixture
def young_dsn(postgres: TestServer) -> Iterator[str]:
    with postgres.database(postgres.template()) as dsn:
        yield dsn


@pytest.fixture(params=["VACUUM ANALYZE", "SELECT 1"], ids=["analyzed when small", "never analyzed"])
async def young(young_dsn: str, request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    """A scene whose connection (the pool hands out the one last used) has kept the plans of every statement of a request."""
    async with open_scene(young_dsn, Queries(), pool_connections_max=2) as scene:
        await scene.upload("few/0", b"0")
        await execute(scene, request.param)
        for number in range(KEPT_AFTER):
            await requests(scene, f"young/{number}")
        yield scene


async def execute(scene: Scene, sql: str) -> None:
    async with scene.database.apart() as connection:
        await connection.execute(sql)
        # Told now: what this connection read would count as a request's once it has ended.
        await connection.execute("SELECT pg_stat_force_next_flush()")


async def requests(scene: Scene, path: str) -> None:
    """Do once what requests do: uploads of new and known content, over another, downloads, listings, deletions."""
    database, folder, name = scene.database, *path.split("/")
    await scene.upload(path, path.encode())
    _, [copy, _] = await scene.upload(path, f"{path} again".encode())
    await scene.upload(f"{path}-known", path.encode())
    found = await artifacts.resolve(database, REPOSITORY, folder, name)
    assert found.item is not None and found.item.blob is not None
    await blobs.block_digests(database, found.item.blob.id, 0, 1)
    await blobs.replicas_of(database, found.item.blob.id)
    await blobs.mark_suspect(database, copy.shard, copy.generation)
    await principals.find_token(database, bytes(32))
    await deploy_without_bytes(scene, path)
    await upload_together(scene, path)
    assert [page async for page in artifacts.children(database, scene.repository, folder)]
    by = {"by": Origin("x", "r")}
    await artifacts.make_folder(database, scene.repository, f"{path}-folder", **by)
    for deleted in (f"{name}-known", f"{name}-folder"):
        assert await artifacts.delete(database, scene.repository, folder, deleted, **by) == 1


async def deploy_without_bytes(scene: Scene, path: str) -> None:
    """Deploy the content of ``path`` once more by each of its digests."""
    folder, name = path.split("/")
    blob = await artifacts.resolve(scene.database, REPOSITORY, folder, name)
    assert blob.item is not None and blob.item.blob is not None
    for digest in known.FIND_BY:
        found = await known.find_known(scene.database, digest, getattr(blob.item.blob, digest))
        assert found is not None
        at = (scene.repository, folder, f"{name}-{digest}")
        link = known.Link(uuid4(), datetime.now(UTC), *at, "{}", Origin("x", "r"), found.id, 2, 1, 1)
        outcome, _ = await known.link(scene.database, link, [replica.generation for replica in found.replicas])
        assert outcome is known.LinkOutcome.LINKED


async def upload_together(scene: Scene, path: str) -> None:
    """Commit a few uploads in one transaction."""
    uploads = [scene.deployment(f"{path}-together-{n}", f"{path} {n}".encode()) for n in range(3)]
    orders = [UploadToCommit(upload, copies(1, 3), "{}", DAY_SECONDS, short=False) for upload in uploads]
    row = await scene.database.write(COMMIT_GROUP, *columns(orders))
    assert row is not None and sorted(row["committed"]) == [1, 2, 3]


async def whole_scans(scene: Scene) -> dict[str, int]:
    """Return how often each large table has been read whole."""
    await scene.database.fetch(Statement("flush", "SELECT pg_stat_force_next_flush()"))
    rows = await scene.database.fetch(Statement("scans", TABLES_SQL), LARGE)
    return {row["relname"]: row["seq_scan"] for row in rows}


async def entries_read(scene: Scene) -> int:
    """Return how many entries of the large tables' indexes have been read."""
    await scene.database.fetch(Statement("flush", "SELECT pg_stat_force_next_flush()"))
    [row] = await scene.database.fetch(Statement("entries", ENTRIES_SQL), LARGE)
    return int(row["entries"])


async def test_kept_plans_use_indexes_when_tables_have_grown(young: Scene) -> None:
    await execute(young, GROW_SQL)
    before = await whole_scans(young)
    entries = await entries_read(young)
    await requests(young, "grown/0")
    assert await whole_scans(young) == before
    # Nor is an index read from end to end, or all that it has of one shard.
    assert await entries_read(young) - entries < ENTRIES_MAX


async def test_what_is_meant_to_read_whole_tables_does(young: Scene) -> None:
    await execute(young, GROW_SQL)
    before = await whole_scans(young)
    counted = await totals.read(young.database)
    assert counted.blobs > 4_000
    [row] = await young.database.survey(Statement("blobs", "SELECT count(*) AS blobs FROM blobs"))
    assert row["blobs"] == counted.blobs
    after = await whole_scans(young)
    assert after["blobs"] > before["blobs"]
    await requests(young, "grown/0")
    assert await whole_scans(young) == after
