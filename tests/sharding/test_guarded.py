"""The guard: caps, time limits and the circuit, over shards that fail and stall as told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sharding.errors import (
    ReplicaCorrupt,
    ReplicaMissing,
    ShardError,
    ShardFull,
    ShardRefused,
    ShardUnavailable,
)
from sharding.guarded import Guarded, GuardLimits, Operation, Outcome
from sharding.model import BLOCK_BYTES, ShardId
from sharding.shard import Shard
from tests.sharding.faulty import Fault, FaultyShard
from tests.sharding.local_shards import SHARD, open_at
from tests.sharding.shard_contract import (
    ShardContract,
    block_digests,
    make_generation,
    make_name,
    replica_files,
    stage_all,
)

PATIENT = GuardLimits(failures_to_open=3, open_seconds=2.0)
QUICK = replace(PATIENT, queue_seconds=0.2, call_seconds=0.2, stall_seconds=0.2, commit_seconds=0.2)
ROOMY = GuardLimits(calls_max=2, queue_seconds=10, call_seconds=10, stall_seconds=10, commit_seconds=10)


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Notes:
    """A ``ShardObserver`` that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[Operation, Outcome]] = []

    def observe(self, shard: ShardId, operation: Operation, seconds: float, outcome: Outcome) -> None:
        assert shard == SHARD and seconds >= 0
        self.calls.append((operation, outcome))


@pytest.fixture
def shard_root(tmp_path: Path) -> Path:
    return tmp_path / "shard"


@pytest.fixture
async def faulty(shard_root: Path) -> AsyncIterator[FaultyShard]:
    async with open_at(shard_root) as opened:
        yield FaultyShard(opened)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def patient(faulty: FaultyShard, clock: Clock, notes: Notes) -> Guarded:
    return Guarded(faulty, limits=PATIENT, observer=notes, clock=clock)


@pytest.fixture
def quick(faulty: FaultyShard, clock: Clock, notes: Notes) -> Guarded:
    return Guarded(faulty, limits=QUICK, observer=notes, clock=clock)


@pytest.fixture
def roomy(faulty: FaultyShard, clock: Clock, notes: Notes) -> Guarded:
    return Guarded(faulty, limits=ROOMY, observer=notes, clock=clock)


class TestContract(ShardContract):
    @pytest.fixture
    async def shard(self, shard_root: Path) -> AsyncIterator[Shard]:
        async with open_at(shard_root) as opened:
            yield Guarded(opened, limits=GuardLimits())


async def fail_times(guard: Guarded, times: int) -> None:
    for _ in range(times):
        with pytest.raises(ShardUnavailable):
            await guard.sizes([])


# --- limits


async def test_call_that_stalls_is_unavailable_in_time(quick: Guarded, faulty: FaultyShard) -> None:
    faulty.plan(Operation.READ, Fault.STALL)
    with pytest.raises(ShardUnavailable, match=r"read did not end in 0\.2 s"):
        await quick.read(make_name(b""), size=0, offset=0, length=0)


async def test_no_more_calls_than_the_cap_run_at_once(roomy: Guarded, faulty: FaultyShard) -> None:
    faulty.plan(Operation.SIZES, *[Fault.STALL] * 5)
    calls = [asyncio.create_task(roomy.sizes([])) for _ in range(5)]
    await asyncio.sleep(0.02)
    assert faulty.injected[Operation.SIZES, Fault.STALL] == 2
    while not all(call.done() for call in calls):
        faulty.release()
        await asyncio.sleep(0)
    assert [call.result() for call in calls] == [[]] * 5


async def test_call_waits_for_a_slot_no_longer_than_it_may(faulty: FaultyShard) -> None:
    guard = Guarded(faulty, limits=GuardLimits(calls_max=1, queue_seconds=0.05))
    faulty.plan(Operation.SIZES, Fault.STALL)
    first = asyncio.create_task(guard.sizes([]))
    await asyncio.sleep(0)
    with pytest.raises(ShardUnavailable, match="1 calls are under way"):
        await guard.sizes([])
    faulty.release()
    assert await first == []
    assert await guard.sizes([]) == []


