"""Tells the C library how a node uses memory: what large things leave behind goes back to the system."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Names of glibc's mallopt(3)."""

MMAP_THRESHOLD_BYTES = 4 << 20
"""From here on memory is mapped, and unmapped at once: the 19 MiB that proving a password takes would stay for good.

What carries a block is smaller, and used again without the kernel, which takes longer to map it than to copy it.
"""

TRIM_THRESHOLD_BYTES = 64 << 20
"""What the end of the heap may have free before it shrinks at once: it grows again page by page, at each block read."""

ARENAS_MAX = 1
"""Heaps: what one thread has freed another can use, and they hardly ever allocate at once."""

FREE_BYTES_MAX = 8 << 20
"""What the heap may keep, for longer than between two looks, that nobody uses."""

LOOK_SECONDS = 2.0
COLLECTION_THRESHOLD = 50_000


class MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc: ten numbers of bytes and pieces."""

    _fields_ = (("before", ctypes.c_size_t * 8), ("free_bytes", ctypes.c_size_t), ("trimmable_bytes", ctypes.c_size_t))


def tune() -> None:
    """Say what to keep of freed memory, and collect cycles seldom; does nothing where glibc is not there."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
        mallopt(M_ARENA_MAX, ARENAS_MAX)
    # Requests make hardly any cycles; what was made by the imports never goes.
    gc.freeze()
    gc.set_threshold(COLLECTION_THRESHOLD, 20, 50)


async def give_back() -> None:
    """Give back what is free in the heap whenever it is too much, until cancelled.

    The C library would do so at the heap's end alone; a burst of requests leaves it between what stays.
    """
    libc = ctypes.CDLL(None)
    try:
        mallinfo, trim = libc.mallinfo2, libc.malloc_trim
    except AttributeError:  # not glibc, or one before 2.33
        return
    mallinfo.restype = MallInfo
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if mallinfo().free_bytes > FREE_BYTES_MAX:
            trim(0)
