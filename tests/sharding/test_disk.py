"""The threads of a disk: bounded, and never in the way of the others or of the end."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from sharding.disk import DiskBusy, DiskExecutor


def hang_until(event: threading.Event, begun: threading.Event | None = None) -> None:
    """Hold the thread that runs this until ``event``."""
    if begun is not None:
        begun.set()
    event.wait(10)


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """An event to wait for on a thread; it is set when the test ends."""
    event = threading.Event()
    yield event
    event.set()


async def test_run_returns_the_result_or_raises_the_error() -> None:
    executor = DiskExecutor(2)
    assert await executor.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await executor.run(divmod, 7, 0)
    assert await executor.close(5)


async def test_no_more_calls_run_at_once_than_there_are_threads() -> None:
    executor = DiskExecutor(3)
    lock, running, most = threading.Lock(), 0, 0
    together = threading.Barrier(3, timeout=10)

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()
        with lock:
            running -= 1

    await asyncio.gather(*(executor.run(work) for _ in range(12)))
    assert most == 3
    assert await executor.close(5)


async def test_run_is_refused_when_too_many_wait_and_submit_is_not(hang: threading.Event) -> None:
    executor = DiskExecutor(1, calls_waiting_max=2)
    begun = threading.Event()
    running = [executor.submit(hang_until, hang, begun)]
    assert begun.wait(10)
    running += [executor.submit(hang_until, hang) for _ in range(2)]
    with pytest.raises(DiskBusy):
        await executor.run(int)
    urgent = executor.submit(int)
    hang.set()
    assert await asyncio.wrap_future(urgent) == 0
    assert await executor.run(int) == 0
    assert await executor.close(5)


async def test_cancelled_call_that_has_not_begun_never_begins(hang: threading.Event) -> None:
    executor = DiskExecutor(1)
    executor.submit(hang_until, hang)
    done: list[int] = []
    waiting = asyncio.create_task(executor.run(done.append, 1))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    hang.set()
    assert await executor.close(5)
    assert done == []


async def test_close_finishes_what_is_queued_and_refuses_more() -> None:
    executor = DiskExecutor(1)
    done: list[int] = []
    for n in range(50):
        executor.submit(done.append, n)
    assert await executor.close(5)
    assert done == list(range(50))
    with pytest.raises(DiskBusy):
        executor.submit(int)
    assert await executor.close(5)


async def test_close_returns_false_when_a_thread_hangs(hang: threading.Event) -> None:
    executor = DiskExecutor(2)
    executor.submit(hang_until, hang)
    assert not await executor.close(0.05)


async def test_shutdown_cancels_what_is_queued_on_demand(hang: threading.Event) -> None:
    executor = DiskExecutor(1)
    begun = threading.Event()
    executor.submit(hang_until, hang, begun)
    assert begun.wait(10)
    queued = executor.submit(int)
    executor.shutdown(wait=False, cancel_futures=True)
    assert queued.cancelled()
    hang.set()
    executor.shutdown(wait=True)


async def test_hung_disk_leaves_the_threads_of_others_alone(hang: threading.Event) -> None:
    hung, healthy = DiskExecutor(2), DiskExecutor(2)
    for _ in range(5):
        hung.submit(hang_until, hang)
    async with asyncio.timeout(5):
        assert await healthy.run(int) == 0
    assert await healthy.close(5)


class Buffer(bytearray):
    """Bytes that can be watched."""


@pytest.mark.parametrize("function", [len, dict])
async def test_buffer_of_the_last_call_is_let_go(function: Callable[[Buffer], object]) -> None:
    executor = DiskExecutor(1)
    data = Buffer(10)
    gone = weakref.ref(data)
    gc.disable()
    try:
        with suppress(TypeError, ValueError):  # dict cannot take it, and a failed call has a traceback
            await executor.run(function, data)
        del data
        async with asyncio.timeout(5):
            while gone() is not None:
                await asyncio.sleep(0.001)
    finally:
        gc.enable()
    assert await executor.close(5)


def test_process_ends_though_a_thread_hangs() -> None:
    script = (
        "import asyncio, time\n"
        "from sharding.disk import DiskExecutor\n"
        "async def main():\n"
        "    executor = DiskExecutor(2)\n"
        "    executor.submit(time.sleep, 60)\n"
        "    print(await executor.close(0.1))\n"
        "asyncio.run(main())\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("False\n", "", 0)
