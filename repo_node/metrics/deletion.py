"""The metrics of whatever makes content go for good: the primary node, gc, the trash, removals."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from sharding.maintenance.removal import Backlog


class DeletionMetrics:
    """Satisfies ``GcObserver`` and ``RemovalObserver``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.elections = Counter("holdfast_primary_elections_total", "Elections this node has won", registry=registry)
        self.primary = Gauge("holdfast_primary_held", "1 while this node is the primary", registry=registry)
        self.epoch = Gauge(
            "holdfast_primary_epoch", "Epoch of the primary, as this node last saw it", registry=registry
        )
        self.deletions_held = Gauge(
            "holdfast_deletions_held",
            "1 for a reason for which deletions wait for an operator",
            ["reason"],
            registry=registry,
        )
        self.removals = Counter(
            "holdfast_removed_files_total", "Files removed from this node's shards", ["reason"], registry=registry
        )
        self.reclaimed_bytes = Counter(
            "holdfast_reclaimed_bytes_total", "Bytes those files had on disk", ["reason"], registry=registry
        )
        self.removal_backlog = Gauge(
            "holdfast_removal_backlog_files",
            "Files of this node's shards that are listed for removal",
            registry=registry,
        )
        self.removal_backlog_bytes = Gauge("holdfast_removal_backlog_bytes", "Bytes of those files", registry=registry)
        self.gc_candidates = Gauge(
            "holdfast_gc_candidates",
            "Blobs nothing may refer to, at the last run of gc on this node",
            registry=registry,
        )
        self.gc_blobs = Counter("holdfast_gc_removed_blobs_total", "Blobs that gc removed", registry=registry)
        self.gc_bytes = Counter(
            "holdfast_gc_removed_bytes_total", "Sizes of those blobs, each counted once", registry=registry
        )
        self.trash_emptied = Counter(
            "holdfast_trash_expired_total", "Artifacts that left the trash by age", registry=registry
        )

    def observe_removal(self, reason: str, files: int, freed_bytes: int) -> None:
        self.removals.labels(reason).inc(files)
        self.reclaimed_bytes.labels(reason).inc(freed_bytes)

    def observe_candidates(self, count: int) -> None:
        self.gc_candidates.set(count)

    def observe_collected(self, blobs: int, count_bytes: int) -> None:
        self.gc_blobs.inc(blobs)
        self.gc_bytes.inc(count_bytes)

    def observe_backlog(self, backlog: Backlog) -> None:
        self.removal_backlog.set(backlog.files)
        self.removal_backlog_bytes.set(backlog.bytes)
