"""Reads a blob from whichever replica can give it, block by verified block.

No byte leaves here that does not match its block digest. A replica that is absent, unreachable,
slow or wrong makes the reader go on with another at the same offset.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from sharding.digests import verify_blocks
from sharding.errors import BlobUnavailable, ReplicaCorrupt, ReplicaMissing, ShardError, StoreError
from sharding.model import BLOCK_BYTES, BLOCK_DIGEST_BYTES, BlobName, Buffer, Replica
from sharding.view import StoreView


class BlobCatalogue(Protocol):
    """What a reader asks the catalogue about one blob."""

    async def block_digests(self, first: int, count: int) -> bytes:
        """Return the digests of ``count`` blocks from block ``first``."""
        ...

    async def replicas(self) -> tuple[Replica, ...]:
        """Return the blob's replicas as they are now."""
        ...

    def report(self, replica: Replica, error: ReplicaMissing | ReplicaCorrupt) -> None:
        """Take note, in the background, that a replica is not what its row says."""
        ...


@dataclass(frozen=True, slots=True)
class BlobToRead:
    """A blob, and the replicas its reader starts from."""

    sha256: bytes
    size: int
    replicas: tuple[Replica, ...]


class BlobReader:
    """Reads one blob for one client."""

    def __init__(self, view: StoreView, blob: BlobToRead, catalogue: BlobCatalogue, *, hedge_seconds: float) -> None:
        self._view = view
        self._blob = blob
        self._catalogue = catalogue
        self._hedge_seconds = hedge_seconds
        self._good = view.in_reading_order(blob.replicas)
        self._failures: list[StoreError] = []
        self._re_read = False

    async def stream(self, first: int, last: int) -> AsyncGenerator[memoryview, None]:
        """Yield the bytes from offset ``first`` to ``last`` inclusive, a block at a time, one read ahead.

        Raises ``BlobUnavailable`` when no replica can give the next block.
        """
        blocks = range(first // BLOCK_BYTES, last // BLOCK_BYTES + 1)
        ahead = asyncio.create_task(self._block(blocks[0]))
        try:
            for block in blocks:
                data = await ahead
                if block + 1 in blocks:
                    ahead = asyncio.create_task(self._block(block + 1))
                start = block * BLOCK_BYTES
                yield memoryview(data)[max(first - start, 0) : last - start + 1]
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    async def read_small(self) -> Buffer:
        """Return the whole of a blob of one block. Raises ``BlobUnavailable``."""
        return await self._block(0) if self._blob.size else b""

    async def _block(self, block: int) -> Buffer:
        digests = await self._catalogue.block_digests(block, 1)
        if len(digests) != BLOCK_DIGEST_BYTES:
            raise self._unavailable()
        while True:
            for replica in list(self._good):
                data = await self._try(replica, block, digests)
                if data is not None:
                    return data
            if self._re_read:
                raise self._unavailable()
            await self._read_rows_again()

    async def _try(self, replica: Replica, block: int, digests: bytes) -> Buffer | None:
        """Return the block from ``replica``, or from another one if that one takes too long; None on failure."""
        reading = asyncio.create_task(self._read(replica, block, digests))
        racing = {reading}
        try:
            done, _ = await asyncio.wait(racing, timeout=self._hedge_seconds)
            if not done:
                other = next((other for other in self._good if other != replica), None)
                if other is not None:
                    racing.add(asyncio.create_task(self._read(other, block, digests)))
            while racing:
                done, racing = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if (data := task.result()) is not None:
                        return data
            return None
        finally:
            for task in racing:
                task.cancel()
            await asyncio.gather(*racing, return_exceptions=True)

    async def _read(self, replica: Replica, block: int, digests: bytes) -> Buffer | None:
        """Return one verified block from one replica; on failure strike the replica off and return None."""
        offset = block * BLOCK_BYTES
        length = min(BLOCK_BYTES, self._blob.size - offset)
        name = BlobName(self._blob.sha256, replica.generation)
        try:
            shard = self._view.shards[replica.shard]
            data = await shard.read(name, size=self._blob.size, offset=offset, length=length)
            if verify_blocks(data, digests) is None:
                return data
            raise ReplicaCorrupt(replica.shard, f"{name}: block {block} is not what was stored")
        except ShardError as error:
            self._failures.append(error)
            if replica in self._good:
                self._good.remove(replica)
            if isinstance(error, (ReplicaMissing, ReplicaCorrupt)):
                self._catalogue.report(replica, error)
            return None

    async def _read_rows_again(self) -> None:
        """Look once for replicas that came, or became reachable, since the look-up."""
        self._re_read = True
        self._good = self._view.in_reading_order(await self._catalogue.replicas())

    def _unavailable(self) -> BlobUnavailable:
        return BlobUnavailable(self._blob.sha256, tuple(self._failures))
