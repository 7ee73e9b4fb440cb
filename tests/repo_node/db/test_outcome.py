"""The way to Postgres breaks in the middle of a write: the repeat has one effect, whatever became of the first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from repo_node import settings as typed
from repo_node.db import artifacts, settings
from repo_node.db.blobs import CommitOutcome, CommitResult, Deployment
from repo_node.db.errors import CatalogueError, CatalogueUnavailable, OutcomeUnknown
from repo_node.db.trash import Trashed
from repo_node.errors import NotFound
from repo_node.origin import Origin
from repo_node.paths import ArtifactPath
from repo_node.recent import RecentItems
from repo_node.settings import LiveSettings
from repo_node.trash import Restoration, Trash
from sharding.model import Replica
from tests.repo_node.db.scene import (
    WAIT_SECONDS,
    Queries,
    Scene,
    copies,
    digests_of,
    open_scene,
    paths,
    replicas_in,
    table,
)
from tests.repo_node.db.severing_proxy import Fate, SeveringProxy, open_proxy

REPEATS_MAX = 20
STANDS = {Fate.UNANSWERED, Fate.HALF_ANSWERED, Fate.SILENCE}
"""Fates of a request that Postgres got and carried out."""


class Line:
    """The scene through a proxy."""

    def __init__(self, scene: Scene, proxy: SeveringProxy) -> None:
        self.scene = scene
        self.proxy = proxy

    async def commit_until_known(
        self, deployment: Deployment, ours: list[Replica], confirmed: list[Replica] | None = None
    ) -> CommitResult:
        for _ in range(REPEATS_MAX):
            try:
                return await self.scene.commit(deployment, ours, confirmed)
            except CatalogueError:
                await asyncio.sleep(0.05)
        raise AssertionError("no answer")


@pytest.fixture
async def line(clean_dsn: str, queries: Queries) -> AsyncIterator[Line]:
    async with (
        open_proxy(clean_dsn) as (proxy, dsn),
        open_scene(dsn, queries, statement_timeout_seconds=0.5, connect_timeout_seconds=2.0) as scene,
    ):
        yield Line(scene, proxy)


@pytest.mark.parametrize("fate", Fate)
async def test_upload_repeated_after_a_cut_has_one_effect(
    line: Line, connection: asyncpg.Connection, fate: Fate
) -> None:
    deployment, ours = line.scene.deployment("f/a", b"new"), copies(1, 3)
    trap = line.proxy.set_trap(deployment.upload.bytes, fate)
    with pytest.raises(OutcomeUnknown):
        await line.scene.commit(deployment, ours)
    assert trap.sprung
    if fate in STANDS:
        await until_there(connection, "SELECT count(*) FROM events")
    result = await line.commit_until_known(deployment, ours)
    assert result.outcome is CommitOutcome.ADOPTED
    await assert_one_effect(line, connection, deployment, ours, result)


@pytest.mark.parametrize("fate", [Fate.CUT, Fate.ABANDONED, Fate.UNANSWERED])
async def test_deduplication_repeated_after_a_cut_has_one_effect(
    line: Line, connection: asyncpg.Connection, fate: Fate
) -> None:
    _, existing = await line.scene.upload("first", b"new")
    await connection.execute("SET session_replication_role = replica; DELETE FROM events")
    deployment, ours = line.scene.deployment("f/a", b"new"), copies(2, 5)
    line.proxy.set_trap(deployment.upload.bytes, fate)
    with pytest.raises(OutcomeUnknown):
        await line.scene.commit(deployment, ours, existing)
    result = await line.commit_until_known(deployment, ours, existing)
    assert result.outcome is CommitOutcome.DEDUPLICATED
    await assert_one_effect(line, connection, deployment, existing, result)


@pytest.mark.parametrize("fate", [Fate.CUT, Fate.HALF_ANSWERED])
async def test_upload_cut_at_every_place_has_one_effect(line: Line, connection: asyncpg.Connection, fate: Fate) -> None:
    for number, offset in enumerate((1, 4, 5, 6, 7, 15, 30, 60, 99, 150, 220)):
        data = bytes([number])
        deployment, ours = line.scene.deployment(f"f/{number}", data), copies(1, 3)
        trap = line.proxy.set_trap(deployment.upload.bytes, fate, offset)
        try:
            result = await line.scene.commit(deployment, ours)
        except OutcomeUnknown:
            result = await line.commit_until_known(deployment, ours)
        assert trap.sprung
        assert result.outcome is CommitOutcome.ADOPTED
        assert set(await replicas_in(connection, data)) == {r.generation for r in ours}
        assert await table(connection, "SELECT count(*) FROM events WHERE upload_id = $1", deployment.upload) == [(1,)]


async def test_first_that_is_still_at_work_makes_the_repeat_wait(line: Line, connection: asyncpg.Connection) -> None:
    """The connection breaks while the first is held up by a lock: for a while it goes on without us."""
    await line.scene.upload("f/a", b"old")
    deployment, ours = line.scene.deployment("f/a", b"new"), copies(1, 3)
    async with connection.transaction():
        await connection.fetch("SELECT 1 FROM artifacts FOR UPDATE")
        line.proxy.set_trap(deployment.upload.bytes, Fate.SILENCE)
        with pytest.raises(OutcomeUnknown):
            await line.scene.commit(deployment, ours)
        with pytest.raises(OutcomeUnknown):
            await line.scene.commit(deployment, ours)
    result = await line.commit_until_known(deployment, ours)
    assert result.outcome is CommitOutcome.ADOPTED
    assert set(await replicas_in(connection, b"new")) == {r.generation for r in ours}
    assert await table(connection, "SELECT count(*) FROM events WHERE upload_id = $1", deployment.upload) == [(1,)]


async def test_no_connection_at_all_is_no_doubt(line: Line, connection: asyncpg.Connection) -> None:
    deployment, ours = line.scene.deployment("a"), copies(1, 3)
    line.proxy.accepts = False
    line.proxy.set_trap(deployment.upload.bytes, Fate.LOST)
    with pytest.raises(OutcomeUnknown):
        await line.scene.commit(deployment, ours)
    for _ in range(2):
        with pytest.raises(CatalogueUnavailable):
            await line.scene.commit(deployment, ours)
    line.proxy.accepts = True
    assert (await line.scene.commit(deployment, ours)).outcome is CommitOutcome.ADOPTED
    assert await table(connection, "SELECT count(*) FROM events") == [(1,)]


async def test_read_that_breaks_is_unavailable_and_the_next_one_works(line: Line) -> None:
    await line.scene.upload("f/findme")
    for fate in Fate:
        trap = line.proxy.set_trap(b"findme", fate)
        with pytest.raises(CatalogueUnavailable):
            await artifacts.resolve(line.scene.database, "generic-local", "f", "findme")
        assert trap.sprung
        found = await artifacts.resolve(line.scene.database, "generic-local", "f", "findme")
        assert found.item is not None


@pytest.mark.parametrize("fate", Fate)
async def test_deletion_that_breaks_is_done_at_most_once(
    line: Line, connection: asyncpg.Connection, fate: Fate
) -> None:
    await line.scene.upload("f/deleteme")
    line.proxy.set_trap(b"deleteme", fate)
    args = (line.scene.database, line.scene.repository, "f", "deleteme")
    with pytest.raises(OutcomeUnknown):
        await artifacts.delete(*args, by=Origin("x", "r"))
    await artifacts.delete(*args, by=Origin("x", "r"))
    assert await paths(connection) == ["f"]
    assert await table(connection, "SELECT count(*) FROM events WHERE kind = 'delete'") == [(1,)]
    assert await table(connection, "SELECT count(*) FROM gc_candidates") == [(1,)]


@pytest.mark.parametrize("fate", Fate)
async def test_setting_cut_off_at_its_commit_is_whole_or_not_there(
    line: Line, connection: asyncpg.Connection, fate: Fate
) -> None:
    trap = line.proxy.set_trap(b"COMMIT", fate)
    with pytest.raises(OutcomeUnknown):
        await settings.write(line.scene.database, "redundancy", 3, by=Origin("x", "r"), check=typed.combine)
    assert trap.sprung
    if fate in STANDS:
        await until_there(connection, "SELECT count(*) FROM events")
    both = "SELECT (SELECT value FROM settings), (SELECT count(*) FROM events)"
    assert await table(connection, both) in ([(None, 0)], [("3", 1)])


async def until_there(connection: asyncpg.Connection, count_sql: str) -> None:
    """Return once the count is one; a cut connection does not tell when the server is done."""
    async with asyncio.timeout(WAIT_SECONDS):
        while await connection.fetchval(count_sql) != 1:
            await asyncio.sleep(0.01)


async def assert_one_effect(
    line: Line, connection: asyncpg.Connection, deployment: Deployment, kept: list[Replica], result: CommitResult
) -> None:
    assert await line.scene.commit(deployment, copies(1, 3)) == result
    rows = await table(connection, "SELECT upload_id FROM events WHERE kind = 'deploy'")
    assert rows == [(deployment.upload,)]
    assert set(await replicas_in(connection, b"new")) == {r.generation for r in kept}
    assert "f/a" in await paths(connection)


@pytest.mark.parametrize("fate", Fate)
async def test_restore_from_the_trash_whose_answer_is_lost_brings_back_one_version(
    line: Line, connection: asyncpg.Connection, fate: Fate
) -> None:
    database = line.scene.database
    await connection.execute("UPDATE repositories SET trash = true")
    for data in (b"old", b"new"):
        await line.commit_until_known(line.scene.deployment("a", data), copies(1, 3))
        await connection.execute("SELECT delete_item($1, '', 'a', 'x', 'r')", line.scene.repository)
    live = LiveSettings()
    at, trash = ArtifactPath("generic-local", "", "a"), Trash(database, RecentItems(live), live)
    trap = line.proxy.set_trap(b"the-restore", fate)
    done = await trash.restore(at, at, replace=False, by=Origin("x", "the-restore"))
    assert trap.sprung and done == Restoration(restored=1)
    content = "SELECT b.sha256 FROM {} JOIN blobs b ON b.id = blob_id WHERE name = 'a'"
    assert await table(connection, content.format("artifacts")) == [(digests_of(b"new").sha256,)]
    assert await table(connection, content.format("trash")) == [(digests_of(b"old").sha256,)]


async def test_version_that_somebody_else_restored_is_not_replaced_by_an_older_one(
    scene: Scene, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await connection.execute("UPDATE repositories SET trash = true")
    for data in (b"old", b"new"):
        await scene.upload("a", data)
        await artifacts.delete(scene.database, scene.repository, "", "a", by=Origin("x", "r"))
    live = LiveSettings()
    at, trash = ArtifactPath("generic-local", "", "a"), Trash(scene.database, RecentItems(live), live)
    seen = await trash._last(at)

    async def last(_: ArtifactPath) -> Trashed | None:
        return seen

    by = {"by": Origin("x", "r")}
    await trash.restore(at, ArtifactPath("generic-local", "elsewhere", "a"), replace=False, **by)
    monkeypatch.setattr(trash, "_last", last)
    with pytest.raises(NotFound):
        await trash.restore(at, at, replace=False, **by)
    assert (await artifacts.resolve(scene.database, "generic-local", "", "a")).item is None
