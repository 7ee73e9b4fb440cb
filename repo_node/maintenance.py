"""Assembles the maintenance jobs of one node under one runner."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from repo_node.cluster.leadership import Leadership, OnPrimary
from repo_node.cluster.membership import Membership
from repo_node.db.errors import CatalogueError
from repo_node.db.garbage import GarbageRows
from repo_node.db.jobs import NodeJobs
from repo_node.db.pool import Database
from repo_node.db.removals import RemovalRows
from repo_node.metrics import Metrics
from repo_node.settings import LiveSettings
from repo_node.trash import TrashExpiry
from sharding.background import Background
from sharding.local import LocalShard
from sharding.maintenance.gc import Gc, GcFeed, GcLimits
from sharding.maintenance.job import Pace
from sharding.maintenance.removal import Removal
from sharding.maintenance.worker import Runner
from sharding.model import NodeId, ShardId
from sharding.provider import ShardingProvider

log = logging.getLogger("holdfast.jobs")

LOOKS_MAX = 2
"""Looks for requests under way at once: whoever comes later is seen by the second."""


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
) -> AsyncIterator[Runner]:
    """Run this node's jobs until the block ends; what is half done then, a later step takes up."""
    book = NodeJobs(database, node)
    runner = Runner(book, metrics)
    add_jobs(runner, node, database, store, membership, settings, metrics)
    add_deleting_jobs(runner, database, settings, metrics, leadership, own)
    looks = Background(LOOKS_MAX)

    async def look() -> None:
        try:
            for job in await book.asked():
                runner.request(job)
        except CatalogueError as error:
            # A runner that records a job's state is told of the request too.
            log.warning("requested runs could not be read", extra={"facts": {"cause": str(error)}})

    membership.on_jobs = lambda: void(looks.start(look()))
    runner.start()
    try:
        yield runner
    finally:
        membership.on_jobs = lambda: None
        await looks.close(0)
        await runner.close()


def void(_: object) -> None:
    """Drop a result nobody needs."""


def add_jobs(
    runner: Runner,
    node: NodeId,
    database: Database,
    store: ShardingProvider,
    membership: Membership,
    settings: LiveSettings,
    metrics: Metrics,
) -> None:
    """Add every job of a node, each with its pace."""


def add_deleting_jobs(
    runner: Runner,
    database: Database,
    settings: LiveSettings,
    metrics: Metrics,
    leadership: Leadership,
    own: Mapping[ShardId, LocalShard],
) -> None:
    """Add the jobs by which content leaves for good."""
    removal = Removal(RemovalRows(database), lambda: own, metrics)
    runner.add(removal, lambda: Pace(None, settings.now.removal_idle_seconds))
    garbage = GarbageRows(database)

    def limits() -> GcLimits:
        now = settings.now
        return GcLimits(now.gc_grace_seconds, now.gc_percent_max, now.gc_blobs_max, now.gc_brake_blobs_min)

    gc = Gc(garbage, lambda: leadership.lease, limits, metrics)
    runner.add(OnPrimary(gc, leadership), lambda: Pace(None, settings.now.gc_idle_seconds))
    feed = GcFeed(garbage, lambda: leadership.lease)
    runner.add(OnPrimary(feed, leadership), lambda: Pace(None, settings.now.gc_feed_seconds))
    expiry = TrashExpiry(database, lambda: leadership.lease, settings, metrics)
    runner.add(OnPrimary(expiry, leadership), lambda: Pace(None, settings.now.trash_idle_seconds))
