"""From rows to the store's view: which shards are on the ring, take writes, are full, or cannot be reached."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from repo_node.cluster.own_shard import ANSWER_HOLDS_SECONDS, OwnShard
from repo_node.cluster.topology import Topology
from repo_node.config import InternalSection, ShardSection
from repo_node.db.nodes import ClusterRows, NodeRow, ShardRow, SpaceReport
from repo_node.metrics import Metrics
from sharding.errors import ShardUnavailable
from sharding.model import Member, NodeId, ShardId, ShardState, ZoneId
from sharding.shard import ShardSpace
from tests.repo_node.nodes import free_address

HERE, PEER = NodeId("here"), NodeId("peer")


def peer_row(*, up: bool = True, url: str = "http://peer:1", start: int = 1) -> NodeRow:
    return NodeRow(PEER, ZoneId("z"), "http://peer", url, "0", UUID(int=start), up, 0.0)


def shard_row(number: int, **changes: Any) -> ShardRow:
    values = {
        "member": Member(ShardId(number), UUID(int=number), ZoneId("z"), PEER),
        "path": f"/disk{number}",
        "state": ShardState.ACTIVE,
        "owner": None,
        "capacity_bytes": 100,
        "free_bytes": 50,
        "writable": True,
    }
    return ShardRow(**{**values, **changes})


def rows(node: NodeRow, *shards: ShardRow) -> ClusterRows:
    return ClusterRows(uuid4(), datetime.now(UTC), {PEER: node}, {shard.id: shard for shard in shards})


@pytest.fixture
def topology() -> Topology:
    """The topology of a node without shards of its own."""
    internal = InternalSection(listen=free_address())
    return Topology(HERE, ZoneId("z"), {}, lambda node, url: SimpleNamespace(url=url), internal, Metrics())  # type: ignore[arg-type, return-value]


async def test_each_shard_is_what_its_row_says(topology: Topology) -> None:
    await topology.update(
        rows(
            peer_row(),
            shard_row(1),
            shard_row(2, writable=False, free_bytes=0),
            shard_row(3, writable=False, free_bytes=0, capacity_bytes=0),
            shard_row(4, state=ShardState.READ_ONLY),
            shard_row(5, state=ShardState.DRAINING),
            shard_row(6, state=ShardState.OFFLINE),
            shard_row(7, state=ShardState.LOST),
        )
    )
    view = topology.view
    assert view.writable == {1}
    assert view.full == {2}, "a disk that does not answer may have room"
    assert view.readable == {1, 2, 4, 5}, "a disk that does not answer is read last"
    assert {member.shard for member in view.ring.members} == {1, 2, 3, 4, 6}


async def test_shards_of_a_node_that_is_down_take_and_give_nothing_and_stay_on_the_ring(topology: Topology) -> None:
    await topology.update(rows(peer_row(up=False), shard_row(1), shard_row(2, writable=False)))
    view = topology.view
    assert (view.writable, view.full, view.readable) == (frozenset(), frozenset(), frozenset())
    assert len(view.ring.members) == 2


async def test_a_ring_and_a_peers_shard_last_as_long_as_nothing_of_them_changes(topology: Topology) -> None:
    await topology.update(rows(peer_row(), shard_row(1), shard_row(2)))
    first = topology.view
    await topology.update(rows(peer_row(), shard_row(1, free_bytes=1), shard_row(2)))
    assert topology.view.ring is first.ring
    assert topology.view.shards[ShardId(1)] is first.shards[ShardId(1)]
    for peer in (peer_row(start=2), peer_row(start=2, url="http://peer:2")):
        before = topology.view
        await topology.update(rows(peer, shard_row(1)))
        assert topology.view.shards[ShardId(1)] is not before.shards[ShardId(1)]
    assert topology.view.ring is not first.ring
    assert ShardId(2) not in topology.view.shards


class Disk:
    """A local shard of which only the space is asked."""

    def __init__(self) -> None:
        self.answer: ShardSpace | Exception = ShardSpace(100, 50)
        self.free_to_answer = asyncio.Event()
        self.free_to_answer.set()

    async def space(self) -> ShardSpace:
        await self.free_to_answer.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_a_busy_disk_keeps_its_last_answer_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    own = OwnShard(uuid4(), disk, ShardSection(path=Path("shard")))  # type: ignore[arg-type]
    assert await own.report(1.0) == SpaceReport(ShardSpace(100, 50), True)
    disk.answer = ShardUnavailable(ShardId(1), "busy")
    assert await own.report(1.0) == SpaceReport(ShardSpace(100, 50), True)
    monkeypatch.setattr(own, "_answered_at", own._answered_at - ANSWER_HOLDS_SECONDS)
    assert await own.report(1.0) == SpaceReport(ShardSpace(0, 0), False, "shard 1: busy")
    assert own.silent_seconds >= ANSWER_HOLDS_SECONDS
    disk.answer = ShardSpace(100, 0)
    assert await own.report(1.0) == SpaceReport(ShardSpace(100, 0), False, "no room is left above its reserve")
    assert own.silent_seconds == 0


async def test_a_slow_disk_is_asked_once_and_holds_nobody_up_while_it_thinks() -> None:
    disk = Disk()
    own = OwnShard(uuid4(), disk, ShardSection(path=Path("shard")))  # type: ignore[arg-type]
    assert await own.report(0) == SpaceReport(ShardSpace(100, 50), True)
    disk.free_to_answer.clear()
    disk.answer = ShardSpace(100, 40)
    assert await own.report(0) == await own.report(0) == SpaceReport(ShardSpace(100, 50), True)
    disk.free_to_answer.set()
    assert await own.report(1.0) == SpaceReport(ShardSpace(100, 40), True)
    disk.free_to_answer.clear()
    await own.report(0)
    await own.close()


async def test_a_disk_mounted_read_only_takes_no_writes_until_it_is_writable_again() -> None:
    disk = Disk()
    own = OwnShard(uuid4(), disk, ShardSection(path=Path("shard")))  # type: ignore[arg-type]
    disk.answer = ShardSpace(100, 50, read_only=True)
    report = await own.report(1.0)
    assert not report.writable and "read-only" in report.reason
    disk.answer = ShardSpace(100, 50)
    assert await own.report(1.0) == SpaceReport(ShardSpace(100, 50), True)
