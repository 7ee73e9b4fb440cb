"""What clients asked for and were told, path by path and act by act; and so what may be found there. Pure.

Each path has one writer, whose operations on it follow one another. One whose outcome is unknown may still
take effect at any later time, so its path is retired: it is read on, and written no more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from tests.chaos.acts import NEVER, Act, Deed, Outcome

Properties = frozenset[tuple[str, str]]
"""Names and values; here each name has one value."""

ACCOUNTS = "api/security/"
"""Begins the name of a user or a permission target; all other paths are of artifacts."""


@dataclass(frozen=True, slots=True)
class Item:
    """What is at a path: content and properties, which change together or not at all."""

    sha256: str
    properties: Properties = frozenset()

    def changed(self, put: Mapping[str, str], drop: Collection[str] = ()) -> Item:
        """Return it with some properties set and others gone."""
        kept = {name: value for name, value in self.properties if name not in drop}
        return Item(self.sha256, frozenset({**kept, **put}.items()))


Version = Item | None
"""None where nothing is."""


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
    until: float = NEVER


@dataclass(slots=True)
class History:
    """One path. ``states`` are the sets of what was possible, one after the other, ``times`` when each began."""

    states: list[frozenset[Version]] = field(default_factory=lambda: [frozenset({None})])
    times: list[float] = field(default_factory=lambda: [float("-inf")])
    retired: bool = False
    holdings: list[Holding] = field(default_factory=list)

    @property
    def possible(self) -> frozenset[Version]:
        return self.states[-1]

    @property
    def certain(self) -> Version:
        """What is there for sure; None also where that is not known."""
        return next(iter(self.possible)) if len(self.possible) == 1 else None

    def enter(self, state: frozenset[Version], at: float) -> None:
        """Go on to another state."""
        self.states.append(state)
        self.times.append(at)

    def possible_since(self, moment: int) -> frozenset[Version]:
        """Return all that may have been there since ``moment``, which is an earlier length of ``states``."""
        return frozenset().union(*self.states[moment - 1 :])

    def release(self, version: Version, at: float) -> None:
        """End the holding of what ``version`` is to replace."""
        if self.holdings and self.holdings[-1].until == NEVER and self.holdings[-1].sha256 != digest(version):
            self.holdings[-1].until = at

    def hold(self, version: Version, at: float) -> None:
        if version is not None and not (self.holdings and self.holdings[-1].until == NEVER):
            self.holdings.append(Holding(version.sha256, at))

    def resume(self) -> None:
        """Take back the end of the last holding: what was to replace it was refused."""
        if self.holdings and self.certain is not None and self.certain.sha256 == self.holdings[-1].sha256:
            self.holdings[-1].until = NEVER


@dataclass(frozen=True, slots=True)
class Change:
    """What an operation makes of some paths, all at once or not at all, where its outcome is unknown."""

    before: Mapping[str, Version]
    after: Mapping[str, Version]


class Operation:
    """One write, of one attempt or several, on one path or more. Made by ``Ledger.begin``."""

    def __init__(
        self,
        ledger: Ledger,
        number: int,
        deeds: tuple[Deed, ...],
        after: Mapping[str, Version],
        began: float,
        *,
        as_one: bool,
    ) -> None:
        self._ledger = ledger
        self._number = number
        self._histories = {path: ledger.history(path) for path in after}
        self._before = {path: history.possible for path, history in self._histories.items()}
        self._after = after
        self._is_one = as_one
        self.deeds = deeds
        self.is_doubtful = False
        for path, history in self._histories.items():
            assert not history.retired, f"{path} is retired"
            history.enter(history.possible | {after[path]}, began)
            history.release(after[path], began)

    def attempt(self, request: str, at: float) -> Act:
        """Begin an attempt, under the id of its request."""
        act = self._ledger.acts[request] = Act(self._number, self.deeds, at, not self.is_doubtful)
        return act

    def note(self, act: Act, outcome: Outcome, at: float) -> None:
        """Take down how an attempt ended."""
        act.outcome = outcome
        if outcome is Outcome.UNKNOWN:
            self.is_doubtful = True
            for history in self._histories.values():
                history.retired = True
        else:
            act.ended = at

    def end(self, outcome: Outcome, at: float) -> None:
        """End the operation, whose last attempt ended so."""
        if outcome is Outcome.ACKNOWLEDGED:
            self._ledger.acknowledged.add(self._number)
        for path, history in self._histories.items():
            match outcome:
                case Outcome.ACKNOWLEDGED:
                    history.enter(frozenset({self._after[path]}), at)
                    history.hold(self._after[path], at)
                case Outcome.REFUSED if not self.is_doubtful:
                    history.enter(self._before[path], at)
                    history.resume()
                case _:
                    history.enter(self._before[path] | {self._after[path]}, at)
        if outcome is not Outcome.ACKNOWLEDGED and self.is_doubtful and self._is_one and len(self._after) > 1:
            before = {path: next(iter(states)) for path, states in self._before.items() if len(states) == 1}
            self._ledger.unknown.append(Change(before, self._after))


class Ledger:
    """Every path with its history, every act by the id of its request, and what was seen that must not be.

    ``accounts`` are users and permission targets by their URLs; the digest of one is what its clients choose to compare.
    ``followed`` are the ids of events that who follows the audit log was told of, ``follows_from`` where they go on.
    """

    def __init__(self) -> None:
        self.paths: dict[str, History] = {}
        self.accounts: dict[str, History] = {}
        self.acts: dict[str, Act] = {}
        self.acknowledged: set[int] = set()
        self.unknown: list[Change] = []
        self.followed: list[int] = []
        self.follows_from = 0
        self.outcomes: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self._operations = 0

    def begin(
        self, deeds: Deed | tuple[Deed, ...], after: Mapping[str, Version], at: float, *, as_one: bool = True
    ) -> Operation:
        """Begin a write, after which each path has its version; ``as_one``: all at once, or not at all.

        No path may be retired, nor be written by anybody else.
        """
        self._operations += 1
        deeds = (deeds,) if isinstance(deeds, Deed) else deeds
        return Operation(self, self._operations, deeds, after, at, as_one=as_one)

    @property
    def retried(self) -> int:
        """How many writes were sent once more."""
        return sum(count for what, count in self.outcomes.items() if what.endswith(" retried"))

    def history(self, path: str) -> History:
        """Return the history of a path or an account, a new one where there is none."""
        return (self.accounts if path.startswith(ACCOUNTS) else self.paths).setdefault(path, History())

    def moment(self, path: str) -> int:
        """Return when a read begins, for ``saw``."""
        return len(self.paths[path].states)

    def moments(self) -> dict[str, int]:
        """Return when a search begins, for ``found``."""
        return {path: len(history.states) for path, history in self.paths.items()}

    def moment_at(self, path: str, at: float) -> int:
        """Return ``moment`` as it would have been at a time."""
        return bisect_right(self.paths[path].times, at)

    def saw(self, path: str, moment: int, sha256: str | None, what: str) -> None:
        """Compare what a read that began at ``moment`` brought with what it may have brought."""
        possible = digests(self.paths[path].possible_since(moment))
        if sha256 not in possible:
            self.violate(invariant_of(sha256, possible), f"{path}: {what} brought {name(sha256)}, {names(possible)}")

    def saw_properties(self, path: str, moment: int, properties: Properties, what: str) -> None:
        """Compare the properties that were told; none, too, where nothing is."""
        possible = {frozenset() if one is None else one.properties for one in self.paths[path].possible_since(moment)}
        if properties not in possible:
            told = [sorted(one) for one in possible]
            self.violate("I10", f"{path}: {what} told of the properties {sorted(properties)}, possible: {told}")

    def found(
        self,
        moments: Mapping[str, int],
        wanted: Callable[[str, Item], bool],
        hits: Collection[str],
        what: str,
        *,
        due: Callable[[str], bool] = lambda path: True,
    ) -> None:
        """Compare what a search that began at ``moments`` found with what it may, and what it must have found.

        ``wanted`` says of an item at a path whether it is searched for, ``due`` of a path whether it was to be told,
        though there be more than was asked for.
        """
        for path in sorted(set(hits) - self.paths.keys()):
            self.violate("I10", f"{what} found {path}, which never was")
        for path, history in self.paths.items():
            fits = {one is not None and wanted(path, one) for one in history.possible_since(moments.get(path, 1))}
            if path in hits and True not in fits:
                self.violate("I10", f"{what} found {path}, which cannot be meant")
            elif path not in hits and False not in fits and due(path):
                self.violate("I10", f"{what} did not find {path}")

    def violate(self, invariant: str, text: str) -> None:
        self.violations.append(Violation(invariant, text))

    def live(self) -> Iterator[tuple[str, Item]]:
        """Yield the paths at which something must be, and what it must be, for sure."""
        for path, history in self.paths.items():
            if (item := history.certain) is not None:
                yield path, item


def invariant_of(sha256: str | None, possible: Collection[str | None]) -> str:
    """Say which promise is broken where a content is found and only ``possible`` ones may be."""
    if sha256 is None:
        return "I1"
    if set(possible) == {None}:
        return "I4"
    return "I3"


def digest(version: Version) -> str | None:
    return None if version is None else version.sha256


def digests(versions: Collection[Version]) -> frozenset[str | None]:
    return frozenset(map(digest, versions))


def name(sha256: str | None) -> str:
    return "nothing" if sha256 is None else sha256[:12]


def names(found: Collection[str | None]) -> str:
    return "possible: " + ", ".join(sorted(map(name, found)))
