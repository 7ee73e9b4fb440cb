"""Group commit for directories: many renames, few fsyncs.

Whoever has renamed or unlinked a file joins; the next fsync of that directory, which starts after
the join, counts for all who joined. One fsync run is under way at a time, and while it is, the
next group gathers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial

Waiters = dict[str, list[asyncio.Future[None]]]


class DirectorySync:
    """Share the fsyncs of the directories of one shard.

    ``sync_all`` begins to fsync the directories it is given; it will return the error of each that failed.
    """

    def __init__(self, sync_all: Callable[[tuple[str, ...]], asyncio.Future[Mapping[str, OSError]]]) -> None:
        self._sync_all = sync_all
        self._gathering: Waiters = {}
        self._running = False

    async def sync(self, directories: Iterable[str]) -> None:
        """Return when every change made in ``directories`` before this call is durable.

        Raises ``OSError``. A failure fails also those who joined while that fsync ran: the kernel
        reports a failed write-back once, so the next fsync says nothing about their changes.
        """
        loop = asyncio.get_running_loop()
        waiters = []
        for directory in directories:
            waiter = loop.create_future()
            self._gathering.setdefault(directory, []).append(waiter)
            waiters.append(waiter)
        if self._gathering and not self._running:
            self._start()
        if len(waiters) == 1:
            await waiters[0]
        else:
            await asyncio.gather(*waiters)

    def _start(self) -> None:
        group, self._gathering = self._gathering, {}
        try:
            run = self._sync_all(tuple(group))
        except Exception as error:
            _settle(group, dict.fromkeys(group, OSError(str(error))))
            return
        self._running = True
        run.add_done_callback(partial(self._finish, group))

    def _finish(self, group: Waiters, run: asyncio.Future[Mapping[str, OSError]]) -> None:
        self._running = False
        failures = _failures(group, run)
        _settle(group, failures)
        late = {directory: self._gathering.pop(directory) for directory in failures if directory in self._gathering}
        _settle(late, failures)
        if self._gathering:
            self._start()


def _failures(group: Waiters, run: asyncio.Future[Mapping[str, OSError]]) -> Mapping[str, OSError]:
    if run.cancelled():
        return dict.fromkeys(group, OSError("the fsync was cancelled"))
    error = run.exception()
    if error is None:
        return run.result()
    return dict.fromkeys(group, error if isinstance(error, OSError) else OSError(str(error)))


def _settle(group: Waiters, failures: Mapping[str, OSError]) -> None:
    for directory, waiters in group.items():
        failure = failures.get(directory)
        for waiter in waiters:
            if waiter.done():
                continue
            if failure is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(OSError(*failure.args))
