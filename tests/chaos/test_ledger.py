"""The ledger: what may be found at a path, or by a search, after what was answered."""

from __future__ import annotations

import pytest

from tests.chaos.acts import Deed, Outcome
from tests.chaos.ledger import Item, Ledger, Version, digests

OLD, NEW, OTHER = "0" * 64, "1" * 64, "2" * 64
DONE, REFUSED, UNKNOWN = Outcome.ACKNOWLEDGED, Outcome.REFUSED, Outcome.UNKNOWN


def with_old() -> Ledger:
    ledger = Ledger()
    write(ledger, OLD, DONE)
    return ledger


def write(ledger: Ledger, version: str | None, *outcomes: Outcome, at: float = 10) -> None:
    write_all(ledger, {"path": None if version is None else Item(version)}, *outcomes, at=at)


def write_all(ledger: Ledger, after: dict[str, Version], *outcomes: Outcome, at: float = 10) -> None:
    operation = ledger.begin(Deed(("deploy",), "path"), after, at)
    for outcome in outcomes:
        operation.note(operation.attempt(f"chaos-{len(ledger.acts)}", at), outcome, at + 1)
    operation.end(outcomes[-1], at + 1)


@pytest.mark.parametrize(
    ("version", "outcomes", "possible"),
    [
        (NEW, [DONE], {NEW}),
        (NEW, [REFUSED], {OLD}),
        (NEW, [UNKNOWN], {OLD, NEW}),
        (NEW, [UNKNOWN, DONE], {NEW}),
        (NEW, [UNKNOWN, REFUSED], {OLD, NEW}),
        (None, [DONE], {None}),
        (None, [UNKNOWN], {OLD, None}),
    ],
)
def test_outcome_decides_what_is_possible(
    version: str | None, outcomes: list[Outcome], possible: set[str | None]
) -> None:
    ledger = with_old()
    write(ledger, version, *outcomes)
    assert digests(ledger.paths["path"].possible) == possible
    assert ledger.paths["path"].retired == (UNKNOWN in outcomes)


def test_read_during_a_write_may_bring_either_version_and_afterwards_only_the_new_one() -> None:
    ledger = with_old()
    before = ledger.moment("path")
    operation = ledger.begin(Deed(("deploy",), "path"), {"path": Item(NEW)}, 20)
    during = ledger.moment("path")
    operation.end(DONE, 21)
    for moment in (before, during):
        for version in (OLD, NEW):
            ledger.saw("path", moment, version, "GET")
    assert ledger.violations == []
    ledger.saw("path", ledger.moment("path"), OLD, "GET")
    assert [one.invariant for one in ledger.violations] == ["I3"]


@pytest.mark.parametrize(
    ("last", "seen", "invariant"), [(NEW, None, "I1"), (NEW, OTHER, "I3"), (None, OLD, "I4"), (None, NEW, "I4")]
)
def test_read_that_brings_what_cannot_be_is_a_violation(last: str | None, seen: str | None, invariant: str) -> None:
    ledger = with_old()
    write(ledger, last, DONE)
    ledger.saw("path", ledger.moment("path"), seen, "GET")
    assert [one.invariant for one in ledger.violations] == [invariant]


def test_read_that_owns_to_be_old_may_bring_what_was_there_then_and_nothing_older() -> None:
    ledger = with_old()
    write(ledger, NEW, DONE, at=20)
    write(ledger, OTHER, DONE, at=30)
    ledger.saw("path", ledger.moment_at("path", 25), NEW, "GET")
    ledger.saw("path", ledger.moment_at("path", 25), OTHER, "GET")
    assert ledger.violations == []
    ledger.saw("path", ledger.moment_at("path", 25), OLD, "GET")
    assert [one.invariant for one in ledger.violations] == ["I3"]


def test_holdings_begin_with_an_acknowledgement_and_end_when_the_next_write_begins() -> None:
    ledger = with_old()
    write(ledger, NEW, DONE, at=20)
    write(ledger, None, UNKNOWN, at=30)
    holdings = ledger.paths["path"].holdings
    assert [(one.sha256, one.since, one.until) for one in holdings] == [(OLD, 11, 20), (NEW, 21, 30)]


def test_refused_write_ends_no_holding() -> None:
    ledger = with_old()
    write(ledger, NEW, REFUSED, at=20)
    [holding] = ledger.paths["path"].holdings
    assert (holding.sha256, holding.since, holding.until) == (OLD, 11, float("inf"))


