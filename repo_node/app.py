"""Builds a node and runs it. The only module that knows every concrete class; it reads as a boot log."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from uuid import UUID, uuid4

import asyncpg
import uvloop
from aiohttp import web

from repo_node import __version__, logs, memory
from repo_node.api import system as system_api
from repo_node.api.staged import StagedUploads
from repo_node.assembly import (
    Parts,
    assemble,
    node_of,
    public_app_of,
    serve_artifacts,
    serve_peers,
    staged_uploads_of,
    task,
)
from repo_node.cluster.leadership import Leadership
from repo_node.cluster.membership import connect
from repo_node.cluster.outlook import Outlook, Primary
from repo_node.cluster.own_shard import refuse_foreign
from repo_node.cluster.own_shards import Owner, OwnShards, Reread
from repo_node.cluster.peer_watch import PeerWatch
from repo_node.config import NodeConfig
from repo_node.db import migrate, nodes
from repo_node.db.durability import check_durability
from repo_node.db.errors import CatalogueUnavailable, NotDurable, SchemaTooOld
from repo_node.db.nodes import Fenced, NameTaken
from repo_node.db.pool import Database, open_database
from repo_node.db.servers import Servers
from repo_node.file_limit import raise_file_limit
from repo_node.libraries import UnfitLibrary, check_libraries
from repo_node.maintenance import maintenance
from repo_node.metrics import Metrics
from repo_node.node import Node, NoOthers
from repo_node.settings import LiveSettings, SettingError
from repo_node.shutdown import EndLimit, StopRequests, drain, on_signals
from repo_node.support.reports import NodeReports
from repo_node.tls.certificates import CertificateError
from repo_node.tls.watch import certificates_in_use
from repo_node.web.lag import watch_lag
from repo_node.web.listeners import (
    Listeners,
    bound_listeners,
    serving_metrics,
    serving_public,
    standing_in,
)
from repo_node.web.state import NODE
from repo_node.workers.added_up import NodeMetrics
from repo_node.workers.crew import Crew, StandIn, running
from repo_node.workers.exchange import serving_siblings
from repo_node.workers.siblings import MAIN, Siblings, reaching_siblings
from sharding import crash_points
from sharding.errors import ShardError
from sharding.identity import ShardIdentityError
from sharding.model import NodeId, ZoneId

log = logging.getLogger("holdfast")

RETRY_SECONDS = 0.5
REFUSALS = (
    CatalogueUnavailable,
    SchemaTooOld,
    NotDurable,
    SettingError,
    NameTaken,
    Fenced,
    ShardIdentityError,
    ShardError,
    CertificateError,
    UnfitLibrary,
    crash_points.CrashPointRefused,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    OSError,
)
"""What ends a node with a sentence rather than a traceback."""


def run(config: NodeConfig, reread: Reread | None = None) -> int:
    """Run a node until SIGTERM or SIGINT; return its exit status. Blocks.

    ``reread`` gives the shards that its file names by now, when it is asked to look.
    """
    logs.configure(config.log, MAIN if config.node.workers > 1 else None)
    memory.tune()
    raise_file_limit(config.http.connections_max)
    try:
        check_libraries()
        crash_points.arm(os.environ)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config, reread))
    except asyncio.CancelledError:
        log.info("stopped before it was ready", extra={"facts": {"node": config.node.id}})
    except REFUSALS as error:
        log.critical("the node cannot run", extra={"facts": {"cause": str(error)}})
        return 1
    return 0


async def serve(config: NodeConfig, reread: Reread | None = None) -> None:
    """Run a node until it is told to stop. Raises what ``REFUSALS`` lists."""
    end, stop, serving = EndLimit(asyncio.get_running_loop()), StopRequests(), asyncio.current_task()
    assert serving is not None

    def give_up() -> None:
        end.allow(config.http.stop_timeout_seconds)
        serving.cancel()

    # Until it is ready, a node has nothing to finish: it may be waiting for Postgres.
    on_signals(give_up)
    async with running_node(config, reread) as (node, beating):
        on_signals(stop.ask)
        if node.on_reload is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, node.on_reload)
        log.info("ready", extra={"facts": {"node": config.node.id, "listen": str(config.http.listen)}})
        try:
            async with task(stop.asked.wait()) as asked, task(node.stop_asked.wait()) as ordered:
                await asyncio.wait((beating, asked, ordered), return_when=asyncio.FIRST_COMPLETED)
            log.info("stopping", extra={"facts": {"node": config.node.id, "in_flight": node.in_flight}})
            if beating.done():
                beating.result()
            await drain(node, config.http, end, stop)
        finally:
            end.allow(config.http.stop_timeout_seconds)


@asynccontextmanager
async def running_node(
    config: NodeConfig, reread: Reread | None = None
) -> AsyncIterator[tuple[Node, asyncio.Task[None]]]:
    """Start everything in order; leave it in reverse. The task is the heartbeat, which ends only by an error."""
    incarnation, metrics, settings = uuid4(), Metrics(), LiveSettings(processes=config.node.workers)
    share = config.share_of(MAIN)
    async with AsyncExitStack() as stack:
        # The sockets first: who holds them is the successor of whoever was registered with them.
        listeners, *theirs = stack.enter_context(bound_listeners(config))
        certificates = await stack.enter_async_context(certificates_in_use(config, metrics))
        database = await stack.enter_async_context(open_database(share.database, metrics))
        cluster_id = await join(config, incarnation, database)
        owner = Owner(cluster_id, NodeId(config.node.id), incarnation)
        own = await open_shards(stack, config, owner, database, settings, metrics, reread)
        parts = await assemble(stack, share, owner, own, database, settings, metrics, certificates)
        membership, uploads = parts.membership, staged_uploads_of(config)
        siblings = await stack.enter_async_context(reaching_siblings(config, owner, MAIN)) if theirs else None
        elsewhere = siblings.read_staged if siblings else None
        reports = NodeReports(config, MAIN, siblings)
        internal = await serve_peers(stack, parts, uploads, listeners.internal, elsewhere, reports)
        await membership.begin()
        stack.push_async_callback(membership.leave)
        beating = await stack.enter_async_context(task(membership.run()))
        await stack.enter_async_context(task(own.run()))
        await stack.enter_async_context(task(watch_lag(metrics)))
        await stack.enter_async_context(task(memory.give_back()))
        artifacts = serve_artifacts(stack, parts)
        leadership = await take_part(stack, parts)
        peers = PeerWatch(owner.node, lambda: membership.rows, parts.topology.peer_at, settings, metrics)
        node = node_of(parts, lambda: outlook_of(leadership, peers))
        node.others = NoOthers(has_started=not theirs)
        node.on_reload = certificates.look_soon if certificates.any else None
        node.on_hand_over += [leadership.leave, membership.say_leaving]
        jobs = maintenance(
            owner.node,
            database,
            parts.store,
            membership,
            settings,
            metrics,
            leadership,
            own.shards,
            lambda: parts.store.served + node.others.served(),
        )
        await stack.enter_async_context(jobs)
        await stack.enter_async_context(task(peers.run()))
        to_clients = public_app_of(stack, parts, artifacts, node, reports)
        public = await stack.enter_async_context(
            serving_public(to_clients, share, node, listeners, certificates.public)
        )
        if siblings is not None:
            stand_in = partial(standing_in, internal, public)
            await start_workers(stack, config, parts, own, node, uploads, siblings, theirs, stand_in, reports)
        await stack.enter_async_context(serving_metrics(metrics_app(node), config, node))
        yield node, beating


async def start_workers(
    stack: AsyncExitStack,
    config: NodeConfig,
    parts: Parts,
    own: OwnShards,
    node: Node,
    uploads: StagedUploads,
    siblings: Siblings,
    listeners: Sequence[Listeners],
    stand_in: StandIn,
    reports: NodeReports,
) -> None:
    """Have the node's other processes from now on."""
    totals = NodeMetrics(parts.metrics.registry, siblings, config.node.workers)
    await stack.enter_async_context(serving_siblings(parts, MAIN, uploads, reports, node.exposition))
    crew = Crew(config, parts.owner, listeners, own, node.outlook, parts.settings, parts.metrics, totals, stand_in)
    own.borrowers, node.others, node.render = crew, crew, totals.render
    node.on_leave.append(crew.leave)
    await stack.enter_async_context(running(crew))


