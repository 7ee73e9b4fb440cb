"""The words between a job, the runner that paces it, and whoever watches them.

A *run* of a job is a row of steps until one is idle or fails. Between two runs the job pauses.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Progress:
    """``done`` of ``total``, in the unit of the job; the time left follows from the rate the runner sees."""

    done: int
    total: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did. ``idle``: there is nothing (more) to do now, the run is over."""

    done: int = 0
    moved_bytes: int = 0
    idle: bool = False
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a job may go; asked before every step. ``bytes_per_second_max`` of None is no limit."""

    bytes_per_second_max: float | None
    idle_seconds: float
    enabled: bool = True


class Job(Protocol):
    """One maintenance task."""

    @property
    def name(self) -> str: ...

    async def step(self) -> Step:
        """Do one bounded unit of work. May raise: the runner logs, counts and tries again later.

        May be cancelled anywhere: the process ends. What is half done then is taken up by a later step.
        """
        ...


@runtime_checkable
class Promptable(Protocol):
    """The optional ability of a job that waits for a period: to be due at once."""

    def prompt(self) -> None:
        """An operator asked for a run: the next step finds due what only a period holds back."""
        ...


class JobState(StrEnum):
    RUNNING = "running"
    IDLE = "idle"
    FAILED = "failed"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class Report:
    """A job as it stands; the numbers are those of the current run, or of the last one that did something."""

    job: str
    state: JobState
    done: int
    total: int | None
    moved_bytes: int
    seconds_left: float | None
    last_error: str | None
    run_ended: bool
    """Whether a run ended with this report."""


class JobBook(Protocol):
    """Where the state of jobs is kept for everybody to see. May raise: the job goes on regardless."""

    async def begin(self, job: str) -> None:
        """Note that a run begins now; it answers every request made until now."""
        ...

    async def record(self, report: Report) -> bool:
        """Keep a report; True when an operator has asked for a run that has not begun yet."""
        ...


class JobObserver(Protocol):
    """Told what the jobs of this node do; for metrics."""

    def observe_step(self, job: str, seconds: float, step: Step) -> None: ...

    def observe_failure(self, job: str) -> None: ...

    def observe_run(self, job: str) -> None:
        """A run ended without an error."""
        ...
