"""Assembles the maintenance jobs of one node under one runner."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from repo_node.backups.schedule import ScheduledBackup
from repo_node.cluster.leadership import Leadership, OnPrimary
from repo_node.cluster.membership import Membership
from repo_node.cluster.verdict import Census, ShardWalk, VerdictJob
from repo_node.db.errors import CatalogueError
from repo_node.db.garbage import GarbageRows
from repo_node.db.jobs import NodeJobs
from repo_node.db.pool import Database
from repo_node.db.removals import RemovalRows
from repo_node.maintenance.audits import add_audit_jobs
from repo_node.maintenance.healing import Copies, RepairQueue, Walks
from repo_node.maintenance.schedule import Requests, Scheduled, Timetable
from repo_node.metrics import Metrics
from repo_node.read_only import PausedWhileReadOnly
from repo_node.retention import audit_retention, credential_retention
from repo_node.settings import LiveSettings, Settings
from repo_node.storage_summary import StorageSummaryJob
from repo_node.trash import TrashExpiry
from repo_node.usage import Usage
from sharding.background import Background
from sharding.identifiers import mint_generation
from sharding.local import LocalShard
from sharding.maintenance.gc import Gc, GcFeed, GcLimits
from sharding.maintenance.job import Job, Pace
from sharding.maintenance.rebalance import Rebalance, Trim
from sharding.maintenance.reconcile import Reconcile
from sharding.maintenance.removal import Removal
from sharding.maintenance.repair import Repair, RepairLimits
from sharding.maintenance.worker import Runner
from sharding.model import NodeId, ShardId
from sharding.provider import ShardingProvider

log = logging.getLogger("holdfast.jobs")

LOOKS_MAX = 2
"""Looks for requests under way at once: whoever comes later is seen by the second."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the jobs of a node are made from."""

    node: NodeId
    database: Database
    store: ShardingProvider
    membership: Membership
    settings: LiveSettings
    metrics: Metrics
    leadership: Leadership
    own: Mapping[ShardId, LocalShard]
    copies: Copies
    runner: Runner
    served: Callable[[], int]


@asynccontextmanager
async def maintenance(
    node: NodeId,
    database: Database,
    store: ShardingProvider,
    membership: Membership,
    settings: LiveSettings,
    metrics: Metrics,
    leadership: Leadership,
    own: Mapping[ShardId, LocalShard],
    served: Callable[[], int],
) -> AsyncIterator[Runner]:
    """Run this node's jobs until the block ends; what is half done then, a later step takes up.

    ``served`` counts the uploads and readers that the node has begun.
    """
    book = NodeJobs(database, node)
    runner, copies, looks = Runner(book, metrics.healing), Copies(database, metrics), Background(LOOKS_MAX)
    add_jobs(Parts(node, database, store, membership, settings, metrics, leadership, own, copies, runner, served))

    async def look() -> None:
        try:
            for job in await book.asked():
                runner.request(job)
        except CatalogueError as error:
            # A runner that records a job's state is told of the request too.
            log.warning("requested runs could not be read", extra={"facts": {"cause": str(error)}})

    def wake_all() -> None:
        for name in runner.jobs:
            runner.wake(name)

    membership.on_jobs = lambda: void(looks.start(look()))
    # What only the primary does has been idle here until now, and may have waited for long.
    leadership.on_elected = wake_all
    runner.start()
    try:
        yield runner
    finally:
        membership.on_jobs = leadership.on_elected = lambda: None
        await looks.close(0)
        await runner.close()
        await copies.close()


def void(_: object) -> None:
    """Drop a result nobody needs."""


def add_jobs(parts: Parts) -> None:
    """Add every job of a node, each with its pace."""
    for add in (add_repair, add_walks, add_verdict, add_moves, add_removal, add_gc, add_audits):
        add(parts)


def add_repair(parts: Parts) -> None:
    settings, store = parts.settings, parts.store
    queue = RepairQueue(parts.database, parts.copies, settings, parts.metrics)

    def limits() -> RepairLimits:
        now = settings.now
        return RepairLimits(
            now.repair_bytes_per_second_max,
            now.repair_claim_seconds,
            now.repair_retry_seconds,
            now.repair_retry_seconds_max,
            now.repair_copies_at_once,
            now.repair_rest_share,
        )

    repair = Repair(
        lambda: store.view,
        queue,
        store.janitor,
        limits,
        parts.metrics.healing,
        mint_generation,
        parts.served,
    )
    # The job keeps its rate itself, within a step too: a blob may be large.
    parts.runner.add(repair, lambda: Pace(None, settings.now.repair_idle_seconds))


