"""The metrics of the cluster as this node sees it: who is there, who leaves, who reaches whom, what may be changed."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

from repo_node.db.nodes import ClusterRows
from sharding.model import NodeId


class ClusterMetrics:
    """The gauges are set from the node's picture of the cluster whenever they are read."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.node_up = Gauge(
            "holdfast_node_up", "1 when the node's heartbeat is fresh", ["node", "zone"], registry=registry
        )
        self.leaving = Gauge(
            "holdfast_node_leaving_state",
            "1 while the node is being taken out of service and finishes what it has",
            ["node"],
            registry=registry,
        )
        self.release = Gauge(
            "holdfast_node_release_info",
            "1 for the release of each node and the schema it was written for",
            ["node", "version", "schema"],
            registry=registry,
        )
        self.schema = Gauge(
            "holdfast_database_schema_info", "1 for the version of the database's schema", ["schema"], registry=registry
        )
        self.primary_holder = Gauge(
            "holdfast_primary_holder_info",
            "1 for the node that holds the primary's lease, as this node last saw it",
            ["node"],
            registry=registry,
        )
        self.read_only = Gauge("holdfast_read_only_state", "1 while the cluster is read-only", registry=registry)
        self.suspected = Gauge(
            "holdfast_partition_suspected_state",
            "1 for a peer that this node and Postgres see differently: unreachable, or silent but reachable",
            ["peer", "kind"],
            registry=registry,
        )
        self.suspicions = Counter(
            "holdfast_partition_suspicions_total", "Times such a suspicion arose", ["kind"], registry=registry
        )

    def show_nodes(self, rows: ClusterRows) -> None:
        """Show every node of the cluster, and none that is gone."""
        for gauge in (self.node_up, self.leaving, self.release, self.schema):
            gauge.clear()
        self.schema.labels(rows.schema_version).set(1)
        for node in rows.nodes.values():
            self.node_up.labels(node.id, node.zone).set(node.up)
            self.leaving.labels(node.id).set(node.up and node.leaving)
            schema = "unknown" if node.schema_version is None else node.schema_version
            self.release.labels(node.id, node.version, schema).set(1)

    def show_primary(self, primary: NodeId | None) -> None:
        self.primary_holder.clear()
        if primary is not None:
            self.primary_holder.labels(primary).set(1)

    def show_suspicions(self, suspicions: Iterable[tuple[str, str]]) -> None:
        """Show what is suspected now, each a peer and a kind."""
        self.suspected.clear()
        for peer, kind in suspicions:
            self.suspected.labels(peer, kind).set(1)
