"""Clients behind TLS that are slow to take an answer: given their time, and cut by the limits of those without TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from repo_node.config import HttpSection
from repo_node.metrics import Metrics
from repo_node.tls import contexts
from repo_node.tls.contexts import LiveContext
from repo_node.web import listeners
from repo_node.web.connections import LimitedServer
from repo_node.web.listeners import Listeners, Service, serving_public
from tests.certificates import Authority, Pair
from tests.repo_node.nodes import configure

BODY_BYTES = 900_000
"""Less than a transport takes before it says that it is full, and more than kernels do here."""

KERNEL_BYTES = 1 << 16
IDLE_SECONDS = 0.5
HANDSHAKE_SECONDS = 3.0
CONNECTIONS_MAX = 8
HEAD = b"GET / HTTP/1.1\r\nHost: t\r\n"
CLOSE = b"Connection: close\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.pair("localhost")


class Served:
    """A listener for clients, in this event loop, and what came of its clients."""

    def __init__(self, service: Service, address: tuple[str, int], metrics: Metrics, authority: Authority) -> None:
        self._service = service
        self._metrics = metrics
        self._authority = authority
        self.address = address

    @property
    def connections(self) -> int:
        assert isinstance(self._service.runner.server, LimitedServer)
        return self._service.runner.server.connections_count

    def cuts(self, limit: str) -> float:
        name = "holdfast_http_connections_cut_total"
        return self._metrics.registry.get_sample_value(name, {"limit": limit}) or 0.0

    def dial(self) -> socket.socket:
        dialled = socket.socket()
        dialled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        dialled.settimeout(20)
        dialled.connect(self.address)
        return dialled

    def ask(self, *headers: bytes) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=self._authority.certificate)
        asked = context.wrap_socket(self.dial(), server_hostname="localhost")
        asked.sendall(HEAD + b"".join(headers) + b"\r\n")
        return asked

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(15):
            while not condition():
                await asyncio.sleep(0.02)


@asynccontextmanager
async def served(directory: Path, pair: Pair, authority: Authority, **limits: Any) -> AsyncIterator[Served]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=bytes(BODY_BYTES))

    app, metrics = web.Application(), Metrics()
    app.router.add_get("/", answer)
    sockets = [socket.socket() for _ in range(2)]
    for listener in sockets:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
        listener.bind(("127.0.0.1", 0))
    config = configure("postgresql://nowhere", directory)
    http = HttpSection(
        **{
            "listen": str(config.http.listen),
            "idle_timeout_seconds": IDLE_SECONDS,
            "header_timeout_seconds": HANDSHAKE_SECONDS,
            "rate_bytes_per_second_min": 1000,
            "connections_max": CONNECTIONS_MAX,
            **limits,
        }
    )
    tls = LiveContext(contexts.for_clients(pair.certificate, pair.key))
    node = cast(Any, SimpleNamespace(metrics=metrics, on_leave=[]))
    async with serving_public(
        app, config.model_copy(update={"http": http}), node, Listeners(*sockets, None), tls
    ) as service:
        yield Served(service, sockets[1].getsockname(), metrics, authority)
    sockets[0].close()


def read_slowly(asked: ssl.SSLSocket, seconds: float) -> int:
    """Read until the end, about as long as told, and return how many bytes came."""
    began, count = time.monotonic(), 0
    with asked, suppress(ConnectionError):
        while data := asked.recv(1 << 14):
            count += len(data)
            time.sleep(max(began + seconds * count / BODY_BYTES - time.monotonic(), 0))
    return count


@pytest.mark.parametrize("farewell_seconds", [None, 0.3])
async def test_a_client_that_asked_to_close_gets_the_time_its_rate_allows(
    tmp_path: Path, pair: Pair, authority: Authority, monkeypatch: pytest.MonkeyPatch, farewell_seconds: float | None
) -> None:
    """Event loops throw away what is not taken so long after the last of it was written: half a minute of their own."""
    if farewell_seconds is not None:
        monkeypatch.setattr(listeners, "FAREWELL_SECONDS", farewell_seconds)
    async with served(tmp_path, pair, authority, idle_timeout_seconds=5.0) as listener:
        asked = await asyncio.to_thread(listener.ask, CLOSE)
        came_whole = await asyncio.to_thread(read_slowly, asked, 2.5) > BODY_BYTES
        assert came_whole == (farewell_seconds is None)
        assert not listener.cuts("idle_timeout_seconds") and not listener.cuts("rate_bytes_per_second_min")


async def test_a_client_that_takes_nothing_is_cut(tmp_path: Path, pair: Pair, authority: Authority) -> None:
    """Also where all of the answer is encrypted: the transport says then that nothing waits."""
    async with served(tmp_path, pair, authority) as listener:
        with await asyncio.to_thread(listener.ask):
            await listener.until(lambda: listener.cuts("idle_timeout_seconds") == 1)
            await listener.until(lambda: not listener.connections)


async def test_a_client_that_takes_too_little_is_cut(tmp_path: Path, pair: Pair, authority: Authority) -> None:
    limits = {"idle_timeout_seconds": 1.5, "rate_bytes_per_second_min": 500_000, "rate_window_seconds": 1.0}
    async with served(tmp_path, pair, authority, **limits) as listener:
        asked = await asyncio.to_thread(listener.ask)
        reading = asyncio.create_task(asyncio.to_thread(read_slowly, asked, 7.0))
        await listener.until(lambda: listener.cuts("rate_bytes_per_second_min") == 1)
        assert await reading < BODY_BYTES


async def test_a_client_that_says_no_farewell_is_not_waited_for(
    tmp_path: Path, pair: Pair, authority: Authority
) -> None:
    async with served(tmp_path, pair, authority) as listener:
        with await asyncio.to_thread(listener.ask, CLOSE) as asked:
            count = 0
            while count <= BODY_BYTES:
                count += len(await asyncio.to_thread(asked.recv, 1 << 16))
            await listener.until(lambda: not listener.connections)
        assert not listener.cuts("idle_timeout_seconds")


async def test_a_client_that_keeps_its_connection_and_is_idle_is_not_cut(
    tmp_path: Path, pair: Pair, authority: Authority
) -> None:
    async with served(tmp_path, pair, authority) as listener:
        with await asyncio.to_thread(listener.ask) as asked:
            count = 0
            while count <= BODY_BYTES:
                count += len(await asyncio.to_thread(asked.recv, 1 << 16))
            await asyncio.sleep(4 * IDLE_SECONDS)
            assert listener.connections == 1


async def test_clients_that_shake_no_hands_are_limited_with_all_others(
    tmp_path: Path, pair: Pair, authority: Authority
) -> None:
    async with served(tmp_path, pair, authority) as listener:
        with ExitStack() as stack:
            stack.enter_context(await asyncio.to_thread(listener.ask))
            for _ in range(CONNECTIONS_MAX - 1):
                stack.enter_context(await asyncio.to_thread(listener.dial))
            extra = stack.enter_context(await asyncio.to_thread(listener.dial))
            with suppress(ConnectionError):
                assert await asyncio.to_thread(extra.recv, 1) == b""
            assert listener.cuts("connections_max") == 1
            # Their time for it ends, and others get their places.
            await asyncio.sleep(HANDSHAKE_SECONDS + 0.2)
            asked = await asyncio.to_thread(listener.ask, CLOSE)
            assert await asyncio.to_thread(read_slowly, asked, 0.0) > BODY_BYTES
            assert listener.cuts("connections_max") == 1
