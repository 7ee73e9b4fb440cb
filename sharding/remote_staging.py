"""A blob being staged on a peer: one request, whose body is written as the bytes come.

The owner says "continue" once its file is open, so that ``stage`` fails where it should. The bytes
then go from the caller straight to the connection. An answer that comes before the end is a
refusal, and the next call raises it.
"""

from __future__ import annotations

import asyncio
from typing import cast

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from sharding.errors import ShardError, ShardUnavailable
from sharding.frames import ABORT_FRAME, ALIVE_FRAME, FRAME_BYTES_MAX, commit_frame, data_head
from sharding.model import Buffer, Generation
from sharding.peer import ShardCalls
from sharding.shard import StagedBlob

ALIVE_SECONDS = 5.0
"""How often a writer with nothing to send says that it is there: its own client may be slow."""

ABORT_SECONDS = 5.0
ANSWER_SECONDS = 1.0
"""How long an answer may lag behind the end of its connection."""

JOINED_BYTES_MAX = 16 << 10
"""Up to here it costs less to join the parts of a chunk than to send each."""


class RemoteStaged:
    """A ``StagedBlob`` on a peer. Made by ``open_staged``."""

    def __init__(self, calls: ShardCalls, generation: Generation) -> None:
        self._calls = calls
        self._path = f"/staged/{generation}"
        self._body = StagedBody()
        self._exchange = asyncio.create_task(self._make_exchange())
        self._wanted_status = 0
        self._ticker: asyncio.TimerHandle | None = None
        self._silent = False
        self.written = 0

    async def open(self) -> None:
        """Return when the owner has opened its file. Raises as ``Shard.stage``."""
        opened = self._body.opened
        seconds = self._calls.peer.call_seconds
        try:
            await asyncio.wait((self._exchange, opened), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not opened.done():
                self._exchange.cancel()
        if not opened.done():
            raise await self._failure() or self._unavailable(f"its owner opened no file in {seconds} s")
        # Draining then means that the kernel has taken every byte: the caller may reuse its buffer.
        self._transport.set_write_buffer_limits(high=0)
        self._tick()

    async def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), FRAME_BYTES_MAX):
            piece = view[start : start + FRAME_BYTES_MAX]
            await self._refuse_when_over()
            self._send(data_head(len(piece)), piece)
            await self._drain()
            self.written += len(piece)

    async def read(self, offset: int, length: int) -> Buffer:
        return await self._calls.read(self._path, "", offset, length)

    async def commit(self, sha256: bytes, blocks: bytes) -> None:
        await self._refuse_when_over()
        try:
            async with asyncio.timeout(self._calls.peer.commit_seconds):
                self._end(201, commit_frame(sha256, blocks))
                error = await self._exchange
        except TimeoutError:
            error = self._unavailable("its owner did not commit in time")
        finally:
            self._cut()
        if error is not None:
            raise error

    async def abort(self) -> None:
        """See ``StagedBlob.abort``. An owner that does not answer finds the connection cut, which says the same."""
        try:
            if not self._exchange.done():
                self._end(204, ABORT_FRAME)
                await asyncio.wait((self._exchange,), timeout=ABORT_SECONDS)
        finally:
            self._cut()

    async def _make_exchange(self) -> ShardError | None:
        """Make the request, and return what its answer means: None when the owner did as it was told."""
        calls = self._calls
        try:
            async with calls.peer.session.put(
                calls.url(self._path),
                data=self._body,
                headers=calls.peer.all_headers(),
                expect100=True,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, connect=calls.peer.call_seconds),
            ) as response:
                return None if response.status == self._wanted_status else await calls.error_of(response)
        except (aiohttp.ClientError, OSError) as error:
            return calls.unreachable(error)

    @property
    def _transport(self) -> asyncio.Transport:
        return self._body.opened.result()

    def _send(self, head: bytes, piece: Buffer = b"") -> None:
        """Hand one frame to the connection, as one chunk of the body."""
        head = b"%x\r\n%b" % (len(head) + len(piece), head)
        if len(piece) <= JOINED_BYTES_MAX:
            self._transport.write(b"".join((head, piece, b"\r\n")))
        else:
            for part in (head, piece, b"\r\n"):
                self._transport.write(part)
        self._silent = False

    async def _drain(self) -> None:
        seconds = self._calls.peer.stall_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._body.drain()
        except TimeoutError:
            raise self._unavailable(f"its owner took no bytes for {seconds} s") from None
        except ConnectionError:
            await self._refuse_when_over()
            raise self._unavailable("the connection to its owner broke") from None

    async def _refuse_when_over(self) -> None:
        if self._exchange.done() or self._transport.is_closing():
            raise await self._failure() or self._unavailable("its owner ended the upload")

    async def _failure(self) -> ShardError | None:
        await asyncio.wait((self._exchange,), timeout=ANSWER_SECONDS)
        return self._exchange.result() if self._exchange.done() and not self._exchange.cancelled() else None

    def _unavailable(self, message: str) -> ShardUnavailable:
        return ShardUnavailable(self._calls.id, message)

    def _end(self, wanted_status: int, frame: bytes) -> None:
        """Send the last frame and end the body, once."""
        if not self._wanted_status:
            self._wanted_status = wanted_status
            self._send(frame)
            self._body.finish()

    def _cut(self) -> None:
        """Break the connection unless the exchange is complete; its connection may serve others by then."""
        if self._ticker is not None:
            self._ticker.cancel()
        if not self._exchange.done():
            if self._transport.get_write_buffer_size():
                self._transport.abort()
            self._exchange.cancel()

    def _tick(self) -> None:
        if self._exchange.done() or self._wanted_status or self._transport.is_closing():
            return
        if self._silent and not self._transport.get_write_buffer_size():
            self._send(ALIVE_FRAME)
        self._silent = True
        self._ticker = asyncio.get_running_loop().call_later(ALIVE_SECONDS, self._tick)


class StagedBody(Payload):
    """The body of the request: it hands the connection out and waits until the last frame is sent."""

    def __init__(self) -> None:
        super().__init__(None)
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[asyncio.Transport] = loop.create_future()
        """The connection, once the owner has said "continue"."""
        self._finished: asyncio.Future[None] = loop.create_future()
        self._writer: AbstractStreamWriter | None = None

    async def drain(self) -> None:
        """Return when the connection has taken everything."""
        if self._writer is not None:
            await self._writer.drain()

    def finish(self) -> None:
        """Let the request end its body."""
        if not self._finished.done():
            self._finished.set_result(None)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("the body of a staged upload is not kept")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Called once, by the request, when the owner has said "continue"."""
        self._consumed = True
        self._writer = writer
        self.opened.set_result(cast(asyncio.Transport, writer.transport))
        await self._finished


async def open_staged(calls: ShardCalls, generation: Generation) -> StagedBlob:
    """Begin to stage a blob on a peer. Raises as ``Shard.stage``."""
    staged = RemoteStaged(calls, generation)
    await staged.open()
    return staged
