"""Reads a blob from whichever replica can give it, block by verified block.

No byte leaves here that does not match its block digest. A replica that is absent, unreachable,
slow or wrong makes the reader go on with another at the same offset.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sharding.digests import block_digests
from sharding.errors import BlobUnavailable, ReplicaCorrupt, ReplicaMissing, ShardError, ShardUnavailable
from sharding.guarded import RECALLED_BYTES_MAX
from sharding.hot_blobs import HotBlobs
from sharding.model import BLOCK_BYTES, BLOCK_DIGEST_BYTES, BlobName, Buffer, Replica
from sharding.tasks import hedged, stop
from sharding.transfer_memory import TransferMemory
from sharding.view import StoreView

LOOKS_AGAIN_AFTER_SECONDS = (0.0, 0.5, 1.0, 1.0)
"""A peer that restarts is reachable again, and known to be, within about two seconds."""

PATIENCE_SECONDS = 3.0
"""Where the shards took longer than this to fail, a reader does not wait for them to come back."""


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
    """Reads one blob for one client. ``view`` is asked anew whenever the rows are.

    A small blob that no disk of this node has is taken from ``hot``, if it is there, and kept there.
    """

    def __init__(
        self,
        view: Callable[[], StoreView],
        blob: BlobToRead,
        catalogue: BlobCatalogue,
        *,
        hedge_seconds: float,
        hot: HotBlobs | None = None,
        memory: TransferMemory | None = None,
    ) -> None:
        self._latest_view = view
        self._blob = blob
        self._catalogue = catalogue
        self._hedge_seconds = hedge_seconds
        self._hot = hot
        self._memory = memory or TransferMemory()
        self._reported: set[Replica] = set()
        self._failures: list[ShardError] = []
        self._view = view()
        self._replicas: list[Replica] = self._view.in_reading_order(blob.replicas)

    async def stream(self, first: int, last: int) -> AsyncGenerator[memoryview, None]:
        """Yield the bytes from offset ``first`` to ``last`` inclusive, a block at a time.

        One is read ahead while there is memory for it. None may be kept when the next is asked for: it counts no more.
        Raises ``BlobUnavailable`` when no replica can give the next block.
        """
        if last < first:
            return
        blocks = range(first // BLOCK_BYTES, last // BLOCK_BYTES + 1)
        ahead: asyncio.Task[Buffer] | None = None
        with self._memory.lease() as lease:
            try:
                for block in blocks:
                    if ahead is None:
                        await lease.take()
                        data = await self._block(block)
                    else:
                        data, ahead = await ahead, None
                    if block + 1 in blocks and lease.take_now():
                        ahead = asyncio.create_task(self._block(block + 1))
                    start = block * BLOCK_BYTES
                    yield memoryview(data)[max(first - start, 0) : last - start + 1]
                    del data
                    lease.give_back()
            finally:
                if ahead is not None:
                    await stop((ahead,))

    async def read_small(self) -> Buffer:
        """Return the whole of a blob of one block. Raises ``BlobUnavailable``."""
        if not self._blob.size:
            return b""
        if self._hot is None or self._is_at_hand():
            return await self._block(0)
        digest = await self._catalogue.block_digests(0, 1)
        data = self._hot.find(self._blob.sha256, digest)
        if data is None:
            data = await self._block(0)
            self._hot.keep(self._blob.sha256, data)
        return data

    def _is_at_hand(self) -> bool:
        """Say whether a disk of this node would be read first."""
        return bool(self._replicas) and self._view.owns(self._replicas[0].shard)

    async def _block(self, block: int) -> Buffer:
        """Return one block. Before giving up, look again for replicas that came, or became reachable, meanwhile."""
        digest = await self._catalogue.block_digests(block, 1)
        self._failures = []
        if len(digest) != BLOCK_DIGEST_BYTES:
            raise self._unavailable()
        loop = asyncio.get_running_loop()
        patience = loop.time() + PATIENCE_SECONDS
        data = await self._read_any(list(self._replicas), block, digest)
        for pause_seconds in LOOKS_AGAIN_AFTER_SECONDS:
            if data is not None:
                return data
            if pause_seconds and (loop.time() > patience or not self._in_doubt()):
                break
            await asyncio.sleep(pause_seconds)
            await self._look_again()
            data = await self._read_any(list(self._replicas), block, digest)
        if data is None:
            raise self._unavailable()
        return data

    async def _read_any(self, replicas: Sequence[Replica], block: int, digest: bytes) -> Buffer | None:
        """Return the block from the first of ``replicas``, or from the others when it fails or takes long."""
        if not replicas:
            return None
        if (data := self._recall(replicas[0], block, digest)) is not None:
            return data
        first = self._read(replicas[0], block, digest)
        if len(replicas) == 1:
            return await first
        return await hedged(first, lambda: self._read_any(replicas[1:], block, digest), self._hedge_seconds)

    def _recall(self, replica: Replica, block: int, digest: bytes) -> Buffer | None:
        """Return one small block that is right and takes no waiting; None leaves everything to ``_read``."""
        name, offset, length = self._part(replica, block)
        if length > RECALLED_BYTES_MAX:
            return None
        data = self._view.shards[replica.shard].recall(name, size=self._blob.size, offset=offset, length=length)
        return data if data is not None and block_digests(data) == digest else None

    def _part(self, replica: Replica, block: int) -> tuple[BlobName, int, int]:
        """Return what a block is to its shard: a file, an offset and a length."""
        offset = block * BLOCK_BYTES
        return BlobName(self._blob.sha256, replica.generation), offset, min(BLOCK_BYTES, self._blob.size - offset)

    async def _read(self, replica: Replica, block: int, digest: bytes) -> Buffer | None:
        """Return one verified block from one replica; on failure strike the replica off and return None."""
        name, offset, length = self._part(replica, block)
        try:
            shard = self._view.shards[replica.shard]
            data = await shard.read(name, size=self._blob.size, offset=offset, length=length)
            if block_digests(data) != digest:
                raise ReplicaCorrupt(replica.shard, f"{name}: block {block} is not what was stored")
        except ShardError as error:
            self._strike_off(replica, error)
            return None
        if self._replicas[0] is not replica:  # it overtook those before it, and will again
            self._replicas = [replica, *(other for other in self._replicas if other is not replica)]
        return data

    def _strike_off(self, replica: Replica, error: ShardError) -> None:
        self._failures.append(error)
        self._replicas = [other for other in self._replicas if other is not replica]
        if isinstance(error, (ReplicaMissing, ReplicaCorrupt)) and replica not in self._reported:
            self._reported.add(replica)
            self._catalogue.report(replica, error)

    async def _look_again(self) -> None:
        """Start anew from the rows as they are now. A shard that this node does not know cannot be asked."""
        replicas = await self._catalogue.replicas()
        self._failures = []
        self._view = self._latest_view()
        self._replicas = self._view.in_reading_order(replicas)
        unknown = {replica.shard for replica in replicas} - self._view.shards.keys()
        self._failures.extend(ShardUnavailable(shard, "this node does not know it") for shard in unknown)

    def _in_doubt(self) -> bool:
        return any(isinstance(failure, ShardUnavailable) for failure in self._failures)

    def _unavailable(self) -> BlobUnavailable:
        return BlobUnavailable(self._blob.sha256, tuple(self._failures))
