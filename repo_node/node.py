"""The node as its own API sees it: readiness, the cluster's rows, the store's view, gauges."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from repo_node import __version__
from repo_node.cluster.leadership import Leadership
from repo_node.cluster.membership import Membership
from repo_node.cluster.topology import Topology
from repo_node.db.lease import LeaseRow
from repo_node.db.nodes import ClusterRows, ShardRow
from repo_node.db.pool import Database
from repo_node.metrics import Metrics
from sharding.model import ShardState
from sharding.view import StoreView

DRAIN_POLL_SECONDS = 0.05


class Node:
    """Satisfies ``NodeState``."""

    def __init__(
        self,
        metrics: Metrics,
        database: Database,
        membership: Membership,
        topology: Topology,
        leadership: Leadership,
    ) -> None:
        self.metrics = metrics
        self.database = database
        self._membership = membership
        self._topology = topology
        self._leadership = leadership
        self._leaving = False
        self.in_flight = 0
        self.on_leave: list[Callable[[], Awaitable[None]]] = []
        metrics.build.info({"version": __version__})

    def is_ready(self) -> bool:
        return not self._leaving and self._membership.is_fresh and bool(self._topology.view.ring.members)

    @property
    def is_leaving(self) -> bool:
        return self._leaving

    async def leave(self) -> None:
        """Send load balancers elsewhere from now on, and close what only takes new connections."""
        self._leaving = True
        for close in self.on_leave:
            await close()

    async def drained(self, notice_seconds: float, wait_seconds: float) -> None:
        """Give load balancers time to notice, then wait, within bounds, until no request is in flight."""
        await asyncio.sleep(notice_seconds)
        deadline = asyncio.get_running_loop().time() + wait_seconds
        while self.in_flight and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    def cluster(self) -> ClusterRows:
        return self._membership.cluster()

    def view(self) -> StoreView:
        return self._topology.view

    def primary(self) -> LeaseRow | None:
        return self._leadership.seen

    def deletion_holds(self) -> tuple[str, ...]:
        return self._leadership.holds

    def refresh_gauges(self) -> None:
        metrics, view, rows = self.metrics, self._topology.view, self._membership.rows
        size, idle = self.database.connections
        metrics.pool_connections.labels("idle").set(idle)
        metrics.pool_connections.labels("used").set(size - idle)
        metrics.ready.set(self.is_ready())
        metrics.deletion.primary.set(self._leadership.epoch is not None)
        metrics.deletion.deletions_held.clear()
        for reason in self._leadership.holds:
            metrics.deletion.deletions_held.labels(reason).set(1)
        metrics.deletion.epoch.set(self._leadership.seen.epoch if self._leadership.seen else 0)
        metrics.in_flight.set(self.in_flight)
        metrics.ring_members.set(len(view.ring.members))
        metrics.ring_zones.set(view.zones)
        if rows is None:
            return
        for node in rows.nodes.values():
            metrics.node_up.labels(node.id, node.zone).set(node.up)
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
