"""The metrics of the maintenance jobs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from repo_node.db.repair_queue import Backlog
from sharding.maintenance.catalogue import MoveOutcome, RepairOutcome
from sharding.maintenance.job import Step

STEP_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0)
GOOD = ("0", "1", "2", "3+")


class HealingMetrics:
    """Satisfies ``JobObserver``, ``RepairObserver`` and ``MoveObserver``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ran_at: dict[str, float] = {}
        self._jobs(registry)
        self._copies(registry)
        self._backlog(registry)

    def _jobs(self, registry: CollectorRegistry) -> None:
        self.step_seconds = Histogram(
            "holdfast_job_step_duration_seconds",
            "Time of each step of a maintenance job",
            ["job"],
            buckets=STEP_SECONDS,
            registry=registry,
        )
        self.failures = Counter(
            "holdfast_job_failures_total", "Runs of a maintenance job that failed", ["job"], registry=registry
        )
        self.done = Counter(
            "holdfast_job_done_total", "Units of work a maintenance job has done", ["job"], registry=registry
        )
        self.moved_bytes = Counter(
            "holdfast_job_moved_bytes_total",
            "Bytes a maintenance job has read or written",
            ["job"],
            registry=registry,
        )
        self.age_seconds = Gauge(
            "holdfast_job_last_run_age_seconds",
            "Time since a maintenance job last ended a run without an error",
            ["job"],
            registry=registry,
        )

    def _copies(self, registry: CollectorRegistry) -> None:
        self.repairs = Counter(
            "holdfast_repairs_total",
            "Repairs of a blob by how they ended, and why not well",
            ["outcome", "note"],
            registry=registry,
        )
        self.moves = Counter(
            "holdfast_replicas_moved_total",
            "Copies made for a move, by what became of them",
            ["outcome"],
            registry=registry,
        )
        self.trims = Counter(
            "holdfast_replicas_trimmed_total",
            "Surplus copies, trimmed or needed after all",
            ["outcome"],
            registry=registry,
        )
        self.shards_lost = Counter(
            "holdfast_shards_lost_total", "Shards this node as the primary declared lost", registry=registry
        )
        self.verdict_refused = Gauge(
            "holdfast_verdict_refused_state",
            "1 while shards are silent and too many to be declared lost; the log says why",
            registry=registry,
        )

    def _backlog(self, registry: CollectorRegistry) -> None:
        """The whole cluster's, as this node last read it: take the maximum over the nodes."""
        self.backlog_blobs = Gauge(
            "holdfast_repair_backlog_blobs",
            "Blobs in use that wait for a repair in the cluster, by their good copies",
            ["good"],
            registry=registry,
        )
        self.backlog_bytes = Gauge(
            "holdfast_repair_backlog_bytes", "Bytes of the blobs that wait for a repair", ["good"], registry=registry
        )
        self.backlog_age_seconds = Gauge(
            "holdfast_repair_backlog_age_seconds", "For how long the oldest of them has waited", registry=registry
        )
        self.backlog_unreferenced_blobs = Gauge(
            "holdfast_repair_backlog_unreferenced_blobs",
            "Blobs that wait for a repair though nothing refers to them: garbage collection takes them after its grace",
            registry=registry,
        )

    def observe_step(self, job: str, seconds: float, step: Step) -> None:
        self.step_seconds.labels(job).observe(seconds)
        self.done.labels(job).inc(step.done)
        self.moved_bytes.labels(job).inc(step.moved_bytes)
        self.failures.labels(job).inc(0)

    def observe_failure(self, job: str) -> None:
        self.failures.labels(job).inc()

    def observe_run(self, job: str) -> None:
        if job not in self._ran_at:
            self.age_seconds.labels(job).set_function(lambda: time.monotonic() - self._ran_at[job])
        self._ran_at[job] = time.monotonic()

    def observe_repair(self, outcome: RepairOutcome, note: str | None) -> None:
        self.repairs.labels(outcome.value, note or "none").inc()

    def observe_move(self, outcome: MoveOutcome) -> None:
        self.moves.labels(outcome.value).inc()

    def observe_trim(self, trimmed: bool) -> None:
        self.trims.labels("trimmed" if trimmed else "needed").inc()

    def show_backlog(self, parts: Sequence[Backlog]) -> None:
        """Show the repair queue as it is now."""
        in_use = [part for part in parts if not part.unreferenced]
        for good in GOOD:
            own = [part for part in in_use if good == ("3+" if part.good > 2 else str(part.good))]
            self.backlog_blobs.labels(good).set(sum(part.blobs for part in own))
            self.backlog_bytes.labels(good).set(sum(part.bytes for part in own))
        self.backlog_age_seconds.set(max((part.oldest_seconds for part in in_use), default=0))
        self.backlog_unreferenced_blobs.set(sum(part.blobs for part in parts if part.unreferenced))
