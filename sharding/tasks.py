"""Several things at once, none of them left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def stop(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel ``tasks`` and return when each has ended, even when this call is cancelled itself."""
    if tasks:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def wait(event: asyncio.Event, seconds: float) -> bool:
    """Wait until ``event`` is set, for ``seconds`` at most; say whether it was."""
    # Not ``asyncio.wait_for``: before Python 3.12 it loses a cancellation that comes just when its wait is over, and
    # whoever stops the task then waits for ever.
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


async def run_all(work: Iterable[Awaitable[T]]) -> list[T]:
    """Run ``work`` at once and return the results in order; when one fails, raise its error once all have ended."""
    results: list[T] = []
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results


async def hedged(
    first: Awaitable[T | None], other: Callable[[], Coroutine[Any, Any, T | None]], after_seconds: float
) -> T | None:
    """Return what ``first`` gives, or else ``other``; the latter starts beside ``first`` when that takes long.

    None is a failure: it leaves the answer to the other one. Whichever is overtaken has been cancelled and
    has ended when this returns.
    """
    loop = asyncio.get_running_loop()
    rival: asyncio.Task[T | None] | None = None
    overtaken = asyncio.timeout(None)
    running = True

    def start() -> None:
        nonlocal rival
        rival = asyncio.create_task(other())
        rival.add_done_callback(overtake)

    def overtake(task: asyncio.Task[T | None]) -> None:
        if running and not task.cancelled() and task.exception() is None and task.result() is not None:
            overtaken.reschedule(loop.time())

    # ``first`` needs no task of its own, so that the usual case, in which it is quick, costs a timer alone.
    timer = loop.call_later(after_seconds, start)
    result: T | None = None
    try:
        try:
            async with overtaken:
                result = await first
        except TimeoutError:
            if not overtaken.expired():
                raise
        finally:
            running = False
            timer.cancel()
        if result is None:
            result = await (other() if rival is None else rival)
        return result
    finally:
        if rival is not None:
            await stop((rival,))
