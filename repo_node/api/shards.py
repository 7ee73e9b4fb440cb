"""The internal listener's handlers: this node's own shards, for its peers.

A shard is named by its uid, a file by digest and generation; there is no other way to name
anything. Bytes are passed on as the disk gives them: whoever reads them verifies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

from aiohttp import web

from repo_node.api.calls import CallConnection
from repo_node.api.staged import FrameConnection, StagedUpload, StagedUploads
from sharding import calls, frames, wire
from sharding.calls import Call, Delete, Put, Read, ReadStaged, Sizes
from sharding.frames import Commit, Signal
from sharding.local import LocalShard
from sharding.model import Buffer, Generation
from sharding.shard import Shard

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ReadElsewhere = Callable[[Call], Awaitable[Buffer]]
"""Reads what another process of this node is staging. Raises ``wire.Refusal`` when none is."""

LENGTH_DIGITS_MAX = 18


class ShardHandlers:
    """The handlers, over whatever shards this node owns at the moment of a call."""

    def __init__(
        self,
        shards: Callable[[UUID], Shard | None],
        uploads: StagedUploads,
        *,
        idle_seconds: float,
        elsewhere: ReadElsewhere | None = None,
    ) -> None:
        self._shards = shards
        self._uploads = uploads
        self._idle_seconds = idle_seconds
        self._elsewhere = elsewhere
        self._connections: set[CallConnection] = set()

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of every handler."""
        return [
            internal_route("PUT", "/calls", self.calls),
            internal_route("PUT", "/shards/{uid}/staged/{generation}", self.stage),
        ]

    async def calls(self, request: web.Request) -> web.StreamResponse:
        """Upgrade to calls and perform them until the peer hangs up."""
        response = upgrade_of(request, calls.UPGRADE)
        connection = CallConnection(
            transport_of(request),
            request.protocol,
            perform=self._perform,
            recall=self._recall,
            idle_seconds=self._idle_seconds,
        )
        self._connections.add(connection)
        try:
            await response.prepare(request)
            await connection.serve()
        finally:
            self._connections.discard(connection)
        return response

    async def leave(self, app: web.Application) -> None:
        """Let the calls under way end, and take no more: the listener is closing."""
        for connection in self._connections:
            connection.leave()

    async def stage(self, request: web.Request) -> web.StreamResponse:
        """Upgrade to frames and stage a blob while its bytes come; without a commit, nothing stays."""
        uid, generation, length = _uuid(request, "uid"), Generation(_uuid(request, "generation")), _length(request)
        response = upgrade_of(request, frames.UPGRADE)
        async with self._uploads.open(self._shard(uid), uid, generation, length) as upload:
            connection = FrameConnection(transport_of(request), request.protocol, upload, self._idle_seconds)
            await response.prepare(request)
            refusal = await _receive(connection, upload)
        await connection.answer(refusal)
        return response

    def _recall(self, call: Call) -> Buffer | None:
        """Return the answer to what the memory of a disk knows; None leaves it to ``_perform``."""
        shard = self._shards(call.shard)
        if not isinstance(shard, LocalShard):
            return None
        match call.request:
            case Read(name, size, offset, length):
                return shard.recall(name, size=size, offset=offset, length=length)
            case Sizes(names):
                known = shard.recall_sizes(names)
                return None if known is None else calls.pack_sizes(known)
            case _:
                return None

    async def _perform(self, call: Call) -> Buffer:
        """Do what a peer asks. Raises what ``wire.REFUSABLE`` lists."""
        shard = self._shard(call.shard)
        match call.request:
            case Read(name, size, offset, length):
                return await shard.read(name, size=size, offset=offset, length=length)
            case Put(name, data) as put:
                if not calls.arrived_whole(put):
                    raise wire.Refusal(wire.CORRUPT, wire.CHANGED)
                await shard.put(name, data)
            case Delete(name):
                await shard.delete(name)
            case Sizes(names):
                return calls.pack_sizes(await shard.sizes(names))
            case ReadStaged(generation, offset, length):
                upload = self._uploads.find(call.shard, generation)
                if upload is None and self._elsewhere is not None:
                    return await self._elsewhere(call)
                return await self._read_staged(upload, offset, length)
        return b""

    async def _read_staged(self, upload: StagedUpload | None, offset: int, length: int) -> Buffer:
        if upload is None:
            raise wire.Refusal(wire.UNAVAILABLE, wire.NOT_STAGED)
        async with asyncio.timeout(self._idle_seconds):
            return await upload.read(offset, length)

    def _shard(self, uid: UUID) -> Shard:
        shard = self._shards(uid)
        if shard is None:  # it may have moved: that says nothing about its files
            raise wire.Refusal(wire.UNAVAILABLE, f"shard {uid} is not owned here")
        return shard


def upgrade_of(request: web.Request, protocol: str) -> web.StreamResponse:
    """Return the answer that upgrades the connection of ``request``. Raises ``Refusal``."""
    if request.headers.get("Upgrade") != protocol:
        raise wire.Refusal(wire.BAD_REQUEST, f"the connection must be upgraded to {protocol}")
    response = web.StreamResponse(status=101, headers={"Connection": "Upgrade", "Upgrade": protocol})
    response.force_close()
    return response


def transport_of(request: web.Request) -> asyncio.Transport:
    """Return the connection of ``request``. Raises ``ConnectionError`` when it is gone."""
    if request.transport is None:
        raise ConnectionError("the peer is gone")
    return request.transport


def internal_route(method: str, path: str, handler: Handler) -> web.RouteDef:
    """Return a route of the internal listener; ``path`` follows its prefix."""
    return web.route(method, wire.PREFIX + path, handler, expect_handler=withhold_continue)


async def withhold_continue(request: web.Request) -> None:
    """Ask for no body before the handler has looked at the request."""


async def _receive(connection: FrameConnection, upload: StagedUpload) -> wire.Refusal | None:
    """Write what comes until the last frame, and do what that says; return what went wrong."""
    try:
        while (event := await connection.next_event()) is Signal.BLOCK:
            await upload.write_block()
        if isinstance(event, Commit):
            await upload.commit(event)
    except wire.REFUSABLE as error:
        return wire.refusal_of(error)
    return None


def _length(request: web.Request) -> int | None:
    text = request.headers.get(wire.LENGTH_HEADER)
    if text is not None and not (text.isascii() and text.isdigit() and len(text) <= LENGTH_DIGITS_MAX):
        raise wire.Refusal(wire.BAD_REQUEST, f"{wire.LENGTH_HEADER} is a number of bytes")
    return None if text is None else int(text)


def _uuid(request: web.Request, field: str) -> UUID:
    try:
        return wire.parse_uuid(request.match_info[field])
    except ValueError as error:
        raise wire.Refusal(wire.BAD_REQUEST, str(error)) from None
