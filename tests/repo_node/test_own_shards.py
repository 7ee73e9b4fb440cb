"""A node whose disks fail, are missing or change while it runs: the others go on, and what is back is used again."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from repo_node.cluster import own_shards
from repo_node.cluster.membership import connect
from repo_node.cluster.own_shard import OwnShard
from repo_node.cluster.own_shards import OwnShards
from repo_node.config import ConfigError, NodeConfig, ShardSection
from repo_node.db.errors import CatalogueUnavailable
from sharding.identity import ShardIdentity, ShardIdentityError
from sharding.local import LocalShard
from sharding.model import ShardId
from tests.repo_node.nodes import (
    SOON_SECONDS,
    RunningCluster,
    RunningNode,
    configure,
    errors_of,
    new_path,
    random_bytes,
    run_nodes,
    wait_until,
)

BASE = "/artifactory/api/holdfast"
QUICK = {
    "shard_retry_seconds": 0.1,
    "shard_give_up_seconds": 0.3,
    "heartbeat_seconds": 0.2,
    "verdict_idle_seconds": 0.1,
    "walk_idle_seconds": 0.1,
    "repair_idle_seconds": 0.1,
    "drain_pass_seconds": 0.2,
}


@pytest.fixture
def config(ready_dsn: str, directory: Path) -> NodeConfig:
    return configure(ready_dsn, directory, shards=3)


def quicken(cluster: RunningCluster) -> None:
    """Let ``QUICK`` hold, also for what is being waited for already."""
    cluster.set(QUICK)
    cluster.sql("SELECT pg_notify('holdfast', 'shards')")


def await_beat(cluster: RunningCluster) -> None:
    """Let the first node look at its shards, and return when it has reported them since."""
    now = cluster.sql("SELECT pg_notify('holdfast', 'shards'), clock_timestamp() AS now")[0]["now"]
    wait_until(lambda: cluster.sql("SELECT heartbeat_at FROM nodes WHERE id = 'node-1'")[0][0] > now)


def order(cluster: RunningCluster, path: Path | None = None) -> None:
    """Have the first node read its file again, and make ``path`` a shard."""
    answer = cluster.admin.post_json(f"{BASE}/nodes/node-1/reload", {"shard": str(path)} if path else {})
    assert (answer.status, answer.json()["outcome"]) == (202, "asked")


def has_open(count: int) -> Callable[[RunningNode], bool]:
    return lambda one: one.node.is_ready() and len(one.node.view().writable) == count


def rows(cluster: RunningCluster) -> dict[int, dict[str, Any]]:
    return {row["id"]: row for row in cluster.admin.get(f"{BASE}/shards").json()["shards"]}


def shard_at(cluster: RunningCluster, path: Path) -> int:
    return int(cluster.sql("SELECT id FROM shards WHERE path = $1 AND NOT replaced", str(path))[0]["id"])


def is_available(cluster: RunningCluster, shard: int) -> bool:
    row = rows(cluster).get(shard)
    return bool(row and row["available"] and shard in cluster.first.node.view().writable)


@contextmanager
def holding(cluster: RunningCluster, statement: str) -> Iterator[None]:
    """Hold what ``statement`` locks for the length of the block."""
    connection = cluster.on_loop(asyncpg.connect(cluster.dsn, timeout=10))
    try:
        cluster.on_loop(connection.execute(statement))
        yield
    finally:
        cluster.on_loop(connection.close())


def spoil(disk: Path, how: str) -> None:
    """Put something else where a shard was; the shard itself goes to ``aside``."""
    disk.rename(disk.with_name("aside"))
    match how:
        case "empty":
            disk.mkdir()
        case "foreign":
            shutil.copytree(disk.with_name("aside"), disk)
            document = json.loads((disk / "shard.json").read_text())
            document["cluster_id"] = "01890000-0000-7000-8000-000000000000"
            (disk / "shard.json").write_text(json.dumps(document))
        case "damaged":
            disk.mkdir()
            (disk / "shard.json").write_text("{")


@pytest.mark.parametrize("how", ["empty", "absent", "foreign", "damaged"])
def test_node_starts_without_a_bad_disk_and_uses_it_when_it_is_back(
    config: NodeConfig, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad, path = config.shards[0].path, new_path()
    with run_nodes([config]) as cluster:
        cluster.set(QUICK)
        assert cluster.admin.put(path, b"kept").status == 201
        shard = shard_at(cluster, bad)
    spoil(bad, how)
    before = sorted(bad.rglob("*")) if bad.exists() else None
    with caplog.at_level(logging.CRITICAL), run_nodes([config], has_open(2)) as cluster:
        assert cluster.admin.get(path).body == b"kept"
        assert cluster.admin.put(new_path(), random_bytes(100)).status == 201
        row = rows(cluster)[shard]
        assert (row["available"], row["state"]) == (False, "active") and str(bad) in row["trouble"]
        status = cluster.admin.get(f"{BASE}/status").json()
        assert [one["trouble"] for one in status["shards"] if not one["up"]] == [row["trouble"]]
        text = cluster.admin.get("/metrics").body.decode()
        assert f'holdfast_shard_refused_state{{directory="{bad}"}} 1.0' in text
        assert f'holdfast_shard_silent_state{{shard="{shard}"}} 1.0' in text
        (record,) = [record for record in caplog.records if "cannot be used" in record.message]
        assert f"holdfast shard replace {shard}" in record.facts["do"]  # type: ignore[attr-defined]
        assert before == (sorted(bad.rglob("*")) if bad.exists() else None), "nothing was written there"
        if bad.exists():
            shutil.rmtree(bad)
        bad.with_name("aside").rename(bad)
        wait_until(lambda: is_available(cluster, shard))
        assert rows(cluster)[shard]["trouble"] == ""
        assert shard_at(cluster, bad) == shard


def test_bad_disk_is_lost_in_its_time_and_returns_in_doubt(config: NodeConfig) -> None:
    bad = config.shards[0].path
    with run_nodes([config]) as cluster:
        cluster.set(QUICK)
        paths = [new_path() for _ in range(20)]
        for path in paths:
            assert cluster.admin.put(path, path.encode()).status == 201
        shard = shard_at(cluster, bad)
    spoil(bad, "empty")
    with run_nodes([config], has_open(2)) as cluster:
        cluster.set({"lost_after_seconds": 1})
        wait_until(lambda: rows(cluster)[shard]["state"] == "lost", 60)
        assert not any(bad.iterdir())
        bad.rmdir()
        bad.with_name("aside").rename(bad)
        wait_until(lambda: rows(cluster)[shard]["state"] == "active", 60)
        for path in paths:
            assert cluster.admin.get(path).body == path.encode()


def test_directory_that_vanishes_under_a_running_node_is_given_up_and_used_again(config: NodeConfig) -> None:
    gone, path = config.shards[1].path, new_path()
    with run_nodes([config]) as cluster:
        quicken(cluster)
        shard = shard_at(cluster, gone)
        gone.rename(gone.with_name("aside"))
        wait_until(lambda: not rows(cluster)[shard]["available"])
        wait_until(lambda: "is empty or absent" in rows(cluster)[shard]["trouble"])
        assert cluster.sql("SELECT owner FROM shards WHERE id = $1", shard)[0]["owner"] is None
        gone.mkdir()
        for _ in range(5):
            assert cluster.admin.put(new_path(), random_bytes(100)).status == 201
        assert not any(gone.iterdir()), "an empty mount point was filled"
        gone.rmdir()
        gone.with_name("aside").rename(gone)
        wait_until(lambda: is_available(cluster, shard))
        assert cluster.admin.put(path, b"after").status == 201


def test_replaced_disk_is_let_go_and_an_empty_one_taken_over_when_told(config: NodeConfig) -> None:
    disk = config.shards[2].path
    with run_nodes([config]) as cluster:
        cluster.set(QUICK)
        old = shard_at(cluster, disk)
        assert cluster.admin.post_json(f"{BASE}/shards/{old}/replace", {}).status == 200
        wait_until(lambda: cluster.first.metric("holdfast_shard_refused_state", directory=str(disk)))
        wait_until(lambda: old not in cluster.first.node._topology._opened)
        disk.rename(disk.with_name("old"))
        disk.mkdir()
        wait_until(lambda: cluster.first.node._topology._opened.keys() == {1, 2, 3} - {old})
        assert cluster.admin.put(new_path(), random_bytes(100)).status == 201
        assert not any(disk.iterdir()), "an empty mount point was filled before anybody said so"
        order(cluster)
        wait_until(lambda: not cluster.first.node._membership._own._orders)
        assert not any(disk.iterdir()), "it was not named"
        for wrong in ({"shard": "relative"}, {"shard": 1}, {"path": "/"}):
            assert errors_of(cluster.admin.post_json(f"{BASE}/nodes/node-1/reload", wrong))[0] == 400
        order(cluster, disk)
        wait_until(lambda: len(rows(cluster)) == 4 and is_available(cluster, shard_at(cluster, disk)))
        assert shard_at(cluster, disk) != old
        removed = cluster.admin.request("DELETE", f"{BASE}/shards/{old}")
        assert removed.status in (200, 202), removed.body


def test_replaced_disks_empty_mount_point_is_not_filled_at_the_start(config: NodeConfig) -> None:
    disk = config.shards[2].path
    with run_nodes([config]) as cluster:
        old = shard_at(cluster, disk)
        assert cluster.admin.post_json(f"{BASE}/shards/{old}/replace", {}).status == 200
    disk.rename(disk.with_name("mount point"))
    disk.mkdir()
    with run_nodes([config], has_open(2)) as cluster:
        assert not any(disk.iterdir())
        order(cluster, disk)
        wait_until(lambda: len(rows(cluster)) == 4 and is_available(cluster, shard_at(cluster, disk)))


def test_added_and_removed_shards_take_effect_when_the_file_is_read_again(config: NodeConfig) -> None:
    out, more = config.shards[0].path, config.shards[0].path.with_name("shard-4")
    with run_nodes([config]) as cluster:
        cluster.set(QUICK)
        first = shard_at(cluster, out)
        assert cluster.admin.post_json(f"{BASE}/shards/{first}/drain", {}).status == 200
        wait_until(lambda: rows(cluster)[first]["replicas"] == 0)
        assert errors_of(cluster.admin.request("DELETE", f"{BASE}/shards/{first}"))[0] == 409
        added = config.shards[0].model_copy(update={"path": more})
        cluster.first.sections = (*config.shards[1:], added)
        assert cluster.admin.post_json(f"{BASE}/nodes/node-1/reload", {}).status == 202
        wait_until(lambda: len(rows(cluster)) == 4 and is_available(cluster, shard_at(cluster, more)))
        wait_until(lambda: cluster.sql("SELECT owner FROM shards WHERE id = $1", first)[0]["owner"] is None)
        assert cluster.admin.request("DELETE", f"{BASE}/shards/{first}").status == 200
        assert cluster.admin.put(new_path(), random_bytes(100)).status == 201
        assert errors_of(cluster.admin.post_json(f"{BASE}/nodes/nobody/reload", {}))[0] == 404


def test_copy_of_a_disk_is_not_opened_beside_it_while_the_node_runs(
    config: NodeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with run_nodes([config]) as cluster:
        cluster.set(QUICK)
        clone = config.shards[0].path.with_name("clone")
        shutil.copytree(config.shards[0].path, clone)
        cluster.first.sections = (*config.shards, config.shards[0].model_copy(update={"path": clone}))
        assert cluster.admin.post_json(f"{BASE}/nodes/node-1/reload", {}).status == 202
        wait_until(lambda: any("cannot be used" in record.message for record in caplog.records))
        assert len(rows(cluster)) == 3
        assert cluster.first.metric("holdfast_shard_refused_state", directory=str(clone)) == 1
    with pytest.raises(ShardIdentityError, match="one is a copy"):
        both = (*config.shards, config.shards[0].model_copy(update={"path": clone}))
        with run_nodes([config.model_copy(update={"shards": both})]):
            pass


def test_shards_on_one_file_system_share_its_capacity_and_weigh_the_same(config: NodeConfig) -> None:
    with run_nodes([config]) as cluster:
        found = cluster.sql("SELECT weight, share_bytes FROM shards")
        assert {row["weight"] for row in found} == {1.0}
        capacity = os.statvfs(config.shards[0].path)
        share = capacity.f_blocks * capacity.f_frsize // 3
        assert [row["share_bytes"] for row in found] == [share] * 3


def test_node_goes_on_without_a_shard_that_was_removed_while_it_was_frozen(config: NodeConfig) -> None:
    with run_nodes([config]) as cluster:
        quicken(cluster)
        disk = config.shards[0].path
        shard = shard_at(cluster, disk)
        cluster.sql("UPDATE shards SET state = 'lost', owner = NULL WHERE id = $1", shard)
        assert cluster.sql("SELECT remove_shard($1, 'test', '')", shard)[0][0] == "removed"
        wait_until(lambda: shard not in cluster.first.node._topology._opened)
        wait_until(lambda: cluster.first.metric("holdfast_shard_refused_state", directory=str(disk)))
        assert cluster.admin.put(new_path(), random_bytes(100)).status == 201
        wait_until(cluster.first.is_ready)
        for _ in range(3):
            await_beat(cluster)
        assert len(rows(cluster)) == 2, "it did not come back by itself"


def test_disk_that_hung_when_it_was_given_up_is_released_when_it_goes_on(
    config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalShard, "close", partialmethod(LocalShard.close, 0.1))
    disk, goes_on = config.shards[0].path, threading.Event()

    async def hang(shard: ShardId) -> None:
        own = cluster.first.node._topology._opened[shard]
        own.shard._executor.submit(goes_on.wait)

    with run_nodes([config]) as cluster:
        quicken(cluster)
        shard = shard_at(cluster, disk)
        owner = "SELECT owner FROM shards WHERE id = $1"
        cluster.on_loop(hang(shard))
        cluster.first.sections = config.shards[1:]
        order(cluster)
        wait_until(lambda: shard not in cluster.first.node._topology._opened)
        cluster.first.sections = config.shards
        order(cluster)
        wait_until(lambda: "still hangs" in rows(cluster)[shard]["trouble"])
        cluster.first.sections = config.shards[1:]
        order(cluster)
        wait_until(lambda: "does not have it open" in rows(cluster)[shard]["trouble"])
        assert cluster.sql(owner, shard)[0]["owner"] is not None
        goes_on.set()
        wait_until(lambda: cluster.sql(owner, shard)[0]["owner"] is None)


def test_nothing_is_made_a_shard_by_a_file_that_cannot_be_used(
    config: NodeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def reread() -> list[ShardSection]:
        raise ConfigError("it ends in the middle")

    disk = config.shards[0].path
    with run_nodes([config]) as cluster:
        quicken(cluster)
        old = shard_at(cluster, disk)
        assert cluster.admin.post_json(f"{BASE}/shards/{old}/replace", {}).status == 200
        wait_until(lambda: old not in cluster.first.node._topology._opened)
        disk.rename(disk.with_name("old"))
        disk.mkdir()
        own = cluster.first.node._membership._own
        with monkeypatch.context() as patch:
            patch.setattr(own, "_reread", reread)
            order(cluster, disk)
            wait_until(lambda: any("file cannot be used" in record.message for record in caplog.records))
            wait_until(lambda: not own._orders)
        assert not any(disk.iterdir())
        assert len(cluster.first.node._topology._opened) == 2, "its shards stay"


def test_order_that_postgres_failure_cut_short_is_carried_out_later(config: NodeConfig) -> None:
    with run_nodes([config]) as cluster:
        quicken(cluster)
        own, more = cluster.first.node._membership._own, config.shards[0].path.with_name("shard-4")
        cluster.first.sections = (*config.shards, config.shards[0].model_copy(update={"path": more}))
        works, failed = own._read_known, threading.Event()

        async def fail() -> None:
            own._read_known = works  # type: ignore[method-assign]
            failed.set()
            raise CatalogueUnavailable("away")

        own._read_known = fail  # type: ignore[method-assign]
        order(cluster)
        assert failed.wait(SOON_SECONDS)
        wait_until(lambda: len(rows(cluster)) == 4 and is_available(cluster, shard_at(cluster, more)))


def test_change_that_nobody_heard_of_is_seen_after_the_reconnect(config: NodeConfig) -> None:
    with run_nodes([config]) as cluster:
        cluster.set({"shard_retry_seconds": 3600})
        shard = shard_at(cluster, config.shards[0].path)
        cluster.sql("SELECT pg_notify('holdfast', 'shards')")
        cluster.sql("ALTER TABLE shards DISABLE TRIGGER USER")
        assert cluster.admin.post_json(f"{BASE}/shards/{shard}/replace", {}).status == 200
        cluster.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'holdfast node-1'"
        )
        wait_until(lambda: shard not in cluster.first.node._topology._opened)


def test_claim_that_postgres_does_not_answer_is_not_said_of_the_disk(
    config: NodeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    quick = config.database.model_copy(update={"statement_timeout_seconds": 0.5})
    with run_nodes([config.model_copy(update={"database": quick})]) as cluster:
        cluster.set(QUICK)
        more = config.shards[0].path.with_name("shard-4")
        cluster.first.sections = (*config.shards, config.shards[0].model_copy(update={"path": more}))
        with holding(cluster, "SELECT pg_advisory_lock(3, 1)"):
            assert cluster.admin.post_json(f"{BASE}/nodes/node-1/reload", {}).status == 202
            wait_until(lambda: any("was not opened" in record.message for record in caplog.records))
        assert not [record for record in caplog.records if "cannot be used" in record.message]
        wait_until(lambda: len(rows(cluster)) == 4 and is_available(cluster, shard_at(cluster, more)))


def test_notices_do_not_shorten_the_time_of_a_disk_that_cannot_be_opened(
    config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[Path] = []

    def refuse(path: Path, *args: object, **kwargs: object) -> ShardIdentity:
        attempts.append(path)
        raise ShardIdentityError(f"{path} is refused")

    bad = config.shards[0].path
    with run_nodes([config]) as cluster:
        monkeypatch.setattr(own_shards, "identify", refuse)
        bad.rename(bad.with_name("aside"))
        quicken(cluster)
        wait_until(lambda: attempts)
        cluster.set({"shard_retry_seconds": 3600})
        before = len(attempts)
        for _ in range(5):
            await_beat(cluster)
        assert len(attempts) <= before + 1, "one may have been under way"
        assert cluster.admin.post_json(f"{BASE}/nodes/node-1/reload", {}).status == 202
        wait_until(lambda: len(attempts) > before)


def test_shard_that_is_opened_again_is_used_by_the_others_at_once(ready_dsn: str, directory: Path) -> None:
    configs = [configure(ready_dsn, directory, name=f"node-{n}", zone=f"zone-{n}", shards=2) for n in (1, 2)]
    with run_nodes(configs) as cluster:
        quicken(cluster)
        disk, other = configs[0].shards[1].path, cluster.nodes[1]
        shard = shard_at(cluster, disk)
        disk.rename(disk.with_name("aside"))
        wait_until(lambda: shard not in other.node.view().readable)
        # So rare that no heartbeat of its own can be what tells the other.
        cluster.set({"node_down_seconds": 600, "heartbeat_seconds": 60})
        wait_until(lambda: shard not in cluster.first.node._topology._opened)
        disk.with_name("aside").rename(disk)
        wait_until(lambda: shard in other.node.view().writable)


def test_connections_of_a_node_keep_no_locks_while_it_is_frozen(one: RunningCluster) -> None:
    async def show() -> dict[str, str]:
        async with connect(one.first.node.database.servers, one.first.config) as connection:
            names = ("idle_in_transaction_session_timeout", "client_connection_check_interval")
            return {name: await connection.fetchval(f"SHOW {name}") for name in names}

    assert one.on_loop(show()) == {
        "idle_in_transaction_session_timeout": "15s",
        "client_connection_check_interval": "1s",
    }


class Lender:
    """The other processes of a node, which give a shard back when they are told to by the test."""

    def __init__(self) -> None:
        self.lent: list[UUID] = []
        self.called_back: list[UUID] = []
        self.held: set[UUID] = set()

    def lend(self, own: OwnShard) -> None:
        self.lent.append(own.uid)
        self.held.add(own.uid)

    def call_back(self, uid: UUID) -> None:
        self.called_back.append(uid)

    def have(self, uid: UUID) -> bool:
        return uid in self.held


def test_shard_that_another_process_of_the_node_has_open_stays_claimed(config: NodeConfig) -> None:
    with run_nodes([config]) as cluster:
        quicken(cluster)
        own = cluster.first.node._membership._own
        assert isinstance(own, OwnShards)
        own.borrowers = lender = Lender()
        gone, kept = config.shards[2], config.shards[:2]
        (uid,) = (one.uid for one in own.opened.values() if one.section.path == gone.path)
        lender.held.add(uid)
        owner = f"SELECT owner FROM shards WHERE uid = '{uid}'"
        cluster.first.sections = kept
        order(cluster)
        wait_until(lambda: lender.called_back == [uid])
        wait_until(lambda: uid not in [one.uid for one in own.opened.values()])
        for _ in range(3):
            await_beat(cluster)
        assert cluster.sql(owner)[0]["owner"] is not None, "another process may be writing to it"
        # Nor is it opened again meanwhile: its stage would be emptied under that process.
        cluster.first.sections = config.shards
        order(cluster)
        for _ in range(3):
            await_beat(cluster)
        assert lender.lent == []
        lender.held.clear()
        cluster.loop.call_soon_threadsafe(own.look)
        wait_until(lambda: lender.lent == [uid])
        wait_until(lambda: len(cluster.first.node.view().writable) == 3)
