"""Suspected partitions: peers that Postgres and a node see differently, for longer than a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from repo_node.cluster.peer_watch import LOOKS_TO_SUSPECT, PeerWatch, Suspicion
from repo_node.db.nodes import ClusterRows, NodeRow
from repo_node.metrics import Metrics
from repo_node.settings import LiveSettings
from sharding.model import NodeId, ZoneId
from sharding.peer import PeerError, PeerIdentity
from tests.repo_node.nodes import configure, run_nodes, wait_until

PEER = NodeId("node-2")


@dataclass
class Neighbour:
    """The peer as Postgres and as this node see it."""

    row: NodeRow = field(
        default_factory=lambda: NodeRow(PEER, ZoneId("z"), "", "http://peer", "0", UUID(int=1), True, 0.0)
    )
    answers: PeerIdentity | Exception | None = field(default_factory=lambda: PeerIdentity(PEER, UUID(int=1)))

    async def identify(self) -> PeerIdentity:
        if self.answers is None:
            await asyncio.sleep(3600)
        if isinstance(self.answers, PeerIdentity):
            return self.answers
        assert self.answers is not None
        raise self.answers

    def rows(self) -> ClusterRows:
        me = NodeRow(NodeId("node-1"), ZoneId("z"), "", "http://me", "0", UUID(int=9), True, 0.0)
        return ClusterRows(uuid4(), datetime.now(UTC), {me.id: me, PEER: self.row}, {})


@pytest.fixture
def neighbour() -> Neighbour:
    return Neighbour()


@pytest.fixture
def watch(neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch) -> Iterator[PeerWatch]:
    monkeypatch.setattr("repo_node.cluster.peer_watch.ASK_SECONDS", 0.05)
    yield PeerWatch(NodeId("node-1"), neighbour.rows, lambda node, url: neighbour, LiveSettings(), Metrics())  # type: ignore[arg-type, return-value]


async def look(watch: PeerWatch, times: int = LOOKS_TO_SUSPECT) -> tuple[tuple[NodeId, Suspicion], ...]:
    for _ in range(times):
        await watch.look()
    return watch.suspicions


async def test_peer_that_is_up_and_reached_or_down_and_not_is_not_suspected(
    watch: PeerWatch, neighbour: Neighbour
) -> None:
    assert await look(watch) == ()
    neighbour.row = replace(neighbour.row, up=False)
    neighbour.answers = PeerError("gone")
    assert await look(watch) == ()


@pytest.mark.parametrize(
    "answers", [PeerError("refused"), None, PeerIdentity(PEER, UUID(int=2))], ids=["refuses", "hangs", "is another"]
)
async def test_peer_that_beats_and_is_not_reached_is_suspected_after_some_looks(
    watch: PeerWatch, neighbour: Neighbour, answers: PeerIdentity | Exception | None
) -> None:
    right, neighbour.answers = neighbour.answers, answers
    assert await look(watch, LOOKS_TO_SUSPECT - 1) == ()
    assert await look(watch, 1) == ((PEER, Suspicion.UNREACHABLE),)
    assert await look(watch) == ((PEER, Suspicion.UNREACHABLE),)
    count = watch._metrics.registry.get_sample_value
    assert count("holdfast_partition_suspicions_total", {"kind": "unreachable"}) == 1
    neighbour.answers = right
    assert await look(watch, 1) == ()


async def test_peer_that_answers_and_does_not_beat_is_suspected(watch: PeerWatch, neighbour: Neighbour) -> None:
    neighbour.row = replace(neighbour.row, up=False)
    assert await look(watch) == ((PEER, Suspicion.SILENT),)


async def test_moments_that_do_not_follow_each_other_are_no_suspicion(watch: PeerWatch, neighbour: Neighbour) -> None:
    right = neighbour.answers
    for _ in range(3):
        neighbour.answers = PeerError("lost one")
        assert await look(watch, LOOKS_TO_SUSPECT - 1) == ()
        neighbour.answers = right
        assert await look(watch, 1) == ()


async def test_nothing_is_suspected_before_the_cluster_was_read(watch: PeerWatch) -> None:
    watch._cluster = lambda: None
    assert await look(watch) == ()


def test_node_that_hangs_in_part_is_shown_by_metrics_and_status(ready_dsn: str, directory: Path) -> None:
    """Its heart stops, and its listener goes on."""
    configs = [configure(ready_dsn, directory, name=f"node-{n}", zone=f"zone-{n}") for n in (1, 2)]
    with run_nodes(configs) as cluster:
        cluster.set({"heartbeat_seconds": 0.2, "node_down_seconds": 1.0})
        first, second = cluster.nodes
        cluster.loop.call_soon_threadsafe(second.beating.cancel)
        wait_until(lambda: first.node.suspicions())
        first.admin.get("/metrics")
        assert first.metric("holdfast_partition_suspected_state", peer="node-2", kind="silent") == 1
        found = first.admin.get("/artifactory/api/holdfast/status").json()["partition_suspicions"]
        assert found == [{"peer": "node-2", "kind": "silent"}]
