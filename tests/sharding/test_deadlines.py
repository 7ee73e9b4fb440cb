"""Deadlines: each block ends in its time or goes on untouched, and all of them need one timer."""

from __future__ import annotations

import asyncio
import selectors

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.deadlines import EARLY_SECONDS, Deadlines

LONG_SECONDS = 30.0


class SteppingSelector(selectors.DefaultSelector):
    """Waits for nobody: the time of its loop steps on instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0
        return super().select(0)


class SteppingLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only while nothing is left to do, however busy the machine is."""

    def __init__(self) -> None:
        self._steps = SteppingSelector()
        super().__init__(self._steps)

    def time(self) -> float:
        return self._steps.now


async def sleep_within(deadlines: Deadlines, seconds: float) -> str:
    try:
        with deadlines.begin():
            await asyncio.sleep(seconds)
    except TimeoutError:
        return "late"
    return "done"


async def test_a_block_that_takes_too_long_is_interrupted_and_the_task_goes_on() -> None:
    assert await sleep_within(Deadlines(0.01), LONG_SECONDS) == "late"
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12))
def test_each_of_many_blocks_is_judged_by_its_own_time(blocks: list[tuple[int, bool]]) -> None:
    async def run() -> list[str]:
        deadlines = Deadlines(0.02)
        started = []
        for turns, stalls in blocks:
            started.append(asyncio.create_task(sleep_within(deadlines, LONG_SECONDS if stalls else 0)))
            for _ in range(turns):
                await asyncio.sleep(0.001)
        return list(await asyncio.gather(*started))

    with asyncio.Runner(loop_factory=SteppingLoop) as runner:
        results = runner.run(run())
    assert results == ["late" if stalls else "done" for _, stalls in blocks]


async def test_blocks_one_after_another_share_a_timer() -> None:
    loop = asyncio.get_running_loop()
    deadlines, timers = Deadlines(0.05), 0
    call_at = loop.call_at

    def counting(*arguments: object, **options: object) -> asyncio.TimerHandle:
        nonlocal timers
        timers += 1
        return call_at(*arguments, **options)  # type: ignore[arg-type]

    loop.call_at = counting  # type: ignore[method-assign, assignment]
    try:
        for _ in range(100):
            with deadlines.begin():
                pass
        assert timers == 1
        began = loop.time()
        with pytest.raises(TimeoutError), deadlines.begin():
            await loop.create_future()
        assert loop.time() - began >= 0.05 - EARLY_SECONDS  # its own time counts, not the timer's
    finally:
        del loop.call_at  # type: ignore[attr-defined]


async def test_who_is_cancelled_from_outside_is_not_late() -> None:
    task = asyncio.create_task(sleep_within(Deadlines(LONG_SECONDS), LONG_SECONDS))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_is_not_lost_when_the_time_ends_with_it() -> None:
    deadlines = Deadlines(0.01)

    async def cancelled_twice() -> None:
        task = asyncio.current_task()
        assert task is not None
        with deadlines.begin():
            try:
                await asyncio.sleep(LONG_SECONDS)
            except asyncio.CancelledError:
                task.cancel()
                raise

    task = asyncio.create_task(cancelled_twice())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_first_of_two_deadlines_ends_its_own_block() -> None:
    outer, inner = Deadlines(LONG_SECONDS), Deadlines(0.01)
    with outer.begin():
        assert await sleep_within(inner, LONG_SECONDS) == "late"
    with pytest.raises(TimeoutError), inner.begin():
        await sleep_within(outer, LONG_SECONDS)


async def test_an_error_of_the_block_is_its_own() -> None:
    with pytest.raises(ValueError, match="of its own"), Deadlines(LONG_SECONDS).begin():
        raise ValueError("of its own")
