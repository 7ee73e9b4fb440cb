"""Turns: only so many at once, first come first served, and nobody waits for ever."""

from __future__ import annotations

import asyncio

import pytest

from repo_node.errors import Overloaded
from repo_node.turns import Turns
from sharding.tasks import stop


class Work:
    """Tasks that take a turn and keep it until they are told to end."""

    def __init__(self, at_once_max: int) -> None:
        self.turns = Turns("things", lambda: at_once_max)
        self.began: list[int] = []
        self.end = asyncio.Event()

    def start(self, number: int) -> asyncio.Task[None]:
        return asyncio.create_task(self.run(number))

    async def run(self, number: int, wait_seconds: float | None = None) -> None:
        async with self.turns.turn(wait_seconds):
            self.began.append(number)
            await self.end.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_as_many_as_may_run_at_once_and_the_others_in_their_order() -> None:
    work = Work(2)
    tasks = [work.start(number) for number in range(5)]
    await settle()
    assert work.began == [0, 1]
    work.end.set()
    await asyncio.gather(*tasks)
    assert work.began == [0, 1, 2, 3, 4]


async def test_who_waits_too_long_is_refused_and_takes_no_turn() -> None:
    work = Work(1)
    first = work.start(0)
    await settle()
    with pytest.raises(Overloaded):
        await work.run(1, 0.02)
    work.end.set()
    await first
    await work.run(2)
    assert work.began == [0, 2]


async def test_a_turn_given_to_whoever_is_cancelled_goes_to_the_next() -> None:
    work = Work(1)
    tasks = [work.start(number) for number in range(4)]
    await settle()
    await stop([tasks[1]])
    work.end.set()
    await tasks[0]
    # Its turn has come by now, and it does not know yet.
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert work.began == [0, 3]
    await work.run(4)
    assert work.began[-1] == 4
