"""What clients asked for and were told, path by path; and so what may be found there. Pure.

Each path has one writer, whose operations on it follow one another. One whose outcome is unknown may still
take effect at any later time, so its path is retired: it is read on, and written no more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

Version = str | None
"""The sha256 of what is at a path; None where nothing is."""


class Outcome(StrEnum):
    """How an attempt ended, as its client saw it."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    """By an answer that says that nothing was done, or by a client that never sent the whole of it."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Violation:
    """``invariant`` is I1 to I14, or the name of what else went wrong."""

    invariant: str
    text: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.text}"


@dataclass(slots=True)
class Holding:
    """That a path surely referred to a content: from an acknowledgement until an operation that ends it began."""

    sha256: str
    since: float
    until: float = float("inf")


@dataclass(slots=True)
class History:
    """One path. ``states`` are the sets of what was possible, one after the other, ``times`` when each began."""

    states: list[frozenset[Version]] = field(default_factory=lambda: [frozenset({None})])
    times: list[float] = field(default_factory=lambda: [float("-inf")])
    retired: bool = False
    attempts: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    holdings: list[Holding] = field(default_factory=list)

    @property
    def possible(self) -> frozenset[Version]:
        return self.states[-1]

    def enter(self, state: frozenset[Version], at: float) -> None:
        """Go on to another state."""
        self.states.append(state)
        self.times.append(at)

    def possible_since(self, moment: int) -> frozenset[Version]:
        """Return all that may have been there since ``moment``, which is an earlier length of ``states``."""
        return frozenset().union(*self.states[moment - 1 :])


class Operation:
    """One write, of one attempt or several: ``verb`` is put or delete. Made by ``Ledger.begin``."""

    def __init__(self, history: History, verb: str, version: Version, began: float) -> None:
        self._history = history
        self._verb = verb
        self._version = version
        self._before = history.possible
        self._is_doubtful = False
        history.enter(self._before | {version}, began)
        if history.holdings and history.holdings[-1].until == float("inf"):
            history.holdings[-1].until = began

    def note(self, outcome: Outcome) -> None:
        """Take down how one attempt ended."""
        self._history.attempts[self._verb, outcome] += 1
        if outcome is Outcome.UNKNOWN:
            self._is_doubtful = self._history.retired = True

    def end(self, outcome: Outcome, at: float) -> None:
        """End the operation, whose last attempt ended so."""
        history, version = self._history, self._version
        match outcome:
            case Outcome.ACKNOWLEDGED:
                history.enter(frozenset({version}), at)
                if version is not None:
                    history.holdings.append(Holding(version, at))
            case Outcome.REFUSED if not self._is_doubtful:
                history.enter(self._before, at)
            case _:
                history.enter(self._before | {version}, at)


class Ledger:
    """Every path with its history, and what was seen that must not be."""

    def __init__(self) -> None:
        self.paths: dict[str, History] = {}
        self.outcomes: Counter[str] = Counter()
        self.violations: list[Violation] = []

    def begin(self, path: str, verb: str, version: Version, at: float) -> Operation:
        """Begin a write; the path must not be retired, nor be written by anybody else."""
        history = self.paths.setdefault(path, History())
        assert not history.retired, f"{path} is retired"
        return Operation(history, verb, version, at)

    def moment(self, path: str) -> int:
        """Return when a read begins, for ``saw``."""
        return len(self.paths[path].states)

    def moment_at(self, path: str, at: float) -> int:
        """Return ``moment`` as it would have been at a time."""
        return bisect_right(self.paths[path].times, at)

    def saw(self, path: str, moment: int, version: Version, what: str) -> None:
        """Compare what a read that began at ``moment`` brought with what it may have brought."""
        possible = self.paths[path].possible_since(moment)
        if version not in possible:
            self.violate(invariant_of(version, possible), f"{path}: {what} brought {name(version)}, {names(possible)}")

    def violate(self, invariant: str, text: str) -> None:
        self.violations.append(Violation(invariant, text))

    def live(self) -> Iterator[tuple[str, str]]:
        """Yield the paths at which something must be, and of which version it must be, for sure."""
        for path, history in self.paths.items():
            if len(history.possible) == 1 and (version := next(iter(history.possible))) is not None:
                yield path, version


def invariant_of(version: Version, possible: frozenset[Version]) -> str:
    """Say which promise is broken where ``version`` is found and only ``possible`` may be."""
    if version is None:
        return "I1"
    if possible == {None}:
        return "I4"
    return "I3"


def name(version: Version) -> str:
    return "nothing" if version is None else version[:12]


def names(versions: frozenset[Version]) -> str:
    return "possible: " + ", ".join(sorted(map(name, versions)))
