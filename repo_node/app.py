"""Builds a node and runs it. The only module that knows every concrete class; it reads as a boot log."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeVar
from uuid import UUID, uuid4

import asyncpg
from aiohttp import web

from repo_node import __version__, keys, logs
from repo_node.api import artifacts as artifacts_api
from repo_node.api import holdfast as holdfast_api
from repo_node.api import repositories as repositories_api
from repo_node.api import storage as storage_api
from repo_node.api import system as system_api
from repo_node.api.internal import internal_app
from repo_node.artifacts import Artifacts
from repo_node.auth.authenticator import Authenticator
from repo_node.cluster.durability import UnsafeDatabase, check_durability
from repo_node.cluster.membership import Membership, connect
from repo_node.cluster.own_shards import OwnShard, open_own_shards
from repo_node.cluster.topology import Topology
from repo_node.config import Address, NodeConfig
from repo_node.db import migrate, nodes
from repo_node.db.errors import CatalogueUnavailable, SchemaTooOld
from repo_node.db.nodes import Fenced, NameTaken
from repo_node.db.pool import Database, open_database
from repo_node.logs import request_id
from repo_node.metrics import Metrics
from repo_node.node import Node
from repo_node.repositories import Repositories
from repo_node.settings import LiveSettings
from repo_node.web.connections import LimitedRunner
from repo_node.web.context import SERVICES, Services
from repo_node.web.lag import watch_lag
from repo_node.web.middleware import answer
from repo_node.web.routes import Routes
from repo_node.web.state import NODE
from sharding import wire
from sharding.errors import ShardError
from sharding.identity import ShardIdentityError
from sharding.model import NodeId, ShardId, ZoneId
from sharding.peer import Peer, open_peer_session
from sharding.provider import ShardingProvider, StoreLimits
from sharding.shard import Shard

T = TypeVar("T")

log = logging.getLogger("holdfast")

RETRY_SECONDS = 0.5
BACKLOG = 1024

REFUSALS = (
    CatalogueUnavailable,
    SchemaTooOld,
    UnsafeDatabase,
    NameTaken,
    Fenced,
    ShardIdentityError,
    ShardError,
    OSError,
)
"""What ends a node with a sentence rather than a traceback."""


def run(config: NodeConfig) -> int:
    """Run a node until SIGTERM or SIGINT; return its exit status. Blocks."""
    logs.configure(config.log)
    # Requests make no cycles worth a full collection every few hundred of them.
    gc.set_threshold(50_000, 20, 50)
    try:
        asyncio.run(serve(config))
    except REFUSALS as error:
        log.critical("the node cannot run", extra={"facts": {"cause": str(error)}})
        return 1
    return 0


async def serve(config: NodeConfig) -> None:
    """Run a node until it is told to stop. Raises what ``REFUSALS`` lists."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running_node(config) as (node, beating):
        log.info("ready", extra={"facts": {"node": config.node.id, "listen": str(config.http.listen)}})
        async with task(stop.wait()) as stopping:
            await asyncio.wait((beating, stopping), return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping", extra={"facts": {"node": config.node.id, "in_flight": node.in_flight}})
        if beating.done():
            beating.result()
        await node.leave()
        await node.drained(config.http.drain_notice_seconds, config.http.shutdown_timeout_seconds)


@asynccontextmanager
async def running_node(config: NodeConfig) -> AsyncIterator[tuple[Node, asyncio.Task[None]]]:
    """Start everything in order; leave it in reverse. The task is the heartbeat, which ends only by an error."""
    incarnation, metrics, settings = uuid4(), Metrics(), LiveSettings()
    async with AsyncExitStack() as stack:
        # The socket first: who holds it is the successor of whoever was registered with it.
        internal_socket = stack.enter_context(listen_on(config.internal.listen))
        database = await stack.enter_async_context(open_database(config.database, metrics))
        cluster_id, own = await join(stack, config, incarnation, database)
        topology = await build_topology(stack, config, cluster_id, own, metrics)
        store = ShardingProvider(
            lambda: topology.view,
            lambda: StoreLimits(settings.now.commit_wait_seconds, settings.now.read_hedge_seconds),
        )
        authenticator = Authenticator(
            database, lambda: membership.is_fresh, lambda: settings.now.password_cache_seconds
        )
        stack.callback(authenticator.close)
        membership = Membership(
            config,
            incarnation,
            own,
            settings,
            metrics,
            on_cluster=topology.update,
            on_principals=authenticator.forget,
        )
        internal = internal_app(
            shards=local_shards(own),
            node_id=NodeId(config.node.id),
            incarnation=incarnation,
            cluster_id=lambda: cluster_id,
            key=config.cluster_key,
        )
        await stack.enter_async_context(serving_internal(internal, config, internal_socket))
        async with connect(config) as connection:
            await membership.beat(connection)
        stack.push_async_callback(membership.leave)
        beating = await stack.enter_async_context(task(membership.run()))
        await stack.enter_async_context(task(watch_lag(metrics)))
        stack.push_async_callback(store.close)
        artifacts = Artifacts(database, store, settings, metrics)
        stack.push_async_callback(artifacts.close)
        node = Node(metrics, database, membership, topology)
        services = Services(artifacts, Repositories(database), authenticator, settings, metrics, config.http)
        await stack.enter_async_context(serving_public(public_app(services, node), config, node))
        if config.http.metrics_listen is not None:
            await stack.enter_async_context(serving_metrics(node, config.http.metrics_listen))
        yield node, beating


async def join(
    stack: AsyncExitStack, config: NodeConfig, incarnation: UUID, database: Database
) -> tuple[UUID, dict[ShardId, OwnShard]]:
    """Wait for Postgres, check that it can be trusted, register, and open the node's shards."""
    connection = await stack.enter_async_context(reached(config))
    await migrate.check_version(database)
    await check_durability(connection)
    cluster_id: UUID = await connection.fetchval("SELECT cluster_id FROM cluster")
    node = NodeId(config.node.id)
    await nodes.register(
        connection,
        node=node,
        zone=ZoneId(config.node.zone),
        url=f"http://{config.http.listen}",
        internal_url=config.internal.url,
        version=__version__,
        incarnation=incarnation,
    )
    own = await open_own_shards(
        stack, connection, config.shards, cluster_id=cluster_id, node=node, incarnation=incarnation
    )
    return cluster_id, own


@asynccontextmanager
async def reached(config: NodeConfig) -> AsyncIterator[asyncpg.Connection]:
    """Connect to Postgres, trying for ``database.start_timeout_seconds``. Raises ``CatalogueUnavailable``."""
    deadline = asyncio.get_running_loop().time() + config.database.start_timeout_seconds
    async with AsyncExitStack() as stack:
        while True:
            try:
                connection = await stack.enter_async_context(connect(config))
                break
            except CatalogueUnavailable as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                log.warning("waiting for Postgres", extra={"facts": {"cause": str(error)}})
                await asyncio.sleep(RETRY_SECONDS)
        yield connection


async def build_topology(
    stack: AsyncExitStack,
    config: NodeConfig,
    cluster_id: UUID,
    own: Mapping[ShardId, OwnShard],
    metrics: Metrics,
) -> Topology:
    internal = config.internal
    session = await stack.enter_async_context(open_peer_session(call_seconds=internal.call_timeout_seconds))
    token = keys.derive(config.cluster_key, wire.TOKEN_PURPOSE)

    def peer_at(url: str) -> Peer:
        return Peer(
            url,
            session,
            token,
            cluster_id,
            headers=lambda: {"X-Request-Id": request_id.get()},
            call_seconds=internal.call_timeout_seconds,
            stall_seconds=internal.stall_timeout_seconds,
        )

    return Topology(NodeId(config.node.id), ZoneId(config.node.zone), own, peer_at, internal, metrics)


def local_shards(own: Mapping[ShardId, OwnShard]) -> Callable[[UUID], Shard | None]:
    by_uid: dict[UUID, Shard] = {one.uid: one.shard for one in own.values()}
    return by_uid.get


def public_app(services: Services, node: Node) -> web.Application:
    """Build the public application: every route with the permission it needs."""
    app = web.Application(middlewares=[answer], client_max_size=0)
    app[SERVICES], app[NODE] = services, node
    routes = Routes(app)
    for api in (system_api, repositories_api, storage_api, holdfast_api, artifacts_api):
        api.add_routes(routes)
    return app


@asynccontextmanager
async def serving_public(app: web.Application, config: NodeConfig, node: Node) -> AsyncIterator[None]:
    """Serve on the node's own address, and on the one its neighbours on this machine share.

    The shared one closes as soon as the node leaves: its clients then reach the neighbours.
    """
    runner = LimitedRunner(app, config.http, lambda limit: node.metrics.connections_cut.labels(limit).inc())
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
    runner = web.AppRunner(app, shutdown_timeout=config.internal.call_timeout_seconds)
    async with running(runner):
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
        yield


@asynccontextmanager
async def serving_metrics(node: Node, address: Address) -> AsyncIterator[None]:
    """Serve ``/metrics`` alone, without credentials, on an address of its own."""
    app = web.Application()
    app[NODE] = node
    app.router.add_get("/metrics", system_api.metrics)
    runner = web.AppRunner(app, access_log=None)
    with listen_on(address) as listener:
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


@asynccontextmanager
async def task(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Run ``work`` beside the block, and stop it at the block's end."""
    running = asyncio.create_task(work)
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


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
