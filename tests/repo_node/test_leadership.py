"""Elections: one primary at a time, by the database's time; one that was frozen, cut off or replaced does nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest

from repo_node.cluster.epochs import ShardEpochs
from repo_node.cluster.leadership import Leadership, OnPrimary
from repo_node.db import lease as rows
from repo_node.db.servers import drop
from repo_node.metrics import Metrics
from repo_node.settings import LiveSettings, Settings
from sharding.errors import ShardRefused, ShardUnavailable
from sharding.maintenance.job import Step
from sharding.model import BlobName, NodeId, ShardId
from sharding.tasks import stop

SECONDS = 1.0
SETTINGS = Settings(lease_seconds=SECONDS, lease_renew_seconds=0.1)
REQUIRE = "SELECT require_lease($1, $2)"


class MemoryEpochs:
    """A shard of which only the epoch matters."""

    def __init__(self, known: int = 0) -> None:
        self.known = known
        self.dead = False
        self.hangs = False
        self.takes_no_writes = False

    async def epoch(self) -> int:
        await self._answer()
        return self.known

    async def _answer(self) -> None:
        if self.hangs:
            await asyncio.sleep(3600)
        if self.dead:
            raise ShardUnavailable(ShardId(1), "dead")

    async def see_epoch(self, epoch: int) -> None:
        await self._answer()
        if self.takes_no_writes and epoch > self.known:
            raise ShardRefused(ShardId(1), "read-only")
        if epoch < self.known:
            raise ShardRefused(ShardId(1), "over")
        self.known = epoch

    async def remove(self, names: Sequence[BlobName], *, epoch: int) -> list[int | None]:
        raise AssertionError("elections remove nothing")


class Clock:
    """A monotonic clock that a test can push."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


class Contender:
    """A node that stands for election, with a shard of its own."""

    def __init__(self, dsn: str, name: str) -> None:
        self.shard = MemoryEpochs()
        self.clock = Clock()
        self.metrics = Metrics()
        self.dsn = dsn
        epochs = ShardEpochs(NodeId(name), lambda: {ShardId(1): self.shard}, lambda: None, lambda node, url: None)  # type: ignore[arg-type, return-value]
        settings = LiveSettings(SETTINGS)
        self.leadership = Leadership(NodeId(name), self.connect, epochs, settings, self.metrics, clock=self.clock)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(self.dsn, timeout=5)
        try:
            yield connection
        finally:
            drop(connection)

    async def turn(self) -> int | None:
        async with self.connect() as connection:
            await self.leadership.turn(connection)
        return self.leadership.epoch


@pytest.fixture
def a(dsn: str) -> Contender:
    return Contender(dsn, "a")


@pytest.fixture
def b(dsn: str) -> Contender:
    return Contender(dsn, "b")


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    value = await asyncpg.connect(dsn)
    yield value
    value.terminate()


async def test_first_to_stand_is_elected_and_the_other_is_not(a: Contender, b: Contender) -> None:
    assert await a.turn() == 1
    assert await b.turn() is None
    assert await a.turn() == 1
    assert b.leadership.seen is not None and b.leadership.seen.holder == "a"
    assert (a.shard.known, b.shard.known) == (1, 1), "shards learn of it from their own node too"
    assert a.metrics.registry.get_sample_value("holdfast_primary_elections_total") == 1


async def test_ten_candidates_at_once_make_one_primary(dsn: str) -> None:
    contenders = [Contender(dsn, f"n{number}") for number in range(10)]
    epochs = await asyncio.gather(*(one.turn() for one in contenders))
    assert sorted(epoch for epoch in epochs if epoch) == [1]


async def test_successor_has_a_higher_epoch_once_the_lease_ran_out(a: Contender, b: Contender) -> None:
    await a.turn()
    await asyncio.sleep(SECONDS / 2)
    assert await b.turn() is None
    await asyncio.sleep(SECONDS / 2 + 0.1)
    assert a.leadership.epoch is None, "it knows by its own clock"
    assert await b.turn() == 2
    assert await a.turn() is None
    assert a.shard.known == 2


async def test_own_clock_ends_the_term_before_the_database_does(a: Contender) -> None:
    await a.turn()
    a.clock.ahead = SECONDS * 0.7
    assert a.leadership.epoch == 1
    a.clock.ahead = SECONDS * 0.76
    assert a.leadership.epoch is None and a.leadership.lease is None
    assert a.leadership.held_without_gap_seconds == 0


