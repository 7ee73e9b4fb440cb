"""Reads that wait on the event loop until the disk has brought a small file into the page cache.

A thread that waits for a disk must get the interpreter's lock back after each of its system calls, from an event loop
that is busy and keeps it for up to 5 ms. Here the kernel is told what will be wanted, and looked at again soon.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from sharding.cached_reads import CachedReads
from sharding.model import Buffer

PAUSES_SECONDS = (0, 0.001, 0.001, 0.001, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.013)
"""Before each look at what has arrived: a flash disk often takes no longer than a turn of a busy event loop."""

FILE_BYTES_MAX = 64 << 10
"""Where the parts of a longer one lie, the kernel may have to read from the disk itself before it answers."""

ASKED_MAX = 32
"""Reads that the disk was asked for and has not answered: one whose own queue is full keeps whoever asks for more."""


class ArrivingReads:
    """Reads what is not in memory yet through ``cached``. Belongs to one event loop."""

    def __init__(self, cached: CachedReads) -> None:
        self._cached = cached
        self._asked = 0

    async def read(
        self, path: str, size: int, offset: int, length: int, *, otherwise: Callable[[], Awaitable[Buffer]]
    ) -> Buffer:
        """Return ``length`` bytes from ``offset`` of a file of exactly ``size`` bytes, if memory soon has them.

        Else, and of what is not such a part of such a file, what ``otherwise`` gives, which may wait for the disk.
        """
        if size > FILE_BYTES_MAX or not 0 <= offset < offset + length <= size or self._asked >= ASKED_MAX:
            return await otherwise()
        file = self._cached.open(path, size)
        if file is None:
            return await otherwise()
        self._asked += 1
        try:
            data = await self._arrival(file, offset, length)
            return await otherwise() if data is None else data
        finally:
            self._asked -= 1

    async def _arrival(self, file: int, offset: int, length: int) -> memoryview | None:
        """Return what was asked for when it has come, None if it has not soon; ``file`` is closed."""
        try:
            os.posix_fadvise(file, offset, length, os.POSIX_FADV_WILLNEED)
            for pause in PAUSES_SECONDS:
                await asyncio.sleep(pause)
                if (data := self._cached.read_opened(file, offset, length)) is not None:
                    return data
            return None
        finally:
            os.close(file)
