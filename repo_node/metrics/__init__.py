"""Every metric of a node, in one registry. Labels come from closed sets; no path, user or digest is one."""

from __future__ import annotations

from contextlib import suppress

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.gc_collector import GCCollector

from repo_node.metrics.audits import AuditMetrics
from repo_node.metrics.cluster import ClusterMetrics
from repo_node.metrics.counts import Counts
from repo_node.metrics.deletion import DeletionMetrics
from repo_node.metrics.healing import HealingMetrics
from repo_node.metrics.timings import Timings

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
FAST_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """The node's instruments. Satisfies ``QueryObserver``, ``ShardObserver`` and ``HotObserver``."""

    def __init__(self) -> None:
        # A second series for each counter and histogram, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self.build = Info("holdfast_build", "The release this node runs", registry=registry)
        self._http(registry)
        self._store(registry)
        self._shards(registry)
        self._database(registry)
        self._node(registry)
        self.cluster = ClusterMetrics(registry)
        self.healing = HealingMetrics(registry)
        self.deletion = DeletionMetrics(registry)
        self.audits = AuditMetrics(registry)

    def _http(self, registry: CollectorRegistry) -> None:
        self.requests = Counts(
            "holdfast_http_requests_total", "Requests answered", ["method", "route", "status"], registry=registry
        )
        self.request_seconds = Timings(
            "holdfast_http_request_duration_seconds",
            "Time from a request's head to the end of its answer",
            ["method", "route"],
            bounds=SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("holdfast_http_requests_in_flight", "Requests being answered", registry=registry)
        self.downloads_uncounted = Counter(
            "holdfast_downloads_uncounted_total",
            "Downloads missing in the statistics of artifacts: too many at once, or Postgres did not say",
            registry=registry,
        )
        self.stale_reads = Counter(
            "holdfast_stale_reads_total",
            "Reads answered from memory because Postgres was away",
            registry=registry,
        )
        self.received_bytes = Counts(
            "holdfast_http_received_bytes_total", "Body bytes received", registry=registry
        ).labels()
        self.sent_bytes = Counts("holdfast_http_sent_bytes_total", "Body bytes sent", registry=registry).labels()
        self.auth_failures = Counter(
            "holdfast_auth_failures_total", "Requests refused for their credentials", ["reason"], registry=registry
        )
        self.connections_cut = Counter(
            "holdfast_http_connections_cut_total", "Connections cut by a limit", ["limit"], registry=registry
        )

    def _store(self, registry: CollectorRegistry) -> None:
        self.upload_seconds = Timings(
            "holdfast_upload_stage_duration_seconds",
            "Time of each stage of an upload: receive, store, commit",
            ["stage"],
            bounds=SECONDS,
            registry=registry,
        )
        self.uploads = Counts(
            "holdfast_uploads_total", "Uploads by how their commit ended", ["outcome"], registry=registry
        )
        self.commit_group_uploads = Timings(
            "holdfast_upload_commit_group_uploads",
            "Uploads that one statement is to commit",
            bounds=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.uploads_in_flight = Gauge("holdfast_uploads_in_flight", "Uploads under way", registry=registry)
        self.short_writes = Counter(
            "holdfast_replicas_written_short_total",
            "Uploads acknowledged with fewer copies, or in fewer zones, than wanted",
            registry=registry,
        )
        self.hot_blob_looks = Counts(
            "holdfast_hot_blob_looks_total",
            "Looks for small blobs of other nodes' shards in memory, by whether they were there",
            ["found"],
            registry=registry,
        )
        self.hot_blobs_bytes = Gauge(
            "holdfast_hot_blobs_bytes", "Small blobs of other nodes' shards in memory", registry=registry
        )
        self.bad_replicas = Counter(
            "holdfast_replicas_found_bad_total",
            "Replicas that a reader found missing or corrupt",
            ["fault"],
            registry=registry,
        )

    def _shards(self, registry: CollectorRegistry) -> None:
        self.shard_seconds = Timings(
            "holdfast_shard_operation_duration_seconds",
            "Time of each operation on a shard, own or of a peer",
            ["shard", "operation"],
            bounds=FAST_SECONDS,
            registry=registry,
        )
        self.shard_errors = Counter(
            "holdfast_shard_errors_total",
            "Shard operations that failed",
            ["shard", "operation", "outcome"],
            registry=registry,
        )
        self.shard_free_bytes = Gauge(
            "holdfast_shard_free_bytes", "Free above the reserve", ["shard", "node", "zone"], registry=registry
        )
        self.shard_used_bytes = Gauge(
            "holdfast_shard_used_bytes",
            "Used on the shard's file system, the reserve counted in",
            ["shard", "node", "zone"],
            registry=registry,
        )
        self.shard_state = Gauge(
            "holdfast_shard_state", "1 for the state the shard is in", ["shard", "state"], registry=registry
        )
        self.shard_writable = Gauge(
            "holdfast_shard_writable", "1 when this node would write to the shard", ["shard"], registry=registry
        )

        self.shard_refused = Gauge(
            "holdfast_shard_refused_state",
            "1 while this node cannot use a directory of its file",
            ["directory"],
            registry=registry,
        )
        self.shard_silent = Gauge(
            "holdfast_shard_silent_state",
            "1 while nobody has the shard open, its disk does not answer or its node is down",
            ["shard"],
            registry=registry,
        )

    def forget_refused_shard(self, path: str) -> None:
        with suppress(KeyError):
            self.shard_refused.remove(path)

    def _database(self, registry: CollectorRegistry) -> None:
        self.query_seconds = Timings(
            "holdfast_database_query_duration_seconds",
            "Time of each statement, with its wait for a connection",
            ["query"],
            bounds=FAST_SECONDS,
            registry=registry,
        )
        self.query_errors = Counter(
            "holdfast_database_query_errors_total", "Statements that failed", ["query", "outcome"], registry=registry
        )
        self.pool_connections = Gauge(
            "holdfast_database_pool_connections", "Connections in the pool", ["state"], registry=registry
        )

        self.database_unsafe = Gauge(
            "holdfast_database_unsafe_state", "1 while Postgres is set to lose what it acknowledged", registry=registry
        )

    def _node(self, registry: CollectorRegistry) -> None:
        self.loop_lag_seconds = Histogram(
            "holdfast_event_loop_lag_seconds",
            "How late the event loop runs a timer",
            buckets=FAST_SECONDS,
            registry=registry,
        )
        self.ready = Gauge("holdfast_node_ready", "1 when this node answers its readiness probe", registry=registry)
        self.heartbeat_failures = Counter(
            "holdfast_heartbeat_failures_total", "Heartbeats that did not reach Postgres", registry=registry
        )
        self.certificate_ends = Gauge(
            "holdfast_certificate_expiry_timestamp_seconds",
            "When the certificate in use for a listener ends",
            ["listener"],
            registry=registry,
        )
        self.workers_up = Gauge("holdfast_workers_up", "Workers that serve beside the main process", registry=registry)
        self.worker_ends = Counter(
            "holdfast_worker_ends_total", "Workers that ended before their node did", registry=registry
        )
        self.ring_members = Gauge("holdfast_ring_members", "Shards on the ring", registry=registry)
        self.ring_zones = Gauge("holdfast_ring_zones", "Zones on the ring", registry=registry)
        self.ring_builds = Counter("holdfast_ring_builds_total", "Rings built", registry=registry)

    def observe_query(self, name: str, seconds: float, outcome: str) -> None:
        self.query_seconds.labels(name).observe(seconds)
        if outcome != "ok":
            self.query_errors.labels(name, outcome).inc()

    def observe_hot_blobs(self, *, hit: bool, held_bytes: int) -> None:
        self.hot_blob_looks.labels("yes" if hit else "no").inc()
        self.hot_blobs_bytes.set(held_bytes)

    def observe(self, shard: int, operation: str, seconds: float, outcome: str) -> None:
        self.shard_seconds.labels(shard, operation).observe(seconds)
        if outcome != "ok":
            self.shard_errors.labels(shard, operation, outcome).inc()