def test_change_of_properties_leaves_the_content_and_its_holding() -> None:
    ledger = with_old()
    write_all(ledger, {"path": Item(OLD).changed({"tag": "1"})}, DONE, at=20)
    [holding] = ledger.paths["path"].holdings
    assert (holding.sha256, holding.since, holding.until) == (OLD, 11, float("inf"))
    ledger.saw("path", ledger.moment("path"), OLD, "GET")
    assert ledger.violations == []


@pytest.mark.parametrize(
    ("told", "outcome", "invariants"),
    [
        ({"tag": "1"}, DONE, []),
        ({}, DONE, ["I10"]),
        ({"tag": "2"}, DONE, ["I10"]),
        ({}, UNKNOWN, []),
        ({"tag": "1"}, UNKNOWN, []),
        ({"tag": "1"}, REFUSED, ["I10"]),
    ],
)
def test_properties_that_are_told_are_those_that_may_be_there(
    told: dict[str, str], outcome: Outcome, invariants: list[str]
) -> None:
    ledger = with_old()
    write_all(ledger, {"path": Item(OLD).changed({"tag": "1"})}, outcome, at=20)
    ledger.saw_properties("path", ledger.moment("path"), frozenset(told.items()), "properties")
    assert [one.invariant for one in ledger.violations] == invariants


def searchable() -> Ledger:
    """``kept`` has what is searched for, ``other`` has not, ``gone`` had, and of ``doubtful`` nobody knows."""
    ledger = Ledger()
    write_all(ledger, {"kept": Item(OLD)}, DONE)
    write_all(ledger, {"other": Item(NEW)}, DONE)
    write_all(ledger, {"gone": Item(OLD)}, DONE)
    write_all(ledger, {"gone": None}, DONE)
    write_all(ledger, {"doubtful": Item(OLD)}, UNKNOWN)
    return ledger


@pytest.mark.parametrize(
    ("hits", "is_right"),
    [
        (["kept"], True),
        (["kept", "doubtful"], True),
        ([], False),
        (["kept", "other"], False),
        (["kept", "gone"], False),
        (["kept", "never"], False),
    ],
)
def test_search_finds_what_must_be_there_and_never_what_cannot(hits: list[str], is_right: bool) -> None:
    ledger = searchable()
    ledger.found(ledger.moments(), lambda path, item: item.sha256 == OLD, hits, "search")
    assert [one.invariant for one in ledger.violations] == ([] if is_right else ["I10"])


def test_search_may_find_or_not_what_changed_meanwhile_and_need_not_find_what_is_not_due() -> None:
    ledger = searchable()
    moments = ledger.moments()
    write_all(ledger, {"kept": None, "moved": Item(OLD)}, DONE, at=30)
    for hits in (["kept"], ["moved"], ["kept", "moved"], []):
        ledger.found(moments, lambda path, item: item.sha256 == OLD, hits, "search")
    ledger.found({}, lambda path, item: item.sha256 == OLD, [], "search", due=lambda path: False)
    assert ledger.violations == []
    ledger.found(ledger.moments(), lambda path, item: item.sha256 == OLD, ["kept", "moved"], "search")
    assert [one.invariant for one in ledger.violations] == ["I10"]


def test_act_on_several_paths_with_an_unknown_outcome_is_kept_as_one_change() -> None:
    ledger = with_old()
    write_all(ledger, {"path": None, "target": Item(OLD)}, UNKNOWN)
    [change] = ledger.unknown
    assert change.before == {"path": Item(OLD), "target": None}
    assert change.after == {"path": None, "target": Item(OLD)}
    assert all(ledger.paths[path].retired for path in change.after)


def test_accounts_are_no_paths() -> None:
    ledger = Ledger()
    write_all(ledger, {"api/security/users/somebody": Item("mail")}, DONE)
    assert ledger.paths == {} and [*ledger.live()] == []
    assert digests(ledger.accounts["api/security/users/somebody"].possible) == {"mail"}


def test_act_that_is_not_one_may_be_done_in_part() -> None:
    ledger = Ledger()
    operation = ledger.begin((Deed(("deploy",), "a"), Deed(("deploy",), "b")), {"a": None, "b": None}, 0, as_one=False)
    operation.note(operation.attempt("explode", 0), UNKNOWN, 1)
    operation.end(UNKNOWN, 1)
    assert ledger.unknown == []
