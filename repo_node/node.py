"""The node as its own API sees it: readiness, the cluster's rows, the store's view, gauges."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from repo_node import __version__
from repo_node.cluster.membership import Membership
from repo_node.cluster.outlook import Outlook, Primary
from repo_node.cluster.topology import Topology
from repo_node.db import repair_queue
from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.nodes import ClusterRows, ShardRow
from repo_node.db.pool import Database
from repo_node.metrics import Metrics
from repo_node.metrics.figures import render
from repo_node.settings import LiveSettings
from sharding.model import ShardState
from sharding.tasks import wait
from sharding.view import StoreView

DRAIN_POLL_SECONDS, COPIES_POLL_SECONDS = 0.05, 0.25

COPIES_ANSWER_SECONDS_MAX = 2.0
"""How long Postgres may take to say what this node alone has: an end has a limit, however long statements may take."""


class Others(Protocol):
    """The other processes of this node."""

    @property
    def has_started(self) -> bool:
        """Whether they have had their time to start."""
        ...

    def in_flight(self) -> int:
        """Return how many requests they are answering."""
        ...

    def served(self) -> int:
        """Return how many uploads and readers they have begun."""
        ...


class NoOthers:
    """Of a process that speaks for itself alone, or has not begun to start others."""

    def __init__(self, *, has_started: bool = True) -> None:
        self.has_started = has_started

    def in_flight(self) -> int:
        return 0

    def served(self) -> int:
        return 0


class Node:
    """Satisfies ``NodeState``."""

    def __init__(
        self,
        metrics: Metrics,
        database: Database,
        membership: Membership,
        topology: Topology,
        outlook: Callable[[], Outlook],
        settings: LiveSettings,
    ) -> None:
        self.metrics = metrics
        self.database = database
        self._membership = membership
        self._topology = topology
        self.outlook = outlook
        self._settings = settings
        self._leaving = False
        self.in_flight = 0
        self.on_leave: list[Callable[[], Awaitable[None]]] = []
        self.on_hand_over: list[Callable[[], Awaitable[None]]] = []
        self.on_reload: Callable[[], None] | None = None
        """Looks at what may have changed on disk, where anything is looked at."""
        self.others: Others = NoOthers()
        self.render: Callable[[], Awaitable[bytes]] = lambda: render(metrics.registry)
        """Renders the metrics of all processes of this node."""
        metrics.build.info({"version": __version__})

    def is_ready(self) -> bool:
        return (
            not self._leaving
            and self.others.has_started
            and self._membership.is_fresh
            and bool(self._topology.view.ring.members)
        )

    @property
    def is_fresh(self) -> bool:
        return self._membership.is_fresh

    @property
    def is_leaving(self) -> bool:
        return self._leaving

    @property
    def stop_asked(self) -> asyncio.Event:
        """Set when an operator has asked this process to stop."""
        return self._membership.stop_asked

    async def leave(self) -> None:
        """Close what only takes new connections, and send load balancers elsewhere from now on."""
        for close in self.on_leave:
            await close()
        self._leaving = True

    async def hand_over(self) -> None:
        """Let another node be the primary from now on, and tell the cluster why. Best effort, and bounded."""
        await asyncio.gather(*(tell() for tell in self.on_hand_over))

    async def drained(self, notice_seconds: float, wait_seconds: float, hurried: asyncio.Event) -> None:
        """Give load balancers time to notice, then wait, within bounds, until nobody needs this node.

        That is until no request is in flight, and no blob has copies here alone that others are about to copy.
        Returns at once when ``hurried`` is set: what is in flight then will be cut.
        """
        if await wait(hurried, notice_seconds):
            return
        deadline = asyncio.get_running_loop().time() + wait_seconds
        while asyncio.get_running_loop().time() < deadline:
            if self.in_flight + self.others.in_flight():
                pause = DRAIN_POLL_SECONDS
            elif await self.sole_copies():
                pause = COPIES_POLL_SECONDS
            else:
                return
            if await wait(hurried, pause):
                return

    async def sole_copies(self) -> int:
        """Return how many blobs cannot be read without this node until they are repaired.

        0 while Postgres is away, or takes longer than ``COPIES_ANSWER_SECONDS_MAX``.
        """
        if not self.is_fresh:
            return 0
        try:
            async with asyncio.timeout(COPIES_ANSWER_SECONDS_MAX):
                return await repair_queue.sole_copies(self.database, self._topology.view.node)
        except (CatalogueUnavailable, TimeoutError):
            return 0

    def cluster(self) -> ClusterRows:
        return self._membership.cluster()

    def view(self) -> StoreView:
        return self._topology.view

    def primary(self) -> Primary | None:
        return self.outlook().primary

    def suspicions(self) -> tuple[tuple[str, str], ...]:
        return self.outlook().suspicions

    def deletion_holds(self) -> tuple[str, ...]:
        return self.outlook().holds

    async def exposition(self) -> bytes:
        self.refresh_gauges()
        return await self.render()

    def refresh_gauges(self) -> None:
        metrics, view, rows = self.metrics, self._topology.view, self._membership.rows
        outlook = self.outlook()
        size, idle = self.database.connections
        metrics.pool_connections.labels("idle").set(idle)
        metrics.pool_connections.labels("used").set(size - idle)
        metrics.ready.set(self.is_ready())
        metrics.deletion.primary.set(outlook.is_primary)
        metrics.deletion.deletions_held.clear()
        for reason in outlook.holds:
            metrics.deletion.deletions_held.labels(reason).set(1)
        metrics.deletion.epoch.set(outlook.epoch)
        metrics.cluster.show_primary(outlook.primary and outlook.primary.node)
        metrics.cluster.show_suspicions(outlook.suspicions)
        metrics.cluster.read_only.set(bool(self._settings.now.read_only_reason))
        metrics.in_flight.set(self.in_flight)
        metrics.ring_members.set(len(view.ring.members))
        metrics.ring_zones.set(view.zones)
        if rows is None:
            return
        metrics.cluster.show_nodes(rows)
        # Of itself it knows more than Postgres, which may be away.
        metrics.cluster.leaving.labels(view.node).set(self._leaving)
        for shard in rows.shards.values():
            self._refresh_shard(shard, view, rows)

    def _refresh_shard(self, shard: ShardRow, view: StoreView, rows: ClusterRows) -> None:
        metrics, member = self.metrics, shard.member
        metrics.shard_free_bytes.labels(shard.id, member.node, member.zone).set(shard.free_bytes)
        metrics.shard_used_bytes.labels(shard.id, member.node, member.zone).set(
            max(shard.capacity_bytes - shard.free_bytes, 0)
        )
        metrics.shard_writable.labels(shard.id).set(shard.id in view.writable)
        metrics.shard_silent.labels(shard.id).set(not shard.capacity_bytes or not rows.nodes[member.node].up)
        for state in ShardState:
            metrics.shard_state.labels(shard.id, state.value).set(shard.state is state)
