"""Chooses the shards of one blob, never the same twice, apart from one another as far as the living ones allow.

It also keeps account of the shards that failed, for whoever has to say why an upload was refused.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from uuid import UUID

from sharding.errors import ShardError, ShardFull, WriteQuorumNotMet
from sharding.model import Member, ShardId
from sharding.ring import key_of
from sharding.shard import Shard
from sharding.tally import Tally, Verdict, WritePolicy
from sharding.view import StoreView


class Placer:
    """The candidates of one blob, primaries first, then handoffs.

    Raises ``WriteQuorumNotMet`` when too few shards, or shards in too few zones, take writes at all.
    """

    def __init__(self, uid: UUID, view: StoreView, policy: WritePolicy) -> None:
        self._key = key_of(uid)
        self._view = view
        self._policy = policy
        self._tried: set[ShardId] = set()
        self._counted: dict[ShardId, Member] = {}
        self.failures: list[ShardError] = []
        self._refuse_hopeless()

    def take(self, count: int, *, new_zones: bool = False) -> list[Member]:
        """Return up to ``count`` shards never returned before, in zones, then nodes, of their own where possible.

        With ``new_zones`` only such as are in a zone of their own. Each counts until it is passed over.
        """
        if count <= 0:
            return []
        zones = {member.zone for member in self._counted.values()} if new_zones else set()
        tried, takes = self._tried, self._view.takes
        candidates = self._view.ring.candidates(
            self._key,
            taken=tuple(self._counted.values()),
            usable=lambda member: takes(member) and member.shard not in tried and member.zone not in zones,
        )
        chosen = []
        for member in islice(candidates, count):
            chosen.append(member)
            tried.add(member.shard)
            self._counted[member.shard] = member
            if new_zones:
                zones.add(member.zone)
        return chosen

    def shard(self, member: Member) -> Shard:
        """Return the shard of a member that was taken."""
        return self._view.shards[member.shard]

    def pass_over(self, member: Member) -> None:
        """Choose further shards as if this one held no copy."""
        self._counted.pop(member.shard, None)

    def count(self, member: Member) -> None:
        """Choose further shards apart from this one, passed over or not."""
        self._counted[member.shard] = member

    def fail(self, member: Member, error: ShardError) -> None:
        """Pass over a shard that failed, and remember why."""
        self.failures.append(error)
        self.pass_over(member)

    def tally(self, members: Collection[Member]) -> Tally:
        """Return what durable copies on ``members`` amount to."""
        return Tally(self._policy, tuple(members), min(self._policy.redundancy, self._view.zones))

    def suffices(self, members: Collection[Member]) -> bool:
        """Say whether durable copies on ``members`` may be acknowledged."""
        return self.tally(members).verdict is not Verdict.REFUSED

    def refusal(self, members: Collection[Member]) -> WriteQuorumNotMet:
        """Return the error for an upload that came to copies on ``members`` and no further."""
        full = bool(self.failures) and all(isinstance(failure, ShardFull) for failure in self.failures)
        tally = self.tally(members)
        return WriteQuorumNotMet(
            tally.copies,
            self._policy.quorum,
            zones=tally.zones,
            zones_needed=self._policy.zones_min,
            full=full,
            reasons=tuple(self.failures),
        )

    def _refuse_hopeless(self) -> None:
        view, policy = self._view, self._policy
        writable = len(view.writable)
        if writable >= policy.quorum and view.writable_zones >= policy.zones_min:
            return
        raise WriteQuorumNotMet(
            writable,
            policy.quorum,
            zones=view.writable_zones,
            zones_needed=policy.zones_min,
            full=writable + len(view.full) >= policy.quorum and view.writable_or_full_zones >= policy.zones_min,
        )
