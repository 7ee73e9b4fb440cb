"""The node's sockets: bound, served by a runner, closed."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

from aiohttp import web

from repo_node.config import Address, NodeConfig
from repo_node.node import Node
from repo_node.tls.contexts import LiveContext
from repo_node.web.connections import LimitedRunner, LimitedServer

BACKLOG = 1024
FAREWELL_SECONDS = 86_400.0
"""How long a client may take over the end of its last answer behind TLS: so long that its connection's own limits hold.

Event loops give it half a minute, whatever it has still to take, and then throw that away.
"""

PEERS_SHARE = 1 / 3
"""Of the time that the node's end may take: it may be spent twice, on their uploads and on the ends of these."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """The sockets of one process of a node: bound, and listening as soon as somebody serves them.

    The kernel spreads clients over the processes of a node, and on ``front`` over its neighbours on this machine.
    """

    internal: socket.socket
    public: socket.socket
    front: socket.socket | None
    guard: socket.socket | None = None
    """Keeps another node off the addresses, which several processes may bind, as long as one of these is there."""

    @property
    def all(self) -> tuple[socket.socket, ...]:
        """Each of them, the front's last."""
        return (self.internal, self.public) if self.front is None else (self.internal, self.public, self.front)

    def close(self) -> None:
        for listener in self.all:
            listener.close()


@contextmanager
def bound_listeners(config: NodeConfig) -> Iterator[list[Listeners]]:
    """Bind the sockets of every process of a node. Raises ``OSError`` when another node has one of the addresses."""
    count, http = config.node.workers, config.http
    with ExitStack() as stack:

        def bind(address: Address, *, shared: bool = False) -> socket.socket:
            return stack.enter_context(listen_on(address, shared=shared or count > 1))

        guard = stack.enter_context(guarded(config.internal.listen)) if count > 1 else None
        yield [
            Listeners(
                bind(config.internal.listen),
                bind(http.listen),
                None if http.shared_listen is None else bind(http.shared_listen, shared=True),
                guard,
            )
            for _ in range(count)
        ]


@contextmanager
def guarded(address: Address) -> Iterator[socket.socket]:
    """Be the only node of several processes at ``address``. The name is the kernel's: it goes with the last of them."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        try:
            bound.bind(f"\0holdfast at {address}")
        except OSError as error:
            raise OSError(f"cannot listen on {address}: {error.strerror}") from error
        yield bound


class Site(web.SockSite):
    """A socket and who serves on it, with or without TLS. A handshake may take as long as a request's head."""

    __slots__ = ("_farewell_seconds", "_handshake_seconds")

    def __init__(
        self,
        runner: web.AppRunner,
        listener: socket.socket,
        tls: ssl.SSLContext | None,
        handshake_seconds: float,
        farewell_seconds: float | None,
    ) -> None:
        super().__init__(runner, listener, ssl_context=tls, backlog=BACKLOG)
        self._handshake_seconds = handshake_seconds
        self._farewell_seconds = farewell_seconds

    async def start(self) -> None:
        if self._ssl_context is None:
            await super().start()
            return
        # As in SockSite, which gives clients a minute for their handshake.
        await super(web.SockSite, self).start()
        assert self._runner.server is not None
        self._server = await asyncio.get_running_loop().create_server(
            self._runner.server,
            sock=self._sock,
            ssl=self._ssl_context,
            ssl_handshake_timeout=self._handshake_seconds,
            ssl_shutdown_timeout=self._farewell_seconds,
            backlog=self._backlog,
        )


@dataclass(frozen=True, slots=True)
class Service:
    """What serves on listeners of one kind, in this process and in another one's stead."""

    runner: web.AppRunner
    tls: ssl.SSLContext | None
    handshake_seconds: float
    farewell_seconds: float | None = None

    async def serve(self, listener: socket.socket) -> Site:
        """Serve on ``listener`` too, which was bound before."""
        site = Site(self.runner, listener, self.tls, self.handshake_seconds, self.farewell_seconds)
        await site.start()
        return site


@asynccontextmanager
async def serving_public(
    app: web.Application, config: NodeConfig, node: Node, listeners: Listeners, tls: ssl.SSLContext | None
) -> AsyncIterator[Service]:
    """Serve on the node's own address, and on the one its neighbours on this machine share.

    The shared one closes as soon as the node leaves: its clients then reach the neighbours.
    """
    runner = LimitedRunner(app, config.http, node.metrics)
    async with running(runner):
        if isinstance(tls, LiveContext) and isinstance(runner.server, LimitedServer):
            tls.handshakes = runner.server.handshakes
        service = Service(runner, tls, config.http.header_timeout_seconds, FAREWELL_SECONDS)
        await service.serve(listeners.public)
        if listeners.front is not None:
            node.on_leave.append((await service.serve(listeners.front)).stop)
        yield service


@asynccontextmanager
async def serving_internal(
    app: web.Application, config: NodeConfig, listener: socket.socket, tls: ssl.SSLContext | None
) -> AsyncIterator[Service]:
    """Serve peers on ``listener``, which was bound before. At the end, what they stage may end within bounds."""
    wait_seconds = min(config.internal.call_timeout_seconds, config.http.stop_timeout_seconds * PEERS_SHARE)
    runner = web.AppRunner(app, shutdown_timeout=wait_seconds)
    async with running(runner):
        service = Service(runner, tls, config.internal.call_timeout_seconds)
        await service.serve(listener)
        yield service


@asynccontextmanager
async def standing_in(internal: Service, public: Service, listeners: Listeners) -> AsyncIterator[None]:
    """Serve what waits on the sockets of another process of this node, and keep them open."""
    async with AsyncExitStack() as stack:
        for listener in listeners.all:
            if listener.fileno() >= 0:
                service = internal if listener is listeners.internal else public
                stack.push_async_callback((await service.serve(listener.dup())).stop)
        yield


@asynccontextmanager
async def serving_metrics(app: web.Application, config: NodeConfig, node: Node) -> AsyncIterator[None]:
    """Serve what needs no credentials on ``http.metrics_listen``, if there is one."""
    if config.http.metrics_listen is None:
        yield
        return
    with listen_on(config.http.metrics_listen) as listener:
        runner = LimitedRunner(app, config.http, node.metrics)
        async with running(runner):
            await web.SockSite(runner, listener).start()
            yield


@asynccontextmanager
async def running(runner: web.AppRunner) -> AsyncIterator[None]:
    await runner.setup()
    try:
        yield
    finally:
        await runner.cleanup()


@contextmanager
def listen_on(address: Address, *, shared: bool = False) -> Iterator[socket.socket]:
    """Bind a socket; ``shared`` lets other processes bind the same address too, the kernel spreads clients."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            bound.bind((address.host, address.port))
        except OSError as error:
            raise OSError(f"cannot listen on {address}: {error.strerror}") from error
        bound.setblocking(False)
        yield bound
