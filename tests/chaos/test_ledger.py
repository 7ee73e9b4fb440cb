"""The ledger: what may be found at a path after what was answered."""

from __future__ import annotations

import pytest

from tests.chaos.ledger import Ledger, Outcome

OLD, NEW, OTHER = "0" * 64, "1" * 64, "2" * 64
DONE, REFUSED, UNKNOWN = Outcome.ACKNOWLEDGED, Outcome.REFUSED, Outcome.UNKNOWN


def with_old() -> Ledger:
    ledger = Ledger()
    write(ledger, OLD, DONE)
    return ledger


def write(ledger: Ledger, version: str | None, *outcomes: Outcome, at: float = 10) -> None:
    operation = ledger.begin("path", "put" if version else "delete", version, at)
    for outcome in outcomes:
        operation.note(outcome)
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
    assert ledger.paths["path"].possible == possible
    assert ledger.paths["path"].retired == (UNKNOWN in outcomes)


def test_read_during_a_write_may_bring_either_version_and_afterwards_only_the_new_one() -> None:
    ledger = with_old()
    before = ledger.moment("path")
    operation = ledger.begin("path", "put", NEW, 20)
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