def add_walks(parts: Parts) -> None:
    settings, runner, database = parts.settings, parts.runner, parts.database

    def wake() -> None:
        runner.wake(Repair.name)

    walk, census = ShardWalk(database, settings, wake), Census(database, settings, wake)
    runner.add(walk, lambda: Pace(None, settings.now.walk_idle_seconds))
    runner.add(census, lambda: Pace(None, settings.now.census_idle_seconds))


def add_verdict(parts: Parts) -> None:
    settings = parts.settings
    verdict = VerdictJob(parts.database, parts.node, parts.leadership, settings, parts.metrics.healing)
    parts.runner.add(verdict, lambda: Pace(None, settings.now.verdict_idle_seconds))


def add_moves(parts: Parts) -> None:
    settings, store, runner = parts.settings, parts.store, parts.runner
    walks = Walks(parts.database, parts.copies)
    rebalance = Rebalance(
        lambda: store.view,
        walks,
        store.janitor,
        lambda: settings.now.rebalance_bytes_per_second_max,
        lambda: settings.now.rebalance_period_seconds,
        parts.metrics.healing,
        mint_generation,
        lambda: settings.now.rebalance_retry_seconds,
    )
    trim = Trim(lambda: store.view, walks, lambda: settings.now.trim_period_seconds, parts.metrics.healing)
    for job in (rebalance, trim):
        runner.add(PausedWhileReadOnly(job, settings), lambda: Pace(None, settings.now.rebalance_idle_seconds))


def add_removal(parts: Parts) -> None:
    settings = parts.settings
    removal = Removal(RemovalRows(parts.database), lambda: parts.own, parts.metrics.deletion)
    parts.runner.add(PausedWhileReadOnly(removal, settings), lambda: Pace(None, settings.now.removal_idle_seconds))


def add_gc(parts: Parts) -> None:
    settings, leadership, garbage = parts.settings, parts.leadership, GarbageRows(parts.database)

    def limits() -> GcLimits:
        now = settings.now
        return GcLimits(now.gc_grace_seconds, now.gc_percent_max, now.gc_blobs_max, now.gc_brake_blobs_min)

    def on_primary(job: Job, idle_seconds: Callable[[], float]) -> None:
        paused = PausedWhileReadOnly(OnPrimary(job, leadership), settings)
        parts.runner.add(paused, lambda: Pace(None, idle_seconds()))

    def scheduled(job: Job, cron: Callable[[], str], idle_seconds: Callable[[], float]) -> None:
        by_cron = Scheduled(OnPrimary(job, leadership), cron, timetable, lambda: leadership.lease)

        def looks() -> float:
            return settings.now.schedule_idle_seconds if cron() else idle_seconds()

        parts.runner.add(PausedWhileReadOnly(by_cron, settings), lambda: Pace(None, looks()))

    timetable = Timetable(parts.database, lambda: leadership.lease, parts.membership.database_time)
    gc = Gc(garbage, lambda: leadership.lease, limits, parts.metrics.deletion)
    scheduled(gc, lambda: settings.now.gc_cron, lambda: settings.now.gc_idle_seconds)
    on_primary(GcFeed(garbage, lambda: leadership.lease), lambda: settings.now.gc_feed_seconds)
    expiry = TrashExpiry(parts.database, lambda: leadership.lease, settings, parts.metrics.deletion)
    scheduled(expiry, lambda: settings.now.trash_cron, lambda: settings.now.trash_idle_seconds)
    on_primary(Usage(parts.database, settings), lambda: settings.now.usage_idle_seconds)
    summary = StorageSummaryJob(parts.database, settings)
    on_primary(summary, summary.idle_seconds)
    on_primary(audit_retention(parts.database, lambda: leadership.lease), lambda: settings.now.audit_idle_seconds)
    retention = credential_retention(parts.database, lambda: leadership.lease, settings)
    on_primary(retention, lambda: settings.now.tokens_idle_seconds)
    requests = Requests(lambda: node_schedules(settings.now), timetable)
    parts.runner.add(OnPrimary(requests, leadership), lambda: Pace(None, settings.now.schedule_idle_seconds))


def node_schedules(now: Settings) -> tuple[tuple[str, str], ...]:
    """Return what each node does for its own disks, with its cron expression."""
    return (ScheduledBackup.name, now.backup_cron), (Reconcile.name, now.reconcile_cron)


def add_audits(parts: Parts) -> None:
    add_audit_jobs(parts.runner, parts.node, parts.own, parts.database, parts.settings, parts.metrics.audits)
