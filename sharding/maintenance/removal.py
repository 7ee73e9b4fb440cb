"""Removal: takes files off this node's own shards when their time has come.

Only generations that no row holds live are listed, and none is ever used again: to remove one twice,
or late, harms nothing. A file leaves the list only after its removal is durable, and what could not be
removed stays on it. A shard that is not open here waits for the node that has it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from sharding.crash_points import crash_point
from sharding.errors import ShardError
from sharding.maintenance.job import Step
from sharding.model import BlobName, Generation, ShardId
from sharding.shard import Epochs

log = logging.getLogger(__name__)

FILES_MAX = 200
"""Files one step removes from one shard."""

SHARD_SECONDS_MAX = 60.0
"""A disk that takes longer for one step hangs; the other shards' files do not wait for it."""

LOOK_HOLDS_SECONDS = 10.0
"""A look at the list older than this is not acted upon: whoever was frozen looks again."""


@dataclass(frozen=True, slots=True)
class ListedFile:
    """``size`` is what the catalogue says; what is freed is counted on the disk."""

    name: BlobName
    size: int
    reason: str


@dataclass(frozen=True, slots=True)
class DueRemovals:
    """One look at the list. ``live``: a listed file is some blob's replica, which must never be."""

    epoch: int
    held: bool
    live: bool
    files: tuple[ListedFile, ...]


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is listed, due or not."""

    files: int
    bytes: int


class RemovalList(Protocol):
    """The removal list, as the catalogue keeps it."""

    async def due(self, shard: ShardId, files_max: int) -> DueRemovals:
        """Return files of ``shard`` whose time has come, with the primary's epoch at that moment."""
        ...

    async def done(self, shard: ShardId, generations: Sequence[Generation]) -> None:
        """Forget files whose removal is durable."""
        ...

    async def failed(self, shard: ShardId, generations: Sequence[Generation]) -> None:
        """Note that these could not be removed, and let them wait."""
        ...

    async def backlog(self, shards: Collection[ShardId]) -> Backlog: ...

    async def hold(self, reason: str, detail: str) -> None:
        """Hold every deletion until an operator releases it."""
        ...


class RemovalObserver(Protocol):
    """Told what was removed; for metrics."""

    def observe_removal(self, reason: str, files: int, freed_bytes: int) -> None: ...

    def observe_backlog(self, backlog: Backlog) -> None: ...


class Removal:
    """The job ``removal``. ``own`` gives the shards this node has open."""

    name = "removal"

    def __init__(
        self,
        listed: RemovalList,
        own: Callable[[], Mapping[ShardId, Epochs]],
        observer: RemovalObserver,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._list = listed
        self._own = own
        self._observer = observer
        self._clock = clock
        self._left: list[ShardId] = []
        self._begun = False

    async def step(self) -> Step:
        """Remove what is due on one shard; idle when there is nothing left on any."""
        own = self._own()
        if not self._begun:
            self._begun, self._left = True, list(own)
        done = 0
        while self._left and not done:
            shard = self._left[0]
            done = await self._remove_from(shard, own[shard]) if shard in own else 0
            if not done:
                self._left.pop(0)
        if self._left:
            return Step(done=done)
        self._begun = False
        self._observer.observe_backlog(await self._list.backlog(list(own)))
        return Step(idle=True)

    async def _remove_from(self, id: ShardId, shard: Epochs) -> int:
        """Remove what is due on a shard and return how many files that were; 0 when it has to wait."""
        # First the shard, then the database, whose epoch can only have grown meanwhile, unless it forgot.
        try:
            async with asyncio.timeout(SHARD_SECONDS_MAX):
                known = await shard.epoch()
        except (ShardError, TimeoutError) as error:
            log.warning("removals of shard %s wait: %s", id, error or "it does not answer")
            return 0
        looked_at = self._clock()
        due = await self._list.due(id, FILES_MAX)
        if due.held or not due.files:
            return 0
        if due.live:
            await self._list.hold("live_removal", f"a live replica on shard {id} is on the removal list")
            return 0
        if known > due.epoch:
            await self._list.hold(
                "lost_history", f"shard {id} knows the primary of epoch {known}, this database none after {due.epoch}"
            )
            return 0
        if self._clock() - looked_at > LOOK_HOLDS_SECONDS:
            return 0
        return await self._remove(id, shard, due)

    async def _remove(self, id: ShardId, shard: Epochs, due: DueRemovals) -> int:
        try:
            await self._remove_together(id, shard, due.epoch, due.files)
        except TimeoutError:
            log.warning("removals of shard %s wait: it does not answer", id)
            return 0
        except ShardError as error:
            log.warning("removals of shard %s failed, and are tried one by one: %s", id, error)
            await self._remove_apart(id, shard, due)
        return len(due.files)

    async def _remove_together(self, id: ShardId, shard: Epochs, epoch: int, files: Sequence[ListedFile]) -> None:
        async with asyncio.timeout(SHARD_SECONDS_MAX):
            freed = await shard.remove([file.name for file in files], epoch=epoch)
        crash_point("removal.unlinked")
        await self._list.done(id, [file.name.generation for file in files])
        for reason, count, count_bytes in by_reason(files, freed):
            self._observer.observe_removal(reason, count, count_bytes)

    async def _remove_apart(self, id: ShardId, shard: Epochs, due: DueRemovals) -> None:
        """Remove what can be removed; the rest waits, longer each time."""
        failed: list[Generation] = []
        for file in due.files:
            try:
                await self._remove_together(id, shard, due.epoch, [file])
            except (ShardError, TimeoutError) as error:
                log.debug("removal of %s from shard %s waits: %s", file.name, id, error)
                failed.append(file.name.generation)
        if failed:
            await self._list.failed(id, failed)


def by_reason(files: Sequence[ListedFile], freed: Sequence[int | None]) -> Iterator[tuple[str, int, int]]:
    """Yield for each reason how many files were there, and their bytes; what was gone already frees nothing."""
    pairs = sorted(zip((file.reason for file in files), freed, strict=True), key=lambda pair: pair[0])
    for reason, group in groupby(pairs, key=lambda pair: pair[0]):
        found = [size for _, size in group if size is not None]
        yield reason, len(found), sum(found)
