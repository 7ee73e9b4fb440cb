"""Reads request bodies as they were sent, and cuts those who send too slowly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from aiohttp import web

from repo_node.config import HttpSection
from repo_node.errors import BodyTooLarge, BodyTooSlow, RequestError
from repo_node.web.context import ANNOUNCED, SERVICES

DOCUMENT_BYTES_MAX = 1 << 20


class RateFloor:
    """Notices a transfer that stays below a minimum rate over a whole window."""

    def __init__(self, http: HttpSection) -> None:
        self._floor = http.rate_bytes_per_second_min * http.rate_window_seconds
        self._window_seconds = http.rate_window_seconds
        self._began = time.monotonic()
        self._bytes = 0

    def is_below(self, count: int) -> bool:
        """Count ``count`` more bytes; True when the window that ends now carried too few."""
        self._bytes += count
        now = time.monotonic()
        if now - self._began < self._window_seconds:
            return False
        below = self._bytes < self._floor
        self._began, self._bytes = now, 0
        return below


async def defer_continue(request: web.Request) -> None:
    """Handle Expect: the 100 goes out when the body is first read, so a refusal costs the client no body."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        raise RequestError("Only Expect: 100-continue is supported.", status=417)
    request[ANNOUNCED] = False


async def read_body(request: web.Request) -> AsyncIterator[bytes]:
    """Yield the body in pieces of whatever size the network gave.

    Raises ``BodyTooSlow``; a body that ends before its announced length raises an error of aiohttp's.
    """
    services = request.app[SERVICES]
    http, received = services.http, services.metrics.received_bytes
    if request.get(ANNOUNCED) is False and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request[ANNOUNCED] = True
    floor = RateFloor(http)
    while True:
        try:
            async with asyncio.timeout(http.idle_timeout_seconds):
                piece = await request.content.readany()
        except TimeoutError:
            services.metrics.connections_cut.labels("idle_timeout_seconds").inc()
            raise BodyTooSlow(f"Nothing of the body came for {http.idle_timeout_seconds:g} seconds.") from None
        if not piece:
            return
        received.inc(len(piece))
        if floor.is_below(len(piece)):
            services.metrics.connections_cut.labels("rate_bytes_per_second_min").inc()
            raise BodyTooSlow(f"The body came at less than {http.rate_bytes_per_second_min} bytes per second.")
        yield piece


def refuse_large(request: web.Request) -> None:
    """Refuse an announced length above the limit before the body is asked for. Raises ``BodyTooLarge``."""
    limit = request.app[SERVICES].settings.now.body_bytes_max
    if request.content_length is not None and request.content_length > limit:
        raise BodyTooLarge(f"The body is larger than {limit} bytes (setting body_bytes_max).")


async def read_document(request: web.Request) -> bytes:
    """Return a small body, such as JSON, whole. Raises ``BodyTooLarge``, ``RequestError``."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RequestError("Send this body without Content-Encoding.", status=415)
    body = bytearray()
    async for piece in read_body(request):
        body += piece
        if len(body) > DOCUMENT_BYTES_MAX:
            raise BodyTooLarge(f"This body may have {DOCUMENT_BYTES_MAX} bytes.")
    return bytes(body)
