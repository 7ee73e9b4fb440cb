"""Connections with limits: time for a request's head, clients that take nothing, their number. aiohttp has none."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from typing import Any, NamedTuple, cast

from aiohttp import StreamReader, web
from aiohttp.http import HttpRequestParser
from aiohttp.web_protocol import RequestHandler, _ErrInfo
from aiohttp.web_server import Server

from repo_node.config import HttpSection
from repo_node.errors import Answer
from repo_node.metrics import Metrics
from repo_node.tls.handshakes import Handshakes
from repo_node.web.arrival import on_arrival
from repo_node.web.dispatch import dispatcher
from repo_node.web.routes import NO_ROUTE

log = logging.getLogger("holdfast.http")

READ_BUFFER_BYTES = 64 << 10
"""Body bytes aiohttp may hold for one connection before it stops reading."""

CUT_SECONDS = 1.0
"""How long the last bytes of an answer have to leave when the listener closes: who leaves has waited before that."""

LINGER_SECONDS = 2.0
"""How long what a refused client still sends is read and dropped, so that it gets to read its answer."""

SERVER = "Holdfast"

TCP_INFO_BYTES = 148
TCP_INFO_FIELDS = (("=Q", 120), ("=I", 24), ("=I", 144))
"""Of struct tcp_info of Linux: tcpi_bytes_acked, tcpi_unacked and tcpi_notsent_bytes."""


class LimitedHandler(RequestHandler):
    """One connection. Cuts a client that takes too long over a request's head or over reading its answer."""

    __slots__ = (
        "_has_said_all",
        "_has_tls",
        "_head_deadline",
        "_http",
        "_last_body",
        "_look_timer",
        "_metrics",
        "_sending",
        "_taken_bytes",
        "_taken_then_bytes",
        "_waiting_since",
    )

    def __init__(self, manager: LimitedServer, *, http: HttpSection, metrics: Metrics, **options: Any) -> None:
        super().__init__(manager, **options)
        self._http = http
        self._metrics = metrics
        self._head_deadline: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._last_body: StreamReader | None = None
        self._sending: asyncio.Transport | None = None
        self._has_tls = False
        self._has_said_all = False
        self._taken_bytes = 0
        self._waiting_since: float | None = None
        self._taken_then_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(self._manager, LimitedServer)
        # Not an isinstance: uvloop's transports are no subclasses of asyncio's.
        self._sending = cast(asyncio.Transport, transport)
        if (secured := transport.get_extra_info("ssl_object")) is not None:
            self._has_tls = True
            self._manager.handshakes.end(secured)
        if self._manager.connections_count >= self._http.connections_max:
            self._cut("connections_max")
        super().connection_made(transport)
        self._arm()
        self._look_later()

    def take_over(self, borrower: asyncio.BaseProtocol) -> None:
        """See ``Lender``."""
        assert self.transport is not None
        self.transport.set_protocol(borrower)

    def take_back(self, *, body_is_read: bool) -> None:
        """See ``Lender``. aiohttp's parser, which has not seen the body, would go on to wait for it."""
        assert self.transport is not None
        self.transport.set_protocol(self)
        if body_is_read:
            self._parser = HttpRequestParser(
                self,
                self._loop,
                self._read_bufsize,
                max_line_size=self.max_line_size,
                max_field_size=self.max_field_size,
                max_headers=self.max_headers,
                payload_exception=web.RequestPayloadError,
                auto_decompress=False,
                max_msg_queue_size=self._max_msg_queue_size,
            )

    @property
    def is_held_up(self) -> bool:
        """Whether something has come that aiohttp's parser keeps for later."""
        return self._reading_paused or self._buffer_paused

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm()
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._sending = None
        super().connection_lost(exc)

    # ------------------------------------------------------------------ the request's head

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._break_malformed_body()
        # The first bytes may come before the task that waits for them has begun.
        waits_for_head = not self._request_count or (self._waiter is not None and not self._waiter.done())
        if not waits_for_head:
            self._disarm()
        elif self._head_deadline is None:
            self._arm()

    def _break_malformed_body(self) -> None:
        """Tell whoever reads a body that it is malformed; aiohttp would let them wait for more of it."""
        if not self._messages:
            return
        message, body = self._messages[-1]
        if not isinstance(message, _ErrInfo):
            # Remembered here: its handler may not have begun when the rest of it turns out to be malformed.
            self._last_body = body
        elif self._last_body is not None and not self._last_body.is_eof():
            self._last_body.set_exception(web.RequestPayloadError("malformed"))
            self._last_body.feed_eof()

    def _arm(self) -> None:
        self._head_deadline = self._loop.call_later(
            self._http.header_timeout_seconds, self._cut, "header_timeout_seconds"
        )

    def _disarm(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    # ------------------------------------------------------------------ the answer

    def _look_later(self) -> None:
        self._look_timer = self._loop.call_later(self._http.idle_timeout_seconds, self._look)

    def _look(self) -> None:
        """Cut a client that takes nothing, or too little, of what waits for it; also while the connection closes."""
        assert self._sending is not None
        way, waits = way_of(self._sending), self._sending.get_write_buffer_size() > 0
        is_under_way = waits
        if self._has_tls:
            # Of what it has encrypted it says nothing; the kernel then has all that it takes of it.
            waits = waits or way.unsent_bytes > 0
            is_under_way = waits or way.unacknowledged_segments > 0
        if is_under_way and way.taken_bytes == self._taken_bytes:
            self._cut("idle_timeout_seconds")
            return
        if not waits:
            self._waiting_since = None
        elif self._is_too_slow(way.taken_bytes):
            self._cut("rate_bytes_per_second_min")
            return
        if self._has_tls and self._sending.is_closing() and not is_under_way:
            if self._has_said_all:  # and does not hear that the client, too, has
                self._sending.abort()
                return
            self._has_said_all = True
        self._taken_bytes = way.taken_bytes
        self._look_later()

    def _is_too_slow(self, taken: int) -> bool:
        """Say whether a whole window of waiting for the client has carried too few bytes."""
        now = self._loop.time()
        if self._waiting_since is not None:
            seconds, count = now - self._waiting_since, taken - self._taken_then_bytes
            if seconds < self._http.rate_window_seconds:
                return False
            if count < self._http.rate_bytes_per_second_min * seconds:
                return True
        self._waiting_since, self._taken_then_bytes = now, taken
        return False

    def _cut(self, limit: str) -> None:
        """Drop the connection with what it still buffers, which a plain close would wait for."""
        self._metrics.connections_cut.labels(limit).inc()
        if self._sending is not None:
            self._sending.abort()

    # ------------------------------------------------------------------ what never was a request

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what never reached the application, without repeating any of it: it may hold a secret."""
        if isinstance(exc, ConnectionError) or request.writer.output_size:
            raise ConnectionResetError("the client is gone") from exc
        if status >= 500:
            log.error("a request failed outside of its handler", exc_info=exc)
        answer = Answer(status, "The request is not valid HTTP." if status < 500 else "An unexpected failure.")
        self._metrics.requests.labels("other", NO_ROUTE, status).inc()
        response = web.Response(
            status=status, body=answer.body(), content_type="application/json", headers={"Server": SERVER}
        )
        response.force_close()
        return response


class Way(NamedTuple):
    """How far what was sent has come, as the kernel knows it."""

    taken_bytes: int
    """Acknowledged by the other end. What left the process says less: megabytes wait in the kernel, go in bursts."""

    unacknowledged_segments: int
    unsent_bytes: int


def way_of(transport: asyncio.Transport) -> Way:
    info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    return Way(*(struct.unpack_from(form, info, offset)[0] for form, offset in TCP_INFO_FIELDS))


async def say_server(request: web.BaseRequest, response: web.StreamResponse) -> None:
    response.headers["Server"] = SERVER


class LimitedServer(Server):
    """Makes ``LimitedHandler``s. Of ``connections_max`` those that shake hands have what others leave."""

    def __init__(self, *args: Any, http: HttpSection, metrics: Metrics, **options: Any) -> None:
        super().__init__(*args, http=http, metrics=metrics, **options)
        self._http = http
        self._metrics = metrics
        self.handshakes = Handshakes(self._room, http.header_timeout_seconds)

    @property
    def connections_count(self) -> int:
        return len(self._connections)

    def _room(self) -> int:
        room = self._http.connections_max - self.connections_count
        if len(self.handshakes) >= room:
            self._metrics.connections_cut.labels("connections_max").inc()
        return room

    def __call__(self) -> RequestHandler:
        return LimitedHandler(self, loop=self._loop, **self._kwargs)


class LimitedRunner(web.AppRunner):
    """Runs an application behind ``LimitedServer``; bodies arrive exactly as sent, never inflated."""

    def __init__(self, app: web.Application, http: HttpSection, metrics: Metrics) -> None:
        app.on_response_prepare.append(say_server)
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=http.keepalive_timeout_seconds,
            read_bufsize=READ_BUFFER_BYTES,
            lingering_time=LINGER_SECONDS,
            shutdown_timeout=CUT_SECONDS,
        )
        self._limits = {"http": http, "metrics": metrics}

    async def _make_server(self) -> Server:
        made = await super()._make_server()
        options = {**self._kwargs, **self._limits}
        options.pop("access_log_class", None)
        return LimitedServer(
            dispatcher(self._app), request_factory=on_arrival(made.request_factory, self._app), **options
        )
