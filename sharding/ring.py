"""The consistent-hash ring: which shards a blob's key offers, in which order.

Pure: the same members make the same ring in every process. Positions depend on a member's uid and
weight alone: as long as no node spans zones, one that comes or goes moves only what it gains or loses.
Consistent hashing: Karger et al., 1997; virtual nodes: DeCandia et al., Dynamo, 2007.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise
from operator import attrgetter
from uuid import UUID

from xxhash import xxh3_64_intdigest

from sharding.model import Member, ZoneId
from sharding.splitmix import splitmix64

MEMBERS_MAX = 1 << 16
"""Members one ring can have: a virtual node keeps its owner in 16 bits."""

VIRTUAL_NODES_MAX = 1 << 25
"""Virtual nodes one ring can have, 8 bytes each: a mistyped weight must not eat the memory."""

# A virtual node is one 64-bit number: its position in the upper 48 bits, its owner's index below.
# Sorting the numbers sorts the positions, and equal positions by uid, with no second array.
_OWNER_MASK = MEMBERS_MAX - 1
_POSITION_MASK = ((1 << 64) - 1) ^ _OWNER_MASK

RUN = 4096
"""Virtual nodes of one member that are made at once."""

SORTED_AT_ONCE = 1 << 14
"""Virtual nodes that are sorted at once: until a sort ends no other thread runs, and its list has 40 bytes for each."""

# Members to pass over before asking whether the walk can find anybody at all.
_PATIENCE = 64


def key_of(uid: UUID) -> int:
    """Return the 64-bit ring key of a blob's uid: xxh3-64 of its 16 bytes."""
    return xxh3_64_intdigest(uid.bytes)


def everything(member: Member) -> bool:
    """Call every member usable."""
    return True


class Ring:
    """An immutable ring of shards, in 8 bytes a virtual node.

    A member has ``round(virtual_nodes * weight)`` virtual nodes, at least one; who is to hold
    nothing is left out. Building takes half a second for hundreds of members: build large rings off the
    event loop. Raises ``ValueError`` for a uid given twice, for a weight that is not
    finite and above 0 (so also for 0), and above ``MEMBERS_MAX`` or ``VIRTUAL_NODES_MAX``.
    """

    __slots__ = ("_entries", "_spreads", "members", "zones")

    def __init__(self, members: Iterable[Member], *, virtual_nodes: int = 4096) -> None:
        self.members: tuple[Member, ...] = tuple(sorted(members, key=attrgetter("uid.int")))
        self.zones: frozenset[ZoneId] = frozenset(member.zone for member in self.members)
        # What copies are kept apart by, in the order in which it counts.
        self._spreads: tuple[tuple[Callable[[Member], Hashable], frozenset[Hashable]], ...] = (
            (attrgetter("zone"), self.zones),
            (attrgetter("node"), frozenset(member.node for member in self.members)),
            (attrgetter("uid"), frozenset(member.uid for member in self.members)),
        )
        self._entries = _entries(_counts(self.members, virtual_nodes), self.members)

    def walk(self, key: int) -> Iterator[Member]:
        """Yield every member once, in the order in which they first appear from ``key`` on, lazily."""
        entries, members = self._entries, self.members
        # Only the key's position counts: the bits of owners change when members come and go.
        start = bisect_left(entries, key & _POSITION_MASK)
        seen: set[int] = set()
        for index in chain(range(start, len(entries)), range(start)):
            owner = entries[index] & _OWNER_MASK
            if owner not in seen:
                seen.add(owner)
                yield members[owner]
                if len(seen) == len(members):
                    return

    def candidates(
        self, key: int, *, taken: Sequence[Member] = (), usable: Callable[[Member], bool] = everything
    ) -> Iterator[Member]:
        """Yield members to place copies on, best first, lazily; each one yielded counts as taken.

        Next is the first usable untaken member of the walk in a zone of its own; when there is none,
        on a node of its own; then any. ``taken`` may name members this ring does not have. ``usable``
        is asked anew each time a member comes up; one that turns usable after the walk went past it
        is offered later, with the nodes or shards.
        """
        held = list(taken)
        left = self.walk(key)
        if held:
            excluded = {member.uid for member in held}
            left = (member for member in left if member.uid not in excluded)
        for group_of, groups in self._spreads:
            used = {group_of(member) for member in held} & groups
            passed: list[Member] = []
            # With every group in use nobody further on can qualify: stop before walking the whole ring.
            while len(used) < len(groups) and (member := next(left, None)) is not None:
                if group_of(member) in used or not usable(member):
                    passed.append(member)
                    # When a whole zone is down, asking all members is far quicker than walking to the end.
                    if len(passed) == _PATIENCE and not self._offers(group_of, used, usable):
                        break
                    continue
                used.add(group_of(member))
                held.append(member)
                yield member
            left = chain(passed, left)

    def _offers(
        self, group_of: Callable[[Member], Hashable], used: set[Hashable], usable: Callable[[Member], bool]
    ) -> bool:
        """Return whether any usable member belongs to a group not in use."""
        return any(group_of(member) not in used and usable(member) for member in self.members)

    def primaries(self, key: int, count: int) -> tuple[Member, ...]:
        """Return the homes of ``count`` copies with every member usable; fewer if the ring is smaller."""
        return tuple(islice(self.candidates(key), count))


