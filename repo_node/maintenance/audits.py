"""The jobs with which a node looks after its own shards: it judges suspects and re-reads replicas."""

from __future__ import annotations

from collections.abc import Mapping

from repo_node.backups.schedule import ScheduledBackup
from repo_node.db.audits import AuditRows
from repo_node.db.checks import CheckRows
from repo_node.db.pool import Database
from repo_node.db.presence import PresenceRows
from repo_node.db.scrubs import ScrubRows
from repo_node.metrics.audits import AuditMetrics
from repo_node.read_only import PausedWhileReadOnly, refusal
from repo_node.settings import LiveSettings, Settings
from sharding.local import LocalShard
from sharding.maintenance.job import Pace
from sharding.maintenance.judge import Judge
from sharding.maintenance.judgement import Judgement
from sharding.maintenance.presence import Presence
from sharding.maintenance.reconcile import Reconcile, ReconcileLimits
from sharding.maintenance.scrub import Scrub
from sharding.maintenance.scrub_plan import ScrubLimits
from sharding.maintenance.worker import Runner
from sharding.model import NodeId, ShardId

NEVER_SECONDS = 100 * 366 * 86_400.0


def add_audit_jobs(
    runner: Runner,
    node: NodeId,
    own: Mapping[ShardId, LocalShard],
    database: Database,
    settings: LiveSettings,
    metrics: AuditMetrics,
) -> None:
    """Add this node's audits to its runner."""
    rows = AuditRows(database)
    judgement = Judgement(rows, metrics)
    judge = Judge(
        own,
        rows,
        judgement,
        metrics,
        quarantine_seconds=lambda: expiry_seconds(settings),
        again_seconds=lambda: settings.now.judge_again_seconds,
    )
    runner.add(
        judge,
        lambda: Pace(settings.now.scrub_bytes_per_second_max, idle_seconds=settings.now.judge_interval_seconds),
    )
    scrub = Scrub(own, ScrubRows(database), judgement, metrics, lambda: scrub_limits(settings.now))
    runner.add(scrub, lambda: Pace(scrub.bytes_per_second(), idle_seconds=settings.now.scrub_interval_seconds))
    presence = Presence(own, PresenceRows(database), metrics, sample_max=lambda: settings.now.presence_sample_max)
    runner.add(presence, lambda: Pace(None, idle_seconds=settings.now.presence_interval_seconds))
    reconcile = Reconcile(
        own, CheckRows(database, lambda: settings.now.redundancy), metrics, lambda: reconcile_limits(settings.now)
    )
    runner.add(
        PausedWhileReadOnly(reconcile, settings),
        lambda: Pace(None, idle_seconds=settings.now.reconcile_interval_seconds),
    )
    backup = ScheduledBackup(node, own, database, settings, metrics)
    runner.add(backup, lambda: Pace(None, settings.now.backup_idle_seconds))


def reconcile_limits(now: Settings) -> ReconcileLimits:
    return ReconcileLimits(
        # By schedule it is asked for, as an operator asks.
        period_seconds=NEVER_SECONDS if now.reconcile_cron else now.reconcile_period_seconds,
        retry_seconds=now.reconcile_retry_seconds,
        settle_seconds=now.upload_seconds_max + now.reconcile_margin_seconds,
        rest_ratio=now.reconcile_rest_ratio,
        quarantine_seconds=quarantine_seconds(now),
    )


def quarantine_seconds(now: Settings) -> float | None:
    """Return how long the quarantine keeps a file: no shorter than a late commit could still refer to it.

    None is for ever.
    """
    if not now.quarantine_seconds:
        return None
    return max(now.quarantine_seconds, now.upload_seconds_max + now.reconcile_margin_seconds)


def expiry_seconds(settings: LiveSettings) -> float | None:
    """Return after how long files leave a quarantine, which is for good; None: not while the cluster is read-only."""
    return None if refusal(settings) is not None else quarantine_seconds(settings.now)


def scrub_limits(now: Settings) -> ScrubLimits:
    return ScrubLimits(
        blocks_period_seconds=now.scrub_period_seconds,
        proof_period_seconds=now.proof_period_seconds,
        bytes_per_second_min=min(now.scrub_bytes_per_second_min, now.scrub_bytes_per_second_max),
        bytes_per_second_max=now.scrub_bytes_per_second_max,
    )
