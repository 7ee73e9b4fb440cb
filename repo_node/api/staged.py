"""Blobs that peers are staging on this node's shards, from the connection to the shard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from xxhash import xxh3_64_digest

from sharding import wire
from sharding.frames import DONE_FRAME, Commit, FrameError, Signal, StreamReceiver, refusal_frame
from sharding.model import Buffer, Generation
from sharding.shard import Shard, StagedBlob

LINGER_SECONDS = 5.0
"""How long a peer has to hear a refusal before its connection is closed under it."""


class StagedUpload:
    """One staged blob, gathered and written a block at a time, whose block digests are computed on the way.

    ``read`` may be called by any task, the others belong to the one that receives.
    """

    def __init__(self, staged: StagedBlob) -> None:
        self.stream = StreamReceiver()
        self._staged = staged
        self._digests = bytearray()
        self._grown = asyncio.Event()
        self._settled = False

    def note_growth(self) -> None:
        """Say that bytes have come."""
        self._grown.set()

    async def write_block(self) -> None:
        """Write what stands in the block. Raises as ``StagedBlob.write``."""
        block = self.stream.block[: self.stream.filled]
        # Inline: a tenth of a millisecond, less than the way to another thread and back.
        self._digests += xxh3_64_digest(block)
        await self._staged.write(block)
        self.stream.take_block()

    async def commit(self, commit: Commit) -> None:
        """Make the blob durable. Raises ``Refusal`` when its bytes changed on the way, and as ``StagedBlob.commit``."""
        if self.stream.filled:
            await self.write_block()
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
        stream, end = self.stream, offset + length
        while stream.before + stream.filled < end and not self._settled:
            self._grown.clear()
            await self._grown.wait()
        if self._settled:
            raise wire.Refusal(wire.UNAVAILABLE, wire.NOT_STAGED)
        written = stream.before
        if offset >= written:
            return bytes(stream.block[offset - written : end - written])
        gathered = bytes(stream.block[: max(0, end - written)])
        return b"".join((await self._staged.read(offset, min(end, written) - offset), gathered))

    def _settle(self) -> None:
        self._settled = True
        self._grown.set()


class FrameConnection(asyncio.BufferedProtocol):
    """The owner's end of an upgraded connection: receives into the block of an upload, and no further.

    Reading rests while a block is being written; what the sender has ready then waits in the kernel.
    ``http`` is the protocol that had the connection before, and hears of its end.
    """

    def __init__(
        self, transport: asyncio.Transport, http: asyncio.Protocol, upload: StagedUpload, idle_seconds: float
    ) -> None:
        self._transport = transport
        self._http = http
        self._upload = upload
        self._idle_seconds = idle_seconds
        self._loop = asyncio.get_running_loop()
        self._event: asyncio.Future[Commit | Signal] = self._loop.create_future()
        self._silent = False
        self._discarding = False
        self._watch = self._loop.call_later(idle_seconds, self._look)
        transport.set_protocol(self)

    async def next_event(self) -> Commit | Signal:
        """Return what the stream completes next, having kept nothing of what follows.

        Raises ``Refusal`` for what is no stream of frames, ``TimeoutError``, ``ConnectionError``.
        """
        if self._event.done():
            self._event = self._loop.create_future()
            self._transport.resume_reading()
        return await self._event

    async def answer(self, refusal: wire.Refusal | None) -> None:
        """Send the one answer. After a refusal the rest of the stream is read and dropped until the peer hangs up."""
        if refusal is None:
            self._transport.write(DONE_FRAME)
        else:
            self._discarding = True
            self._transport.write(refusal_frame(refusal.body()))
            self._transport.resume_reading()
            await asyncio.sleep(LINGER_SECONDS)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._upload.stream.block if self._discarding else self._upload.stream.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._silent = False
        if self._discarding:
            return
        try:
            event = self._upload.stream.advance(nbytes)
        except FrameError as error:
            self._fail(wire.Refusal(wire.BAD_REQUEST, str(error)))
            return
        self._upload.note_growth()
        if event is None or self._event.done():
            return
        if event is Signal.BLOCK:
            self._transport.pause_reading()
        else:  # nothing may follow, but a peer that hangs up now must be noticed
            self._discarding = True
        self._event.set_result(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        self._fail(ConnectionResetError("the peer is gone"))
        self._http.connection_lost(exc)

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()

    def _fail(self, error: Exception) -> None:
        if not self._event.done():
            self._transport.pause_reading()
            self._event.set_exception(error)
            self._event.exception()  # whoever waits for it may have been cancelled

    def _look(self) -> None:
        if self._silent and self._transport.is_reading():
            self._fail(TimeoutError())
        self._silent = True
        self._watch = self._loop.call_later(self._idle_seconds, self._look)


class StagedUploads:
    """The staged uploads under way here: so many at most, found by shard and generation."""

    def __init__(self, uploads_max: int) -> None:
        self._uploads_max = uploads_max
        self._uploads: dict[tuple[UUID, Generation], StagedUpload | None] = {}

    @asynccontextmanager
    async def open(
        self, shard: Shard, uid: UUID, generation: Generation, length: int | None = None
    ) -> AsyncIterator[StagedUpload]:
        """Stage a blob, of about ``length`` bytes, on ``shard``.

        What is not committed when the context ends, in whatever way, is removed. Raises ``Refusal``, and as
        ``Shard.stage``.
        """
        key = (uid, generation)
        if len(self._uploads) >= self._uploads_max:
            raise wire.Refusal(wire.UNAVAILABLE, f"{self._uploads_max} uploads are staged here already")
        if key in self._uploads:
            raise wire.Refusal(wire.BAD_REQUEST, f"generation {generation} is being staged already")
        self._uploads[key] = None
        try:
            upload = self._uploads[key] = StagedUpload(await shard.stage(generation, length))
            try:
                yield upload
            finally:
                await upload.abort()
        finally:
            del self._uploads[key]

    def find(self, uid: UUID, generation: Generation) -> StagedUpload | None:
        """Return the upload if it is under way."""
        return self._uploads.get((uid, generation))
