"""Tasks run side by side: results, errors, and that none is left, whenever the caller gives up."""

from __future__ import annotations

import asyncio

import pytest

from sharding.tasks import hedged, run_all, stop, wait
from tests.sharding.memory import instant


class Mistake(Exception):
    pass


async def after(seconds: float, result: str | Exception | None, log: list[str] | None = None) -> str | None:
    """Give ``result`` after some seconds; note in ``log`` if cancelled before."""
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        if log is not None:
            log.append("cancelled")
        raise
    if isinstance(result, Exception):
        raise result
    return result


def now() -> float:
    return asyncio.get_running_loop().time()


# ------------------------------------------------------------------ wait


@instant
async def test_wait_says_whether_the_event_was_set_in_time() -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(3, event.set)
    assert not await wait(event, 2)
    assert now() == pytest.approx(2)
    assert await wait(event, 2)
    assert now() == pytest.approx(3)


@pytest.mark.parametrize("ticks", range(6))
@pytest.mark.parametrize("first", ["event", "cancellation"])
async def test_cancellation_is_not_lost_when_it_meets_the_end_of_a_wait(ticks: int, first: str) -> None:
    event = asyncio.Event()

    async def work() -> None:
        while True:
            await wait(event, 1000)
            event.clear()

    worker = asyncio.create_task(work())
    await asyncio.sleep(0.001)
    acts = [event.set, worker.cancel]
    for act in acts if first == "event" else reversed(acts):
        act()
        for _ in range(ticks):
            await asyncio.sleep(0)
    done, _ = await asyncio.wait((worker,), timeout=5)
    worker.cancel()
    assert done, "it went on"


# ------------------------------------------------------------------ stop


@instant
async def test_stop_waits_until_each_task_has_cleaned_up_even_when_it_is_cancelled_itself() -> None:
    cleaned = []

    async def work() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(0)
            cleaned.append(1)

    tasks = {asyncio.create_task(work()) for _ in range(3)}
    await asyncio.sleep(0)
    stopping = asyncio.create_task(stop(tasks))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert all(task.done() for task in tasks)


@instant
async def test_stop_takes_notice_of_errors_of_tasks_that_ended_before() -> None:
    async def fail() -> None:
        raise Mistake

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await stop((task,))
    assert isinstance(task.exception(), Mistake)


# ------------------------------------------------------------------ run_all


@instant
async def test_run_all_returns_the_results_in_order() -> None:
    assert await run_all(after(seconds, str(seconds)) for seconds in (3, 1, 2)) == ["3", "1", "2"]
    assert await run_all([]) == []


@instant
async def test_run_all_raises_an_error_only_when_all_have_ended() -> None:
    log: list[str] = []
    with pytest.raises(Mistake):
        await run_all((after(1, Mistake()), after(5, "slow", log)))
    assert now() == pytest.approx(5)
    assert log == []


# ------------------------------------------------------------------ hedged


@pytest.mark.parametrize(
    ("first", "first_seconds", "other", "other_seconds", "expected", "seconds"),
    [
        ("first", 0.5, "other", 0.1, "first", 0.5),
        ("first", 3, "other", 9, "first", 3),
        ("first", 9, "other", 3, "other", 4),
        (None, 0.5, "other", 3, "other", 3.5),
        (None, 2, "other", 3, "other", 4),
        (None, 9, "other", 3, "other", 4),
        ("first", 9, None, 3, "first", 9),
        (None, 9, None, 3, None, 9),
        (None, 0.5, None, 3, None, 3.5),
        (Mistake(), 2, "other", 3, Mistake, 2),
        ("first", 9, Mistake(), 3, "first", 9),
        (None, 9, Mistake(), 3, Mistake, 9),
        (TimeoutError(), 2, "other", 3, TimeoutError, 2),
    ],
)
@instant
async def test_hedged_returns_whichever_succeeds_first_and_starts_the_other_after_a_second(
    first: str | Exception | None,
    first_seconds: float,
    other: str | Exception | None,
    other_seconds: float,
    expected: object,
    seconds: float,
) -> None:
    work = hedged(after(first_seconds, first), lambda: after(other_seconds, other), 1)
    if isinstance(expected, type):
        with pytest.raises(expected):
            await work
    else:
        assert await work == expected
    assert now() == pytest.approx(seconds)


@instant
async def test_hedged_never_starts_the_other_when_the_first_is_quick() -> None:
    async def start() -> str | None:
        pytest.fail("it was started")

    assert await hedged(after(0.9, "first"), start, 1) == "first"
    await asyncio.sleep(10)


@pytest.mark.parametrize(("first_seconds", "other_seconds"), [(9, 3), (3, 9)])
@instant
async def test_hedged_has_cancelled_the_loser_when_it_returns(first_seconds: float, other_seconds: float) -> None:
    log: list[str] = []
    await hedged(after(first_seconds, "first", log), lambda: after(other_seconds, "other", log), 1)
    assert log == ["cancelled"]


@pytest.mark.parametrize("seconds", [0.5, 2.0, 4.0])
@instant
async def test_hedged_given_up_leaves_neither_behind(seconds: float) -> None:
    log: list[str] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await hedged(after(3, None, log), lambda: after(9, "other", log), 1)
    assert len(log) == (2 if seconds == 2.0 else 1)


@instant
async def test_hedged_works_at_every_race_between_the_two() -> None:
    for steps in range(12):

        async def stepwise(steps: int = steps) -> str | None:
            await asyncio.sleep(1)
            for _ in range(steps):
                await asyncio.sleep(0)
            return "first"

        task = asyncio.current_task()
        assert task is not None
        assert await hedged(stepwise(), lambda: after(0, "other"), 1) in ("first", "other")
        assert task.cancelling() == 0