def _counts(members: Sequence[Member], virtual_nodes: int) -> list[int]:
    """Return each member's number of virtual nodes. Raises ``ValueError`` for members no ring can have."""
    if virtual_nodes < 1:
        raise ValueError(f"virtual_nodes must be at least 1, not {virtual_nodes}")
    if len(members) > MEMBERS_MAX:
        raise ValueError(f"a ring has at most {MEMBERS_MAX} members, not {len(members)}")
    for member, following in pairwise(members):
        if member.uid == following.uid:
            raise ValueError(f"shards {member.shard} and {following.shard} have the same uid {member.uid}")
    counts = []
    for member in members:
        if not (math.isfinite(member.weight) and member.weight > 0):
            raise ValueError(f"shard {member.shard}: weight must be finite and above 0, not {member.weight}")
        # The bound keeps a huge weight from overflowing before the sum is checked.
        counts.append(max(1, round(min(virtual_nodes * member.weight, VIRTUAL_NODES_MAX + 1))))
    if sum(counts) > VIRTUAL_NODES_MAX:
        raise ValueError(
            f"the weights make more than the {VIRTUAL_NODES_MAX} virtual nodes a ring can have: scale them all down"
        )
    return counts


def _entries(counts: Sequence[int], members: Sequence[Member]) -> array[int]:
    """Return the sorted virtual nodes: ``counts[i]`` of them for ``members[i]``."""
    runs = [
        _run(member, owner, first, min(RUN, count - first))
        for owner, (member, count) in enumerate(zip(members, counts, strict=True))
        for first in range(0, count, RUN)
    ]
    entries = array("Q")
    parts, begins = 1 + sum(counts) // SORTED_AT_ONCE, [0] * len(runs)
    for part in range(1, parts + 1):
        ends = [bisect_left(run, (part << 64) // parts) for run in runs]
        slices = (run[begin:end] for run, begin, end in zip(runs, begins, ends, strict=True))
        entries.extend(sorted(chain.from_iterable(slices)))
        begins = ends
    return entries


def _run(member: Member, owner: int, first: int, count: int) -> array[int]:
    """Return ``count`` sorted virtual nodes of a member behind its ``first`` ones."""
    # A heavier member's positions include those it had before, so that a changed weight moves as little as it can.
    positions = splitmix64(xxh3_64_intdigest(member.uid.bytes), first, count)
    return array("Q", sorted(position & _POSITION_MASK | owner for position in positions))
