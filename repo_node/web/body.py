"""Reads request bodies as they were sent, and cuts those who send too slowly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, cast

from aiohttp import web

from repo_node.config import HttpSection
from repo_node.errors import BodyTooLarge, BodyTooSlow, RequestError
from repo_node.web.context import CONTINUE_DUE, SERVICES
from repo_node.web.reception import Lender, Reception
from sharding.model import BLOCK_BYTES, Buffer
from sharding.room import room_for
from sharding.transfer_memory import Lease

DOCUMENT_BYTES_MAX = 1 << 20
UNCOUNTED_BYTES = 128 << 10
"""Up to this the memory of a body is not counted: as much waits for it in the connection."""

LOOK_SECONDS_MAX = 1.0
"""How long a block is waited for between two looks at how it comes, and whether it is still wanted."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class RateFloor:
    """Notices a sender who stays below a minimum rate over a whole window of waiting for them."""

    def __init__(self, http: HttpSection) -> None:
        self._bytes_per_second_min = http.rate_bytes_per_second_min
        self._window_seconds = http.rate_window_seconds
        self._seconds = 0.0
        self._bytes = 0

    def is_below(self, count: int, seconds: float) -> bool:
        """Count ``count`` bytes that took ``seconds`` to come; True at the end of a window with too few."""
        self._bytes += count
        self._seconds += seconds
        if self._seconds < self._window_seconds:
            return False
        below = self._bytes < self._bytes_per_second_min * self._seconds
        self._bytes, self._seconds = 0, 0.0
        return below


async def read_body(request: web.Request) -> AsyncGenerator[bytes, None]:
    """Yield the body in pieces of whatever size the network gave.

    A client that waits for a 100 gets it here, so that a refusal before costs it no body. Raises
    ``BodyTooSlow``; a body that ends before its announced length raises an error of aiohttp's.
    """
    services, clock = request.app[SERVICES], asyncio.get_running_loop().time
    http, metrics = services.http, services.metrics
    if request.pop(CONTINUE_DUE, False) and request.transport is not None:
        request.transport.write(CONTINUE)
    floor = RateFloor(http)
    # What has come whole by now, or with the last piece, needs no watch over how fast it comes.
    while not request.content.is_eof():
        asked = clock()
        try:
            async with asyncio.timeout(http.idle_timeout_seconds):
                piece = await request.content.readany()
        except TimeoutError:
            raise too_idle(request) from None
        if not piece:
            return
        metrics.received_bytes.inc(len(piece))
        if floor.is_below(len(piece), clock() - asked):
            raise too_slow(request)
        yield piece
    if piece := request.content.read_nowait():
        metrics.received_bytes.inc(len(piece))
        yield piece


async def receive_upload(request: web.Request, lease: Lease, heed: Callable[[], None]) -> AsyncGenerator[Buffer, None]:
    """Yield the body as ``read_body`` does, a long one in whole blocks, each in memory of its own.

    ``heed`` is called every now and then while a block is slow to come; what it raises ends the body. From
    ``UNCOUNTED_BYTES`` on, the block that is being filled or was yielded last is counted in ``lease``. Raises
    ``ConnectionResetError`` too.
    """
    received, begun = 0, b""
    async with aclosing(read_body(request)) as pieces:
        async for piece in pieces:
            received += len(piece)
            left = left_of(request, received)
            if left > UNCOUNTED_BYTES and len(piece) < block_left(received - len(piece)):
                begun = piece
                del piece
                break
            if received > UNCOUNTED_BYTES and not lease.blocks:
                await lease.take()
            yield piece
            del piece
        else:
            return
    async with aclosing(receive_blocks(request, begun, left, lease, heed)) as blocks:
        del begun
        async for block in blocks:
            yield block
            # The next one is waited for without it.
            del block


def block_left(received: int) -> int:
    """Return how many bytes the block lacks that the next byte of a body belongs to."""
    return BLOCK_BYTES - received % BLOCK_BYTES