async def join(config: NodeConfig, incarnation: UUID, database: Database) -> UUID:
    """Wait for Postgres, check that it can be trusted, and register; return the cluster's id."""
    async with reached(config, database.servers) as connection:
        await migrate.check_version(database)
        await check_durability(database)
        cluster = await nodes.read_cluster(connection)
        # Before it registers: a node of another cluster leaves no trace of itself in this one.
        await refuse_foreign([shard.path for shard in config.shards], cluster.cluster_id)
        await nodes.register(
            connection,
            node=NodeId(config.node.id),
            zone=ZoneId(config.node.zone),
            url=config.http.url,
            internal_url=config.internal.url,
            version=__version__,
            incarnation=incarnation,
            schema_version=migrate.version_needed(),
        )
    return cluster.cluster_id


async def open_shards(
    stack: AsyncExitStack,
    config: NodeConfig,
    owner: Owner,
    database: Database,
    settings: LiveSettings,
    metrics: Metrics,
    reread: Reread | None,
) -> OwnShards:
    """Open the shards of this node that can be used; ``run`` of what is returned opens the others when they can be."""

    def connected() -> AbstractAsyncContextManager[asyncpg.Connection]:
        return connect(database.servers, config, "shards")

    own = OwnShards(owner, config.shards, connected, settings, metrics, reread=reread)
    stack.push_async_callback(own.close)
    await own.open_all()
    return own