async def test_waiting_for_a_slot_is_no_failure_of_the_shard(faulty: FaultyShard) -> None:
    guard = Guarded(faulty, limits=GuardLimits(calls_max=1, queue_seconds=0.01, failures_to_open=2))
    faulty.plan(Operation.SIZES, Fault.STALL)
    first = asyncio.create_task(guard.sizes([]))
    await asyncio.sleep(0)
    await fail_times(guard, 4)
    assert guard.available
    faulty.release()
    assert await first == []


async def test_every_call_on_a_staged_blob_is_limited(quick: Guarded, faulty: FaultyShard, shard_root: Path) -> None:
    for operation in (Operation.WRITE, Operation.READ_STAGED, Operation.COMMIT):
        name, staged = await stage_all(quick, b"data")
        faulty.plan(operation, Fault.STALL)
        with pytest.raises(ShardUnavailable, match=f"{operation} did not end"):
            match operation:
                case Operation.WRITE:
                    await staged.write(b"more")
                case Operation.READ_STAGED:
                    await staged.read(0, 4)
                case _:
                    await staged.commit(name.sha256, block_digests(b"data"))
        await staged.abort()
        assert os.listdir(shard_root / "tmp") == []


async def test_abort_ends_in_time_though_the_shard_stalls(quick: Guarded, faulty: FaultyShard) -> None:
    _, staged = await stage_all(quick, b"data")
    faulty.plan(Operation.ABORT, Fault.STALL)
    async with asyncio.timeout(5):
        await staged.abort()


async def test_abort_reaches_the_shard_though_the_circuit_is_open_and_every_slot_taken(
    faulty: FaultyShard, shard_root: Path
) -> None:
    guard = Guarded(faulty, limits=GuardLimits(calls_max=1, failures_to_open=1))
    _, staged = await stage_all(guard, b"data")
    faulty.plan(Operation.READ, Fault.STALL)
    reading = asyncio.create_task(guard.read(make_name(b""), size=0, offset=0, length=0))
    await asyncio.sleep(0)
    await staged.abort()
    assert os.listdir(shard_root / "tmp") == []
    reading.cancel()

    _, staged = await stage_all(guard, b"data")
    faulty.plan(Operation.SIZES, Fault.FAIL)
    await fail_times(guard, 1)
    assert not guard.available
    await staged.abort()
    assert os.listdir(shard_root / "tmp") == []


async def test_timed_out_put_leaves_nothing(quick: Guarded, faulty: FaultyShard, shard_root: Path) -> None:
    faulty.plan(Operation.PUT, Fault.STALL)
    with pytest.raises(ShardUnavailable):
        await quick.put(make_name(b"data"), b"data")
    faulty.release()
    assert replica_files(shard_root) == []


# --- the circuit


async def test_circuit_opens_after_failures_in_a_row_and_closes_after_a_trial(
    patient: Guarded, faulty: FaultyShard, clock: Clock
) -> None:
    faulty.down = True
    await fail_times(patient, 3)
    assert not patient.available
    await fail_times(patient, 10)
    assert faulty.injected[Operation.SIZES, Fault.FAIL] == 3  # the last ten never reached the shard

    clock.seconds += 2
    assert patient.available
    await fail_times(patient, 1)
    assert not patient.available
    assert faulty.injected[Operation.SIZES, Fault.FAIL] == 4

    faulty.down = False
    clock.seconds += 2
    assert await patient.sizes([]) == []
    assert patient.available


async def test_stalls_open_the_circuit_too(quick: Guarded, faulty: FaultyShard) -> None:
    faulty.plan(Operation.SIZES, *[Fault.STALL] * 3)
    await fail_times(quick, 3)
    assert not quick.available


async def test_only_one_trial_is_made_at_a_time(roomy: Guarded, faulty: FaultyShard, clock: Clock) -> None:
    faulty.plan(Operation.SIZES, *[Fault.FAIL] * roomy.limits.failures_to_open, Fault.STALL)
    await fail_times(roomy, roomy.limits.failures_to_open)
    clock.seconds += roomy.limits.open_seconds
    trial = asyncio.create_task(roomy.sizes([]))
    await asyncio.sleep(0)
    assert not roomy.available
    await fail_times(roomy, 3)
    faulty.release()
    assert await trial == []
    assert await roomy.sizes([]) == []


