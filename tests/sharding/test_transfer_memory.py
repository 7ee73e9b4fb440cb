"""The memory of transfers: never more than allowed while all make headway, in turn, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import random

import pytest

from sharding.transfer_memory import TransferMemory


def memory_of(blocks: int, wait_seconds: float = 60) -> TransferMemory:
    return TransferMemory(lambda: blocks, lambda: wait_seconds)


async def test_room_is_lent_up_to_its_bound_and_then_in_turn() -> None:
    memory, order = memory_of(2), []

    async def work(number: int) -> None:
        with memory.lease() as lease:
            await lease.take()
            order.append(number)
            await asyncio.sleep(0)
            assert memory.blocks <= 2

    await asyncio.gather(*(work(number) for number in range(20)))
    assert order == list(range(20))
    assert memory.blocks == 0


async def test_nobody_takes_at_once_what_another_waits_for() -> None:
    memory = memory_of(1)
    first, second = memory.lease(), memory.lease()
    assert first.take_now()
    assert not second.take_now()
    waiting = asyncio.create_task(second.take())
    await asyncio.sleep(0)
    first.give_back()
    assert not first.take_now()
    await waiting
    second.close()
    second.close()
    assert first.take_now()


async def test_who_waits_too_long_goes_on_without_and_who_holds_a_block_so_long_counts_no_more() -> None:
    memory = memory_of(1, wait_seconds=0.01)
    slow, other = memory.lease(), memory.lease()
    await slow.take()
    await other.take()
    assert (slow.blocks, other.blocks) == (1, 1)
    other.close()
    # The slow one has had its time: it is in nobody's way any more.
    assert other.take_now()
    slow.close()
    other.close()
    assert memory.blocks == 0


@pytest.mark.parametrize("seed", range(5))
async def test_who_gives_up_while_waiting_takes_nothing_along(seed: int) -> None:
    memory, chance = memory_of(3, wait_seconds=0.02), random.Random(seed)

    async def work() -> None:
        with memory.lease() as lease:
            for _ in range(chance.randrange(1, 4)):
                await lease.take()
                await asyncio.sleep(chance.random() / 200)
                if chance.random() < 0.5:
                    lease.give_back()

    tasks = [asyncio.create_task(work()) for _ in range(60)]
    for task in tasks:
        await asyncio.sleep(chance.random() / 500)
        if chance.random() < 0.4:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert memory.blocks == 0


async def test_a_bound_that_rises_lets_more_in() -> None:
    bounds = [1]
    memory = TransferMemory(lambda: bounds[0], lambda: 60)
    first = memory.lease()
    await first.take()
    waiting = [asyncio.create_task(memory.lease().take()) for _ in range(3)]
    await asyncio.sleep(0)
    bounds[0] = 4
    first.give_back()
    await asyncio.gather(*waiting)
    assert memory.blocks == 3
