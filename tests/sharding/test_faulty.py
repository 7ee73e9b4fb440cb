"""The faulty shard itself: honest without faults, exact with them, and the same again for the same seed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sharding.errors import ReplicaMissing, ShardError, ShardFull, ShardUnavailable
from sharding.guarded import Operation
from sharding.local import LocalShard
from tests.sharding.faulty import POSSIBLE, Fault, FaultyShard
from tests.sharding.local_shards import open_at
from tests.sharding.shard_contract import ShardContract, block_digests, make_generation, make_name, stage_all


@pytest.fixture
def shard_root(tmp_path: Path) -> Path:
    return tmp_path / "shard"


@pytest.fixture
async def local(shard_root: Path) -> AsyncIterator[LocalShard]:
    async with open_at(shard_root) as opened:
        yield opened


@pytest.fixture
def shard(local: LocalShard) -> FaultyShard:
    return FaultyShard(local)


class TestContract(ShardContract):
    pass


async def test_failed_put_stores_nothing(shard: FaultyShard) -> None:
    name = make_name(b"data")
    shard.plan(Operation.PUT, Fault.FAIL)
    with pytest.raises(ShardUnavailable):
        await shard.put(name, b"data")
    assert await shard.sizes([name]) == [None]


async def test_put_that_fails_after_is_stored(shard: FaultyShard) -> None:
    name = make_name(b"data")
    shard.plan(Operation.PUT, Fault.FAIL_AFTER)
    with pytest.raises(ShardUnavailable):
        await shard.put(name, b"data")
    assert await shard.sizes([name]) == [4]


async def test_corrupt_put_stores_one_flipped_bit(shard: FaultyShard) -> None:
    data = os.urandom(100)
    name = make_name(data)
    shard.plan(Operation.PUT, Fault.CORRUPT)
    await shard.put(name, data)
    stored = bytes(await shard.read(name, size=100, offset=0, length=100))
    difference = int.from_bytes(stored) ^ int.from_bytes(data)
    assert difference.bit_count() == 1


async def test_corrupt_read_leaves_the_file(shard: FaultyShard) -> None:
    name = make_name(b"data")
    await shard.put(name, b"data")
    shard.plan(Operation.READ, Fault.CORRUPT)
    assert bytes(await shard.read(name, size=4, offset=0, length=4)) != b"data"
    assert bytes(await shard.read(name, size=4, offset=0, length=4)) == b"data"


async def test_corrupt_write_is_committed_wrong(shard: FaultyShard) -> None:
    shard.plan(Operation.WRITE, Fault.CORRUPT)
    name, staged = await stage_all(shard, b"data")
    shard.plan(Operation.READ_STAGED, None, Fault.CORRUPT)
    wrong = bytes(await staged.read(0, 4))
    assert wrong != b"data"
    assert bytes(await staged.read(0, 4)) != wrong
    await staged.commit(name.sha256, block_digests(b"data"))
    assert bytes(await shard.read(name, size=4, offset=0, length=4)) == wrong


@pytest.mark.parametrize("operation", [Operation.PUT, Operation.COMMIT, Operation.READ, Operation.SIZES])
async def test_lost_blob_was_acknowledged_and_is_gone(shard: FaultyShard, operation: Operation) -> None:
    shard.plan(operation, Fault.LOSE)
    name, staged = await stage_all(shard, b"data")
    if operation is Operation.COMMIT:
        await staged.commit(name.sha256, block_digests(b"data"))
    else:
        await staged.abort()
        await shard.put(name, b"data")
    if operation is not Operation.SIZES:
        with pytest.raises(ReplicaMissing):
            await shard.read(name, size=4, offset=0, length=4)
    assert await shard.sizes([name]) == [None]


async def test_stalled_call_goes_on_when_released(shard: FaultyShard) -> None:
    name = make_name(b"data")
    shard.plan(Operation.PUT, Fault.STALL)
    putting = asyncio.create_task(shard.put(name, b"data"))
    await asyncio.sleep(0.02)
    assert not putting.done()
    assert await shard.sizes([name]) == [None]
    shard.release()
    await putting
    assert await shard.sizes([name]) == [4]


async def test_full_shard_takes_no_bytes_and_still_commits_reads_and_deletes(shard: FaultyShard) -> None:
    name, staged = await stage_all(shard, b"data")
    shard.full = True
    with pytest.raises(ShardFull):
        await shard.put(make_name(b"more"), b"more")
    with pytest.raises(ShardFull):
        await shard.stage(make_generation())
    await staged.commit(name.sha256, block_digests(b"data"))
    assert bytes(await shard.read(name, size=4, offset=0, length=4)) == b"data"
    await shard.delete(name)
    shard.full = False
    await shard.put(make_name(b"more"), b"more")


async def test_shard_that_is_down_fails_every_call_but_abort(shard: FaultyShard, shard_root: Path) -> None:
    name, staged = await stage_all(shard, b"data")
    shard.down = True
    for call in (
        shard.put(name, b"data"),
        shard.stage(make_generation()),
        shard.read(name, size=4, offset=0, length=4),
        shard.sizes([name]),
        shard.delete(name),
        staged.write(b"more"),
        staged.read(0, 4),
        staged.commit(name.sha256, bytes(8)),
    ):
        with pytest.raises(ShardUnavailable):
            await call
    await staged.abort()
    assert os.listdir(shard_root / "tmp") == []


async def test_impossible_fault_is_an_error_of_the_test(shard: FaultyShard, local: LocalShard) -> None:
    with pytest.raises(ValueError, match="sizes cannot suffer full"):
        shard.plan(Operation.SIZES, Fault.FULL)
    with pytest.raises(ValueError, match="abort cannot suffer fail"):
        FaultyShard(local, rates={Operation.ABORT: {Fault.FAIL: 0.5}})


async def run_by_chance(local: LocalShard, seed: int) -> list[str]:
    """Return what happened to each of many calls."""
    chances = {fault: 0.1 for fault in sorted(POSSIBLE[Operation.PUT] - {Fault.STALL})}
    shard = FaultyShard(local, seed, rates={Operation.PUT: chances})
    history = []
    for _ in range(200):
        name = make_name(b"data")
        try:
            await shard.put(name, b"data")
            history.append(f"stored {await local.sizes([name])}")
        except ShardError as error:
            history.append(str(error))
    assert shard.injected.total() > 0
    return history


async def test_equal_seeds_give_equal_faults(local: LocalShard) -> None:
    first = await run_by_chance(local, seed=5)
    assert await run_by_chance(local, seed=5) == first
    assert await run_by_chance(local, seed=6) != first
    assert len(set(first)) >= 4


async def test_rates_are_probabilities(local: LocalShard) -> None:
    shard = FaultyShard(local, 1, rates={Operation.SIZES: {Fault.FAIL: 0.3}})
    failed = 0
    for _ in range(400):
        try:
            await shard.sizes([])
        except ShardUnavailable:
            failed += 1
    assert 80 < failed < 160
    assert shard.injected == {(Operation.SIZES, Fault.FAIL): failed}
