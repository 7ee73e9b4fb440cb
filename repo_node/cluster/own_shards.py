"""A node's own shards: which directories they are, who may own them, opening them.

A directory is made a shard once, when it is empty and no shard was known there before. An empty
mount point, a foreign or a cloned disk is refused, never filled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID

import asyncpg

from repo_node.config import ShardSection
from repo_node.db import nodes
from sharding import identity
from sharding.errors import ShardError
from sharding.identifiers import uuid7
from sharding.identity import ShardIdentity, ShardIdentityError
from sharding.local import LocalShard, open_local_shard
from sharding.model import NodeId, ShardId
from sharding.shard import ShardSpace

MIN_FREE_BYTES = 1
"""Free above the reserve, below which a shard says that it takes no new blobs."""

ANSWER_HOLDS_SECONDS = 10.0
NO_SPACE = ShardSpace(0, 0)


class OwnShard:
    """A shard this node owns and has open."""

    def __init__(self, uid: UUID, shard: LocalShard) -> None:
        self.uid = uid
        self.shard = shard
        self._space = NO_SPACE
        self._answered_at = float("-inf")

    async def report(self, timeout_seconds: float) -> tuple[ShardSpace, bool]:
        """Return the shard's space and whether it takes writes; a disk that does not answer takes none.

        A busy disk is not a dead one: for a while, its last answer still holds.
        """
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(timeout_seconds):
                self._space = await self.shard.space()
            self._answered_at = clock()
        except (ShardError, TimeoutError):
            if clock() - self._answered_at >= ANSWER_HOLDS_SECONDS:
                self._space = NO_SPACE
        return self._space, self._space.free_bytes >= MIN_FREE_BYTES


async def open_own_shards(
    stack: AsyncExitStack,
    connection: asyncpg.Connection,
    sections: Sequence[ShardSection],
    *,
    cluster_id: UUID,
    node: NodeId,
    incarnation: UUID,
) -> dict[ShardId, OwnShard]:
    """Identify, claim and open every configured shard.

    Raises ``ShardIdentityError``, ``NameTaken``, ``ShardUnavailable``, each with the path and what to do.
    """
    known = await nodes.shards_of_node(connection, node)
    found: dict[UUID, Path] = {}
    opened: dict[ShardId, OwnShard] = {}
    for section in sections:
        described = await asyncio.to_thread(identify, section.path, cluster_id, known)
        uid = described.shard_uid
        if uid in found:
            raise ShardIdentityError(f"{section.path} and {found[uid]} are the same shard {uid}: one is a copy")
        found[uid] = section.path
        shard_id = await nodes.claim_shard(
            connection,
            uid=uid,
            node=node,
            path=str(section.path),
            weight=section.weight,
            incarnation=incarnation,
        )
        shard = await stack.enter_async_context(
            open_local_shard(
                shard_id,
                section.path,
                described,
                reserve_bytes=section.reserve_bytes,
                cached_bytes_max=section.cached_bytes_max,
                threads=section.threads,
            )
        )
        opened[shard_id] = OwnShard(uid, shard)
    return opened


def refuse_foreign(paths: Iterable[Path], cluster_id: UUID) -> None:
    """Raise ``ShardIdentityError`` when one of ``paths`` is a shard of another cluster; write nothing. Blocks."""
    for path in paths:
        found = identity.inspect(path)
        if found is not None and found.cluster_id != cluster_id:
            raise ShardIdentityError(
                f"{path} belongs to the cluster {found.cluster_id}, this one is {cluster_id}: is it the right disk, "
                "and the right database? A lost database is brought back by holdfast restore, not by init-db"
            )


def identify(path: Path, cluster_id: UUID, known: Mapping[str, UUID]) -> ShardIdentity:
    """Return which shard ``path`` is, making a new one only where none was known before; blocks."""
    refuse_foreign((path,), cluster_id)
    found = identity.inspect(path)
    expected = known.get(str(path))
    if found is None:
        if expected is not None:
            raise ShardIdentityError(
                f"{path} held shard {expected} and is empty or absent now: is its disk mounted? "
                "Nothing was written. Mount it, or take the shard out of the configuration"
            )
        return identity.create(path, cluster_id, uuid7())
    if expected not in (None, found.shard_uid):
        raise ShardIdentityError(
            f"{path} held shard {expected} and holds {found.shard_uid} now: is the right disk mounted?"
        )
    return found
