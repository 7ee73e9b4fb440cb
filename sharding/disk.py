"""The threads of one disk.

Each shard has a small pool of its own, so that a disk that hangs holds only its own threads. They
are daemon threads: a call that never returns from the kernel does not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, Protocol, TypeVar
from weakref import WeakKeyDictionary

P = ParamSpec("P")
T = TypeVar("T")

CALLS_WAITING_MAX = 256
"""Calls that may wait for a thread; each may hold a buffer of one block."""


class DiskBusy(Exception):
    """Too many calls wait for the disk already, or its threads have been told to end."""


class DiskExecutor(Executor):
    """Run blocking disk calls on ``threads`` daemon threads."""

    def __init__(self, threads: int = 4, *, calls_waiting_max: int = CALLS_WAITING_MAX, name: str = "disk") -> None:
        self._calls: SimpleQueue[QueuedCall | None] = SimpleQueue()
        self._calls_waiting_max = calls_waiting_max
        self._lock = threading.Lock()
        self._closed = False
        self._ended: Future[None] = Future()
        self._returns: WeakKeyDictionary[asyncio.AbstractEventLoop, Returns] = WeakKeyDictionary()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True) for n in range(threads)]
        self._alive = threads
        for thread in self._threads:
            thread.start()

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more calls."""
        return self._closed

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return ``function(*args)`` from one of the threads.

        Raises ``DiskBusy``. A cancelled call that has not begun never begins; one that has goes on alone.
        """
        if self._calls.qsize() >= self._calls_waiting_max:
            raise DiskBusy(f"{self._calls_waiting_max} calls wait for the disk already")
        return await self.begin(function, *args, **kwargs)

    def begin(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Queue a call whatever the length of the queue and return the running loop's future of it.

        Raises ``DiskBusy`` only when the executor is closed. Costs a fifth of what ``submit`` and ``wrap_future`` do.
        """
        loop = asyncio.get_running_loop()
        returns = self._returns.get(loop)
        if returns is None:
            returns = self._returns[loop] = Returns(loop)
        future: asyncio.Future[T] = loop.create_future()
        self._queue(LoopCall(returns, future, partial(function, *args, **kwargs)))
        return future

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call whatever the length of the queue: for removals, which must not be refused."""
        future: Future[T] = Future()
        self._queue(ThreadCall(future, partial(fn, *args, **kwargs)))
        return future

    def _queue(self, call: QueuedCall) -> None:
        with self._lock:
            if self._closed:
                raise DiskBusy("the shard is closed")
            self._calls.put(call)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the threads end after what is queued, or after what is running if ``cancel_futures``."""
        with self._lock:
            if not self._closed:
                self._closed = True
                if cancel_futures:
                    self._cancel_queued()
                for _ in self._threads:
                    self._calls.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    async def close(self, timeout_seconds: float) -> bool:
        """Finish what is queued and end the threads; return False if some still hang after ``timeout_seconds``."""
        self.shutdown(wait=False)
        try:
            async with asyncio.timeout(timeout_seconds):
                await asyncio.shield(asyncio.wrap_future(self._ended))
        except TimeoutError:
            return False
        return True

    def when_ended(self, function: Callable[[], None]) -> None:
        """Call ``function`` when the last thread has ended, on that thread, or now if it has."""
        self._ended.add_done_callback(lambda _: function())

    def _cancel_queued(self) -> None:
        while not self._calls.empty():
            call = self._calls.get()
            if call is not None:
                call.cancel()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.perform()
            call = None  # the buffer of the last call is not kept until the next one comes
        with self._lock:
            self._alive -= 1
            last = not self._alive
        if last:
            self._ended.set_result(None)


class QueuedCall(Protocol):
    """A call in the queue: performed by a thread, or cancelled."""

    def perform(self) -> None: ...

    def cancel(self) -> None: ...


class ThreadCall:
    """A call whose result any thread may wait for."""

    __slots__ = ("_function", "_future")

    def __init__(self, future: Future[Any], function: Callable[[], Any]) -> None:
        self._future = future
        self._function = function

    def perform(self) -> None:
        future, function = self._future, self._function
        del self._future, self._function  # the traceback of an error would keep them alive, and with them the buffers
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function()
        except BaseException as error:  # whatever it is, it belongs to the caller
            future.set_exception(error)
        else:
            future.set_result(result)
        finally:
            del future, function

    def cancel(self) -> None:
        self._future.cancel()


class LoopCall:
    """A call whose result goes back to an event loop."""

    __slots__ = ("_function", "_future", "_returns")

    def __init__(self, returns: Returns, future: asyncio.Future[Any], function: Callable[[], Any]) -> None:
        self._returns = returns
        self._future = future
        self._function = function

    def perform(self) -> None:
        future, function = self._future, self._function
        del self._future, self._function
        if future.cancelled():
            return
        try:
            result = function()
        except StopIteration as error:  # no future takes it
            self._returns.add(future, RuntimeError(f"StopIteration: {error}"), failed=True)
        except BaseException as error:
            self._returns.add(future, error, failed=True)
        else:
            self._returns.add(future, result, failed=False)
        finally:
            del future, function

    def cancel(self) -> None:
        self._returns.add(self._future, DiskBusy("the shard is closed"), failed=True)


class Returns:
    """Brings results back to one event loop, waking it once for all that are ready."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready: deque[tuple[asyncio.Future[Any], Any, bool]] = deque()
        self._woken = False

    def add(self, future: asyncio.Future[Any], outcome: Any, *, failed: bool) -> None:
        """Settle ``future`` on its loop; called by any thread. A loop that has ended wants nothing any more."""
        self._ready.append((future, outcome, failed))
        # Added first, looked second: whoever is told "woken" is seen by the delivery that is still to come.
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False
        while self._ready:
            future, outcome, failed = self._ready.popleft()
            if future.done():
                continue
            if failed:
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
