"""A circuit breaker as a pure object: after enough failures in a row it opens, and one trial at a time closes it."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto


class Pass(Enum):
    """Leave to make one call, to be given back to the circuit with its result."""

    PLAIN = auto()
    TRIAL = auto()


class Circuit:
    """Count failures; ``clock`` gives seconds.

    Only a trial's result counts while the circuit is open: calls begun before say nothing new.
    """

    def __init__(self, failures_to_open: int, open_seconds: float, clock: Callable[[], float]) -> None:
        self._failures_to_open = failures_to_open
        self._open_seconds = open_seconds
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None
        self._trial_under_way = False

    @property
    def admits(self) -> bool:
        """Whether a call may be made now, be it as the trial."""
        if self._open_until is None:
            return True
        return not self._trial_under_way and self._clock() >= self._open_until

    @property
    def is_closed(self) -> bool:
        """Whether calls are made as usual: no trial is wanted."""
        return self._open_until is None

    def enter(self) -> Pass | None:
        """Return the leave for one call, None while the circuit admits none."""
        if self._open_until is None:
            return Pass.PLAIN
        if not self.admits:
            return None
        self._trial_under_way = True
        return Pass.TRIAL

    def succeed(self, leave: Pass) -> None:
        """The call reached the shard, whatever it said."""
        if leave is Pass.TRIAL:
            self._trial_under_way = False
            self._open_until = None
        self._failures = 0

    def fail(self, leave: Pass) -> None:
        """The call did not reach the shard, or not in time."""
        if leave is Pass.TRIAL:
            self._trial_under_way = False
        elif self._open_until is not None:
            return
        self._failures += 1
        if leave is Pass.TRIAL or self._failures >= self._failures_to_open:
            self._open_until = self._clock() + self._open_seconds

    def forget(self, leave: Pass) -> None:
        """The call was given up by its caller, and says nothing."""
        if leave is Pass.TRIAL:
            self._trial_under_way = False
