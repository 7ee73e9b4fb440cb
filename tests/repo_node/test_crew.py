"""The seats of a node's workers when none can be had: the node serves without, and goes on trying."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest

from repo_node.cluster.outlook import Outlook
from repo_node.cluster.own_shards import Owner
from repo_node.metrics import Metrics
from repo_node.settings import LiveSettings
from repo_node.web.listeners import Listeners, bound_listeners
from repo_node.workers import crew as crews
from repo_node.workers import seat
from repo_node.workers.crew import Crew, running
from repo_node.workers.messages import Alive, Look, Serving
from sharding.errors import ShardUnavailable
from sharding.model import NodeId, ShardId
from tests.repo_node.internal.listener import eventually
from tests.repo_node.test_listeners import config_of


class Scene:
    """A crew of two whose workers end at once, and what its node hears of it."""

    def __init__(self, crew_listeners: list[Listeners], directory: Path) -> None:
        self.metrics = Metrics()
        self.standing_in: Counter[int] = Counter()
        self.kept: list[int] = []
        self.discarded: list[str] = []
        shard = SimpleNamespace(discard_stage=self._discard)
        own = SimpleNamespace(shard=shard, section=SimpleNamespace(path=directory))
        shards = SimpleNamespace(opened={ShardId(1): own}, look=lambda: None)
        self.processes = {id(theirs): process for process, theirs in enumerate(crew_listeners, 1)}
        self.crew = Crew(
            config_of(directory, 3),
            Owner(uuid4(), NodeId("node-1"), uuid4()),
            crew_listeners,
            shards,  # type: ignore[arg-type]
            Outlook,
            LiveSettings(),
            self.metrics,
            SimpleNamespace(keep=self.kept.append),  # type: ignore[arg-type]
            self._stand_in,
        )
        for one in self.crew._seats:
            one._shards = {}  # a worker that ends at once takes none

    async def _discard(self, stage: str) -> None:
        self.discarded.append(stage)
        raise ShardUnavailable(ShardId(1), "the disk hangs")

    @asynccontextmanager
    async def _stand_in(self, listeners: Listeners) -> AsyncIterator[None]:
        process = self.processes[id(listeners)]
        self.standing_in[process] += 1
        try:
            yield
        finally:
            self.standing_in[process] -= 1

    @property
    def ends(self) -> float:
        return self.metrics.registry.get_sample_value("holdfast_worker_ends_total") or 0.0

    @property
    def up(self) -> float | None:
        return self.metrics.registry.get_sample_value("holdfast_workers_up")


@pytest.mark.parametrize("program", ["/bin/false", "/there/is/no/such/program"])
async def test_a_node_whose_workers_cannot_start_stands_in_for_them_and_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, program: str
) -> None:
    monkeypatch.setattr(seat, "sys", SimpleNamespace(executable=program))
    monkeypatch.setattr(crews, "PAUSE_SECONDS_MIN", 0.1)
    monkeypatch.setattr(crews, "START_SECONDS", 1.0)
    with bound_listeners(config_of(tmp_path, 3)) as (_, *theirs), caplog.at_level(logging.ERROR):
        scene = Scene(theirs, tmp_path)
        async with running(scene.crew):
            assert scene.crew.has_started
            await eventually(lambda: scene.ends >= 6, 10)
            assert scene.up == 0
            await eventually(lambda: scene.standing_in == {1: 1, 2: 1})
        assert scene.standing_in == {1: 0, 2: 0}
        assert all(listener.fileno() == -1 for one in theirs for listener in one.all)
    assert Counter(scene.kept)[1] >= 3
    # Each of them had a stage of its own, whatever has become of those before.
    assert len(set(scene.discarded)) == len(scene.discarded)
    pauses = [
        record.facts["pause_seconds"]  # type: ignore[attr-defined]
        for record in caplog.records
        if record.message.startswith("a worker ended") and record.facts["worker"] == 1  # type: ignore[attr-defined]
    ]
    assert pauses[:3] == [0.1, 0.2, 0.4]


async def test_a_killed_worker_is_stood_in_for_before_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never_ends(self: seat.Seat, _: Look) -> int:
        self._hear(Serving(), [])
        self._hear(Alive(served=5, in_flight=3), [])
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(seat.Seat, "run", never_ends)
    with bound_listeners(config_of(tmp_path, 3)) as (_, *theirs):
        scene = Scene(theirs, tmp_path)
        async with running(scene.crew):
            await eventually(lambda: scene.standing_in == {1: 0, 2: 0} and scene.up == 2)
            frozen = scene.crew._seats[0]
            for _ in range(3):
                frozen.look(Look(Outlook(), has_started=True), 2)
            await eventually(lambda: scene.standing_in == {1: 1, 2: 0} and scene.up == 1)
            assert (scene.crew.served(), scene.crew.in_flight()) == (10, 3), "nobody waits for what it was answering"
        assert scene.standing_in == {1: 0, 2: 0}


async def test_a_worker_ends_when_its_parent_is_not_the_one_that_started_it() -> None:
    stranger = 1
    command = [sys.executable, "-m", "repo_node.workers", str(stranger)]
    done = await asyncio.to_thread(subprocess.run, command, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 1
