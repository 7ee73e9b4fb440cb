"""A process' life in the cluster, on one connection: heartbeats, announcements.

The connection that carries heartbeats also listens. While heartbeats come back, announcements
arrive, and what the node remembers of users and settings can be trusted (``is_fresh``). When it
breaks, the node distrusts all that until it has read everything again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import asyncpg

from repo_node.config import NodeConfig
from repo_node.db import nodes
from repo_node.db import settings as setting_rows
from repo_node.db.durability import find_fault
from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.nodes import ClusterRows, Fenced
from repo_node.db.servers import BROKEN, SESSION, Servers, describe, drop
from repo_node.metrics import Metrics
from repo_node.settings import LiveSettings, SettingError, lenient
from sharding.model import NodeId
from sharding.tasks import wait

log = logging.getLogger("holdfast.cluster")

CHANNEL = "holdfast"
RECONNECT_SECONDS = 0.5
LAST_WORDS_SECONDS_MAX = 5.0
"""For each word of a node that leaves: Postgres may be frozen, and the node's end has a limit."""

TELLING = (asyncpg.ReadOnlySQLTransactionError, asyncpg.InsufficientResourcesError)
"""Refusals of a heartbeat by a Postgres that can be believed all the same: a server that a failover has left behind
would rather wait for its standby in silence."""


@asynccontextmanager
async def connect(servers: Servers, config: NodeConfig, purpose: str = "") -> AsyncIterator[asyncpg.Connection]:
    """Open a connection of one's own, outside the pool; ``purpose`` tells it apart in Postgres' views.

    Raises ``CatalogueUnavailable``.
    """
    connection = await servers.connect(
        command_timeout=config.database.statement_timeout_seconds,
        server_settings={**SESSION, "application_name": f"holdfast {config.node.id} {purpose}".rstrip()},
    )
    try:
        yield connection
    finally:
        drop(connection)


class NodeShards(Protocol):
    """The node's shards, as the process has them that is a member with them."""

    on_change: Callable[[], None]
    """Called when a shard has been opened or given up."""

    async def report(self, connection: asyncpg.Connection) -> None:
        """Tell Postgres that the node lives, or learn from it that it does. Raises ``Fenced`` when it is it no more."""
        ...

    def look(self) -> None:
        """Look at the shards now: a row of one has changed."""
        ...

    def reload(self, path: Path | None = None) -> None:
        """Read the list of shards in the node's file again."""
        ...


