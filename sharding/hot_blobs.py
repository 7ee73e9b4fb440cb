"""Small blobs that other nodes' shards gave lately, kept in memory.

What lies on a node's own disks is in its page cache anyway; what a peer has costs a call each time. A blob is kept by
its digest, so nothing here ever turns wrong, and nothing needs to be told: who may read it, and whether its path still
leads to it, was asked before, each time. The bytes are verified when they are taken out, like those of a disk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sharding.digests import block_digests
from sharding.model import Buffer

ENTRY_BYTES = 256
"""What an entry costs beside its bytes, about: it counts, so that the smallest blobs are bounded too."""


@dataclass(frozen=True, slots=True)
class HotLimits:
    """The largest blob that is kept, and what all may have together."""

    blob_bytes_max: int
    blobs_bytes_max: int


class HotObserver(Protocol):
    """Whoever counts the looks, and what is kept."""

    def observe_hot_blobs(self, *, hit: bool, held_bytes: int) -> None:
        """Note one look and how much is held. Must not raise or block."""
        ...


class HotBlobs:
    """The latest used go last. ``limits`` are asked anew each time."""

    def __init__(self, limits: Callable[[], HotLimits], observer: HotObserver) -> None:
        self._limits = limits
        self._observer = observer
        self._blobs: OrderedDict[bytes, Buffer] = OrderedDict()
        self.held_bytes = 0

    def find(self, sha256: bytes, digest: bytes) -> Buffer | None:
        """Return the bytes of a blob of one block if they are kept, and what its block digest says."""
        data = self._blobs.get(sha256)
        if data is not None and block_digests(data) != digest:
            self._drop(sha256)
            data = None
        if data is not None:
            self._blobs.move_to_end(sha256)
        self._observer.observe_hot_blobs(hit=data is not None, held_bytes=self.held_bytes)
        return data

    def keep(self, sha256: bytes, data: Buffer) -> None:
        """Keep bytes that were verified, unless they are too many; those used longest ago make room."""
        limits, cost = self._limits(), len(data) + ENTRY_BYTES
        if len(data) <= limits.blob_bytes_max and cost <= limits.blobs_bytes_max and sha256 not in self._blobs:
            # A copy: what came over the wire may be part of a larger buffer.
            self._blobs[sha256] = bytes(data)
            self.held_bytes += cost
        while self.held_bytes > limits.blobs_bytes_max:
            self._drop(next(iter(self._blobs)))

    def _drop(self, sha256: bytes) -> None:
        self.held_bytes -= len(self._blobs.pop(sha256)) + ENTRY_BYTES
