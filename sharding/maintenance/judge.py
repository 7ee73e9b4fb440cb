"""The job that clears suspicions: every suspect replica on this node's shards is judged by its owner.

It also carries out sentences: condemned files go to quarantine, and leave it for good after a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from sharding.crash_points import crash_point
from sharding.errors import ShardError
from sharding.maintenance.audit_catalogue import AuditObserver, HeldReplica, SuspectCatalogue
from sharding.maintenance.comparison import FIRST
from sharding.maintenance.job import Step
from sharding.maintenance.judgement import Judgement, Verdict
from sharding.model import Generation, ShardId
from sharding.shard import Auditable

log = logging.getLogger(__name__)

BATCH = 64
SUSPECTS_PAGE = 512
STEP_BYTES = 64 << 20
HOPELESS_MAX = 100_000


class Judge:
    """Judges suspects, moves the condemned aside, empties the quarantine of what is old. Safe to run twice."""

    name = "judge"

    def __init__(
        self,
        shards: Mapping[ShardId, Auditable],
        catalogue: SuspectCatalogue,
        judgement: Judgement,
        observer: AuditObserver,
        *,
        quarantine_seconds: Callable[[], float | None],
        again_seconds: Callable[[], float],
    ) -> None:
        self._shards = shards
        self._catalogue = catalogue
        self._judgement = judgement
        self._observer = observer
        self._quarantine_seconds = quarantine_seconds
        self._again_seconds = again_seconds
        self._position: dict[ShardId, Generation] = {}
        # The last copies of their blobs, when they were judged: nothing but a new copy changes the verdict.
        self._hopeless: dict[Generation, float] = {}

    async def step(self) -> Step:
        """Do a batch on each shard; the run is over when no shard has any more."""
        done = moved = 0
        more = False
        for shard in list(self._shards.values()):
            try:
                shard_done, shard_moved, shard_more = await self._work_on(shard)
            except ShardError as error:
                # It says nothing about its files. The others must not wait for it.
                log.info("judge: %s", error)
                continue
            done, moved, more = done + shard_done, moved + shard_moved, more or shard_more
        return Step(done=done, moved_bytes=moved, idle=not more)

    async def _work_on(self, shard: Auditable) -> tuple[int, int, bool]:
        is_first = shard.id not in self._position
        judged, moved_bytes, more = await self._judge_suspects(shard)
        set_aside = await self._set_aside(shard)
        removed = await self._expire(shard)
        if set_aside or removed or is_first:
            aside = await shard.aside()
            self._observer.observe_aside(shard.id, aside.files, aside.bytes)
        self._position.setdefault(shard.id, FIRST)
        return judged + set_aside + removed, moved_bytes, more or set_aside == BATCH or removed == BATCH

    async def _judge_suspects(self, shard: Auditable) -> tuple[int, int, bool]:
        after = self._position.get(shard.id, FIRST)
        suspects = await self._catalogue.suspects(shard.id, after, SUSPECTS_PAGE)
        done = moved = 0
        for held in suspects:
            self._position[shard.id] = held.name.generation
            if self._is_hopeless(held.name.generation):
                continue
            await self._judge(shard, held)
            done, moved = done + 1, moved + held.size
            if moved >= STEP_BYTES or done == BATCH:
                return done, moved, True
        if len(suspects) == SUSPECTS_PAGE:
            return done, moved, True
        self._position[shard.id] = FIRST
        return done, moved, False

    async def _judge(self, shard: Auditable, held: HeldReplica) -> None:
        if await self._judgement.judge(shard, held) is Verdict.LAST:
            while len(self._hopeless) >= HOPELESS_MAX:
                del self._hopeless[next(iter(self._hopeless))]
            self._hopeless[held.name.generation] = asyncio.get_running_loop().time()

    def _is_hopeless(self, generation: Generation) -> bool:
        judged_at = self._hopeless.get(generation)
        if judged_at is None:
            return False
        if asyncio.get_running_loop().time() - judged_at < self._again_seconds():
            return True
        del self._hopeless[generation]
        return False

    async def _set_aside(self, shard: Auditable) -> int:
        """Move condemned files. One that is nowhere is done with, if the shard is intact."""
        names = await self._catalogue.unmoved(shard.id, BATCH)
        moved, failure = [], None
        for name in names:
            try:
                crash_point("quarantine.condemned")
                if not await shard.set_aside(name):
                    await shard.check_intact()
                moved.append(name.generation)
            except ShardError as error:
                # Perhaps its directory alone is damaged: the others must not wait for it.
                failure = error
        if failure is not None:
            log.warning("judge: %d condemned replicas stay for now: %s", len(names) - len(moved), failure)
        if moved:
            crash_point("quarantine.moved")
            await self._catalogue.note_moved(shard.id, moved)
        return len(moved)

    async def _expire(self, shard: Auditable) -> int:
        keep_seconds = self._quarantine_seconds()
        names = [] if keep_seconds is None else await self._catalogue.expired(shard.id, keep_seconds, BATCH)
        if names:
            await shard.discard_aside(names)
            await self._catalogue.forget(shard.id, [name.generation for name in names])
            self._observer.observe_discarded(shard.id, len(names))
        for name in names:
            log.info("shard %s: quarantine/%s left the quarantine for good", shard.id, name)
        return len(names)
