"""Memory for bytes that are about to come: that of blocks is used again, and never cleared.

It is mapped beside the C library's heap, where blocks that come and go would lie among what stays, and keep it large.
"""

from __future__ import annotations

import ctypes
import mmap
from collections import deque
from typing import ClassVar

from sharding.model import BLOCK_BYTES, Buffer

PAGE_BYTES = 4096
CLEARED_BYTES_MAX = 256 << 10
"""Up to here memory comes from the heap: clearing it costs about what avoiding that does."""

ROOM_BYTES = BLOCK_BYTES + PAGE_BYTES
"""Enough for a message with a block in it."""

SPARE_MAX = 16
"""Rooms that wait for their next use: to map one anew costs several times what filling it does."""


class Room(ctypes.Array[ctypes.c_ubyte]):
    """Memory that somebody has, until the last view of it is gone."""

    _type_ = ctypes.c_ubyte
    _length_ = ROOM_BYTES
    spare: ClassVar = deque[mmap.mmap](maxlen=SPARE_MAX)
    memory: mmap.mmap

    def __del__(self) -> None:
        self.spare.append(self.memory)


def room_for(length: int) -> memoryview:
    """Return memory for ``length`` bytes, whatever was in it before: nobody may see it until all of it is filled.

    What is longer than ``CLEARED_BYTES_MAX`` begins with a page, as files that are written around the page cache want
    it.
    """
    if length <= CLEARED_BYTES_MAX:
        return memoryview(bytearray(length))
    if length > ROOM_BYTES:
        return memoryview(mapped(length))
    try:
        memory = Room.spare.pop()
    except IndexError:
        memory = mapped(ROOM_BYTES)
    room = Room.from_buffer(memory)
    room.memory = memory
    return memoryview(room).cast("B")[:length]


def mapped(length: int) -> mmap.mmap:
    return mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def is_aligned(data: Buffer) -> bool:
    """Say whether ``data`` is whole pages of memory that may be written to."""
    view = memoryview(data)
    if view.readonly or not view.nbytes or view.nbytes % PAGE_BYTES:
        return False
    return not ctypes.addressof(ctypes.c_ubyte.from_buffer(view)) % PAGE_BYTES