def left_of(request: web.Request, received: int) -> int:
    """Return how many bytes have not come yet behind the first ``received``; 0 where aiohttp may have some of them."""
    if request.transport is None or request.content_length is None or request.content.total_bytes != received:
        return 0
    return 0 if cast(Lender, request.protocol).is_held_up else request.content_length - received


async def receive_blocks(
    request: web.Request, begun: bytes, left: int, lease: Lease, heed: Callable[[], None]
) -> AsyncGenerator[Buffer, None]:
    """Yield ``begun``, less than its block lacks, and the ``left`` bytes of a body so that each piece ends a block."""
    length, floor = request.content_length, RateFloor(request.app[SERVICES].http)
    assert length is not None
    reception = Reception(request, left)
    try:
        while reception.left:
            if not lease.blocks:
                await lease.take()
            received = length - reception.left - len(begun)
            room = room_for(min(length - received, block_left(received)))
            room[: len(begun)] = begun
            await fill(request, reception, room[len(begun) :], floor, heed)
            begun = b""
            yield room
            del room
            if length > BLOCK_BYTES:
                lease.give_back()
    finally:
        reception.close()


async def fill(
    request: web.Request, reception: Reception, room: memoryview, floor: RateFloor, heed: Callable[[], None]
) -> None:
    """Receive ``room``. Raises ``BodyTooSlow``, ``ConnectionResetError``."""
    services, clock = request.app[SERVICES], asyncio.get_running_loop().time
    idle_seconds_max = services.http.idle_timeout_seconds
    look_seconds = min(idle_seconds_max, services.http.rate_window_seconds, LOOK_SECONDS_MAX)
    full, seen, idle_since = reception.fill(room), 0, clock()
    while not full.done():
        asked = clock()
        await asyncio.wait((full,), timeout=look_seconds)
        heed()
        count, now = reception.filled - seen, clock()
        seen += count
        if floor.is_below(count, now - asked):
            raise too_slow(request)
        if count:
            idle_since = now
        elif now - idle_since >= idle_seconds_max:
            raise too_idle(request)
    full.result()
    services.metrics.received_bytes.inc(len(room))


def too_idle(request: web.Request) -> BodyTooSlow:
    services = request.app[SERVICES]
    services.metrics.connections_cut.labels("idle_timeout_seconds").inc()
    return BodyTooSlow(f"Nothing of the body came for {services.http.idle_timeout_seconds:g} seconds.")


def too_slow(request: web.Request) -> BodyTooSlow:
    services = request.app[SERVICES]
    services.metrics.connections_cut.labels("rate_bytes_per_second_min").inc()
    return BodyTooSlow(f"The body came at less than {services.http.rate_bytes_per_second_min} bytes per second.")


def refuse_large(request: web.Request) -> None:
    """Refuse an announced length above the limit before the body is asked for. Raises ``BodyTooLarge``."""
    limit = request.app[SERVICES].settings.now.body_bytes_max
    if request.content_length is not None and request.content_length > limit:
        raise BodyTooLarge(f"The body is larger than {limit} bytes (setting body_bytes_max).")


def leave_unread(request: web.Request, response: web.StreamResponse) -> None:
    """Answer without the rest of the body, where there is one: the connection is of no use afterwards."""
    if request.body_exists and (not request.content.is_eof() or request.content.exception() is not None):
        response.force_close()


async def read_json(request: web.Request) -> dict[str, Any]:
    """Return the JSON object in a small body; none for an empty one. Raises ``BodyTooLarge``, ``RequestError``."""
    try:
        document = json.loads(await read_document(request) or b"{}")
    except (ValueError, RecursionError):
        raise RequestError("The body is not valid JSON.") from None
    if not isinstance(document, dict):
        raise RequestError("The body must be a JSON object.")
    return document


async def read_document(request: web.Request) -> bytes:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RequestError("Send this body without Content-Encoding.", status=415)
    body = bytearray()
    async for piece in read_body(request):
        body += piece
        if len(body) > DOCUMENT_BYTES_MAX:
            raise BodyTooLarge(f"This body may have {DOCUMENT_BYTES_MAX} bytes.")
    return bytes(body)
