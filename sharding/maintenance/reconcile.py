"""The job that compares each own shard with the rows, when it is due or an operator asks for it.

What it may do by itself: let rows go whose files are absent, doubt files of the wrong size, condemn
files that no row knows, and set aside left-over temps. What somebody else may have put there it reports,
and sets aside only when told to. Nothing is touched before it has been seen long enough ago. What no row
knows of a quarantine leaves it at the end of a check.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sharding.errors import ShardError
from sharding.maintenance.audit_catalogue import AuditObserver
from sharding.maintenance.job import Progress, Step
from sharding.maintenance.leftovers import Leftovers
from sharding.maintenance.reconcile_catalogue import ReconcileCatalogue
from sharding.maintenance.shard_check import ShardCheck
from sharding.model import ShardId
from sharding.shard import Auditable

log = logging.getLogger(__name__)

REST_SECONDS_MAX = 10.0


@dataclass(frozen=True, slots=True)
class ReconcileLimits:
    """``settle_seconds``: how long something must have been seen before it is touched. ``rest_ratio``: how long to
    rest after each step, in lengths of that step. ``quarantine_seconds``: how long a quarantine keeps what no row
    knows; None for ever."""

    period_seconds: float
    retry_seconds: float
    settle_seconds: float
    rest_ratio: float
    quarantine_seconds: float | None = None


class Reconcile:
    """Does the checks of own shards that are due or asked for, one after the other."""

    name = "reconcile"

    def __init__(
        self,
        shards: Mapping[ShardId, Auditable],
        catalogue: ReconcileCatalogue,
        observer: AuditObserver,
        limits: Callable[[], ReconcileLimits],
    ) -> None:
        self._shards = shards
        self._catalogue = catalogue
        self._observer = observer
        self._limits = limits
        self._check: ShardCheck | None = None

    async def step(self) -> Step:
        limits = self._limits()
        if self._check is None:
            self._check = await self._next_check(limits)
            if self._check is None:
                return Step(idle=True)
        began = asyncio.get_running_loop().time()
        step = await self._go_on(self._check)
        worked = asyncio.get_running_loop().time() - began
        await asyncio.sleep(min(worked * limits.rest_ratio, REST_SECONDS_MAX))
        return step

    async def _next_check(self, limits: ReconcileLimits) -> ShardCheck | None:
        shards = list(self._shards)
        order = await self._catalogue.next_check(shards)
        if order is None:
            await self._catalogue.order_due(shards, limits.period_seconds, limits.retry_seconds)
            order = await self._catalogue.next_check(shards)
        if order is None or order.shard not in self._shards:
            return None
        shard = self._shards[order.shard]
        leftovers = Leftovers(shard, self._catalogue, self._observer, limits.quarantine_seconds)
        return ShardCheck(order, shard, self._catalogue, leftovers, limits.settle_seconds)

    async def _go_on(self, check: ShardCheck) -> Step:
        try:
            more = await check.step()
        except ShardError as error:
            # Told, and tried again later; the other shards must not wait for this one.
            log.warning("the check of shard %s ended early: %s", check.order.shard, error)
            await self._end(check, str(error))
            return Step()
        except BaseException:
            check.close()
            self._check = None
            raise
        if more:
            await self._catalogue.note_progress(check.order.id, check.done, check.total)
        else:
            await self._end(check, None)
        return Step(done=check.done_in_step, progress=Progress(check.done, check.total))

    async def _end(self, check: ShardCheck, error: str | None) -> None:
        self._check = None
        check.close()
        await self._catalogue.finish_check(check.order.id, check.report.document(), error)
        for finding, count in check.report.counts.items():
            self._observer.observe_verdict(check.order.shard, finding.value, count.found)
