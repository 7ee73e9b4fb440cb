"""One upload's bytes on their way to N shards: hashed and written once, while they arrive.

A body of one block or less stays in memory and goes out whole. A longer one streams block by block
to staged copies (``tee.py``). ``commit.py`` makes the copies durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from typing import Self
from uuid import UUID

from sharding.digests import BlobHasher, digest_small
from sharding.model import BLOCK_BYTES, EXTRA_DIGESTS, BlobDigests, Buffer, Generation
from sharding.placer import Placer
from sharding.tally import WritePolicy
from sharding.tee import Cleaner, Tee
from sharding.view import StoreView

INLINE_HASH_BYTES = 64 << 10
"""Up to this, 0.2 ms of hashing, the way to another thread and back would add a fifth and more to the cost."""


class Upload:
    """The bytes of one upload, open for a block. Belongs to one task: ``write`` any number of times, then ``finish``.

    What happens to the copies then is for ``commit.py``; ``close`` may be called at any time. Holds one block in
    memory, and one more for each handoff that is catching up. Computes ``extra_digests`` beside the sha256. ``length``
    is the body's, where it is known beforehand. Raises ``WriteQuorumNotMet`` at once when too few shards take writes.
    """

    def __init__(
        self,
        uid: UUID,
        view: StoreView,
        policy: WritePolicy,
        *,
        mint: Callable[[], Generation],
        hashing: Executor,
        cleaner: Cleaner,
        extra_digests: Collection[str] = EXTRA_DIGESTS,
        length: int | None = None,
    ) -> None:
        self.uid = uid
        self.policy = policy
        self.mint = mint
        self.cleaner = cleaner
        self.placer = Placer(uid, view, policy)
        self.size = 0
        self.digests: BlobDigests | None = None
        self.small: Buffer | None = None
        """The whole body, when it has come and was never staged."""
        self.tee: Tee | None = None
        self._hashing = hashing
        self._extra_digests = extra_digests
        self._block = bytearray()
        self._length = length
        self._is_long = length is not None and length > BLOCK_BYTES

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def write(self, data: Buffer) -> None:
        """Take the next bytes of the body; return when there is room for more.

        ``data`` may be reused then, unless it is the whole of a small body: that stays where it is, and must not
        change. Raises ``WriteQuorumNotMet`` once the upload has become hopeless.
        """
        assert self.small is None, "a body is no longer than it was said to be"
        rest = memoryview(data).cast("B")
        self.size += len(rest)
        if len(rest) == self._length and not self._is_long:
            self.small = rest
            return
        # A body of just one block is small. Of a longer one, each block goes out as soon as it is full.
        least = BLOCK_BYTES if self._is_long else BLOCK_BYTES + 1
        while len(self._block) + len(rest) >= least:
            if self._block:
                room = BLOCK_BYTES - len(self._block)
                self._block += rest[:room]
                block, self._block, rest = self._block, bytearray(), rest[room:]
                await self._send(block)
            else:
                await self._send(rest[:BLOCK_BYTES])
                rest = rest[BLOCK_BYTES:]
            self._is_long, least = True, BLOCK_BYTES
        self._block += rest

    async def finish(self) -> BlobDigests:
        """Say that the body is complete and return its digests. Nothing is visible or durable yet."""
        last, self._block = self._block, bytearray()
        if self.tee is None:
            self.small = last if self.small is None else self.small
            self.digests = await self._digest(self.small)
        else:
            if last:
                await self.tee.send(last)
            self.digests = await self.tee.finish()
        return self.digests

    async def close(self) -> None:
        """Stop everything under way and remove what is staged; what is durable already is not touched."""
        self._block, self.small = bytearray(), None
        if self.tee is not None:
            await self.tee.close()

    async def _digest(self, data: Buffer) -> BlobDigests:
        if len(data) <= INLINE_HASH_BYTES:
            return digest_small(data, self._extra_digests)
        return await asyncio.get_running_loop().run_in_executor(self._hashing, digest_small, data, self._extra_digests)

    async def _send(self, block: Buffer) -> None:
        if self.tee is None:
            self.tee = Tee(
                self.placer,
                self.policy,
                mint=self.mint,
                hasher=BlobHasher(self._extra_digests),
                hashing=self._hashing,
                cleaner=self.cleaner,
                length=self._length,
            )
            await self.tee.open()
        await self.tee.send(block)
        await self.tee.settle()
