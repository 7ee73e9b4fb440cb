"""The metrics of what a node finds on its own shards."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class AuditMetrics:
    """Instruments of the audits. Satisfies ``AuditObserver`` and ``ScrubObserver``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.verdicts = Counter(
            "holdfast_replicas_judged_total",
            "Replicas their owner read again, by what they turned out to be",
            ["shard", "verdict"],
            registry=registry,
        )
        self.scrubbed_bytes = Counter(
            "holdfast_scrub_read_bytes_total",
            "Bytes of replicas read again from the disk",
            ["shard"],
            registry=registry,
        )
        self.scrub_age_seconds = Gauge(
            "holdfast_scrub_age_seconds",
            "Time since which every replica of the shard was read, or since the first pass began",
            ["shard", "kind"],
            registry=registry,
        )
        self.quarantine_files = Gauge(
            "holdfast_quarantine_replicas", "Files in the shard's quarantine", ["shard"], registry=registry
        )
        self.quarantine_bytes = Gauge(
            "holdfast_quarantine_bytes", "Bytes in the shard's quarantine", ["shard"], registry=registry
        )
        self.quarantine_discarded = Counter(
            "holdfast_quarantine_discarded_total",
            "Files that left the shard's quarantine for good",
            ["shard"],
            registry=registry,
        )
        self.backups = Counter(
            "holdfast_backups_total", "Backups of the database written to this node's shards", registry=registry
        )
        self.backup_bytes = Gauge("holdfast_backup_bytes", "Size of this node's last backup", registry=registry)

    def observe_verdict(self, shard: int, verdict: str, count: int = 1) -> None:
        self.verdicts.labels(shard, verdict).inc(count)

    def observe_reread(self, shard: int, count_bytes: int) -> None:
        self.scrubbed_bytes.labels(shard).inc(count_bytes)

    def observe_scrub_age(self, shard: int, kind: str, seconds: float) -> None:
        self.scrub_age_seconds.labels(shard, kind).set(seconds)

    def observe_aside(self, shard: int, files: int, count_bytes: int) -> None:
        self.quarantine_files.labels(shard).set(files)
        self.quarantine_bytes.labels(shard).set(count_bytes)

    def observe_discarded(self, shard: int, files: int = 1) -> None:
        self.quarantine_discarded.labels(shard).inc(files)

    def observe_backup(self, count_bytes: int) -> None:
        self.backups.inc()
        self.backup_bytes.set(count_bytes)
