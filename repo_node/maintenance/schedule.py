"""Tasks of the whole cluster that run when a cron expression says so, once, under the primary.

What has been served stands in Postgres and is written under the lease. A time that nobody was the primary at is
served by the next one, once, however many times were missed; a run that a primary did not end, by its successor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from repo_node.cron import last_time
from repo_node.db import schedules
from repo_node.db.lease import Lease, NotPrimary
from repo_node.db.pool import Database
from sharding.maintenance.job import Job, Step


@dataclass(frozen=True, slots=True)
class Due:
    """A time of a job's schedule that is to be served, under a term of office."""

    job: str
    cron: str
    at: datetime
    lease: Lease


class Timetable:
    """Which times are due. ``now`` is the database's time; what is known of a term is asked once."""

    def __init__(self, database: Database, lease: Callable[[], Lease | None], now: Callable[[], datetime]) -> None:
        self._database = database
        self._lease = lease
        self._now = now
        self._served: dict[tuple[str, str, Lease], datetime] = {}

    async def due(self, job: str, cron: str) -> Due | None:
        """Return the last time of ``cron`` when it has not been served; None also on who is not the primary."""
        lease = self._lease()
        at = last_time(cron, self._now()) if lease is not None and cron else None
        if lease is None or at is None:
            return None
        known = self._served.get((job, cron, lease))
        if known is None:
            known = await schedules.served(self._database, lease, job, cron)
            self._served = {key: when for key, when in self._served.items() if key[2] == lease and key[0] != job}
            self._served[job, cron, lease] = known
        return Due(job, cron, at, lease) if at > known else None

    async def serve(self, due: Due, *, request: bool = False) -> None:
        """Note that a time has been served, and with ``request`` ask all nodes for a run. Raises ``NotPrimary``."""
        await schedules.serve(self._database, due.lease, due.job, due.cron, due.at, request=request)
        self._served[due.job, due.cron, due.lease] = due.at


class Scheduled:
    """A job of the primary: by its cron expression, or, while that is empty, by its pace.

    A time counts as served when a run has ended well under the very term in which it began.
    """

    def __init__(self, job: Job, cron: Callable[[], str], timetable: Timetable, lease: Callable[[], Lease | None]):
        self._job = job
        self._cron = cron
        self._timetable = timetable
        self._lease = lease
        self._due: Due | None = None
        self._prompted = False

    @property
    def name(self) -> str:
        return self._job.name

    def prompt(self) -> None:
        self._prompted = True

    async def step(self) -> Step:
        cron = self._cron()
        if not cron:
            self._due = None
        if not cron or self._prompted:
            step = await self._job.step()
            self._prompted = self._prompted and not step.idle
            return step
        if self._due is None or (self._due.cron, self._due.lease) != (cron, self._lease()):
            self._due = await self._timetable.due(self.name, cron)
        due = self._due
        if due is None:
            return Step(idle=True)
        step = await self._job.step()
        if step.idle:
            self._due = None
            if self._lease() != due.lease:
                raise NotPrimary("the run was not ended in the term in which it began; the next primary repeats it")
            await self._timetable.serve(due)
        return step


class Requests:
    """The job ``schedule``: asks all nodes for a run of what each of them does for its own disks."""

    name = "schedule"

    def __init__(self, crons: Callable[[], Sequence[tuple[str, str]]], timetable: Timetable) -> None:
        self._crons = crons
        self._timetable = timetable

    async def step(self) -> Step:
        done = 0
        for job, cron in self._crons():
            if (due := await self._timetable.due(job, cron)) is not None:
                await self._timetable.serve(due, request=True)
                done += 1
        return Step(done=done, idle=True)
