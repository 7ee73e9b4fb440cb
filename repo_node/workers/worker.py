"""A worker: serves on sockets and shards that the main process of its node lends it, and does nothing else."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import uvloop

from repo_node import __version__, logs, memory
from repo_node.assembly import (
    assemble,
    node_of,
    public_app_of,
    serve_artifacts,
    serve_peers,
    staged_uploads_of,
    task,
)
from repo_node.cluster.outlook import Outlook
from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.nodes import Fenced
from repo_node.db.pool import open_database
from repo_node.file_limit import raise_file_limit
from repo_node.metrics import Metrics
from repo_node.node import Node, NoOthers
from repo_node.settings import LiveSettings, SettingError
from repo_node.shutdown import EndLimit
from repo_node.support.reports import NodeReports
from repo_node.tls.certificates import CertificateError
from repo_node.tls.watch import certificates_in_use
from repo_node.web.lag import watch_lag
from repo_node.web.listeners import Listeners, serving_public
from repo_node.workers.borrowed_shards import BorrowedShards
from repo_node.workers.channel import Channel, ChannelBroken, receive
from repo_node.workers.exchange import METRICS_PATH, serving_siblings
from repo_node.workers.messages import (
    Alive,
    Begin,
    CloseShard,
    End,
    Leave,
    Look,
    OpenShard,
    Serving,
    ShardClosed,
    ToMain,
)
from repo_node.workers.parent import end_with
from repo_node.workers.siblings import MAIN, Siblings, SiblingSilent, reaching_siblings
from sharding import crash_points

log = logging.getLogger("holdfast")

LEAVING_LOOK_SECONDS = 0.05
METRICS_SECONDS = 10.0

REFUSALS = (
    CatalogueUnavailable,
    Fenced,
    SettingError,
    CertificateError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    OSError,
)
"""What ends a worker with a sentence rather than a traceback."""


def run(parent: int) -> int:
    """Be a worker of the process ``parent``, which speaks on standard input; return the exit status. Blocks."""
    end_with(parent)
    # Whoever ends a node tells its main process, though a terminal or systemd may tell all.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel = socket.socket(fileno=os.dup(0))
    begin, descriptors = receive(channel)
    assert isinstance(begin, Begin)
    logs.configure(begin.config.log, begin.process)
    if begin.release != __version__:
        facts = {"cause": f"it is of release {__version__}, its node of {begin.release}; restart the node"}
        log.critical("a worker cannot run", extra={"facts": facts})
        return 1
    memory.tune()
    raise_file_limit(begin.config.http.connections_max)
    try:
        crash_points.arm(os.environ)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(begin, channel, listeners_of(descriptors)))
    except REFUSALS as error:
        log.critical("a worker cannot run", extra={"facts": {"cause": str(error) or type(error).__name__}})
        return 1
    return 0


def listeners_of(descriptors: list[int]) -> Listeners:
    guard, internal, public, *front = (socket.socket(fileno=one) for one in descriptors)
    return Listeners(internal, public, front[0] if front else None, guard)


async def serve(begin: Begin, end: socket.socket, listeners: Listeners) -> None:
    """Serve until the main process says that it is enough, or is gone. Raises what ``REFUSALS`` lists."""
    limit, link = EndLimit(asyncio.get_running_loop()), Link()
    try:
        async with running_worker(begin, end, listeners, link) as (node, beating):
            log.info("a worker is ready", extra={"facts": {"node": begin.owner.node}})
            link.serving(node)
            async with task(link.end_asked.wait()) as asked:
                await asyncio.wait((beating, asked), return_when=asyncio.FIRST_COMPLETED)
            if beating.done():
                beating.result()
            limit.allow(begin.config.http.stop_timeout_seconds)
    finally:
        limit.allow(begin.config.http.stop_timeout_seconds)


@asynccontextmanager
async def running_worker(
    begin: Begin, end: socket.socket, listeners: Listeners, link: Link
) -> AsyncIterator[tuple[Node, asyncio.Task[None]]]:
    """Start everything in order; leave it in reverse. The task is the worker's own heartbeat."""
    config, owner, process = begin.config, begin.owner, begin.process
    metrics, settings = Metrics(), LiveSettings(processes=config.node.workers)
    async with AsyncExitStack() as stack:
        shards = BorrowedShards(owner, begin.stage, settings, link.shard_closed)
        stack.push_async_callback(shards.close)
        link.open(end, shards)
        await link.first_look.wait()
        await shards.until_tried()
        certificates = await stack.enter_async_context(certificates_in_use(config, None))
        database = await stack.enter_async_context(open_database(config.database, metrics))
        siblings = await stack.enter_async_context(reaching_siblings(config, owner, process))
        parts = await assemble(
            stack, config, owner, shards, database, settings, metrics, certificates, purpose=f"worker {process}"
        )
        uploads = staged_uploads_of(config)
        reports = NodeReports(config, process, siblings)
        await stack.enter_async_context(serving_siblings(parts, process, uploads, reports))
        await serve_peers(stack, parts, uploads, listeners.internal, siblings.read_staged, reports)
        await parts.membership.begin()
        beating = await stack.enter_async_context(task(parts.membership.run()))
        await stack.enter_async_context(task(watch_lag(metrics)))
        await stack.enter_async_context(task(memory.give_back()))
        artifacts = serve_artifacts(stack, parts)
        link.own_served = lambda: parts.store.served
        node = node_of(parts, lambda: link.outlook)
        node.others = link
        node.render = lambda: metrics_of(siblings)
        to_clients = public_app_of(stack, parts, artifacts, node, reports)
        await stack.enter_async_context(serving_public(to_clients, config, node, listeners, certificates.public))
        yield node, beating


