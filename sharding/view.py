"""The store as one node sees it at one moment: the ring, the shards behind it, and which of them take writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sharding.model import Member, NodeId, Replica, ShardId, ZoneId
from sharding.ring import Ring
from sharding.shard import Shard


@dataclass(frozen=True, slots=True)
class StoreView:
    """Immutable; a change of the cluster makes a new one.

    ``writable`` and ``full`` are disjoint: a shard in neither cannot be reached or must not be
    written. ``readable`` shards answer reads as far as anyone knows.
    """

    ring: Ring
    shards: Mapping[ShardId, Shard]
    writable: frozenset[ShardId]
    full: frozenset[ShardId]
    readable: frozenset[ShardId]
    node: NodeId
    zone: ZoneId
    members: Mapping[ShardId, Member] = field(init=False)
    distances: Mapping[ShardId, int] = field(init=False)
    """In which order shards are read, the least first."""
    zones: int = field(init=False)
    """Zones with a ring member, whether living or not."""
    writable_zones: int = field(init=False)
    writable_or_full_zones: int = field(init=False)

    def __post_init__(self) -> None:
        members = {member.shard: member for member in self.ring.members}
        object.__setattr__(self, "members", members)
        object.__setattr__(self, "distances", {shard: self._distance(shard) for shard in self.shards})
        object.__setattr__(self, "zones", len(self.ring.zones))
        for name, shards in (
            ("writable_zones", self.writable),
            ("writable_or_full_zones", self.writable | self.full),
        ):
            object.__setattr__(self, name, len({members[shard].zone for shard in shards if shard in members}))

    def takes(self, member: Member) -> bool:
        """Say whether a new replica may go to this shard."""
        return member.shard in self.writable

    def owns(self, shard: ShardId) -> bool:
        """Say whether a member of the ring is a disk of this node."""
        member = self.members.get(shard)
        return member is not None and member.node == self.node

    def in_reading_order(self, replicas: Iterable[Replica]) -> list[Replica]:
        """Return ``replicas`` best first: own disks, own zone, elsewhere; then the doubtful ones.

        Those on shards this node does not know are left out: it cannot ask them.
        """

        known = [replica for replica in replicas if replica.shard in self.shards]
        return sorted(known, key=self._rank) if len(known) > 1 else known

    def _rank(self, replica: Replica) -> tuple[bool, int]:
        return replica.suspect, self.distances[replica.shard]

    def _distance(self, shard: ShardId) -> int:
        """Return how far away a shard is, and farther than all others where it does not answer reads."""
        member = self.members.get(shard)
        distance = 3 if member is None else 0 if member.node == self.node else 1 if member.zone == self.zone else 2
        return distance if shard in self.readable else distance + 4
