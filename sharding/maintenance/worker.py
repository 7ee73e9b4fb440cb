"""Jobs and their runner: pacing, retry with back-off, progress and shutdown live here, the work in the jobs.

A *run* of a job is a row of steps until one is idle or fails. Between two runs the job pauses, until
its pause is over, something wakes it, or an operator asks for a run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sharding.maintenance.job import Job, JobBook, JobObserver, JobState, Pace, Progress, Promptable, Report, Step
from sharding.tasks import stop, wait

__all__ = ["Job", "JobBook", "JobObserver", "JobState", "Pace", "Progress", "Report", "Runner", "Step"]

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 1.0
BACKOFF_SECONDS_MAX = 30.0
SLICE_SECONDS = 0.5
"""The longest sleep after which a changed rate or switch is heeded."""

REPORT_SECONDS = 3.0
"""Between two reports of a run under way."""

QUIET_REPORT_SECONDS = 10.0
"""Between two reports of a job that finds nothing to do."""


class Runner:
    """Runs each job in a task of its own. ``add`` any number, ``start``, and ``close`` at the end."""

    def __init__(self, book: JobBook, observer: JobObserver) -> None:
        self._book = book
        self._observer = observer
        self._workers: dict[str, Worker] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, job: Job, pace: Callable[[], Pace]) -> None:
        """Take a job on; its name must be new."""
        assert job.name not in self._workers, f"two jobs named {job.name}"
        self._workers[job.name] = Worker(job, pace, self._book, self._observer)

    @property
    def jobs(self) -> tuple[str, ...]:
        return tuple(self._workers)

    def start(self) -> None:
        self._tasks += [asyncio.create_task(worker.work(), name=name) for name, worker in self._workers.items()]

    def wake(self, name: str) -> None:
        """There may be work for this job: let it look now, unless it is disabled."""
        if (worker := self._workers.get(name)) is not None:
            worker.wake.set()

    def request(self, name: str) -> None:
        """An operator wants a run that begins after now, though the job be disabled."""
        if (worker := self._workers.get(name)) is not None:
            worker.request()

    async def close(self) -> None:
        """Stop every job where it stands."""
        await stop(self._tasks)


class Worker:
    """One job and its pace."""

    def __init__(self, job: Job, pace: Callable[[], Pace], book: JobBook, observer: JobObserver) -> None:
        self.wake = asyncio.Event()
        # A new process looks at once, and corrects what the one before it left in the book.
        self.wake.set()
        self._job = job
        self._pace = pace
        self._book = book
        self._observer = observer
        self._asked = False
        self._state = JobState.IDLE
        self._error: str | None = None
        self._backoff_seconds = FIRST_BACKOFF_SECONDS
        self._reported_at, self._reported = float("-inf"), JobState.IDLE
        self._run = Run(0.0)

    def request(self) -> None:
        self._asked = True
        self.wake.set()

    async def work(self) -> None:
        while True:
            prompted = self.wake.is_set()
            self.wake.clear()
            if self._asked or self._pace().enabled:
                asked, self._asked = self._asked, False
                await self._run_once(prompted, asked)
            else:
                self._state = JobState.DISABLED
                await self._report(ended=False, after_seconds=QUIET_REPORT_SECONDS)
            await self._pause()

    async def _run_once(self, prompted: bool, asked: bool) -> None:
        """Take steps until one is idle or fails, or the job is disabled."""
        previous, self._run = self._run, Run(now())
        if asked and isinstance(self._job, Promptable):
            self._job.prompt()
        # A run that nobody asked for and that finds nothing to do is not worth a row's change.
        begun = prompted and await self._begin()
        while True:
            try:
                step = await self._take_step()
            except Exception as error:
                self._fail(error)
                break
            if not begun and not step.idle:
                begun = await self._begin()
            self._run.add(step)
            if step.idle:
                self._succeed()
                break
            if not (asked or self._pace().enabled):
                self._state = JobState.DISABLED
                break
            self._state = JobState.RUNNING
            await self._report(ended=False, after_seconds=REPORT_SECONDS)
            await self._keep_pace()
        if not self._run.did_something and not begun:
            self._run = previous
        quiet = not begun and self._state is JobState.IDLE
        await self._report(ended=True, after_seconds=QUIET_REPORT_SECONDS if quiet else 0)

    async def _take_step(self) -> Step:
        started = now()
        step = await self._job.step()
        seconds = now() - started
        self._observer.observe_step(self._job.name, seconds, step)
        rate = self._pace().bytes_per_second_max
        self._run.owe(step.moved_bytes - (seconds * rate if rate else step.moved_bytes))
        return step

    def _succeed(self) -> None:
        self._state, self._error = JobState.IDLE, None
        self._backoff_seconds = FIRST_BACKOFF_SECONDS
        self._observer.observe_run(self._job.name)

    def _fail(self, error: Exception) -> None:
        self._state, self._error = JobState.FAILED, f"{type(error).__name__}: {error}"[:500]
        self._observer.observe_failure(self._job.name)
        # What a job stumbles over may last for hours: where it is, is told once.
        where = error if self._backoff_seconds == FIRST_BACKOFF_SECONDS else None
        facts = (self._job.name, self._backoff_seconds, self._error)
        log.warning("job %s failed; again in %.0f s: %s", *facts, exc_info=where)

    async def _keep_pace(self) -> None:
        """Wait until the bytes moved so far are allowed; a changed rate is heeded at once."""
        while self._run.owed_bytes > 0:
            pace = self._pace()
            if pace.bytes_per_second_max is None:
                break
            seconds = min(self._run.owed_bytes / pace.bytes_per_second_max, SLICE_SECONDS)
            await asyncio.sleep(seconds)
            self._run.owe(-seconds * pace.bytes_per_second_max)

    async def _pause(self) -> None:
        """Wait for the next run. After a failure only an operator shortens it: wakes may come in floods."""
        failed, began = self._state is JobState.FAILED, now()
        backoff = self._backoff_seconds
        if failed:
            self._backoff_seconds = min(2 * backoff, BACKOFF_SECONDS_MAX)
        while not (self._asked or (self.wake.is_set() and not failed)):
            idle = SLICE_SECONDS if self._state is JobState.DISABLED else self._pace().idle_seconds
            left = began + (backoff if failed else idle) - now()
            if left <= 0:
                break
            # In slices, so that a changed pause is heeded.
            slice_seconds = min(left, SLICE_SECONDS)
            if failed:
                await asyncio.sleep(slice_seconds)
            else:
                await wait(self.wake, slice_seconds)

    async def _begin(self) -> bool:
        try:
            await self._book.begin(self._job.name)
        except Exception as error:
            log.warning("job %s: its run could not be noted: %s", self._job.name, error)
            return False
        return True

    async def _report(self, *, ended: bool, after_seconds: float) -> None:
        """Record how the job stands, unless that was done within ``after_seconds`` and it still stands so."""
        if now() - self._reported_at < after_seconds and self._state is self._reported:
            return
        self._reported_at, self._reported = now(), self._state
        run = self._run
        left = None if ended else run.seconds_left()
        report = Report(
            self._job.name, self._state, run.done, run.total, run.moved_bytes, left, self._error, run_ended=ended
        )
        try:
            if await self._book.record(report):
                self.request()
        except Exception as error:
            log.warning("job %s: its state could not be noted: %s", self._job.name, error)


class Run:
    """What one run has done so far."""

    def __init__(self, began: float) -> None:
        self.done = 0
        self.total: int | None = None
        self.moved_bytes = 0
        self.owed_bytes = 0.0
        """Bytes moved beyond what the pace allowed until now."""
        self._began = began
        self._first: tuple[float, int] | None = None

    @property
    def did_something(self) -> bool:
        return self.done > 0 or self.moved_bytes > 0

    def add(self, step: Step) -> None:
        self.moved_bytes += step.moved_bytes
        if step.progress is None:
            self.done += step.done
            return
        self.done, self.total = step.progress.done, step.progress.total
        if self._first is None:
            # A run may take up what an earlier one began: the rate is that of this one.
            self._first = (self._began, step.progress.done - step.done)

    def owe(self, count_bytes: float) -> None:
        # A slow stretch is no allowance for a burst later.
        self.owed_bytes = max(0.0, self.owed_bytes + count_bytes)

    def seconds_left(self) -> float | None:
        """Return when the run will be over at its rate until now; None while that cannot be said."""
        if self._first is None or self.total is None:
            return None
        began, done_before = self._first
        rate = (self.done - done_before) / max(now() - began, 1e-3)
        return max(self.total - self.done, 0) / rate if rate > 0 else None


def now() -> float:
    return asyncio.get_running_loop().time()
