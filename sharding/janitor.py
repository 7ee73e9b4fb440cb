"""Removes, in the background, files that nothing refers to nor ever will: by exact generation, best effort.

What it cannot reach, or is too much at once, stays for reconcile. A write that was given up is
deleted twice, the second time when it can no longer be under way: it may arrive after its deletion.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from sharding.background import Background
from sharding.errors import StoreError
from sharding.model import BlobName, Member, ShardId
from sharding.shard import Shard, StagedBlob

DELETIONS_MAX = 10_000
ABORTS_MAX = 10_000
SECOND_DELETION_SECONDS = 20.0
CLOSE_SECONDS = 5.0


class Janitor:
    """Owns its background work; ``close`` lets what is under way end."""

    def __init__(self, shard: Callable[[ShardId], Shard | None]) -> None:
        self._shard = shard
        # Apart, since nobody else ever ends what is staged on a living peer: deletions must not crowd it out.
        self._aborts = Background(ABORTS_MAX)
        self._deletions = Background(DELETIONS_MAX)
        self._second: dict[tuple[ShardId, BlobName], asyncio.TimerHandle] = {}

    def delete_later(self, member: Member, name: BlobName) -> None:
        """Delete a generation whose write failed or was given up."""
        self.delete_replica(member.shard, name)
        if len(self._second) < DELETIONS_MAX:
            self._second[member.shard, name] = asyncio.get_running_loop().call_later(
                SECOND_DELETION_SECONDS, self._delete_again, member.shard, name
            )

    def delete_replica(self, shard: ShardId, name: BlobName) -> None:
        """Delete a generation that is complete."""
        self._deletions.start(self._delete(shard, name))

    def abort_later(self, staged: StagedBlob) -> None:
        """Abort a staged blob."""
        self._aborts.start(staged.abort())

    def _delete_again(self, shard: ShardId, name: BlobName) -> None:
        self._second.pop((shard, name), None)
        self.delete_replica(shard, name)

    async def _delete(self, shard: ShardId, name: BlobName) -> None:
        store = self._shard(shard)
        if store is not None:
            with suppress(StoreError):
                await store.delete(name)

    async def close(self) -> None:
        """Finish what is under way within a few seconds, then stop."""
        for (shard, name), timer in list(self._second.items()):
            timer.cancel()
            self._delete_again(shard, name)
        await asyncio.gather(self._aborts.close(CLOSE_SECONDS), self._deletions.close(CLOSE_SECONDS))
