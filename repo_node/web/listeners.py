"""The node's sockets: bound, served by a runner, closed."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from aiohttp import web

from repo_node.config import Address, NodeConfig
from repo_node.node import Node
from repo_node.web.connections import LimitedRunner

BACKLOG = 1024
PEERS_SHARE = 1 / 3
"""Of the time that the node's end may take: it may be spent twice, on their uploads and on the ends of these."""


@asynccontextmanager
async def serving_public(app: web.Application, config: NodeConfig, node: Node) -> AsyncIterator[None]:
    """Serve on the node's own address, and on the one its neighbours on this machine share.

    The shared one closes as soon as the node leaves: its clients then reach the neighbours.
    """
    runner = LimitedRunner(app, config.http, node.metrics)
    async with AsyncExitStack() as stack:
        own = stack.enter_context(listen_on(config.http.listen))
        await stack.enter_async_context(running(runner))
        await web.SockSite(runner, own, backlog=BACKLOG).start()
        if config.http.shared_listen is not None:
            front = stack.enter_context(listen_on(config.http.shared_listen, shared=True))
            site = web.SockSite(runner, front, backlog=BACKLOG)
            await site.start()
            node.on_leave.append(site.stop)
        yield


@asynccontextmanager
async def serving_internal(app: web.Application, config: NodeConfig, listener: socket.socket) -> AsyncIterator[None]:
    """Serve peers on ``listener``, which was bound before. At the end, what they stage may end within bounds."""
    wait_seconds = min(config.internal.call_timeout_seconds, config.http.stop_timeout_seconds * PEERS_SHARE)
    runner = web.AppRunner(app, shutdown_timeout=wait_seconds)
    async with running(runner):
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
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
