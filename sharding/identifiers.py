"""Mints UUIDv7s (RFC 9562): the ids of blobs and the generations of replicas."""

from __future__ import annotations

import os
import time
from uuid import UUID

from sharding.model import Generation


def uuid7() -> UUID:
    """Return a new UUIDv7: 48 bits of milliseconds, the rest random."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10))
    value = (milliseconds & (1 << 48) - 1) << 80 | 7 << 76 | (random >> 68) << 64 | 2 << 62 | random & (1 << 62) - 1
    return UUID(int=value)


def mint_uid() -> UUID:
    """Return the id of a new blob, which places it on the ring."""
    return uuid7()


def mint_generation() -> Generation:
    """Return a generation that no file had before."""
    return Generation(uuid7())