async def test_lease_that_ran_out_is_not_revived_but_won_anew(a: Contender) -> None:
    await a.turn()
    await asyncio.sleep(SECONDS + 0.1)
    assert await a.turn() == 2


async def test_term_without_gaps_is_told_apart_from_one_with(a: Contender) -> None:
    await a.turn()
    for _ in range(3):
        await asyncio.sleep(0.2)
        assert await a.turn() == 1
    assert a.leadership.held_without_gap_seconds > 0.55
    await asyncio.sleep(SECONDS * 0.6)
    assert await a.turn() == 1
    assert a.leadership.held_without_gap_seconds < 0.2


async def test_primary_that_leaves_hands_over_at_once(a: Contender, b: Contender) -> None:
    await a.turn()
    await a.leadership.leave()
    assert a.leadership.epoch is None
    assert await b.turn() == 2
    assert await a.turn() is None


async def test_lease_that_could_not_be_given_back_is_in_the_next_turn(
    a: Contender, b: Contender, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await a.turn() == 1
    with monkeypatch.context() as patch:
        patch.setattr(a, "dsn", "postgresql://127.0.0.1:1/nowhere")
        await a.leadership.leave()
    assert await a.turn() is None
    assert await b.turn() == 2
    assert await a.turn() is None


async def test_waiting_node_hears_of_a_lease_given_back(a: Contender, connection: asyncpg.Connection) -> None:
    # Renewals so rare that none of them can be what notices.
    rare = Settings.model_construct(**{**Settings().model_dump(), "lease_seconds": 7200, "lease_renew_seconds": 3600})
    b = Contender(a.dsn, "b")
    b.leadership._settings.now = rare
    await a.turn()
    await connection.add_listener("holdfast", lambda *heard: b.leadership.wake() if heard[-1] == "lease" else None)
    running = asyncio.create_task(b.leadership.run())
    try:
        while b.leadership.seen is None:
            await asyncio.sleep(0.02)
        await a.leadership.leave()
        while b.leadership.epoch is None:
            await asyncio.sleep(0.02)
        assert b.leadership.epoch == 2
    finally:
        await stop([running])


async def test_lease_won_while_leaving_is_given_back(
    a: Contender, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def highest(seconds: float) -> int:
        asked.set()
        await go_on.wait()
        return 0

    monkeypatch.setattr(a.leadership._epochs, "highest", highest)
    standing = asyncio.create_task(a.turn())
    await asked.wait()
    leaving = asyncio.create_task(a.leadership.leave())
    await asyncio.sleep(0)
    go_on.set()
    assert await standing is None
    await leaving
    found = await rows.read(connection)
    assert found is not None and found.epoch == 1 and found.expired


async def test_node_that_leaves_does_not_stand(a: Contender) -> None:
    await a.leadership.leave()
    assert await a.turn() is None


async def test_old_epoch_and_wrong_token_are_refused_by_the_database(
    a: Contender, b: Contender, connection: asyncpg.Connection
) -> None:
    await a.turn()
    old = a.leadership.lease
    assert old is not None
    await connection.fetchval(REQUIRE, old.epoch, old.token)
    await a.leadership.leave()
    assert await b.turn() == 2
    new = b.leadership.lease
    assert new is not None
    await connection.fetchval(REQUIRE, new.epoch, new.token)
    for epoch, token in ((old.epoch, old.token), (new.epoch, old.token), (old.epoch, new.token), (3, new.token)):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await connection.fetchval(REQUIRE, epoch, token)
        assert refused.value.sqlstate == "HF003"


async def test_nobody_takes_over_while_the_primary_is_in_a_transaction(
    a: Contender, b: Contender, connection: asyncpg.Connection
) -> None:
    """Or an old epoch could commit after a new one."""
    await a.turn()
    held = a.leadership.lease
    assert held is not None
    async with connection.transaction():
        await connection.fetchval(REQUIRE, held.epoch, held.token)
        await asyncio.sleep(SECONDS + 0.1)
        successor = asyncio.create_task(b.turn())
        await asyncio.sleep(0.3)
        assert not successor.done()
    assert await successor == 2


async def test_old_epoch_is_refused_by_a_shard_and_steps_down(a: Contender, connection: asyncpg.Connection) -> None:
    await a.turn()
    a.shard.known = 7
    assert await a.turn() == 8, "it resigned, and stood again above what the shard knows"
    assert await connection.fetchval("SELECT deletions_held()")
    assert await connection.fetchval("SELECT reason FROM holds") == "lost_history"


async def test_database_that_went_back_in_time_is_found_out_by_the_next_election(
    a: Contender, connection: asyncpg.Connection
) -> None:
    a.shard.known = 41
    assert await a.turn() == 42
    [hold] = await connection.fetch("SELECT reason, detail FROM holds WHERE released_at IS NULL")
    assert hold["reason"] == "lost_history" and "41" in hold["detail"]


async def test_database_that_went_back_in_time_is_found_out_by_any_node(
    a: Contender, b: Contender, connection: asyncpg.Connection
) -> None:
    await a.turn()
    assert not await connection.fetchval("SELECT deletions_held()")
    b.shard.known = 5
    assert await b.turn() is None
    assert await connection.fetchval("SELECT history_is_lost()")


async def test_ordinary_elections_prove_no_lost_history(a: Contender, b: Contender, dsn: str) -> None:
    for _ in range(4):
        for one in (a, b):
            await one.turn()
            await one.turn()
            await one.leadership.leave()
            one.leadership._leaving = False
    async with a.connect() as connection:
        assert await connection.fetchval("SELECT count(*) FROM holds") == 0
        found = await rows.read(connection)
    assert found is not None and found.epoch == 8
    assert (a.shard.known, b.shard.known) == (7, 8)


async def test_dead_shard_keeps_nobody_from_being_elected(a: Contender) -> None:
    a.shard.dead = True
    assert await a.turn() == 1


async def test_disk_that_hangs_keeps_nobody_from_being_and_staying_the_primary(
    a: Contender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repo_node.cluster.epochs.OWN_SECONDS", 0.02)
    a.shard.hangs = True
    for _ in range(3):
        assert await a.turn() == 1


async def test_disk_that_takes_no_writes_is_no_proof_of_a_later_primary(
    a: Contender, connection: asyncpg.Connection
) -> None:
    a.shard.takes_no_writes = True
    for _ in range(3):
        assert await a.turn() == 1
    assert await connection.fetchval("SELECT count(*) FROM holds") == 0


async def test_election_is_told_to_who_waits_for_it(a: Contender) -> None:
    told = []
    a.leadership.on_elected = lambda: told.append(a.leadership.epoch)
    await a.turn()
    await a.turn()
    assert told == [1]
    await asyncio.sleep(SECONDS + 0.1)
    await a.turn()
    assert told == [1, 2]


async def test_election_goes_on_while_the_database_comes_and_goes(a: Contender, connection: asyncpg.Connection) -> None:
    running = asyncio.create_task(a.leadership.run())
    try:
        async with asyncio.timeout(10):
            while a.leadership.epoch is None:
                await asyncio.sleep(0.02)
            first = a.leadership.epoch
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await asyncio.sleep(0.7)
            while a.leadership.epoch is None:
                await asyncio.sleep(0.02)
        assert a.leadership.epoch >= first
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_job_of_the_primary_is_idle_elsewhere(a: Contender, b: Contender) -> None:
    class Counting:
        name = "counting"
        steps = 0

        async def step(self) -> Step:
            self.steps += 1
            return Step(done=1)

    jobs = [Counting(), Counting()]
    on = [OnPrimary(job, one.leadership) for job, one in zip(jobs, (a, b), strict=True)]
    assert (await on[0].step()).idle, "before the first election"
    await a.turn()
    await b.turn()
    assert [(await one.step()).idle for one in on] == [False, True]
    a.clock.ahead = SECONDS
    assert (await on[0].step()).idle, "frozen, it does nothing when it wakes"
    assert [job.steps for job in jobs] == [1, 0]
    assert on[0].name == "counting"


async def test_outcome_unknown_leaves_nobody_who_thinks_to_be_primary(
    a: Contender, connection: asyncpg.Connection
) -> None:
    """The acquisition stands in the database, but its answer was lost: its token is nobody's."""
    await connection.fetchval("SELECT lease_acquire('a', $1, 0, $2)", uuid4(), SECONDS)
    assert await a.turn() is None
    await asyncio.sleep(SECONDS + 0.1)
    assert await a.turn() == 2