async def metrics_of(siblings: Siblings) -> bytes:
    """Return the node's metrics, which its main process adds up."""
    try:
        return await siblings.get(MAIN, METRICS_PATH, METRICS_SECONDS)
    except SiblingSilent as error:
        raise CatalogueUnavailable(f"the node's main process does not answer: {error}") from error


class Link(NoOthers):
    """The worker's end of its channel to the main process."""

    def __init__(self) -> None:
        super().__init__(has_started=False)
        self.outlook = Outlook()
        self.first_look = asyncio.Event()
        self.end_asked = asyncio.Event()
        self.own_served: Callable[[], int] = lambda: 0
        self._channel: Channel | None = None
        self._shards: BorrowedShards | None = None
        self._node: Node | None = None
        self._leaving: asyncio.Task[None] | None = None

    def open(self, end: socket.socket, shards: BorrowedShards) -> None:
        """Take messages from now on."""
        self._shards = shards
        self._channel = Channel(end, self._hear, lambda: os._exit(1))

    def serving(self, node: Node) -> None:
        """Tell that this worker serves."""
        self._node = node
        self._say(Serving())

    def shard_closed(self, uid: UUID) -> None:
        self._say(ShardClosed(uid))

    def _hear(self, message: Any, descriptors: list[int]) -> None:
        assert self._shards is not None
        match message:
            case OpenShard():
                self._shards.open(message, descriptors[0])
            case CloseShard(uid):
                self._shards.call_back(uid)
            case Look(outlook, has_started):
                self.outlook, self.has_started = outlook, has_started
                self.first_look.set()
                self._say_alive()
            case Leave():
                self._leaving = asyncio.create_task(self._leave())
            case End():
                self.end_asked.set()

    async def _leave(self) -> None:
        if self._node is not None:
            await self._node.leave()
        told = -1
        while True:
            if told != (told := self._in_flight()):
                self._say_alive()
            await asyncio.sleep(LEAVING_LOOK_SECONDS)

    def _say_alive(self) -> None:
        self._say(Alive(self.own_served(), self._in_flight()))

    def _in_flight(self) -> int:
        return 0 if self._node is None else self._node.in_flight

    def _say(self, message: ToMain) -> None:
        assert self._channel is not None
        try:
            self._channel.send(message)
        except ChannelBroken:
            # A node that does not hear from a worker does not know what it holds.
            os._exit(1)