async def test_open_circuit_stops_a_staged_blob(patient: Guarded, faulty: FaultyShard) -> None:
    _, staged = await stage_all(patient, b"data")
    faulty.plan(Operation.SIZES, *[Fault.FAIL] * 3)
    await fail_times(patient, 3)
    with pytest.raises(ShardUnavailable):
        await staged.write(b"more")
    assert staged.written == 4
    await staged.abort()


async def test_call_that_waited_for_its_slot_while_the_circuit_opened_is_not_made(
    faulty: FaultyShard, clock: Clock
) -> None:
    guard = Guarded(faulty, limits=GuardLimits(calls_max=1, failures_to_open=1), clock=clock)
    faulty.plan(Operation.SIZES, Fault.STALL)
    first = asyncio.create_task(guard.sizes([]))
    await asyncio.sleep(0)
    second = asyncio.create_task(guard.sizes([]))
    await asyncio.sleep(0)
    faulty.down = True
    first.cancel()  # its slot goes to the second, which fails and opens the circuit
    third = asyncio.create_task(guard.sizes([]))
    for task in (second, third):
        with pytest.raises(ShardUnavailable):
            await task
    assert faulty.injected[Operation.SIZES, Fault.FAIL] == 1


Call = Callable[[Guarded], Awaitable[object]]


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (ReplicaMissing, lambda guard: guard.read(make_name(b"data"), size=4, offset=0, length=4)),
        (ShardRefused, lambda guard: guard.read(make_name(b"data"), size=4, offset=9, length=4)),
        (ShardRefused, lambda guard: guard.put(make_name(b""), bytes(BLOCK_BYTES + 1))),
    ],
)
async def test_verdict_about_a_replica_is_no_failure_of_the_shard(
    patient: Guarded, kind: type[ShardError], call: Call
) -> None:
    for _ in range(5):
        with pytest.raises(kind):
            await call(patient)
    assert patient.available


async def test_full_shard_is_no_failed_shard(patient: Guarded, faulty: FaultyShard) -> None:
    faulty.full = True
    for _ in range(5):
        with pytest.raises(ShardFull):
            await patient.stage(make_generation())
    assert patient.available


async def test_verdict_about_a_replica_ends_a_row_of_failures(patient: Guarded, faulty: FaultyShard) -> None:
    for _ in range(3):
        faulty.plan(Operation.SIZES, Fault.FAIL, Fault.FAIL)
        await fail_times(patient, 2)
        with pytest.raises(ReplicaMissing):
            await patient.read(make_name(b"data"), size=4, offset=0, length=4)
    assert patient.available


# --- cancellation


async def test_cancelled_calls_are_no_failures_and_leak_no_slot(
    roomy: Guarded, faulty: FaultyShard, notes: Notes
) -> None:
    for _ in range(10):
        faulty.plan(Operation.SIZES, Fault.STALL, Fault.STALL)
        calls = [asyncio.create_task(roomy.sizes([])) for _ in range(4)]  # two run, two wait for a slot
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*calls, return_exceptions=True)
        )
    assert roomy.available
    assert set(notes.calls) == {(Operation.SIZES, Outcome.CANCELLED)}
    assert await asyncio.gather(*(roomy.sizes([]) for _ in range(4))) == [[]] * 4


async def test_cancelled_trial_leaves_the_next_call_to_try(patient: Guarded, faulty: FaultyShard, clock: Clock) -> None:
    faulty.plan(Operation.SIZES, *[Fault.FAIL] * 3, Fault.STALL)
    await fail_times(patient, 3)
    clock.seconds += 2
    trial = asyncio.create_task(patient.sizes([]))
    await asyncio.sleep(0)
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    assert patient.available
    assert await patient.sizes([]) == []


