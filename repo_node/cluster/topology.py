"""From the rows of the cluster to the view of the store: rings built off the event loop, peers' shards kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

from repo_node.cluster.own_shard import OwnShard
from repo_node.config import InternalSection
from repo_node.db.nodes import ClusterRows, NodeRow, ShardRow
from repo_node.metrics import Metrics
from sharding.guarded import Guarded, GuardLimits
from sharding.model import NodeId, ShardId, ZoneId
from sharding.peer import Peer
from sharding.remote import RemoteShard
from sharding.ring import Ring
from sharding.shard import Shard
from sharding.view import StoreView


@dataclass(frozen=True, slots=True)
class KnownPeerShard:
    """A peer's shard, and what it was made from: another owner, start or address makes it anew."""

    uid: UUID
    url: str
    incarnation: UUID
    guarded: Guarded


class Topology:
    """Keeps the store's view in step with the cluster's rows."""

    def __init__(
        self,
        node: NodeId,
        zone: ZoneId,
        own: Mapping[ShardId, OwnShard],
        peer_at: Callable[[NodeId, str], Peer],
        internal: InternalSection,
        metrics: Metrics,
    ) -> None:
        self._node = node
        self._zone = zone
        self.peer_at = peer_at
        self._metrics = metrics
        self._limits = GuardLimits(
            calls_max=internal.calls_per_shard_max,
            queue_seconds=internal.call_timeout_seconds,
            call_seconds=internal.call_timeout_seconds,
            stall_seconds=internal.stall_timeout_seconds,
            failures_to_open=internal.failures_to_open,
            open_seconds=internal.open_seconds,
        )
        self._opened = own
        self._own: dict[ShardId, tuple[OwnShard, Guarded]] = {}
        self._remote: dict[ShardId, KnownPeerShard] = {}
        self._ring = Ring(())
        self.view = self._view(None)

    def _guard(self, shard: Shard) -> Guarded:
        return Guarded(shard, limits=self._limits, observer=self._metrics)

    async def update(self, rows: ClusterRows) -> None:
        """Make ``view`` show ``rows``. The ring is built anew only when its members changed."""
        members = tuple(
            sorted((shard.member for shard in rows.shards.values() if is_member(shard)), key=lambda one: one.uid.int)
        )
        if members != self._ring.members:
            self._ring = await asyncio.to_thread(Ring, members)
            self._metrics.ring_builds.inc()
        for shard in rows.shards.values():
            if shard.id not in self._opened:
                self._know(shard, rows.nodes[shard.member.node])
        for gone in set(self._remote) - (set(rows.shards) - set(self._opened)):
            del self._remote[gone]
        self.view = self._view(rows)

    def _know(self, shard: ShardRow, owner: NodeRow) -> None:
        """Keep the shard as it is known; a peer that started anew has a clean record again."""
        known = self._remote.get(shard.id)
        made_from = (shard.member.uid, owner.internal_url, owner.incarnation)
        if known is None or (known.uid, known.url, known.incarnation) != made_from:
            remote = RemoteShard(shard.id, shard.member.uid, self.peer_at(owner.id, owner.internal_url))
            self._remote[shard.id] = KnownPeerShard(*made_from, self._guard(remote))

    def _guarded_own(self) -> dict[ShardId, Guarded]:
        """Return this node's shards; one that was opened anew has a clean record again."""
        for shard in set(self._own) - set(self._opened):
            del self._own[shard]
        for shard, own in self._opened.items():
            if shard not in self._own or self._own[shard][0] is not own:
                self._own[shard] = own, self._guard(own.shard)
        return {shard: guarded for shard, (_, guarded) in self._own.items()}

    def _view(self, rows: ClusterRows | None) -> StoreView:
        shards = {**{shard: known.guarded for shard, known in self._remote.items()}, **self._guarded_own()}
        writable: set[ShardId] = set()
        full: set[ShardId] = set()
        readable: set[ShardId] = set()
        for shard in rows.shards.values() if rows else ():
            guarded = shards.get(shard.id)
            reachable = guarded is not None and guarded.available and rows is not None and is_up(rows, shard)
            # None is told of a disk that does not answer, or that its node could not open.
            answers = reachable and shard.capacity_bytes > 0
            if answers and shard.state.serves_reads:
                readable.add(shard.id)
            if answers and shard.state.takes_writes:
                if shard.writable:
                    writable.add(shard.id)
                elif not shard.free_bytes:  # one mounted read-only has room, and the disks of the others need not
                    full.add(shard.id)
        return StoreView(
            ring=self._ring,
            shards=shards,
            writable=frozenset(writable),
            full=frozenset(full),
            readable=frozenset(readable),
            node=self._node,
            zone=self._zone,
        )


def is_member(shard: ShardRow) -> bool:
    """Say whether the ring has this shard: only an administrator's act or a verdict takes it off."""
    return shard.state.value in ("active", "read_only", "offline")


def is_up(rows: ClusterRows, shard: ShardRow) -> bool:
    return rows.nodes[shard.member.node].up
