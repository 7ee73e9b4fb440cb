"""What the shards know of primaries: asked before an election, told after it, on this node and on its peers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from uuid import UUID

from repo_node.db.nodes import ClusterRows, NodeRow
from sharding.errors import ShardError, ShardRefused
from sharding.model import NodeId, ShardId
from sharding.peer import Peer, PeerError
from sharding.peer_epoch import EpochOver, ask_epoch, tell_epoch
from sharding.shard import Epochs

log = logging.getLogger("holdfast.cluster")


class ShardEpochs:
    """The epochs on the shards of the cluster, as far as they can be reached in ``seconds``."""

    def __init__(
        self,
        node: NodeId,
        own: Callable[[], Mapping[ShardId, Epochs]],
        cluster: Callable[[], ClusterRows | None],
        peer_at: Callable[[str], Peer],
    ) -> None:
        self._node = node
        self._own = own
        self._cluster = cluster
        self._peer_at = peer_at
        self._told: dict[NodeId, tuple[UUID, int]] = {}

    async def own_highest(self) -> int:
        """Return the highest epoch on this node's shards. A shard that does not answer says nothing."""
        found = await asyncio.gather(*(shard.epoch() for shard in self._own().values()), return_exceptions=True)
        return max((epoch for epoch in found if isinstance(epoch, int)), default=0)

    async def see(self, epoch: int) -> None:
        """Let this node's shards remember ``epoch``. Raises ``EpochOver`` when one knows a later one."""
        refused = False
        for shard in self._own().values():
            try:
                await shard.see_epoch(epoch)
            except ShardRefused:
                refused = True
            except ShardError as error:
                log.warning("a shard could not note the primary's epoch", extra={"facts": {"cause": str(error)}})
        if refused:
            raise EpochOver(await self.own_highest())

    async def highest(self, seconds: float) -> int:
        """Return the highest epoch on all shards that answer within ``seconds``, peers' too."""
        asked = [self._ask(peer, seconds) for peer in self._peers()]
        return max(await asyncio.gather(self.own_highest(), *asked))

    async def announce(self, epoch: int, seconds: float) -> None:
        """Tell ``epoch`` to this node's shards and to every peer that has not heard it. Raises ``EpochOver``."""
        await self.see(epoch)
        unaware = [peer for peer in self._peers() if self._told.get(peer.id) != (peer.incarnation, epoch)]
        results = await asyncio.gather(*(self._tell(peer, epoch, seconds) for peer in unaware), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _peers(self) -> list[NodeRow]:
        rows = self._cluster()
        return [one for one in rows.nodes.values() if one.up and one.id != self._node] if rows else []

    async def _ask(self, peer: NodeRow, seconds: float) -> int:
        try:
            return await ask_epoch(self._peer_at(peer.internal_url), seconds)
        except PeerError as error:
            log.info("a peer was not asked for its epoch", extra={"facts": {"node": peer.id, "cause": str(error)}})
            return 0

    async def _tell(self, peer: NodeRow, epoch: int, seconds: float) -> None:
        try:
            await tell_epoch(self._peer_at(peer.internal_url), epoch, seconds)
            self._told[peer.id] = (peer.incarnation, epoch)
        except PeerError as error:
            log.info("a peer was not told the epoch", extra={"facts": {"node": peer.id, "cause": str(error)}})
