"""Bodies of uploads: incompressible, no two alike, and cheaper to make than to send."""

from __future__ import annotations

import os
from collections.abc import Iterator

BLOCK_BYTES = 1 << 20
POOL_BYTES = 4 << 20
LABEL_BYTES = 16


class Content:
    """Makes bodies out of one pool of random bytes: each block begins with a label that no other block has."""

    def __init__(self) -> None:
        self._pool = memoryview(os.urandom(POOL_BYTES + BLOCK_BYTES))
        self._labels = 0
        self._prefix = os.urandom(LABEL_BYTES // 2)

    def blocks(self, size: int) -> Iterator[bytes]:
        """Yield a new body of ``size`` bytes in blocks of 1 MiB, the last one short."""
        for start in range(0, size, BLOCK_BYTES):
            length = min(BLOCK_BYTES, size - start)
            self._labels += 1
            label = self._prefix + self._labels.to_bytes(LABEL_BYTES // 2, "little")
            offset = self._labels * 4099 % POOL_BYTES
            yield b"".join((label, self._pool[offset : offset + max(0, length - LABEL_BYTES)]))[:length]
