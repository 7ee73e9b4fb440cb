"""The job that re-reads every replica on this node's shards, again and again, at a bounded rate.

Two passes over each shard go on beside each other: one compares the block digests, the slower one the
sha256 too. Whatever does not match is judged at once. A pass walks the rows by generation; its cursor
is kept, so that it goes on where it was after a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sharding.errors import ShardUnavailable
from sharding.maintenance.audit_catalogue import (
    REPLICA_COST_BYTES,
    HeldReplica,
    ScrubCatalogue,
    ScrubKind,
    ScrubObserver,
    Volume,
)
from sharding.maintenance.comparison import FIRST
from sharding.maintenance.job import Progress, Step
from sharding.maintenance.judgement import PORTION_BYTES, Judgement, reread_within
from sharding.maintenance.scrub_plan import PassState, ScrubLimits, needed_rate
from sharding.model import BLOCK_BYTES, BLOCK_DIGEST_BYTES, Generation, ShardId, block_count
from sharding.shard import Auditable, Hasher, Part

log = logging.getLogger(__name__)

PAGE = 128
SURVEY_PAGE = 20_000
REFRESH_SECONDS = 10.0
"""After which the rows are read again: an operator may have asked for a pass."""

REST_SECONDS = 60.0
"""How long a shard is left alone that could not be read."""


@dataclass(slots=True)
class LargeReplica:
    """A replica too large for one step, and how far it has been read."""

    held: HeldReplica
    hasher: Hasher | None
    offset: int = 0


@dataclass(slots=True)
class Survey:
    """A survey under way: counted until ``after``."""

    after: Generation = FIRST
    volume: Volume = field(default_factory=lambda: Volume(0, 0))


class Scrub:
    """Reads on where a pass is most behind its time."""

    name = "scrub"

    def __init__(
        self,
        shards: Mapping[ShardId, Auditable],
        catalogue: ScrubCatalogue,
        judgement: Judgement,
        observer: ScrubObserver,
        limits: Callable[[], ScrubLimits],
    ) -> None:
        self._shards = shards
        self._catalogue = catalogue
        self._judgement = judgement
        self._observer = observer
        self._limits = limits
        self._passes: list[PassState] = []
        self._read_at = float("-inf")
        self._resting: dict[ShardId, float] = {}
        self._large: dict[tuple[ShardId, ScrubKind], LargeReplica] = {}
        self._surveys: dict[tuple[ShardId, ScrubKind], Survey] = {}

    def bytes_per_second(self) -> float:
        """Return the rate at which all passes end in time, within the limits."""
        return needed_rate(self._passes, self._limits(), now())

    async def step(self) -> Step:
        if not self._passes or now() - self._read_at >= REFRESH_SECONDS:
            await self._read_passes()
        limits = self._limits()
        for one in self._passes:
            if one.is_due(limits, now()):
                await self._catalogue.begin_pass(one.shard, one.kind)
                await self._read_passes()
                break
        current = self._most_behind(limits)
        if current is None:
            self._passes = []
            return Step(idle=True)
        try:
            return await self._go_on(current)
        except ShardUnavailable as error:
            log.info("scrub: shard %s rests: %s", current.shard, error)
            self._resting[current.shard] = now() + REST_SECONDS
            self._large.pop((current.shard, current.kind), None)
            return Step()

    async def _read_passes(self) -> None:
        rows = await self._catalogue.passes(list(self._shards))
        self._passes = [PassState.of(row, now()) for row in rows if row.shard in self._shards]
        self._read_at = now()
        for one in self._passes:
            self._observer.observe_scrub_age(one.shard, one.kind.value, one.age_seconds(now()))

    def _most_behind(self, limits: ScrubLimits) -> PassState | None:
        at = now()
        # A shard that its node gave up meanwhile is looked at no more.
        here = (one for one in self._passes if one.shard in self._shards)
        going = [one for one in here if not one.is_finished and self._resting.get(one.shard, 0.0) <= at]
        return min(going, key=lambda one: one.lead(limits, at), default=None)

    async def _go_on(self, one: PassState) -> Step:
        if one.total is None:
            return await self._survey(one)
        shard, key = self._shards[one.shard], (one.shard, one.kind)
        if (large := self._large.get(key)) is not None:
            return await self._read_large(one, shard, large)
        page = await self._catalogue.live_replicas(one.shard, one.position, PAGE)
        if not page:
            return await self._finish(one)
        if page[0].size > PORTION_BYTES:
            hasher = hashlib.sha256() if one.kind is ScrubKind.PROOF else None
            self._large[key] = LargeReplica(page[0], hasher)
            return await self._read_large(one, shard, self._large[key])
        return await self._read_batch(one, shard, batch_of(page))

    async def _survey(self, one: PassState) -> Step:
        """Count one more page of rows, so that the rate can be told."""
        key = (one.shard, one.kind)
        survey = self._surveys.get(key, Survey())
        end, found = await self._catalogue.survey(one.shard, survey.after, SURVEY_PAGE)
        volume = survey.volume + found
        if end is not None:
            self._surveys[key] = Survey(end, volume)
        else:
            self._surveys.pop(key, None)
            await self._catalogue.note_total(one.shard, one.kind, volume)
            one.total = volume
        return Step(progress=self._progress())

    async def _read_batch(self, one: PassState, shard: Auditable, batch: Sequence[HeldReplica]) -> Step:
        hashers = [hashlib.sha256() if one.kind is ScrubKind.PROOF else None for _ in batch]
        parts = [Part(held.name, held.size, 0, held.size, hasher) for held, hasher in zip(batch, hashers, strict=True)]
        outcomes = await reread_within(shard, parts)
        self._observer.observe_reread(one.shard, sum(held.size for held in batch))
        for held, hasher, outcome in zip(batch, hashers, outcomes, strict=True):
            if outcome != held.blocks or (hasher is not None and hasher.digest() != held.name.sha256):
                await self._judgement.judge(shard, held)
        return await self._advance(one, batch)

    async def _read_large(self, one: PassState, shard: Auditable, large: LargeReplica) -> Step:
        """Read one more portion of a large replica."""
        held, offset = large.held, large.offset
        length = min(PORTION_BYTES, held.size - offset)
        [outcome] = await reread_within(shard, [Part(held.name, held.size, offset, length, large.hasher)])
        self._observer.observe_reread(one.shard, length)
        expected = await self._catalogue.block_digests(held.blob, offset // BLOCK_BYTES, block_count(length))
        large.offset += length
        is_over = large.offset == held.size
        wrong = outcome != expected or len(expected) != BLOCK_DIGEST_BYTES * block_count(length)
        if is_over and not wrong and large.hasher is not None:
            wrong = large.hasher.digest() != held.name.sha256
        if wrong:
            await self._judgement.judge(shard, held)
        if not (wrong or is_over):
            return Step(moved_bytes=length, progress=self._progress())
        del self._large[one.shard, one.kind]
        advanced = await self._advance(one, [held])
        return Step(advanced.done, length, progress=advanced.progress)

    async def _advance(self, one: PassState, batch: Sequence[HeldReplica]) -> Step:
        read = Volume(len(batch), sum(cost_of(held) for held in batch))
        position = batch[-1].name.generation
        await self._catalogue.advance(one.shard, one.kind, position, read)
        one.position = position
        one.done += read
        self._observer.observe_scrub_age(one.shard, one.kind.value, one.age_seconds(now()))
        return Step(done=read.replicas, moved_bytes=read.cost_bytes, progress=self._progress())

    async def _finish(self, one: PassState) -> Step:
        await self._catalogue.finish_pass(one.shard, one.kind)
        one.is_finished, one.covered_at = True, one.began
        self._observer.observe_scrub_age(one.shard, one.kind.value, one.age_seconds(now()))
        log.info("scrub: the pass %s over shard %s has read %d replicas", one.kind, one.shard, one.done.replicas)
        return Step(progress=self._progress())

    def _progress(self) -> Progress:
        going = [one for one in self._passes if not one.is_finished]
        total = sum(max(one.total.replicas, one.done.replicas) for one in going if one.total)
        return Progress(sum(one.done.replicas for one in going), total)


def batch_of(page: Sequence[HeldReplica]) -> list[HeldReplica]:
    """Return the first of ``page`` that together fit one portion, at least one."""
    batch: list[HeldReplica] = []
    room = PORTION_BYTES
    for held in page:
        if held.size > room or held.blocks is None:
            break
        batch.append(held)
        room -= held.size
    return batch


def cost_of(held: HeldReplica) -> int:
    return max(held.size, REPLICA_COST_BYTES)


def now() -> float:
    return asyncio.get_running_loop().time()