@asynccontextmanager
async def reached(config: NodeConfig, servers: Servers) -> AsyncIterator[asyncpg.Connection]:
    """Connect to Postgres, trying for ``database.start_timeout_seconds``. Raises ``CatalogueUnavailable``."""
    deadline = asyncio.get_running_loop().time() + config.database.start_timeout_seconds
    async with AsyncExitStack() as stack:
        while True:
            try:
                connection = await stack.enter_async_context(connect(servers, config))
                break
            except CatalogueUnavailable as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                log.warning("waiting for Postgres", extra={"facts": {"cause": str(error)}})
                await asyncio.sleep(RETRY_SECONDS)
        yield connection


async def take_part(stack: AsyncExitStack, parts: Parts) -> Leadership:
    """Take part in elections from now on."""
    config, servers = parts.config, parts.database.servers
    leadership = Leadership(
        parts.owner.node, lambda: connect(servers, config, "lease"), parts.epochs, parts.settings, parts.metrics
    )
    parts.membership.on_lease = leadership.wake
    await stack.enter_async_context(task(leadership.run()))
    stack.push_async_callback(leadership.leave)
    return leadership


def outlook_of(leadership: Leadership, peers: PeerWatch) -> Outlook:
    seen = leadership.seen
    return Outlook(
        primary=None if seen is None or seen.expired else Primary(seen.holder, seen.epoch),
        epoch=0 if seen is None else seen.epoch,
        is_primary=leadership.epoch is not None,
        holds=leadership.holds,
        suspicions=peers.suspicions,
    )


def metrics_app(node: Node) -> web.Application:
    """Build the application that serves ``/metrics`` alone, to whoever reaches its address."""
    app = web.Application()
    app[NODE] = node
    app.router.add_get("/metrics", system_api.metrics)
    return app
