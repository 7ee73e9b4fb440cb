"""Connections with a deadline for the request head and a bound on their number; aiohttp has neither."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_server import Server

from repo_node.config import HttpSection

READ_BUFFER_BYTES = 512 << 10
"""Body bytes aiohttp may hold for one connection before it stops reading."""


class LimitedHandler(RequestHandler):
    """Cuts a client that takes too long over a request head; ``on_cut`` is told the limit's name."""

    __slots__ = ("_connections_max", "_head_deadline", "_head_timeout_seconds", "_on_cut")

    def __init__(
        self,
        manager: Server,
        *,
        head_timeout_seconds: float,
        connections_max: int,
        on_cut: Callable[[str], None],
        **options: Any,
    ) -> None:
        super().__init__(manager, **options)
        self._head_timeout_seconds = head_timeout_seconds
        self._connections_max = connections_max
        self._on_cut = on_cut
        self._head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert self._manager is not None
        if len(self._manager.connections) >= self._connections_max:
            self._on_cut("connections_max")
            transport.close()
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waits_for_head = self._waiter is not None and not self._waiter.done()
        if not waits_for_head:
            self._disarm()
        elif self._head_deadline is None:
            self._arm()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._head_deadline = self._loop.call_later(self._head_timeout_seconds, self._cut)

    def _disarm(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _cut(self) -> None:
        self._on_cut("header_timeout_seconds")
        self.force_close()


class LimitedServer(Server):
    """Makes ``LimitedHandler``s."""

    def __call__(self) -> RequestHandler:
        return LimitedHandler(self, loop=self._loop, **self._kwargs)


class LimitedRunner(web.AppRunner):
    """Runs an application behind ``LimitedServer``; bodies arrive exactly as sent, never inflated."""

    def __init__(self, app: web.Application, http: HttpSection, on_cut: Callable[[str], None]) -> None:
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=http.keepalive_timeout_seconds,
            read_bufsize=READ_BUFFER_BYTES,
            lingering_time=2.0,
            shutdown_timeout=http.shutdown_timeout_seconds,
        )
        self._limits = {
            "head_timeout_seconds": http.header_timeout_seconds,
            "connections_max": http.connections_max,
            "on_cut": on_cut,
        }

    async def _make_server(self) -> Server:
        made = await super()._make_server()
        options = {**self._kwargs, **self._limits}
        options.pop("access_log_class", None)
        return LimitedServer(made.request_handler, request_factory=made.request_factory, **options)
