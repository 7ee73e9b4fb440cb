"""Blobs that peers are staging on this node's shards right now, from their bytes on the wire to the shard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from xxhash import xxh3_64_digest

from sharding import wire
from sharding.frames import Commit
from sharding.model import BLOCK_BYTES, Buffer, Generation
from sharding.shard import Shard, StagedBlob


class StagedUpload:
    """One staged blob, gathered and written a block at a time, whose block digests are computed on the way.

    ``take`` and ``commit`` belong to the task that receives the bytes; ``read`` may be called by others.
    """

    def __init__(self, staged: StagedBlob) -> None:
        self._staged = staged
        self._block = memoryview(bytearray(BLOCK_BYTES))
        self._filled = 0
        self._written = 0
        self._digests = bytearray()
        self._grown = asyncio.Event()
        self._settled = False

    async def take(self, piece: memoryview) -> None:
        """Append ``piece``. Raises as ``StagedBlob.write``."""
        while piece:
            part = piece[: BLOCK_BYTES - self._filled]
            end = self._filled + len(part)
            self._block[self._filled : end] = part
            self._filled = end
            piece = piece[len(part) :]
            self._grown.set()
            if end == BLOCK_BYTES:
                await self._write_block()

    async def commit(self, commit: Commit) -> None:
        """Make the blob durable. Raises ``Refusal`` when its bytes changed on the way, and as ``StagedBlob.commit``."""
        if self._filled:
            await self._write_block()
        blocks = bytes(self._digests)
        if blocks != commit.blocks:
            raise wire.Refusal(wire.CORRUPT, wire.CHANGED)
        self._settle()
        await self._staged.commit(commit.sha256, blocks)

    async def abort(self) -> None:
        """Remove what is staged, unless a commit was begun."""
        if not self._settled:
            self._settle()
            await self._staged.abort()

    async def read(self, offset: int, length: int) -> Buffer:
        """Return staged bytes, waiting for those on their way. Raises ``Refusal`` when the upload is over."""
        end = offset + length
        while self._written + self._filled < end and not self._settled:
            self._grown.clear()
            await self._grown.wait()
        if self._settled:
            raise wire.Refusal(wire.UNAVAILABLE, wire.NOT_STAGED)
        written = self._written
        if offset >= written:
            return bytes(self._block[offset - written : end - written])
        gathered = bytes(self._block[: max(0, end - written)])
        return b"".join((await self._staged.read(offset, min(end, written) - offset), gathered))

    async def _write_block(self) -> None:
        block = self._block[: self._filled]
        # Inline: a tenth of a millisecond, less than the way to another thread and back.
        self._digests += xxh3_64_digest(block)
        await self._staged.write(block)
        self._written += self._filled
        self._filled = 0

    def _settle(self) -> None:
        self._settled = True
        self._grown.set()


class StagedUploads:
    """The staged uploads under way here: so many at most, found by shard and generation."""

    def __init__(self, uploads_max: int) -> None:
        self._uploads_max = uploads_max
        self._uploads: dict[tuple[UUID, Generation], StagedUpload | None] = {}

    def __len__(self) -> int:
        return len(self._uploads)

    @asynccontextmanager
    async def open(self, shard: Shard, uid: UUID, generation: Generation) -> AsyncIterator[StagedUpload]:
        """Stage a blob on ``shard``; what is not committed when the context ends, in whatever way, is removed.

        Raises ``Refusal``, and as ``Shard.stage``.
        """
        key = (uid, generation)
        if len(self._uploads) >= self._uploads_max:
            raise wire.Refusal(wire.UNAVAILABLE, f"{self._uploads_max} uploads are staged here already")
        if key in self._uploads:
            raise wire.Refusal(wire.BAD_REQUEST, f"generation {generation} is being staged already")
        self._uploads[key] = None
        try:
            upload = self._uploads[key] = StagedUpload(await shard.stage(generation))
            try:
                yield upload
            finally:
                await upload.abort()
        finally:
            del self._uploads[key]

    def find(self, uid: UUID, generation: Generation) -> StagedUpload | None:
        """Return the upload if it is under way."""
        return self._uploads.get((uid, generation))
