"""Mints UUIDv7s (RFC 9562): the ids of blobs and the generations of replicas."""

from __future__ import annotations

import os
import time
from uuid import UUID

from sharding.model import Generation

RANDOM_BYTES = 10
DRAWN_AT_ONCE = 200
"""Random numbers fetched from the kernel by one call, which costs as much for many as for one."""

_drawn: list[int] = []
# A forked process would go on with the same numbers.
os.register_at_fork(after_in_child=_drawn.clear)


def uuid7() -> UUID:
    """Return a new UUIDv7: 48 bits of milliseconds, the rest random."""
    milliseconds = time.time_ns() // 1_000_000
    random = draw()
    value = (milliseconds & (1 << 48) - 1) << 80 | 7 << 76 | (random >> 68) << 64 | 2 << 62 | random & (1 << 62) - 1
    return UUID(int=value)


def draw() -> int:
    """Return a random number of ``RANDOM_BYTES`` that nobody else has had; called by any thread."""
    try:
        return _drawn.pop()
    except IndexError:
        fetched = os.urandom(RANDOM_BYTES * DRAWN_AT_ONCE)
        numbers = [int.from_bytes(fetched[i : i + RANDOM_BYTES]) for i in range(0, len(fetched), RANDOM_BYTES)]
        last = numbers.pop()
        _drawn.extend(numbers)
        return last


def mint_uid() -> UUID:
    """Return the id of a new blob, which places it on the ring."""
    return uuid7()


def mint_generation() -> Generation:
    """Return a generation that no file had before."""
    return Generation(uuid7())
