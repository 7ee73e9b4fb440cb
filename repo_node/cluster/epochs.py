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

OWN_SECONDS = 1.0
"""How long a disk of this node's own may take: one that hangs must not keep the cluster from having a primary."""


class ShardEpochs:
    """The epochs on the shards of the cluster, as far as they can be reached in ``seconds``."""

    def __init__(
        self,
        node: NodeId,
        own: Callable[[], Mapping[ShardId, Epochs]],
        cluster: Callable[[], ClusterRows | None],
        peer_at: Callable[[NodeId, str], Peer],
    ) -> None:
        self._node = node
        self._own = own
        self._cluster = cluster
        self._peer_at = peer_at
        self._told: dict[NodeId, tuple[UUID, int]] = {}

    async def own_highest(self) -> int:
        """Return the highest epoch on this node's shards. A shard that does not answer says nothing."""
        return max(await asyncio.gather(*map(self._ask_own, self._own().values())), default=0)

    async def _ask_own(self, shard: Epochs) -> int:
        try:
            async with asyncio.timeout(OWN_SECONDS):
                return await shard.epoch()
        except (ShardError, TimeoutError):
            return 0

    async def see(self, epoch: int) -> None:
        """Let this node's shards remember ``epoch``. Raises ``EpochOver`` when one knows a later one."""
        if not all(await asyncio.gather(*(self._see_own(shard, epoch) for shard in self._own().values()))):
            raise EpochOver(await self.own_highest())

    async def _see_own(self, shard: Epochs, epoch: int) -> bool:
        try:
            async with asyncio.timeout(OWN_SECONDS):
                await shard.see_epoch(epoch)
        except ShardRefused as error:
            log.info("a shard refused an epoch", extra={"facts": {"epoch": epoch, "cause": str(error)}})
            # Refused by a disk that takes no writes, it is no proof of a later primary.
            return await self._ask_own(shard) <= epoch
        except (ShardError, TimeoutError) as error:
            facts = {"epoch": epoch, "cause": str(error) or "it does not answer"}
            log.info("a shard could not note the primary's epoch", extra={"facts": facts})
        return True

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
            return await ask_epoch(self._peer_at(peer.id, peer.internal_url), seconds)
        except PeerError as error:
            log.info("a peer was not asked for its epoch", extra={"facts": {"node": peer.id, "cause": str(error)}})
            return 0

    async def _tell(self, peer: NodeRow, epoch: int, seconds: float) -> None:
        try:
            await tell_epoch(self._peer_at(peer.id, peer.internal_url), epoch, seconds)
            self._told[peer.id] = (peer.incarnation, epoch)
        except PeerError as error:
            log.info("a peer was not told the epoch", extra={"facts": {"node": peer.id, "cause": str(error)}})
