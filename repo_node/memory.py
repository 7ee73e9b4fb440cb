"""Tells the C library how a node uses memory: many blocks of 1 MiB, used again at once."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Names of glibc's mallopt(3)."""

MMAP_THRESHOLD_BYTES = 32 << 20
TRIM_THRESHOLD_BYTES = 64 << 20
ARENAS_MAX = 2
COLLECTION_THRESHOLD = 50_000


def tune() -> None:
    """Keep freed blocks for the next use, and collect cycles seldom; does nothing where glibc is not there.

    By default every block of 1 MiB is mapped, touched page by page and unmapped again, which costs
    more than the copy it is for.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
        mallopt(M_ARENA_MAX, ARENAS_MAX)
    # Requests make hardly any cycles; what was made by the imports never goes.
    gc.freeze()
    gc.set_threshold(COLLECTION_THRESHOLD, 20, 50)
