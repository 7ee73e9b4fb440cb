"""What the system surfaces ask the node itself."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from repo_node.cluster.outlook import Primary
from repo_node.db.nodes import ClusterRows
from repo_node.db.pool import Database
from repo_node.metrics import Metrics
from sharding.view import StoreView


class NodeState(Protocol):
    """The node as its own API sees it."""

    metrics: Metrics
    database: Database
    in_flight: int
    """Requests being answered."""

    def is_ready(self) -> bool:
        """Say whether this node can serve reads and writes now."""
        ...

    @property
    def is_fresh(self) -> bool:
        """Say whether heartbeats come back; only then is something absent because Postgres knows nothing of it."""
        ...

    @property
    def is_leaving(self) -> bool:
        """Say whether this node finishes what it has and takes nothing new."""
        ...

    async def exposition(self) -> bytes:
        """Return every metric of the node as Prometheus reads it, up to date."""
        ...

    def cluster(self) -> ClusterRows:
        """Return the cluster as last read. Raises ``CatalogueUnavailable`` before the first time."""
        ...

    def view(self) -> StoreView: ...

    def primary(self) -> Primary | None:
        """Return the primary node as last seen, None while there is none."""
        ...

    def suspicions(self) -> tuple[tuple[str, str], ...]:
        """Return the peers that this node and Postgres see differently, each with how."""
        ...

    def deletion_holds(self) -> tuple[str, ...]:
        """Return the reasons for which deletions were held when last looked at."""
        ...


NODE = web.AppKey("node", NodeState)
