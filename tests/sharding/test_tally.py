"""The tally: what durable copies amount to."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.model import Member, NodeId, ShardId, ZoneId
from sharding.tally import Tally, Verdict, WritePolicy


def member_of(shard: int, zone: int) -> Member:
    return Member(ShardId(shard), UUID(int=shard), ZoneId(f"zone-{zone}"), NodeId(f"node-{shard}"))


MEMBERS = st.lists(st.integers(0, 11).map(lambda shard: member_of(shard, shard % 4)), max_size=8).map(tuple)


@st.composite
def policies(draw: st.DrawFn) -> WritePolicy:
    redundancy = draw(st.integers(1, 5))
    quorum = draw(st.none() | st.integers(1, redundancy))
    return WritePolicy(redundancy, quorum, draw(st.integers(1, redundancy)))


@st.composite
def tallies(draw: st.DrawFn) -> Tally:
    policy = draw(policies())
    return Tally(policy, draw(MEMBERS), min(policy.redundancy, draw(st.integers(1, 5))))


@pytest.mark.parametrize(("redundancy", "quorum"), [(1, 1), (2, 2), (3, 2), (9, 2)])
def test_quorum_is_two_at_most_when_the_policy_names_none(redundancy: int, quorum: int) -> None:
    assert WritePolicy(redundancy).quorum == quorum


def test_quorum_is_the_named_one_when_the_policy_names_one() -> None:
    assert WritePolicy(3, write_quorum=3).quorum == 3
    assert WritePolicy(3, write_quorum=1).quorum == 1


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0,), "redundancy"),
        ((2, 0), "write_quorum"),
        ((2, 3), "write_quorum"),
        ((2, 2, 0), "zones_min"),
        ((2, 2, 3), "zones_min"),
    ],
)
def test_policy_is_refused_when_it_cannot_be_met(arguments: tuple[int, ...], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        WritePolicy(*arguments)


@pytest.mark.parametrize(
    ("policy", "places", "zones_wanted", "verdict"),
    [
        (WritePolicy(2), [(1, 1), (2, 2)], 2, Verdict.COMPLETE),
        (WritePolicy(2), [(1, 1), (2, 1)], 2, Verdict.SHORT),
        (WritePolicy(2), [(1, 1), (2, 1)], 1, Verdict.COMPLETE),
        (WritePolicy(3), [(1, 1), (2, 2)], 3, Verdict.SHORT),
        (WritePolicy(3), [(1, 1), (2, 2), (3, 2)], 2, Verdict.COMPLETE),
        (WritePolicy(2), [(1, 1)], 2, Verdict.REFUSED),
        (WritePolicy(2), [(1, 1), (1, 1)], 2, Verdict.REFUSED),
        (WritePolicy(2, zones_min=2), [(1, 1), (2, 1)], 2, Verdict.REFUSED),
        (WritePolicy(2, write_quorum=1), [(1, 1)], 2, Verdict.SHORT),
        (WritePolicy(1), [(1, 1)], 1, Verdict.COMPLETE),
        (WritePolicy(1), [], 1, Verdict.REFUSED),
        (WritePolicy(1), [], 0, Verdict.REFUSED),
        (WritePolicy(2), [(1, 1), (2, 2), (3, 3)], 2, Verdict.COMPLETE),
    ],
)
def test_verdict_weighs_copies_and_zones(
    policy: WritePolicy, places: list[tuple[int, int]], zones_wanted: int, verdict: Verdict
) -> None:
    assert Tally(policy, tuple(member_of(*place) for place in places), zones_wanted).verdict is verdict


@given(tallies())
def test_verdict_is_refused_exactly_when_quorum_or_zones_are_not_met(tally: Tally) -> None:
    shards, zones = {m.shard for m in tally.durable}, {m.zone for m in tally.durable}
    enough = len(shards) >= tally.policy.quorum and len(zones) >= tally.policy.zones_min
    assert (tally.verdict is not Verdict.REFUSED) == enough


@given(tallies())
def test_verdict_is_complete_exactly_when_no_copy_and_no_zone_is_wanting(tally: Tally) -> None:
    if tally.verdict is Verdict.COMPLETE:
        assert tally.missing == 0
        assert tally.zones >= tally.zones_wanted
    if tally.verdict is Verdict.SHORT:
        assert tally.missing > 0 or tally.zones < tally.zones_wanted


@given(tallies())
def test_copies_and_missing_add_up_to_the_redundancy_when_none_is_surplus(tally: Tally) -> None:
    assert tally.copies == len({m.shard for m in tally.durable})
    assert tally.missing == max(0, tally.policy.redundancy - tally.copies)


@given(tallies())
def test_another_copy_on_the_same_shard_changes_nothing(tally: Tally) -> None:
    doubled = Tally(tally.policy, tally.durable * 2, tally.zones_wanted)
    assert (doubled.copies, doubled.zones, doubled.missing, doubled.verdict) == (
        tally.copies,
        tally.zones,
        tally.missing,
        tally.verdict,
    )


@given(tallies(), st.integers(12, 20), st.integers(0, 5))
def test_another_copy_never_worsens_the_verdict(tally: Tally, shard: int, zone: int) -> None:
    order = [Verdict.REFUSED, Verdict.SHORT, Verdict.COMPLETE]
    more = Tally(tally.policy, (*tally.durable, member_of(shard, zone)), tally.zones_wanted)
    assert order.index(more.verdict) >= order.index(tally.verdict)
