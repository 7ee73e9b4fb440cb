"""The ring: the same everywhere, spread as far as the members allow, and moving as little as it can."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from sharding import ring as ring_module
from sharding.model import Member, NodeId, ShardId, ZoneId
from sharding.ring import Ring, key_of

KEYS = st.integers(0, 2**64 - 1)

# Few virtual nodes keep examples quick; every property but balance holds for any number.
FEW = 16

PINNED = """
from uuid import UUID
from sharding.model import Member, NodeId, ShardId, ZoneId
from sharding.ring import Ring, key_of

members = [
    Member(ShardId(i), UUID(int=i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128), ZoneId(f"z{i % 3}"),
           NodeId(f"n{i % 6}"), 1.0 + i % 2)
    for i in range(12)
]
ring = Ring(members)
homes = [[int(m.shard) for m in ring.primaries(key_of(UUID(int=blob)), 4)] for blob in range(8)]
print(homes)
"""

PINNED_HOMES = (
    "[[2, 1, 6, 3], [11, 10, 6, 8], [10, 11, 6, 1], [5, 1, 0, 2], "
    "[6, 1, 11, 9], [9, 5, 1, 8], [7, 8, 6, 4], [1, 6, 5, 10]]"
)


def member_of(index: int, *, zone: int = 0, node: int = 0, weight: float = 1.0) -> Member:
    uid = UUID(int=random.Random(index).getrandbits(128))
    return Member(ShardId(index), uid, ZoneId(f"zone-{zone}"), NodeId(f"node-{zone}-{node}"), weight)


def grid(count: int, *, zones: int, nodes: int = 2) -> list[Member]:
    """Return equal members dealt out over ``zones`` of ``nodes`` each."""
    return [member_of(i, zone=i % zones, node=i // zones % nodes) for i in range(count)]


@st.composite
def memberships(draw: st.DrawFn, min_size: int = 0) -> list[Member]:
    """Members whose nodes each lie in one zone, as real ones do."""
    places = st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from([0.001, 0.5, 1.0, 3.0]))
    drawn = draw(
        st.lists(st.tuples(st.integers(0, 2**16), places), min_size=min_size, max_size=14, unique_by=lambda m: m[0])
    )
    return [member_of(index, zone=zone, node=node, weight=weight) for index, (zone, node, weight) in drawn]


def offered(ring: Ring, key: int, taken: Sequence[Member], usable: Callable[[Member], bool]) -> list[Member]:
    """Return what ``candidates`` must yield, by its definition, the slow way."""
    order, held, found = list(ring.walk(key)), list(taken), list[Member]()
    while True:
        free = [m for m in order if m not in held and usable(m)]
        for tier in (
            [m for m in free if m.zone not in {h.zone for h in held}],
            [m for m in free if m.node not in {h.node for h in held}],
            free,
        ):
            if tier:
                held.append(tier[0])
                found.append(tier[0])
                break
        else:
            return found


def splitmix64(seed: int, index: int) -> int:
    """Return output ``index`` of the generator as published, in plain integers."""
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def test_key_of_is_xxh3_of_the_sixteen_bytes_big_endian() -> None:
    assert key_of(UUID("019a0000-0000-7000-8000-000000000001")) == 0x3CD8748EADDA39D6


@given(memberships(), KEYS)
def test_walk_yields_every_member_once_from_any_key(members: list[Member], key: int) -> None:
    walked = list(Ring(members, virtual_nodes=FEW).walk(key))
    assert len(walked) == len(members)
    assert set(walked) == set(members)


@given(memberships(), KEYS)
def test_walk_follows_the_positions_of_splitmix64(members: list[Member], key: int) -> None:
    counts = {m: max(1, round(FEW * m.weight)) for m in members}
    nodes = [(splitmix64(xxh3_64_intdigest(m.uid.bytes), i) >> 16, m) for m in members for i in range(counts[m])]
    nodes.sort(key=lambda node: (node[0], node[1].uid))
    ahead = [m for position, m in nodes if position >= key >> 16]
    behind = [m for position, m in nodes if position < key >> 16]
    assert list(Ring(members, virtual_nodes=FEW).walk(key)) == list(dict.fromkeys(ahead + behind))


@given(memberships(), KEYS, st.integers(1, 20), st.integers(1, 20))
def test_ring_is_the_same_whatever_is_made_and_sorted_at_once(
    members: list[Member], key: int, made: int, sorted_at_once: int
) -> None:
    whole = list(Ring(members, virtual_nodes=FEW).walk(key))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring_module, "RUN", made)
        patch.setattr(ring_module, "SORTED_AT_ONCE", sorted_at_once)
        assert list(Ring(members, virtual_nodes=FEW).walk(key)) == whole


@given(memberships(), KEYS, st.randoms(use_true_random=False))
def test_ring_is_the_same_when_members_come_in_another_order(
    members: list[Member], key: int, shuffler: random.Random
) -> None:
    shuffled = members.copy()
    shuffler.shuffle(shuffled)
    one, other = Ring(members, virtual_nodes=FEW), Ring(shuffled, virtual_nodes=FEW)
    assert one.members == other.members == tuple(sorted(members, key=lambda m: m.uid))
    assert list(one.walk(key)) == list(other.walk(key))
    assert one.primaries(key, 5) == other.primaries(key, 5)


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_placement_stays_as_pinned_in_a_fresh_process(hash_seed: str) -> None:
    """A change here moves every blob of every cluster, and splits one in the middle of an upgrade."""
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", PINNED], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == PINNED_HOMES


@given(memberships(), KEYS, st.data())
def test_candidates_are_as_defined_whatever_is_taken_or_unusable(
    members: list[Member], key: int, data: st.DataObject
) -> None:
    ring = Ring(members, virtual_nodes=FEW)
    some = st.lists(st.sampled_from(members), unique=True) if members else st.just([])
    taken, unusable = data.draw(some), set(data.draw(some))
    strangers = data.draw(st.lists(st.just(member_of(2**20, zone=1)), max_size=1))
    taken += strangers

    def usable(member: Member) -> bool:
        return member not in unusable

    found = list(ring.candidates(key, taken=taken, usable=usable))
    assert found == offered(ring, key, taken, usable)
    assert not set(found) & (set(taken) | unusable)
    assert len(found) == len(set(members) - set(taken) - unusable)


@given(memberships(min_size=1), KEYS, st.sets(st.integers(0, 13)), st.integers(1, 6))
def test_candidates_spread_over_zones_then_nodes_as_far_as_usable_members_go(
    members: list[Member], key: int, down: set[int], count: int
) -> None:
    living = [m for index, m in enumerate(members) if index not in down]
    ring = Ring(members, virtual_nodes=FEW)
    homes = list(islice(ring.candidates(key, usable=lambda m: m in living), count))
    assert len(set(homes)) == min(count, len(living))
    assert len({m.zone for m in homes}) == min(count, len({m.zone for m in living}))
    # Zones come first, and each of them holds a node, so the nodes are as many as they can be too.
    assert len({m.node for m in homes}) == min(count, len({m.node for m in living}))


@given(memberships(), KEYS, st.integers(0, 16))
def test_primaries_are_the_first_candidates_with_everything_usable(members: list[Member], key: int, count: int) -> None:
    ring = Ring(members, virtual_nodes=FEW)
    assert ring.primaries(key, count) == tuple(offered(ring, key, (), lambda m: True)[:count])


@given(memberships(min_size=1), st.lists(KEYS, min_size=1, max_size=30), st.integers(1, 6), st.data())
def test_a_member_that_comes_or_goes_moves_at_most_its_own_replica_of_each_key(
    members: list[Member], keys: list[int], count: int, data: st.DataObject
) -> None:
    changed = data.draw(st.sampled_from(members))
    large = Ring(members, virtual_nodes=FEW)
    small = Ring([m for m in members if m != changed], virtual_nodes=FEW)
    for key in keys:
        with_it, without_it = set(large.primaries(key, count)), set(small.primaries(key, count))
        assert with_it - without_it <= {changed}
        assert len(without_it - with_it) <= 1


@given(memberships(min_size=1), st.lists(KEYS, min_size=1, max_size=30), st.integers(1, 4), st.data())
def test_a_heavier_member_only_draws_replicas_to_itself(
    members: list[Member], keys: list[int], count: int, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(members) - 1))
    light = members[index]
    heavy = Member(light.shard, light.uid, light.zone, light.node, light.weight * 2)
    before = Ring(members, virtual_nodes=FEW)
    after = Ring([*members[:index], heavy, *members[index + 1 :]], virtual_nodes=FEW)
    for key in keys:
        old = {m.uid for m in before.primaries(key, count)}
        new = {m.uid for m in after.primaries(key, count)}
        assert new - old <= {light.uid}


@given(memberships(min_size=1), st.integers(0, 0xFFFF))
def test_walk_starts_at_the_member_whose_position_the_key_meets_whatever_its_low_bits(
    members: list[Member], low: int
) -> None:
    ring = Ring(members, virtual_nodes=FEW)
    for member in members:
        position = splitmix64(xxh3_64_intdigest(member.uid.bytes), 0) >> 16 << 16
        assert next(ring.walk(position | low)) == member


def test_load_is_even_over_equal_shards_in_three_zones() -> None:
    ring, chance = Ring(grid(24, zones=3)), random.Random(24)
    load = Counter(home for _ in range(40_000) for home in ring.primaries(chance.getrandbits(64), 2))
    assert len(load) == 24
    assert max(load.values()) / (80_000 / 24) < 1.08
    assert min(load.values()) / (80_000 / 24) > 0.92


def test_load_follows_the_weights_within_a_zone() -> None:
    members = [member_of(i, zone=zone, weight=i % 3 + 1) for zone in range(2) for i in range(3 * zone, 3 * zone + 3)]
    ring, chance = Ring(members), random.Random(6)
    load = Counter(home for _ in range(30_000) for home in ring.primaries(chance.getrandbits(64), 2))
    for member in members:
        assert load[member] / (30_000 * member.weight / 6) == pytest.approx(1, abs=0.05)


def test_member_with_a_tiny_weight_still_has_one_virtual_node() -> None:
    members = [member_of(0), member_of(1, weight=1e-9)]
    assert set(Ring(members).walk(0)) == set(members)


def test_equal_positions_go_by_uid_whatever_the_order_and_the_other_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "_POSITION_MASK", 3 << 62)
    members = grid(9, zones=3)
    ring, reverse, small = Ring(members), Ring(reversed(members)), Ring(members[1:])
    for key in (0, 1 << 62, 2**64 - 1):
        walked = list(ring.walk(key))
        assert walked == list(ring.members) == list(reverse.walk(key))
        assert [m for m in walked if m != members[0]] == list(small.walk(key))


@pytest.mark.parametrize("survivors", [0, 1, 2])
def test_candidates_are_as_defined_when_a_zone_of_a_large_ring_is_all_but_down(survivors: int) -> None:
    members = grid(160, zones=2, nodes=20)
    ring, living = Ring(members, virtual_nodes=64), {m for m in members if m.zone == "zone-0"}
    living.update([m for m in members if m.zone == "zone-1"][:survivors])
    for key in (0, 2**63):
        assert list(ring.candidates(key, usable=living.__contains__)) == offered(ring, key, (), living.__contains__)


def test_candidates_ask_only_for_the_members_they_come_to() -> None:
    ring, asked = Ring(grid(90, zones=3)), list[Member]()

    def usable(member: Member) -> bool:
        asked.append(member)
        return True

    found = list(islice(ring.candidates(7, usable=usable), 3))
    assert asked == found
    assert len({m.zone for m in found}) == 3


def test_candidates_leave_out_a_taken_member_that_has_since_changed_zone() -> None:
    members = grid(6, zones=3)
    stale = Member(members[0].shard, members[0].uid, ZoneId("elsewhere"), NodeId("elsewhere"), 5.0)
    found = list(Ring(members).candidates(1, taken=[stale]))
    assert set(found) == set(members[1:])


def test_empty_ring_offers_nothing() -> None:
    ring = Ring([])
    assert (ring.members, ring.zones) == ((), frozenset())
    assert list(ring.walk(1)) == list(ring.candidates(1, taken=[member_of(1)])) == []
    assert ring.primaries(1, 2) == ()


def test_ring_names_the_zones_of_its_members() -> None:
    assert Ring(grid(4, zones=2), virtual_nodes=FEW).zones == {"zone-0", "zone-1"}


def test_ring_refuses_a_uid_given_twice() -> None:
    twin = Member(ShardId(8), member_of(1).uid, ZoneId("other"), NodeId("other"))
    with pytest.raises(ValueError, match="same uid"):
        Ring([member_of(1), member_of(2), twin])


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_ring_refuses_a_weight_that_is_not_finite_and_above_zero(weight: float) -> None:
    with pytest.raises(ValueError, match="shard 2: weight"):
        Ring([member_of(1), member_of(2, weight=weight)])


@pytest.mark.parametrize("weight", [8192.0, 1e12, 1e308])
def test_ring_refuses_weights_that_make_too_many_virtual_nodes(weight: float) -> None:
    with pytest.raises(ValueError, match="scale them all down"):
        Ring([member_of(1, weight=weight), member_of(2)])


def test_ring_refuses_more_members_than_it_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "MEMBERS_MAX", 2)
    with pytest.raises(ValueError, match="at most 2 members"):
        Ring(grid(3, zones=1))


def test_ring_refuses_no_virtual_nodes() -> None:
    with pytest.raises(ValueError, match="virtual_nodes"):
        Ring([], virtual_nodes=0)


@given(memberships(), KEYS)
def test_two_walks_of_one_ring_do_not_disturb_each_other(members: list[Member], key: int) -> None:
    ring = Ring(members, virtual_nodes=FEW)
    pairs = list(zip(ring.candidates(key), ring.candidates(key), strict=True))
    assert len(pairs) == len(members)
    assert all(one == other for one, other in pairs)
