"""When passes are due and how fast they go: pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.maintenance.audit_catalogue import ScrubKind, Volume
from sharding.maintenance.scrub_plan import SHARE, PassState, ScrubLimits, needed_rate
from sharding.model import ShardId
from tests.sharding.maintenance.audit_rows import FIRST

DAY = 86_400.0
LIMITS = ScrubLimits(14 * DAY, 90 * DAY, 1.0, 1e12)


def state(
    *,
    began: float = 0.0,
    done: int = 0,
    total: int | None = 100,
    kind: ScrubKind = ScrubKind.BLOCKS,
    over: bool = False,
) -> PassState:
    volume = None if total is None else Volume(total, total)
    return PassState(ShardId(1), kind, began, FIRST, Volume(done, done), volume, over, None)


def test_rate_is_what_is_left_over_the_time_left() -> None:
    terabyte = state(total=10**12)
    assert needed_rate([terabyte], LIMITS, 0.0) == pytest.approx(10**12 / (SHARE * 14 * DAY))
    half = state(total=10**12, done=10**12 // 2)
    assert needed_rate([half], LIMITS, SHARE * 7 * DAY) == pytest.approx(10**12 / (SHARE * 14 * DAY))


def test_rate_sums_over_the_shards_and_leaves_out_what_is_over() -> None:
    one = needed_rate([state(total=10**12)], LIMITS, 0.0)
    assert needed_rate([state(total=10**12)] * 3, LIMITS, 0.0) == pytest.approx(3 * one)
    assert needed_rate([state(total=10**12), state(total=10**12, over=True)], LIMITS, 0.0) == pytest.approx(one)


def test_late_pass_goes_as_fast_as_it_may() -> None:
    limits = ScrubLimits(14 * DAY, 90 * DAY, 10.0, 1000.0)
    assert needed_rate([state(total=10**12)], limits, 100 * DAY) == 1000.0
    assert needed_rate([], limits, 0.0) == 10.0


@given(st.floats(0, 365 * DAY), st.integers(0, 10**15), st.integers(0, 10**15), st.floats(0, 1e6), st.floats(1e6, 1e12))
def test_rate_stays_within_its_bounds(at: float, done: int, total: int, least: float, most: float) -> None:
    rate = needed_rate([state(done=done, total=total)], ScrubLimits(14 * DAY, 90 * DAY, least, most), at)
    assert least <= rate <= most


def test_next_pass_is_due_a_share_of_the_period_after_the_last_began() -> None:
    over = state(over=True)
    assert not over.is_due(LIMITS, SHARE * 14 * DAY - 1)
    assert over.is_due(LIMITS, SHARE * 14 * DAY)
    assert not state(over=True, kind=ScrubKind.PROOF).is_due(LIMITS, SHARE * 14 * DAY)
    assert not state().is_due(LIMITS, 100 * DAY), "one that is not over goes on"


@given(st.floats(0, 14 * DAY), st.integers(0, 100))
def test_pass_that_has_done_less_is_further_behind(at: float, done: int) -> None:
    assert state(done=done).lead(LIMITS, at) <= state(done=min(done + 1, 100)).lead(LIMITS, at)
    assert state(total=None).lead(LIMITS, at) <= state(done=done).lead(LIMITS, at)