async def test_unexpected_error_passes_and_gives_its_slot_back(
    patient: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        id = SHARD

        async def sizes(self, _: object) -> list[int | None]:
            raise ZeroDivisionError

    monkeypatch.setattr(patient, "_shard", Broken())
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await patient.sizes([])
    assert not patient.available


# --- the observer


async def test_observer_hears_every_operation_and_outcome(
    patient: Guarded, faulty: FaultyShard, notes: Notes, shard_root: Path
) -> None:
    name = make_name(b"data")
    await patient.put(name, b"data")
    await patient.read(name, size=4, offset=0, length=4)
    with pytest.raises(ReplicaCorrupt):
        await patient.read(name, size=3, offset=0, length=3)
    with pytest.raises(ReplicaMissing):
        await patient.read(make_name(b"none"), size=4, offset=0, length=4)
    await patient.sizes([name])
    await patient.delete(name)
    staged_name, staged = await stage_all(patient, b"data")
    await staged.read(0, 4)
    await staged.commit(staged_name.sha256, block_digests(b"data"))
    faulty.full = True
    with pytest.raises(ShardFull):
        await patient.put(name, b"data")
    faulty.full = False
    with pytest.raises(ShardRefused):
        await patient.put(make_name(b""), bytes(BLOCK_BYTES + 1))
    _, staged = await stage_all(patient, b"data")
    await staged.abort()
    faulty.plan(Operation.DELETE, Fault.FAIL)
    with pytest.raises(ShardUnavailable):
        await patient.delete(name)
    assert notes.calls == [
        (Operation.PUT, Outcome.OK),
        (Operation.READ, Outcome.OK),
        (Operation.READ, Outcome.CORRUPT),
        (Operation.READ, Outcome.MISSING),
        (Operation.SIZES, Outcome.OK),
        (Operation.DELETE, Outcome.OK),
        (Operation.STAGE, Outcome.OK),
        (Operation.WRITE, Outcome.OK),
        (Operation.READ_STAGED, Outcome.OK),
        (Operation.COMMIT, Outcome.OK),
        (Operation.PUT, Outcome.FULL),
        (Operation.PUT, Outcome.REFUSED),
        (Operation.STAGE, Outcome.OK),
        (Operation.WRITE, Outcome.OK),
        (Operation.ABORT, Outcome.OK),
        (Operation.DELETE, Outcome.UNAVAILABLE),
    ]


async def test_memory_is_asked_while_the_circuit_is_closed_and_only_its_answers_count(
    patient: Guarded, faulty: FaultyShard, notes: Notes, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {"size": 4, "offset": 0, "length": 4}
    assert patient.recall(make_name(b"data"), **where) is None
    assert notes.calls == []
    monkeypatch.setattr(faulty, "recall", lambda *_, **__: b"data")
    assert patient.recall(make_name(b"data"), **where) == b"data"
    assert notes.calls == [(Operation.READ, Outcome.OK)]
    faulty.plan(Operation.SIZES, *[Fault.FAIL] * 3)
    await fail_times(patient, 3)
    assert patient.recall(make_name(b"data"), **where) is None
    clock.seconds += 2
    assert patient.recall(make_name(b"data"), **where) is None
    assert await patient.sizes([]) == []
    assert patient.recall(make_name(b"data"), **where) == b"data"


async def test_what_memory_answers_is_no_sign_of_life(
    patient: Guarded, faulty: FaultyShard, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(BLOCK_BYTES)
    name, where = make_name(data), {"size": len(data), "offset": 0, "length": len(data)}
    faulty.plan(Operation.SIZES, *[Fault.FAIL] * 3)
    await fail_times(patient, 2)
    monkeypatch.setattr(faulty, "recall", lambda *_, **__: data)
    assert await patient.read(name, **where) == data
    await fail_times(patient, 1)
    assert not patient.available
    with pytest.raises(ShardUnavailable):
        await patient.read(name, **where)


async def test_observer_hears_of_calls_an_open_circuit_turned_away(
    patient: Guarded, faulty: FaultyShard, notes: Notes
) -> None:
    faulty.down = True
    await fail_times(patient, 5)
    assert notes.calls == [(Operation.SIZES, Outcome.UNAVAILABLE)] * 5