class Membership:
    """Keeps this node in the cluster and its picture of the cluster current."""

    def __init__(
        self,
        config: NodeConfig,
        servers: Servers,
        incarnation: UUID,
        own: NodeShards,
        settings: LiveSettings,
        metrics: Metrics,
        *,
        purpose: str = "",
        on_cluster: Callable[[ClusterRows], Awaitable[None]],
        on_principals: Callable[[], None],
        on_tokens: Callable[[], None],
        on_repositories: Callable[[], None],
    ) -> None:
        self._config = config
        self._servers = servers
        self._node = NodeId(config.node.id)
        self._incarnation = incarnation
        self._own = own
        self._settings = settings
        self._metrics = metrics
        self._purpose = purpose
        self._on_cluster = on_cluster
        self._on_principals = on_principals
        self._on_tokens = on_tokens
        self._on_repositories = on_repositories
        self._wake = asyncio.Event()
        own.on_change = self._wake.set
        self._settings_changed = True
        self._beat_at = self._heard_at = float("-inf")
        self._read_at = float("-inf")
        self._fault: str | None = None
        self.rows: ClusterRows | None = None
        self.stop_asked = asyncio.Event()
        """Set when an operator has asked this process to stop."""
        self.on_jobs: Callable[[], None] = lambda: None
        """Called when an operator may have asked for a run of a job."""
        self.on_lease: Callable[[], None] = lambda: None
        """Called when the primary has given its lease back."""

    @property
    def is_fresh(self) -> bool:
        """Whether announcements have been arriving until just now."""
        silence = asyncio.get_running_loop().time() - self._beat_at
        return silence < 2 * self._settings.now.heartbeat_seconds + self._config.database.statement_timeout_seconds

    @property
    def silence_seconds(self) -> float:
        """How long ago a heartbeat last came back, or was refused, whatever has become of its connection."""
        return asyncio.get_running_loop().time() - self._heard_at

    def cluster(self) -> ClusterRows:
        """Return the cluster as last read. Raises ``CatalogueUnavailable`` before the first time."""
        if self.rows is None:
            raise CatalogueUnavailable("this node has not read the cluster yet")
        return self.rows

    def database_time(self) -> datetime:
        """Return the database's time, never later than it is: as last read, and what this process saw pass since.

        Raises ``CatalogueUnavailable`` before the first time.
        """
        return self.cluster().database_time + timedelta(seconds=asyncio.get_running_loop().time() - self._read_at)

    async def begin(self) -> None:
        """Beat for the first time. Raises ``Fenced``, ``SettingError``, ``CatalogueUnavailable``."""
        async with connect(self._servers, self._config, self._purpose) as connection:
            await self.beat(connection)

    async def run(self) -> None:
        """Beat until cancelled, reconnecting as often as it takes. Raises ``Fenced``."""
        while True:
            try:
                async with connect(self._servers, self._config, self._purpose) as connection:
                    await self._run_on(connection)
            except Fenced:
                raise
            except (CatalogueUnavailable, *BROKEN, asyncpg.PostgresError) as error:
                self._servers.doubt(error)
                if isinstance(error, TELLING):
                    self._heard_at = asyncio.get_running_loop().time()
                self._metrics.heartbeat_failures.inc()
                log.warning("no heartbeat", extra={"facts": {"cause": describe(error)}})
            finally:
                self._distrust()
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _run_on(self, connection: asyncpg.Connection) -> None:
        connection.add_termination_listener(self._hear_end)
        await connection.add_listener(CHANNEL, self._hear)  # type: ignore[arg-type]
        # What was proved or read until now may have changed unheard.
        self._forget()
        self._own.look()
        self.on_jobs()
        self._settings_changed = True
        while True:
            self._wake.clear()
            await self.beat(connection)
            await wait(self._wake, self._settings.now.heartbeat_seconds)

    async def beat(self, connection: asyncpg.Connection) -> None:
        """Report, and read what changed in the cluster."""
        began_at = time.monotonic()
        await self._own.report(connection)
        if self._settings_changed:
            self._settings_changed = False
            self._take_settings(await connection.fetch(setting_rows.READ.sql))
        # Whatever was announced before this beat began had been heard when the beat came back.
        self._settings.confirm(began_at)
        self._take_durability(await find_fault(connection))
        self.rows = await nodes.read_cluster(connection)
        self._read_at = asyncio.get_running_loop().time()
        if (
            (me := self.rows.nodes.get(self._node)) is not None
            and me.stop_asked
            and me.incarnation == self._incarnation
        ):
            self.stop_asked.set()
        await self._on_cluster(self.rows)
        self._beat_at = self._heard_at = asyncio.get_running_loop().time()

    def _take_settings(self, rows: list[asyncpg.Record]) -> None:
        """Let ``rows`` hold from now on. Raises ``SettingError`` at the start; later, what held goes on to hold."""
        try:
            self._settings.take(lenient(setting_rows.decode(rows)))
        except SettingError as error:
            if self.rows is None:
                raise
            log.error("the settings cannot be used; those before still hold", extra={"facts": {"cause": str(error)}})

    def _take_durability(self, fault: str | None) -> None:
        """Say it once when Postgres is set to forget. Uploads go on: to refuse them is for people to decide."""
        if fault is not None and fault != self._fault:
            log.critical("Postgres may lose what it acknowledges", extra={"facts": {"cause": fault}})
        self._fault = fault
        self._metrics.database_unsafe.set(fault is not None)

    def _hear(self, connection: Any, pid: int, channel: str, payload: str) -> None:
        match payload.split(" ", 2):
            case ["tokens"]:
                self._on_tokens()
                return
            case ["users" | "groups" | "group_members" | "permission_targets" | "permission_grants"]:
                self._on_principals()
                return
            case ["repositories"]:
                self._on_repositories()
                return
            case ["jobs"]:
                self.on_jobs()
                return
            case ["lease"]:
                self.on_lease()
                return
            case ["reload", node, *path]:
                if node == self._node:
                    self._own.reload(*map(Path, path))
                return
            case ["settings"]:
                self._settings_changed = True
            case ["shards"]:
                self._own.look()
        self._wake.set()

    def _hear_end(self, connection: Any) -> None:
        """Distrust at once: the end of a connection is heard before a heartbeat fails on it."""
        self._distrust()
        self._wake.set()

    def _distrust(self) -> None:
        """Stop being fresh. What is remembered is forgotten when it can be read anew, not before."""
        self._beat_at = float("-inf")

    def _forget(self) -> None:
        self._on_principals()
        self._on_repositories()

    async def say_leaving(self) -> None:
        """Tell the cluster that this node is being taken out of service; best effort, and bounded."""
        with suppress(CatalogueUnavailable, *BROKEN, asyncpg.PostgresError):
            async with asyncio.timeout(LAST_WORDS_SECONDS_MAX), connect(self._servers, self._config) as connection:
                await nodes.leave(connection, self._node, self._incarnation)

    async def leave(self) -> None:
        """Tell the cluster that this node stops; best effort, and bounded."""
        with suppress(CatalogueUnavailable, *BROKEN, asyncpg.PostgresError):
            async with asyncio.timeout(LAST_WORDS_SECONDS_MAX), connect(self._servers, self._config) as connection:
                await nodes.stop(connection, self._node, self._incarnation)
