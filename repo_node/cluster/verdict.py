"""Jobs over the cluster's rows: verdicts on silent shards, and the walks that feed the repair queue."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from repo_node.db import walks
from repo_node.db.pool import Database
from repo_node.metrics.healing import HealingMetrics
from repo_node.settings import LiveSettings
from sharding.maintenance.job import Progress, Step
from sharding.model import NodeId

log = logging.getLogger("holdfast.cluster")

WALK_REPLICAS = 500
CENSUS_BLOBS = 500


class Leadership(Protocol):
    """What a verdict must know of the primary node's lease."""

    @property
    def held_without_gap_seconds(self) -> float:
        """For how long this node has been the primary with every renewal in time; 0 while it is not."""
        ...


class VerdictJob:
    """The job ``verdict``, on the primary node: silent shards become ``lost``, those that answer again return."""

    name = "verdict"

    def __init__(
        self,
        database: Database,
        node: NodeId,
        leadership: Leadership,
        settings: LiveSettings,
        metrics: HealingMetrics,
    ) -> None:
        self._metrics = metrics
        self._database = database
        self._node = node
        self._leadership = leadership
        self._settings = settings
        self._refused: str | None = None

    async def step(self) -> Step:
        held, silent_seconds = self._leadership.held_without_gap_seconds, self._settings.now.lost_after_seconds
        if held <= 0:
            self._metrics.verdict_refused.set(0)
            return Step(idle=True)
        for shard in await walks.return_shards(self._database):
            log.warning("a lost shard answers again and returns", extra={"facts": {"shard": shard}})
        # While nobody could renew a lease, nobody's silence meant anything.
        if held < silent_seconds:
            return Step(idle=True)
        verdict = await walks.declare_lost(self._database, silent_seconds, f"node {self._node}")
        for shard in verdict.declared:
            facts = {"shard": shard, "silent_seconds": silent_seconds}
            log.warning("a shard is lost: its copies are made anew elsewhere", extra={"facts": facts})
        if verdict.refused and verdict.refused != self._refused:
            log.error("silent shards are not declared lost", extra={"facts": {"reason": verdict.refused}})
        self._refused = verdict.refused
        self._metrics.shards_lost.inc(len(verdict.declared))
        self._metrics.verdict_refused.set(verdict.refused is not None)
        return Step(done=len(verdict.declared), idle=True)


class ShardWalk:
    """The job ``walk``: goes over the replicas of lost, draining, returning and leaving shards."""

    name = "walk"

    def __init__(self, database: Database, settings: LiveSettings, on_work: Callable[[], None]) -> None:
        self._database = database
        self._settings = settings
        self._on_work = on_work

    async def step(self) -> Step:
        now = self._settings.now
        step = await walks.walk(
            self._database,
            WALK_REPLICAS,
            again_seconds=now.drain_pass_seconds,
            lost_again_seconds=now.lost_pass_seconds,
        )
        if step is None:
            return Step(idle=True)
        if step.acted:
            self._on_work()
        return Step(done=step.walked)


class Census:
    """The job ``census``: finds the blobs that should have more copies, after a change and now and then."""

    name = "census"

    def __init__(self, database: Database, settings: LiveSettings, on_work: Callable[[], None]) -> None:
        self._database = database
        self._settings = settings
        self._on_work = on_work

    async def step(self) -> Step:
        now = self._settings.now
        step = await walks.census(
            self._database, CENSUS_BLOBS, redundancy=now.redundancy, period_seconds=now.census_period_seconds
        )
        if step is None:
            return Step(idle=True)
        if step.queued:
            self._on_work()
        # By ids: those of blobs that are gone count as looked at.
        return Step(step.counted, progress=Progress(step.last_blob if step.ended else step.at_blob, step.last_blob))
