"""The sharding provider: where the node writes binaries and reads them back.

It ties the ring, the shards and the rules for writing, reading and tidying together, and knows no
HTTP, no SQL and no repository.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sharding.commit import Commit, Placement
from sharding.digests import block_digests
from sharding.errors import ShardError
from sharding.hot_blobs import HotBlobs
from sharding.identifiers import mint_generation, mint_uid
from sharding.janitor import Janitor
from sharding.model import (
    BLOCK_BYTES,
    BLOCK_DIGEST_BYTES,
    EXTRA_DIGESTS,
    BlobDigests,
    BlobName,
    Generation,
    Replica,
    ShardId,
)
from sharding.reader import BlobCatalogue, BlobReader, BlobToRead
from sharding.tally import WritePolicy
from sharding.tasks import run_all
from sharding.transfer_memory import TransferMemory
from sharding.upload import Upload
from sharding.view import StoreView

LAG_SECONDS = 1.0
"""A shard that keeps the commit of an upload waiting this long gets a handoff beside it."""

HASHING_THREADS = 4


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How long the store waits, in seconds."""

    commit_wait_seconds: float
    read_hedge_seconds: float


class ShardingProvider:
    """The binary store of one node. ``view`` and ``limits`` are asked anew for every blob."""

    def __init__(
        self,
        view: Callable[[], StoreView],
        limits: Callable[[], StoreLimits],
        hot: HotBlobs | None = None,
        memory: TransferMemory | None = None,
    ) -> None:
        self._view = view
        self._limits = limits
        self._hot = hot
        self._hashing = ThreadPoolExecutor(HASHING_THREADS, thread_name_prefix="hash")
        self.memory = memory or TransferMemory()
        self._janitor = Janitor(lambda shard: view().shards.get(shard))
        self.served = 0
        """Uploads and readers begun, for those who give way to them."""

    @property
    def view(self) -> StoreView:
        return self._view()

    @property
    def janitor(self) -> Janitor:
        """Who removes, in the background, files that nothing will ever refer to."""
        return self._janitor

    def open_upload(
        self, policy: WritePolicy, extra_digests: Collection[str] = EXTRA_DIGESTS, length: int | None = None
    ) -> Upload:
        """Begin an upload; leaving its block stops it and removes whatever is still only staged.

        ``extra_digests`` are computed beside the sha256; ``length`` is the body's, where it is known. Raises
        ``WriteQuorumNotMet`` at once when too few shards take writes.
        """
        self.served += 1
        return Upload(
            mint_uid(),
            self._view(),
            policy,
            mint=mint_generation,
            hashing=self._hashing,
            cleaner=self._janitor,
            extra_digests=extra_digests,
            length=length,
        )

    async def commit(self, upload: Upload) -> Placement:
        """Make a finished upload durable. Raises ``WriteQuorumNotMet``, after which nothing of it stays."""
        limits = self._limits()
        return await Commit(upload, lag_seconds=LAG_SECONDS, wait_seconds=limits.commit_wait_seconds).run()

    async def confirm(self, sha256: bytes, size: int, replicas: Iterable[Replica]) -> list[Generation]:
        """Return those of ``replicas`` whose shard says, now, that the file is there with the right size."""
        by_shard: dict[ShardId, list[Generation]] = {}
        for replica in replicas:
            by_shard.setdefault(replica.shard, []).append(replica.generation)
        asked = (self._confirm_on(shard, sha256, size, names) for shard, names in by_shard.items())
        return [generation for found in await run_all(asked) for generation in found]

    async def _confirm_on(
        self, shard: ShardId, sha256: bytes, size: int, generations: Sequence[Generation]
    ) -> list[Generation]:
        store = self._view().shards.get(shard)
        if store is None:
            return []
        try:
            sizes = await store.sizes([BlobName(sha256, generation) for generation in generations])
        except ShardError:
            return []
        return [generation for generation, found in zip(generations, sizes, strict=True) if found == size]

    async def prove(self, digests: BlobDigests, replicas: Iterable[Replica]) -> list[Generation]:
        """Return those of ``replicas`` whose every block, read now, is what ``digests`` say.

        What takes longer than an upload may wait for its commit is not proved, only not known to be right.
        """
        return [found for found in await run_all(self._prove(digests, one) for one in replicas) if found is not None]

    async def _prove(self, digests: BlobDigests, replica: Replica) -> Generation | None:
        store = self._view().shards.get(replica.shard)
        if store is None:
            return None
        name = BlobName(digests.sha256, replica.generation)
        try:
            async with asyncio.timeout(self._limits().commit_wait_seconds):
                for offset in range(0, digests.size, BLOCK_BYTES):
                    length = min(BLOCK_BYTES, digests.size - offset)
                    data = await store.read(name, size=digests.size, offset=offset, length=length)
                    at = offset // BLOCK_BYTES * BLOCK_DIGEST_BYTES
                    if block_digests(data) != digests.blocks[at : at + BLOCK_DIGEST_BYTES]:
                        return None
        except (ShardError, TimeoutError):
            return None
        return replica.generation

    def drop(self, sha256: bytes, replicas: Iterable[Replica]) -> None:
        """Remove, in the background, durable files that no row refers to nor ever will."""
        for replica in replicas:
            self._janitor.delete_replica(replica.shard, BlobName(sha256, replica.generation))

    def read(self, blob: BlobToRead, catalogue: BlobCatalogue) -> BlobReader:
        """Return a reader of ``blob``; nothing is read yet."""
        self.served += 1
        return BlobReader(
            self._view,
            blob,
            catalogue,
            hedge_seconds=self._limits().read_hedge_seconds,
            hot=self._hot,
            memory=self.memory,
        )

    async def close(self) -> None:
        """Finish tidying, within bounds, and stop."""
        await self._janitor.close()
        self._hashing.shutdown(wait=False, cancel_futures=True)
