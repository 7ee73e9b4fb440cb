"""Backups that the nodes keep on their shards by themselves."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import asyncpg
import pytest

from repo_node.backups import restore as restoring
from repo_node.backups import schedule
from repo_node.backups.schedule import ScheduledBackup
from repo_node.db import backups
from repo_node.db.jobs import NodeJobs
from repo_node.settings import LiveSettings
from sharding.backups import ShardBackups
from sharding.errors import ShardFull, ShardUnavailable
from sharding.model import NodeId, ShardId
from tests.repo_node.db.conftest import clean_dsn, connection, queries, scene, shared_dsn
from tests.repo_node.db.scene import Scene, table
from tests.repo_node.nodes import RunningCluster, new_path, wait_until
from tests.sharding import disks
from tests.sharding.local_shards import open_at

__all__ = ["clean_dsn", "connection", "queries", "scene", "shared_dsn"]

DAY = 86_400.0


def backups_of(disk_paths: list[Path]) -> list[Path]:
    return sorted((path for disk in disk_paths for path in disk.glob("backups/*.backup")), key=lambda path: path.name)


async def restore(dsn: str, path: Path) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        await restoring.restore_backup(connection, path, lambda *_: None)
        count: int = await connection.fetchval("SELECT count(*) FROM users")
        return count
    finally:
        await connection.close()


def test_node_keeps_the_last_backups_and_each_can_be_restored(one: RunningCluster, empty_dsn: str) -> None:
    from tests.postgres import run_apart

    assert one.admin.put(new_path(), b"something to lose").status == 201
    with one.settings(backup_idle_seconds=0.1, backup_period_seconds=1, backups_kept=2):
        first = one.first.metric("holdfast_backups_total")
        wait_until(lambda: one.first.metric("holdfast_backups_total") >= first + 4)
        wait_until(lambda: 2 <= len(backups_of(one.first.disks)) <= 2 * len(one.first.disks))
    latest = backups_of(one.first.disks)[-1]
    assert latest.stat().st_mode & 0o777 == 0o600
    assert restoring.check_backup(latest)["rows"]["users"] >= 1
    assert run_apart(restore(empty_dsn, latest)) >= 1
    recorded = {row["name"] for row in one.sql("SELECT name FROM backups")}
    assert recorded == {path.name for path in backups_of(one.first.disks)}


def test_a_backup_is_taken_when_somebody_asks_for_it(one: RunningCluster) -> None:
    assert one.admin.put(new_path(), b"something to lose").status == 201
    run = "/artifactory/api/holdfast/jobs/backup/run"
    for _ in range(2):
        before = one.first.metric("holdfast_backups_total")
        assert one.admin.post_json(run, {"node": None}).status == 202
        wait_until(lambda before=before: one.first.metric("holdfast_backups_total") == before + 1)  # type: ignore[misc]


def test_as_many_nodes_keep_backups_as_a_blob_has_copies(three: RunningCluster) -> None:
    assert three.admin.put(new_path(), b"something to lose").status == 201
    with three.settings(backup_idle_seconds=0.1, backup_period_seconds=1):
        wait_until(lambda: all(backups_of(node.disks) for node in three.nodes[:2]))
    assert backups_of(three.nodes[2].disks) == []


async def test_backup_is_due_once_in_a_period_on_the_first_living_nodes(
    scene: Scene,
    connection: asyncpg.Connection,
) -> None:
    async def due(copies: int = 2) -> list[str]:
        times = {node: await backups.due(scene.database, NodeId(node), copies, DAY) for node in ("n1", "n2", "n3")}
        return [node for node, at in times.items() if at]

    assert await due() == [], "there is nothing to lose yet"
    await scene.upload("a")
    assert await due() == ["n1", "n2"]
    assert await due(3) == ["n1", "n2", "n3"]
    await backups.record(scene.database, ShardId(1), "one", 10, ["one"], datetime.now(UTC))
    assert await due() == ["n2"]
    await connection.execute("UPDATE nodes SET stopped_at = now() WHERE id = 'n2'")
    assert await due() == ["n2", "n3"], "a node that is down, and yet asks, does no harm"
    await connection.execute("UPDATE backups SET taken_at = taken_at - interval '25 hours'")
    assert "n1" in await due()
    await connection.fetchval("SELECT place_hold('rebuild', 'a test')")
    assert await due() == []
    await connection.execute("DELETE FROM holds")


async def test_backup_that_was_asked_for_is_due_until_one_begun_since_is_there(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    async def due() -> datetime | None:
        return await backups.due(scene.database, NodeId("n1"), 2, None)

    await scene.upload("a")
    assert await due() is None, "by schedule none is due by itself"
    book = NodeJobs(scene.database, NodeId("n1"))
    await book.begin("backup")
    began_before: datetime = await connection.fetchval("SELECT clock_timestamp()")
    await connection.execute("UPDATE jobs SET requested_at = clock_timestamp()")
    await backups.record(scene.database, ShardId(1), "one", 10, ["one"], began_before)
    await book.begin("backup")  # and the process is killed
    began_at = await due()
    assert began_at is not None
    await backups.record(scene.database, ShardId(1), "two", 10, ["one", "two"], began_at)
    assert await due() is None


def test_scheduled_backup_that_fails_is_taken_at_the_next_look(
    one: RunningCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert one.admin.put(new_path(), b"something to lose").status == 201
    write, failures = schedule.write_snapshot, ["a bad moment"]

    async def fail_once(*args: Any) -> None:
        if failures:
            raise OSError(failures.pop())
        await write(*args)

    with one.settings(backup_cron="0 0 1 1 *", backup_idle_seconds=0.1):
        monkeypatch.setattr(schedule, "write_snapshot", fail_once)
        before = one.first.metric("holdfast_backups_total")
        assert one.admin.post_json("/artifactory/api/holdfast/jobs/backup/run", {"node": None}).status == 202
        wait_until(lambda: one.first.metric("holdfast_backups_total") == before + 1)
        assert not failures


async def test_backups_that_went_are_forgotten(
    scene: Scene,
    connection: asyncpg.Connection,
) -> None:
    for name in ("a", "b", "c"):
        kept = ["b", "c"] if name == "c" else ["a", "b"]
        await backups.record(scene.database, ShardId(1), name, 10, kept, datetime.now(UTC))
    assert await table(connection, "SELECT name FROM backups ORDER BY 1") == [("b",), ("c",)]


@pytest.fixture
async def keeper(tmp_path: Path) -> AsyncIterator[ShardBackups]:
    async with open_at(tmp_path / "shard") as shard:
        yield ShardBackups(shard.files)


def test_unfinished_backup_is_replaced_and_never_counted(keeper: ShardBackups, tmp_path: Path) -> None:
    for content, name in ((b"one", "1"), (b"left unfinished", None), (b"two", "2")):
        with keeper.create() as file:
            file.write(content)
        if name is not None:
            assert keeper.publish(name) == len(content)
    assert keeper.keep(5) == ["1", "2"]
    assert keeper.keep(1) == ["2"]
    assert os.listdir(tmp_path / "shard" / "backups") == ["2"]
    assert (tmp_path / "shard" / "backups" / "2").read_bytes() == b"two"


async def test_backup_ends_when_its_shard_is_given_up(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, files = ShardBackups.create, []
    async with open_at(tmp_path / "shard") as shard:
        shards = {shard.id: shard}

        def create_and_give_up(keeper: ShardBackups) -> IO[bytes]:
            files.append(create(keeper))
            shards.clear()
            shard._executor.shutdown(wait=False)
            return files[0]

        monkeypatch.setattr(ShardBackups, "create", create_and_give_up)
        metrics = SimpleNamespace(observe_backup=lambda count_bytes: None)
        job = ScheduledBackup(NodeId("n1"), shards, scene.database, LiveSettings(), metrics)  # type: ignore[arg-type]
        with pytest.raises(ShardUnavailable, match="given up while"):
            await job._write(shard, "one.backup")
    assert files[0].closed
    assert os.listdir(tmp_path / "shard" / "backups") == [".new"]


async def test_backup_leaves_a_disk_its_reserve(tmp_path: Path) -> None:
    with disks.mounted_tmpfs(tmp_path / "disk", size_kib=4096) as disk:
        async with open_at(disk / "shard", reserve_bytes=8 << 20) as shard:
            with pytest.raises(ShardFull):
                ShardBackups(shard.files).create()
