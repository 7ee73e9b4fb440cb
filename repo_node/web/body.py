"""Reads request bodies as they were sent, and cuts those who send too slowly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from repo_node.config import HttpSection
from repo_node.errors import BodyTooLarge, BodyTooSlow, RequestError
from repo_node.web.context import CONTINUE_DUE, SERVICES

DOCUMENT_BYTES_MAX = 1 << 20
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


async def read_body(request: web.Request) -> AsyncIterator[bytes]:
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
            metrics.connections_cut.labels("idle_timeout_seconds").inc()
            raise BodyTooSlow(f"Nothing of the body came for {http.idle_timeout_seconds:g} seconds.") from None
        if not piece:
            return
        metrics.received_bytes.inc(len(piece))
        if floor.is_below(len(piece), clock() - asked):
            metrics.connections_cut.labels("rate_bytes_per_second_min").inc()
            raise BodyTooSlow(f"The body came at less than {http.rate_bytes_per_second_min} bytes per second.")
        yield piece
    if piece := request.content.read_nowait():
        metrics.received_bytes.inc(len(piece))
        yield piece


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
