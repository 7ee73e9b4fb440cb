"""Where copies belong: properties over any cluster, and the cases that decide."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from sharding.maintenance.placement import dispensable, homes, misplaced, missing_homes, zones_wanted
from sharding.model import Member, ShardId
from tests.sharding.memory import Cluster

LAYOUTS = st.lists(st.sampled_from(["a1", "a2", "b3", "b4", "c5"]), min_size=1, max_size=8).map(" ".join)
UIDS = st.integers(0, 2**128 - 1).map(lambda number: UUID(int=number))
REDUNDANCY = st.integers(1, 4)
HELD = st.sets(st.integers(0, 7))
UNWRITABLE = st.sets(st.integers(0, 7))


def cluster_of(layout: str, unwritable: set[int] = frozenset()) -> Cluster:  # type: ignore[assignment]
    cluster = Cluster(layout)
    cluster.unwritable = {ShardId(shard) for shard in unwritable if shard < len(cluster.members)}
    return cluster


def held_on(cluster: Cluster, shards: set[int]) -> set[ShardId]:
    return {ShardId(shard) for shard in shards if shard < len(cluster.members)}


def zones(members: list[Member]) -> set[str]:
    return {member.zone for member in members}


@given(LAYOUTS, UIDS, REDUNDANCY, HELD, UNWRITABLE)
def test_missing_homes_complete_a_blob_as_far_as_shards_take_writes(
    layout: str, uid: UUID, redundancy: int, held: set[int], unwritable: set[int]
) -> None:
    cluster = cluster_of(layout, unwritable)
    view, have = cluster.view, held_on(cluster, held)
    chosen = missing_homes(view, uid, redundancy, have)
    assert all(view.takes(member) and member.shard not in have for member in chosen)
    assert len({member.shard for member in chosen}) == len(chosen)
    open_shards = [member for member in cluster.members if view.takes(member) and member.shard not in have]
    missing = max(0, redundancy - len(have))
    assert len(chosen) >= min(missing, len(open_shards))
    after = zones([cluster.members[shard] for shard in have] + chosen)
    possible = zones([cluster.members[shard] for shard in have] + open_shards)
    if len(chosen) >= missing:
        # Every zone that can still be had is had.
        assert len(after) >= min(zones_wanted(view, redundancy), len(possible)) or len(chosen) == missing
        if len(chosen) > missing:
            assert len(after) <= zones_wanted(view, redundancy)


@given(LAYOUTS, UIDS, REDUNDANCY)
def test_blob_at_home_lacks_nothing_and_has_nothing_misplaced_or_surplus(
    layout: str, uid: UUID, redundancy: int
) -> None:
    view = cluster_of(layout).view
    at_home = {member.shard for member in homes(view, uid, redundancy)}
    if len(at_home) == redundancy:
        assert missing_homes(view, uid, redundancy, at_home) == []
    assert all(misplaced(view, uid, redundancy, at_home, shard) is None for shard in at_home)
    assert dispensable(view, uid, redundancy, at_home) == []


@given(LAYOUTS, UIDS, REDUNDANCY, HELD, UNWRITABLE)
def test_moves_lead_home_whatever_is_down(
    layout: str, uid: UUID, redundancy: int, held: set[int], unwritable: set[int]
) -> None:
    cluster = cluster_of(layout, unwritable)
    view, have = cluster.view, held_on(cluster, held)
    wanted = {member.shard for member in homes(view, uid, redundancy)}
    moves = {shard: misplaced(view, uid, redundancy, have, shard) for shard in have}
    targets = [home.shard for home in moves.values() if home is not None]
    assert len(targets) == len(set(targets)), "two copies to one place"
    assert set(targets) <= wanted - have
    assert all(moves[shard] is None for shard in have & wanted)
    assert all(view.takes(cluster.members[target]) for target in targets)


def test_home_that_is_down_or_full_makes_no_copy_move() -> None:
    cluster = Cluster("a1 b2 c3")
    for number in range(50):
        uid = UUID(int=number * 7919)
        at_home = {member.shard for member in homes(cluster.view, uid, 2)}
        [elsewhere] = set(cluster.shards) - at_home
        for shard in at_home:
            cluster.unwritable = {shard}
            held = (at_home - {shard}) | {elsewhere}
            assert misplaced(cluster.view, uid, 2, held, elsewhere) is None
            cluster.unwritable = set()
            home = misplaced(cluster.view, uid, 2, held, elsewhere)
            assert home is not None and home.shard == shard


@given(LAYOUTS, UIDS, REDUNDANCY, HELD)
def test_dispensable_copies_are_those_beyond_n_and_never_a_zone_of_its_own(
    layout: str, uid: UUID, redundancy: int, held: set[int]
) -> None:
    cluster = cluster_of(layout)
    have = held_on(cluster, held)
    spare = dispensable(cluster.view, uid, redundancy, have)
    kept = have - set(spare)
    assert len(spare) == max(0, len(have) - redundancy)
    have_zones = zones([cluster.members[shard] for shard in have])
    assert len(zones([cluster.members[shard] for shard in kept])) == min(len(have_zones), redundancy)


def test_shard_that_is_not_on_the_ring_is_never_a_home_nor_misplaced() -> None:
    cluster = Cluster("a1 b2")
    uid = UUID(int=5)
    assert misplaced(cluster.view, uid, 2, {ShardId(0), ShardId(9)}, ShardId(9)) is None
    assert missing_homes(cluster.view, uid, 2, {ShardId(0), ShardId(9)}) == []
