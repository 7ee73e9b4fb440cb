"""A blob being staged on a peer, over a connection of its own.

An HTTP request carries the credentials and names the shard and the generation. Once the owner has
opened its file it upgrades the connection, which then carries frames. The owner answers once: when
all is done, or as soon as it refuses, and then the next call raises what it said.
"""

from __future__ import annotations

import asyncio
from functools import partial

from sharding import wire
from sharding.calls import ReadStaged
from sharding.errors import ShardError, ShardRefused, ShardUnavailable
from sharding.frames import (
    ABORT_FRAME,
    ALIVE_FRAME,
    FRAME_BYTES_MAX,
    UPGRADE,
    FrameError,
    commit_frame,
    data_head,
    parse_answer,
)
from sharding.model import Buffer, Generation, ShardId
from sharding.peer import UNREACHABLE, ShardCalls
from sharding.shard import StagedBlob
from sharding.upgrade import Upgraded, UpgradeRefused

ALIVE_SECONDS = 5.0
"""How often a writer with nothing to send says that it is there: its own client may be slow."""

ABORT_SECONDS = 5.0


async def open_staged(calls: ShardCalls, generation: Generation, length: int | None = None) -> StagedBlob:
    """Begin to stage a blob on a peer. Contract as ``Shard.stage``."""
    headers = {} if length is None else {wire.LENGTH_HEADER: str(length)}
    try:
        upgraded = await calls.peer.upgrade(f"/shards/{calls.uid}/staged/{generation}", UPGRADE, headers)
    except UpgradeRefused as error:
        raise calls.refused(error) from None
    except UNREACHABLE as error:
        raise calls.unreachable(error) from error
    return RemoteStaged(calls, generation, upgraded)


class RemoteStaged:
    """A ``StagedBlob`` on a peer. Made by ``open_staged``."""

    def __init__(self, calls: ShardCalls, generation: Generation, upgraded: Upgraded) -> None:
        self._calls = calls
        self._generation = generation
        self._link = FrameLink(calls.id, upgraded)
        self._written = 0

    @property
    def written(self) -> int:
        return self._written

    async def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), FRAME_BYTES_MAX):
            piece = view[start : start + FRAME_BYTES_MAX]
            self._link.send(data_head(len(piece)), piece)
            await self._link.drain(self._calls.peer.stall_seconds)
            self._written += len(piece)

    async def read(self, offset: int, length: int) -> Buffer:
        if offset + length > self._written:
            raise ShardRefused(self._calls.id, f"{length} bytes from {offset} are not within {self._written} staged")
        return await self._calls.read(partial(ReadStaged, self._generation), offset, length)

    async def commit(self, sha256: bytes, blocks: bytes) -> None:
        try:
            self._link.send(commit_frame(sha256, blocks))
            await self._link.confirm(self._calls.peer.commit_seconds)
        finally:
            self._link.close()

    async def abort(self) -> None:
        """See ``StagedBlob.abort``. An owner that does not answer finds the connection broken, which says the same."""
        try:
            self._link.send(ABORT_FRAME)
            await self._link.confirm(ABORT_SECONDS)
        except ShardError:
            pass  # it refused before, or cannot be reached: either way it removes what was staged
        finally:
            self._link.close()


class FrameLink(asyncio.Protocol):
    """The writer's end of an upgraded connection."""

    def __init__(self, shard: ShardId, upgraded: Upgraded) -> None:
        self._shard = shard
        self._upgraded = upgraded
        self._transport = upgraded.transport
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[ShardError | None] = self._loop.create_future()
        self._received = b""
        self._drained: asyncio.Future[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._silent = False
        # A drained transport then holds on to no byte, and the caller may reuse its buffer. One with TLS has copied
        # all that it took, and would never say that it is drained of nothing.
        has_tls = self._transport.get_extra_info("ssl_object") is not None
        self._transport.set_write_buffer_limits(high=int(has_tls))
        self._transport.set_protocol(self)
        self._tick()

    def send(self, head: bytes, piece: Buffer = b"") -> None:
        """Send one frame. Raises ``ShardError`` when the owner has answered, or is gone."""
        self._raise_answer()
        # In one go: a head by itself would wake the owner for a few bytes.
        self._transport.writelines((head, piece))
        self._silent = False

    async def drain(self, seconds: float) -> None:
        """Return when the kernel has taken every byte. Raises ``ShardError``."""
        if self._drained is None:
            return
        done, _ = await asyncio.wait((self._drained,), timeout=seconds)
        if not done:
            raise ShardUnavailable(self._shard, f"its owner took no bytes for {seconds} s")
        self._raise_answer()

    async def confirm(self, seconds: float) -> None:
        """Return when the owner has done as the last frame told it. Raises ``ShardError``."""
        done, _ = await asyncio.wait((self._answer,), timeout=seconds)
        if not done:
            raise ShardUnavailable(self._shard, f"its owner did not answer within {seconds} s")
        if (error := self._answer.result()) is not None:
            raise error

    def close(self) -> None:
        """Break the connection, whatever is still on its way."""
        self._settle(ShardUnavailable(self._shard, "the upload is over"))
        self._upgraded.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            body = parse_answer(self._received)
        except FrameError as error:
            self._settle(ShardUnavailable(self._shard, f"its owner was not understood: {error}"))
            self._upgraded.abort()
            return
        if body is not None:
            self._settle(wire.parse_error(self._shard, body) if body else None)

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle(ShardUnavailable(self._shard, f"the connection to its owner broke: {exc or 'closed'}"))
        self.resume_writing()
        self._upgraded.http.connection_lost(exc)

    def _settle(self, outcome: ShardError | None) -> None:
        if not self._answer.done():
            self._answer.set_result(outcome)
        if self._ticker is not None:
            self._ticker.cancel()

    def _raise_answer(self) -> None:
        if self._answer.done():
            raise self._answer.result() or ShardUnavailable(self._shard, "the upload is over")

    def _tick(self) -> None:
        if self._silent and self._drained is None:
            self._transport.write(ALIVE_FRAME)
        self._silent = True
        self._ticker = self._loop.call_later(ALIVE_SECONDS, self._tick)
