"""Which shards one blob is offered, in what order, and why an upload is refused."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.errors import ShardFull, ShardUnavailable, WriteQuorumNotMet
from sharding.model import ShardId
from sharding.placer import Placer
from sharding.tally import WritePolicy
from tests.sharding.memory import Cluster

TWO = WritePolicy(redundancy=2)
layouts = st.lists(st.sampled_from(["a1", "a2", "b3", "b4", "c5", "d6"]), min_size=2, max_size=12).map(" ".join)


@settings(deadline=None)
@given(layout=layouts, uid=st.uuids(), counts=st.lists(st.integers(0, 4), max_size=6), data=st.data())
def test_take_offers_no_shard_twice_and_keeps_to_those_that_take_writes(
    layout: str, uid: UUID, counts: list[int], data: st.DataObject
) -> None:
    cluster = Cluster(layout)
    ids = [member.shard for member in cluster.members]
    cluster.unwritable = data.draw(st.sets(st.sampled_from(ids), max_size=len(ids) - 2))
    placer = Placer(uid, cluster.view, TWO)
    taken: list[ShardId] = []
    for count in counts:
        chosen = placer.take(count)
        assert len(chosen) == min(count, len(ids) - len(cluster.unwritable) - len(taken))
        taken += [member.shard for member in chosen]
        for member in chosen:
            if data.draw(st.booleans()):
                placer.pass_over(member)
    assert len(set(taken)) == len(taken)
    assert not set(taken) & cluster.unwritable


@settings(deadline=None)
@given(layout=layouts, uid=st.uuids())
def test_take_spreads_over_as_many_zones_as_there_are(layout: str, uid: UUID) -> None:
    cluster = Cluster(layout)
    placer = Placer(uid, cluster.view, TWO)
    chosen = [*placer.take(2), *placer.take(1)]
    assert len({member.zone for member in chosen}) == min(len(chosen), len(cluster.view.ring.zones))


@settings(deadline=None)
@given(uid=st.uuids())
def test_take_counts_a_shard_until_it_is_passed_over_or_fails_and_again_when_it_came_after_all(uid: UUID) -> None:
    view = Cluster("a1 a1 a1 b2 b2 b2").view
    placer = Placer(uid, view, TWO)
    first, second = placer.take(2)
    placer.fail(second, ShardUnavailable(second.shard, "gone"))
    (third,) = placer.take(1)
    assert third.zone == second.zone
    placer.pass_over(first)
    (fourth,) = placer.take(1)
    assert fourth.zone == first.zone
    placer.pass_over(third)
    placer.pass_over(fourth)
    placer.count(first)
    (fifth,) = placer.take(1)
    assert fifth.zone != first.zone


@settings(deadline=None)
@given(uid=st.uuids())
def test_take_of_new_zones_offers_nothing_where_there_is_none(uid: UUID) -> None:
    placer = Placer(uid, Cluster("a1 a1 b2 b2 c3").view, TWO)
    chosen = [*placer.take(1), *placer.take(9, new_zones=True)]
    assert sorted(member.zone for member in chosen) == ["a", "b", "c"]
    assert placer.take(1, new_zones=True) == []
    assert len(placer.take(9)) == 2


@pytest.mark.parametrize(
    ("failures", "full"),
    [
        ([], False),
        ([ShardFull(ShardId(1), "full")], True),
        ([ShardFull(ShardId(1), "full"), ShardUnavailable(ShardId(2), "away")], False),
    ],
)
def test_refusal_is_for_want_of_space_only_when_every_failure_was(failures: list[ShardFull], full: bool) -> None:
    cluster = Cluster("a1 b2 c3")
    placer = Placer(UUID(int=1), cluster.view, TWO)
    (member, *_) = placer.take(3)
    for failure in failures:
        placer.fail(cluster.members[failure.shard], failure)
    error = placer.refusal([member])
    assert (error.durable, error.needed, error.full, error.reasons) == (1, 2, full, tuple(failures))
    assert str(error) == "1 durable copies of the 2 needed for an acknowledgement"


def test_refusal_names_the_zones_when_the_copies_would_do() -> None:
    cluster = Cluster("a1 a1 b2")
    placer = Placer(UUID(int=1), cluster.view, WritePolicy(redundancy=2, zones_min=2))
    assert "2 of the 2 needed for an acknowledgement, but in 1 of the 2 zones" in str(
        placer.refusal(cluster.members[:2])
    ).replace("durable copies of", "of")


def test_placer_refuses_an_upload_that_is_hopeless_from_the_start() -> None:
    cluster = Cluster("a1 b2 c3")
    cluster.unwritable = {ShardId(0), ShardId(1)}
    with pytest.raises(WriteQuorumNotMet):
        Placer(UUID(int=1), cluster.view, TWO)
