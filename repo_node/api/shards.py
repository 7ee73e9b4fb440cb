"""The internal listener's handlers: this node's own shards, for its peers.

A shard is named by its uid, a file by digest and generation; there is no other way to name
anything. Bytes are passed on as the disk gives them: whoever reads them verifies.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from uuid import UUID

from aiohttp import web

from repo_node.api.staged import FrameConnection, StagedUpload, StagedUploads
from sharding import wire
from sharding.digests import block_digests
from sharding.frames import UPGRADE, Commit, Signal
from sharding.model import BLOCK_BYTES, BlobName, Buffer, Generation
from sharding.shard import Shard

SMALL_ANSWER_BYTES = 64 << 10
"""Up to here an answer goes out as one piece, with its head."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
NUMBER = re.compile(r"[0-9]{1,18}")


class ShardHandlers:
    """The handlers, over whatever shards this node owns at the moment of a call."""

    def __init__(self, shards: Callable[[UUID], Shard | None], *, idle_seconds: float, staged_uploads_max: int) -> None:
        self._shards = shards
        self._idle_seconds = idle_seconds
        self._uploads = StagedUploads(staged_uploads_max)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of every handler."""
        blob, staged = "/shards/{uid}/blobs/{name}", "/shards/{uid}/staged/{generation}"
        return [
            internal_route("PUT", blob, self.put),
            internal_route("GET", blob, self.read),
            internal_route("DELETE", blob, self.delete),
            internal_route("POST", "/shards/{uid}/sizes", self.sizes),
            internal_route("PUT", staged, self.stage),
            internal_route("GET", staged, self.read_staged),
        ]

    async def put(self, request: web.Request) -> web.StreamResponse:
        """Store a small blob whose bytes arrived as they were sent."""
        shard, name = self._shard(request), _name(request)
        data = await self._body(request, BLOCK_BYTES)
        if block_digests(data).hex() != request.headers.get(wire.BLOCKS_HEADER):
            raise wire.Refusal(wire.CORRUPT, wire.CHANGED)
        await shard.put(name, data)
        return web.Response(status=201)

    async def read(self, request: web.Request) -> web.StreamResponse:
        """Answer with a range of a blob."""
        shard, name = self._shard(request), _name(request)
        offset, length = _range(request)
        data = await shard.read(name, size=_number(request, "size"), offset=offset, length=length)
        return await self._answer(request, data)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """Remove one generation."""
        await self._shard(request).delete(_name(request))
        return web.Response(status=204)

    async def sizes(self, request: web.Request) -> web.StreamResponse:
        """Answer with the size of each named file."""
        shard = self._shard(request)
        names = _names(await self._body(request, wire.SIZES_BODY_BYTES_MAX))
        return web.json_response({"sizes": await shard.sizes(names)})

    async def stage(self, request: web.Request) -> web.StreamResponse:
        """Upgrade to frames and stage a blob while its bytes come; without a commit, nothing stays."""
        shard, uid, generation = self._shard(request), _uuid(request, "uid"), Generation(_uuid(request, "generation"))
        if request.headers.get("Upgrade") != UPGRADE:
            raise _bad(f"the connection must be upgraded to {UPGRADE}")
        response = web.StreamResponse(status=101, headers={"Connection": "Upgrade", "Upgrade": UPGRADE})
        response.force_close()
        async with self._uploads.open(shard, uid, generation) as upload:
            connection = self._take_over(request, upload)
            await response.prepare(request)
            refusal = await _receive(connection, upload)
        await connection.answer(refusal)
        return response

    async def read_staged(self, request: web.Request) -> web.StreamResponse:
        """Answer with bytes of a blob that is being staged."""
        self._shard(request)
        offset, length = _range(request)
        upload = self._uploads.find(_uuid(request, "uid"), Generation(_uuid(request, "generation")))
        if upload is None:
            raise wire.Refusal(wire.UNAVAILABLE, wire.NOT_STAGED)
        async with asyncio.timeout(self._idle_seconds):
            data = await upload.read(offset, length)
        return await self._answer(request, data)

    def _take_over(self, request: web.Request, upload: StagedUpload) -> FrameConnection:
        if request.transport is None:
            raise ConnectionError("the peer is gone")
        return FrameConnection(request.transport, request.protocol, upload, self._idle_seconds)

    def _shard(self, request: web.Request) -> Shard:
        uid = _uuid(request, "uid")
        shard = self._shards(uid)
        if shard is None:  # it may have moved: that says nothing about its files
            raise wire.Refusal(wire.UNAVAILABLE, f"shard {uid} is not owned here")
        return shard

    async def _body(self, request: web.Request, bytes_max: int) -> bytes:
        """Return the whole body, whose length must be declared."""
        length = request.content_length
        if length is None or length > bytes_max:
            raise _bad(f"a body needs a Content-Length of at most {bytes_max}")
        content = request.content
        if content.is_eof():
            return content.read_nowait()
        pieces = []
        while length > 0:
            pieces.append(await self._chunk(request))
            length -= len(pieces[-1])
        return b"".join(pieces)

    async def _chunk(self, request: web.Request) -> bytes:
        """Return the next bytes of a body that must not end here."""
        try:
            async with asyncio.timeout(self._idle_seconds):
                chunk = await request.content.readany()
        except web.RequestPayloadError as error:
            raise _bad(str(error)) from error
        if not chunk:
            raise _bad("the body ended too early")
        return chunk

    async def _answer(self, request: web.Request, data: Buffer) -> web.StreamResponse:
        """Send ``data``. A large one goes uncopied, apart from its head."""
        if len(data) <= SMALL_ANSWER_BYTES:
            return web.Response(body=data)
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        try:
            async with asyncio.timeout(self._idle_seconds):
                await response.write(memoryview(data))
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionError("the peer took no bytes") from None
        return response


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


def _uuid(request: web.Request, field: str) -> UUID:
    try:
        return wire.parse_uuid(request.match_info[field])
    except ValueError as error:
        raise _bad(str(error)) from None


def _name(request: web.Request) -> BlobName:
    try:
        return wire.parse_name(request.match_info["name"])
    except ValueError as error:
        raise _bad(str(error)) from None


def _names(body: bytes) -> list[BlobName]:
    try:
        names = json.loads(body)["names"]
        if not isinstance(names, list) or len(names) > wire.SIZES_NAMES_MAX:
            raise _bad(f"names must be a list of at most {wire.SIZES_NAMES_MAX}")
        return [wire.parse_name(name) for name in names]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _bad(f"the body must be an object with names: {error}") from None


def _range(request: web.Request) -> tuple[int, int]:
    offset, length = _number(request, "offset"), _number(request, "length")
    if length > wire.READ_BYTES_MAX:
        raise _bad(f"length is at most {wire.READ_BYTES_MAX}")
    return offset, length


def _number(request: web.Request, field: str) -> int:
    text = request.query.get(field, "")
    if not NUMBER.fullmatch(text):
        raise _bad(f"{field} must be a number of bytes")
    return int(text)


def _bad(message: str) -> wire.Refusal:
    return wire.Refusal(wire.BAD_REQUEST, message)
