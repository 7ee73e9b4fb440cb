"""Removes, in the background, files that nothing refers to nor ever will: by exact generation, best effort.

What it cannot reach stays for reconcile. A write that was given up is deleted twice, the second
time when it can no longer be under way: it may arrive after its deletion.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from sharding.background import Background
from sharding.errors import StoreError
from sharding.model import BlobName, Member, ShardId
from sharding.shard import Shard, StagedBlob

TASKS_MAX = 10_000
SECOND_DELETION_SECONDS = 20.0
CLOSE_SECONDS = 5.0


class Janitor:
    """Owns its background work; ``close`` lets what is under way end."""

    def __init__(self, shard: Callable[[ShardId], Shard | None]) -> None:
        self._shard = shard
        self._background = Background(TASKS_MAX)
        self._closing = asyncio.Event()

    def delete_later(self, member: Member, name: BlobName) -> None:
        """Delete a generation whose write failed or was given up."""
        self._background.start(self._delete_twice(member.shard, name))

    def delete_replica(self, shard: ShardId, name: BlobName) -> None:
        """Delete a generation that is complete."""
        self._background.start(self._delete(shard, name))

    def abort_later(self, staged: StagedBlob) -> None:
        """Abort a staged blob."""
        self._background.start(staged.abort())

    async def _delete_twice(self, shard: ShardId, name: BlobName) -> None:
        await self._delete(shard, name)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), SECOND_DELETION_SECONDS)
        await self._delete(shard, name)

    async def _delete(self, shard: ShardId, name: BlobName) -> None:
        store = self._shard(shard)
        if store is not None:
            with suppress(StoreError):
                await store.delete(name)

    async def close(self) -> None:
        """Finish what is under way within a few seconds, then stop."""
        self._closing.set()
        await self._background.close(CLOSE_SECONDS)
