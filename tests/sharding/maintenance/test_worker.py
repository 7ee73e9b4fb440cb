"""The runner of jobs: runs, pacing, back-off, wakes and requests, what the book is told, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from sharding.maintenance.worker import JobState, Pace, Progress, Report, Runner, Step
from tests.sharding.memory import instant

IDLE = Step(idle=True)
RARELY = Pace(None, 1000)


@dataclass
class Book:
    """A ``JobBook`` and ``JobObserver`` that remembers."""

    reports: list[Report] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    failures: int = 0
    runs: int = 0
    asked: bool = False
    broken: bool = False

    async def begin(self, job: str) -> None:
        if self.broken:
            raise OSError("no database")
        self.begun.append(asyncio.get_running_loop().time())

    async def record(self, report: Report) -> bool:
        if self.broken:
            raise OSError("no database")
        self.reports.append(report)
        asked, self.asked = self.asked, False
        return asked

    def observe_step(self, job: str, seconds: float, step: Step) -> None:
        self.steps.append(asyncio.get_running_loop().time())

    def observe_failure(self, job: str) -> None:
        self.failures += 1

    def observe_run(self, job: str) -> None:
        self.runs += 1


class Script:
    """A job that does what a list says, then is idle for ever."""

    name = "script"

    def __init__(self, *steps: Step | Exception, seconds: float = 0) -> None:
        self.left = list(steps)
        self.taken: list[float] = []
        self.seconds = seconds

    async def step(self) -> Step:
        self.taken.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.seconds)
        result = self.left.pop(0) if self.left else IDLE
        if isinstance(result, Exception):
            raise result
        return result


async def run_for(
    seconds: float,
    job: Script,
    book: Book,
    pace: Pace | Callable[[], Pace] = RARELY,
    meanwhile: Callable[[Runner], Awaitable[None]] | None = None,
) -> None:
    runner = Runner(book, book)
    runner.add(job, pace if callable(pace) else lambda: pace)
    runner.start()
    if meanwhile is not None:
        await meanwhile(runner)
    await asyncio.sleep(seconds)
    await runner.close()


@instant
async def test_run_takes_steps_until_one_is_idle_and_the_next_follows_after_the_pause() -> None:
    job, book = Script(Step(done=2), Step(done=3, idle=True)), Book()
    await run_for(25, job, book, Pace(None, 10))
    assert job.taken == pytest.approx([0, 0, 10, 20])
    assert book.runs == 3
    assert (book.reports[-1].done, book.reports[-1].state) == (5, JobState.IDLE)  # of the last run that did something


@instant
async def test_rate_is_kept_on_average_and_a_slow_stretch_allows_no_burst() -> None:
    steps = [Step(done=1, moved_bytes=100) for _ in range(10)]
    job, book = Script(*steps), Book()
    await run_for(100, job, book, Pace(50, 1000))
    assert job.taken == pytest.approx([2 * n for n in range(11)])
    slow, book = Script(*steps, seconds=5), Book()
    await run_for(100, slow, book, Pace(50, 1000))
    assert slow.taken == pytest.approx([100 + 5 * n for n in range(11)])


@instant
async def test_rate_raised_while_waiting_is_heeded_at_once() -> None:
    now = asyncio.get_running_loop().time
    job, book = Script(Step(moved_bytes=1_000_000), IDLE), Book()
    await run_for(100, job, book, lambda: Pace(1.0 if now() < 10 else None, 1000))
    assert job.taken == pytest.approx([0, 10])


@instant
async def test_failure_backs_off_longer_each_time_and_a_success_forgets_it() -> None:
    errors = [ValueError(str(n)) for n in range(4)]
    job, book = Script(*errors, IDLE, ValueError("again")), Book()
    await run_for(27, job, book, Pace(None, 5))
    assert job.taken == pytest.approx([0, 1, 3, 7, 15, 20, 21, 26])
    assert book.failures == 5
    failed = [report for report in book.reports if report.state is JobState.FAILED]
    assert [report.last_error for report in failed][:2] == ["ValueError: 0", "ValueError: 1"]
    assert all(report.run_ended for report in failed)
    assert book.reports[-1].last_error is None


@instant
async def test_wake_starts_a_run_at_once_but_does_not_cut_a_back_off_short() -> None:
    job, book = Script(IDLE, IDLE, ValueError()), Book()

    async def meanwhile(runner: Runner) -> None:
        await asyncio.sleep(3)
        runner.wake("script")
        runner.wake("no such job")
        await asyncio.sleep(3)
        runner.wake("script")
        await asyncio.sleep(0.5)
        runner.wake("script")

    await run_for(10, job, book, meanwhile=meanwhile)
    assert job.taken == pytest.approx([0, 3, 6, 7])


@instant
async def test_wake_during_a_run_is_followed_by_another_run() -> None:
    job, book = Script(Step(), Step(), IDLE, seconds=1), Book()

    async def meanwhile(runner: Runner) -> None:
        await asyncio.sleep(1.5)
        runner.wake("script")

    await run_for(20, job, book, meanwhile=meanwhile)
    assert book.runs == 2


@instant
async def test_disabled_job_rests_until_enabled_but_a_request_runs_it() -> None:
    now = asyncio.get_running_loop().time
    job, book = Script(), Book()

    async def meanwhile(runner: Runner) -> None:
        await asyncio.sleep(3)
        runner.wake("script")
        await asyncio.sleep(3)
        runner.request("script")

    await run_for(8, job, book, lambda: Pace(None, 5, enabled=now() > 12), meanwhile)
    assert job.taken[0] == pytest.approx(6) and len(job.taken) == 2
    assert 12 <= job.taken[1] <= 13
    assert book.reports[0].state is JobState.DISABLED


@instant
async def test_job_disabled_in_the_midst_of_a_run_stops_there_unless_it_was_asked_for() -> None:
    now = asyncio.get_running_loop().time
    job, book = Script(*[Step(done=1)] * 50, seconds=1), Book()
    await run_for(20, job, book, lambda: Pace(None, 1000, enabled=now() < 5))
    assert 5 <= len(job.taken) <= 6
    assert book.reports[-1].state is JobState.DISABLED


@instant
async def test_request_shortens_a_back_off() -> None:
    job, book = Script(*[ValueError()] * 8), Book()

    async def meanwhile(runner: Runner) -> None:
        await asyncio.sleep(20)
        runner.request("script")

    await run_for(3, job, book, meanwhile=meanwhile)
    assert job.taken[:5] == pytest.approx([0, 1, 3, 7, 15])
    assert 20 <= job.taken[5] <= 20.5


@instant
async def test_request_found_in_the_book_is_answered_by_a_run_that_began_after_it() -> None:
    job, book = Script(Step(done=1), seconds=1), Book(asked=True)
    await run_for(10, job, book)
    assert len(book.begun) == 2
    assert book.runs == 2


@instant
async def test_idle_runs_are_noted_now_and_then_only() -> None:
    job, book = Script(), Book()
    await run_for(60.5, job, book, Pace(None, 1))
    assert book.runs == 61
    assert len(book.begun) == 1 and len(book.reports) <= 7


@instant
async def test_run_under_way_is_reported_with_the_time_left() -> None:
    steps = [Step(done=10, progress=Progress(100 + 10 * n, 200)) for n in range(1, 10)]
    job, book = Script(*steps, seconds=1), Book()
    await run_for(30, job, book)
    running = [report for report in book.reports if report.state is JobState.RUNNING]
    assert [report.done for report in running] == [110, 140, 170]
    # Ten a second, whatever an earlier run had done.
    assert [report.seconds_left for report in running] == pytest.approx([9, 6, 3])
    assert book.reports[-1].seconds_left is None


@instant
async def test_job_goes_on_while_its_state_cannot_be_noted() -> None:
    job, book = Script(Step(done=1), Step(done=1)), Book(broken=True)
    await run_for(10.5, job, book, Pace(None, 2))
    assert book.runs == 6
    book.broken = False


@instant
async def test_close_stops_a_step_where_it_stands() -> None:
    job, book = Script(seconds=1e6), Book()
    await run_for(5, job, book)
    assert len(job.taken) == 1 and book.steps == []


@instant
async def test_two_jobs_do_not_wait_for_each_other() -> None:
    book, slow, quick = Book(), Script(seconds=1000), Script()
    quick.name = "quick"
    runner = Runner(book, book)
    runner.add(slow, lambda: Pace(None, 1))
    runner.add(quick, lambda: Pace(None, 1))
    assert runner.jobs == ("script", "quick")
    runner.start()
    await asyncio.sleep(10)
    assert len(quick.taken) == 11 or len(quick.taken) == 10
    await runner.close()


class Patient(Script):
    """A job that a period holds back."""

    def __init__(self) -> None:
        super().__init__()
        self.prompted: list[int] = []

    def prompt(self) -> None:
        self.prompted.append(len(self.taken))


@instant
async def test_request_prompts_a_job_that_waits_for_a_period_and_a_wake_does_not() -> None:
    job = Patient()

    async def meanwhile(runner: Runner) -> None:
        await asyncio.sleep(1)
        runner.wake("script")
        await asyncio.sleep(1)
        runner.request("script")

    await run_for(5, job, Book(), lambda: Pace(None, 1000), meanwhile)
    assert len(job.taken) == 3
    assert job.prompted == [2]
