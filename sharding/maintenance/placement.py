"""Which shards a blob's copies should be on, given where they are. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from uuid import UUID

from sharding.model import Member, ShardId
from sharding.ring import key_of
from sharding.view import StoreView


def zones_wanted(view: StoreView, redundancy: int) -> int:
    """Return in how many zones a blob's copies should be, whether those live or not."""
    return min(redundancy, view.zones)


def missing_homes(
    view: StoreView, uid: UUID, redundancy: int, held: Collection[ShardId], avoid: Collection[ShardId] = ()
) -> list[Member]:
    """Return the shards that take the copies a blob lacks, best first; fewer where too few take writes.

    ``held`` are the shards of the copies that count. Copies that are enough but in too few zones get one
    more in each zone that is missing.
    """
    taken = tuple(view.members[shard] for shard in set(held) if shard in view.members)
    key = key_of(uid)

    def usable(member: Member) -> bool:
        return view.takes(member) and member.shard not in avoid

    # A shard this node does not know yet holds a copy nevertheless.
    missing = max(0, redundancy - len(set(held)))
    chosen = list(islice(view.ring.candidates(key, taken=taken, usable=usable), missing))
    zones = {member.zone for member in (*taken, *chosen)}
    is_known = len(chosen) == missing and len(taken) == len(set(held))
    lacking = zones_wanted(view, redundancy) - len(zones) if is_known else 0
    if lacking > 0:
        others = view.ring.candidates(
            key, taken=(*taken, *chosen), usable=lambda member: usable(member) and member.zone not in zones
        )
        for member in islice(others, lacking):
            chosen.append(member)
            zones.add(member.zone)
    return chosen


def homes(view: StoreView, uid: UUID, redundancy: int) -> tuple[Member, ...]:
    """Return the shards the ring wants a blob's copies on, all of them living or not."""
    return view.ring.primaries(key_of(uid), redundancy)


def dispensable(view: StoreView, uid: UUID, redundancy: int, held: Iterable[ShardId]) -> list[ShardId]:
    """Return the shards of ``held`` that a blob can do without, farthest from the ring's order first."""
    holders = set(held)
    order = [
        member.shard
        for member in view.ring.candidates(key_of(uid), usable=lambda member: member.shard in holders)
        if member.shard in holders
    ]
    return order[redundancy:][::-1]


def misplaced(view: StoreView, uid: UUID, redundancy: int, held: Collection[ShardId], shard: ShardId) -> Member | None:
    """Return where the copy on ``shard`` belongs instead; None where it is right, or its home takes no writes now.

    Only the ring says what is misplaced: a home that is down or full keeps its claim.
    """
    wanted = homes(view, uid, redundancy)
    at_home = {member.shard for member in wanted}
    if shard in at_home or shard not in view.members:
        return None
    strays = sorted(set(held) - at_home)
    empty = [member for member in wanted if member.shard not in held]
    if shard not in strays or not empty:
        return None
    # Each stray has a home of its own, in its own zone if possible: two nodes never move two copies to one place.
    pairs: dict[ShardId, Member] = {}
    for in_own_zone in (True, False):
        for stray in strays:
            zone = view.members[stray].zone if stray in view.members else None
            fits = [member for member in empty if not in_own_zone or member.zone == zone]
            if stray not in pairs and fits:
                pairs[stray] = fits[0]
                empty.remove(fits[0])
    home = pairs.get(shard)
    return home if home is not None and view.takes(home) else None
