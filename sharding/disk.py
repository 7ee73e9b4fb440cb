"""The threads of one disk.

Each shard has a small pool of its own, so that a disk that hangs holds only its own threads. They
are daemon threads: a call that never returns from the kernel does not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from aiofiles.base import wrap

P = ParamSpec("P")
T = TypeVar("T")

CALLS_WAITING_MAX = 256
"""Calls that may wait for a thread; each may hold a buffer of one block."""


class DiskBusy(Exception):
    """Too many calls wait for the disk already, or its threads have been told to end."""


class DiskExecutor(Executor):
    """Run blocking disk calls on ``threads`` daemon threads."""

    def __init__(self, threads: int = 4, *, calls_waiting_max: int = CALLS_WAITING_MAX, name: str = "disk") -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._calls_waiting_max = calls_waiting_max
        self._lock = threading.Lock()
        self._closed = False
        self._ended: Future[None] = Future()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True) for n in range(threads)]
        self._alive = threads
        for thread in self._threads:
            thread.start()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return ``function(*args)`` from one of the threads.

        Raises ``DiskBusy``. A cancelled call that has not begun never begins; one that has goes on alone.
        """
        if self._calls.qsize() >= self._calls_waiting_max:
            raise DiskBusy(f"{self._calls_waiting_max} calls wait for the disk already")
        result: T = await wrap(function)(*args, executor=self, **kwargs)
        return result

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call whatever the length of the queue: for removals, which must not be refused."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise DiskBusy("the shard is closed")
            self._calls.put((future, partial(fn, *args, **kwargs)))
        return future

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

    def _cancel_queued(self) -> None:
        while not self._calls.empty():
            call = self._calls.get()
            if call is not None:
                call[0].cancel()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            _perform(*call)
            call = None  # the buffer of the last call is not kept until the next one comes
        with self._lock:
            self._alive -= 1
            last = not self._alive
        if last:
            self._ended.set_result(None)


def _perform(future: Future[T], function: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:  # whatever it is, it belongs to the caller
        future.set_exception(error)
    else:
        future.set_result(result)
    finally:
        del future, function  # the traceback of an error would keep them alive, and with them the buffers
