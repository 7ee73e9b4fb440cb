"""Memory for bytes that are about to come."""

from __future__ import annotations

import numpy as np

from sharding.model import Buffer

PAGE_BYTES = 4096
ZEROED_BYTES_MAX = 16 << 10
"""Up to here clearing memory is cheaper than avoiding it."""


def room_for(length: int) -> memoryview:
    """Return memory for ``length`` bytes, whatever was in it before: nobody may see it until all of it is filled.

    A ``bytearray`` of a block is cleared first, which costs a third of what filling it does. What is longer than
    ``ZEROED_BYTES_MAX`` begins with a page, as files that are written around the page cache want it.
    """
    if length <= ZEROED_BYTES_MAX:
        return memoryview(bytearray(length))
    whole = np.empty(length + PAGE_BYTES, np.uint8)
    return whole[-whole.ctypes.data % PAGE_BYTES :][:length].data


def is_aligned(data: Buffer) -> bool:
    """Say whether ``data`` is whole pages of memory."""
    found = np.frombuffer(data, np.uint8)
    return not (found.ctypes.data | len(found)) % PAGE_BYTES
