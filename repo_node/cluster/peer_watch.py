"""Looks for partitions: peers that Postgres and this node see differently.

A peer may beat in Postgres and not be reached from here, or be reached and not beat. Either is a cut network, or a
node that hangs in part. Nothing is decided by it: shards have circuits, and verdicts are the primary's. It is
told, because no node can see the whole of a partition alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import StrEnum

from repo_node.db.nodes import ClusterRows, NodeRow
from repo_node.metrics import Metrics
from repo_node.settings import LiveSettings
from sharding.model import NodeId
from sharding.peer import Peer, PeerError

log = logging.getLogger("holdfast.cluster")

ASK_SECONDS = 2.0
LOOKS_TO_SUSPECT = 3
"""In a row: a node that starts or stops is seen differently for a moment."""


class Suspicion(StrEnum):
    UNREACHABLE = "unreachable"
    """It beats, and this node does not reach it."""
    SILENT = "silent"
    """It answers this node, and does not beat."""


class PeerWatch:
    """Asks every peer who it is, at the pace of the heartbeats. ``run`` it in a task."""

    def __init__(
        self,
        node: NodeId,
        cluster: Callable[[], ClusterRows | None],
        peer_at: Callable[[NodeId, str], Peer],
        settings: LiveSettings,
        metrics: Metrics,
    ) -> None:
        self._node = node
        self._cluster = cluster
        self._peer_at = peer_at
        self._settings = settings
        self._metrics = metrics
        self._seen: dict[tuple[NodeId, Suspicion], int] = {}

    @property
    def suspicions(self) -> tuple[tuple[NodeId, Suspicion], ...]:
        """What is suspected now."""
        return tuple(what for what, looks in self._seen.items() if looks >= LOOKS_TO_SUSPECT)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._settings.now.heartbeat_seconds)
            await self.look()

    async def look(self) -> None:
        """Ask every peer once, all at the same time."""
        rows = self._cluster()
        peers = [one for one in rows.nodes.values() if one.id != self._node] if rows else []
        reached = await asyncio.gather(*map(self._reaches, peers))
        before, seen = set(self.suspicions), {}
        for peer, is_reached in zip(peers, reached, strict=True):
            if peer.up != is_reached:
                what = (peer.id, Suspicion.UNREACHABLE if peer.up else Suspicion.SILENT)
                seen[what] = self._seen.get(what, 0) + 1
        self._seen = seen
        for peer_id, kind in set(self.suspicions) - before:
            self._metrics.cluster.suspicions.labels(kind.value).inc()
            log.warning("a partition is suspected", extra={"facts": {"node": peer_id, "it_is": kind.value}})
        for peer_id, kind in before - set(self.suspicions):
            log.info("a partition is suspected no more", extra={"facts": {"node": peer_id, "it_was": kind.value}})

    async def _reaches(self, peer: NodeRow) -> bool:
        """Say whether the very process that the row is about answers at its address."""
        try:
            async with asyncio.timeout(ASK_SECONDS):
                identity = await self._peer_at(peer.id, peer.internal_url).identify()
        except (PeerError, TimeoutError):
            return False
        return identity.incarnation == peer.incarnation
