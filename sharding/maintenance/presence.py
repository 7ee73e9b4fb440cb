"""The job that notices missing files soon: a sample of replicas every few seconds, and a full look at the first miss.

Half of a sample follows a cursor that comes by everywhere in time; the other half lies anywhere. Rows of
files that are really absent go in batches, and repairs are queued.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from sharding.errors import ShardUnavailable
from sharding.maintenance.audit_catalogue import AuditObserver, HeldReplica, PresenceCatalogue
from sharding.maintenance.comparison import FIRST, Comparison, Row
from sharding.maintenance.job import Progress, Step
from sharding.model import BlobName, Generation, ShardId
from sharding.shard import Auditable

log = logging.getLogger(__name__)

POINTS = 8
"""Places a random half of a sample is taken from."""

LOOK_SECONDS = 30.0
"""A disk that takes longer to look for a batch of files does not answer."""

LOOK_BATCH = 256
DROP_BATCH = 500


class Presence:
    """Samples every own shard; a shard with a missing file is compared whole before the run is over."""

    name = "presence"

    def __init__(
        self,
        shards: Mapping[ShardId, Auditable],
        catalogue: PresenceCatalogue,
        observer: AuditObserver,
        *,
        sample_max: Callable[[], int],
        chance: random.Random | None = None,
    ) -> None:
        self._shards = shards
        self._catalogue = catalogue
        self._observer = observer
        self._sample_max = sample_max
        self._chance = chance or random.Random()
        self._cursors: dict[ShardId, Generation] = {}
        self._sweeps: dict[ShardId, Sweep] = {}

    async def step(self) -> Step:
        """Sample all shards, or go on with a sweep; the run is over when nothing is missing any more."""
        if self._sweeps:
            return await self._sweep_on()
        looked = 0
        for shard in list(self._shards.values()):
            try:
                looked += await self._sample(shard)
            except ShardUnavailable as error:
                # Its files may be anywhere: that is for others to judge.
                log.warning("presence: %s", error)
        return Step(done=looked, idle=not self._sweeps)

    async def _sample(self, shard: Auditable) -> int:
        """Look for a sample of replicas; return how many."""
        bounds = await self._catalogue.bounds(shard.id)
        if bounds is None:
            return 0
        half = max(self._sample_max() // 2, 1)
        cursor = self._cursors.get(shard.id, FIRST)
        walked = await self._catalogue.sample(shard.id, [cursor], half)
        # At the end, again from the start.
        self._cursors[shard.id] = walked[-1].name.generation if len(walked) == half else FIRST
        points = [self._point(*bounds) for _ in range(POINTS)]
        scattered = await self._catalogue.sample(shard.id, points, -(-half // POINTS))
        sample = list({held.name: held for held in (*walked, *scattered)}.values())
        sizes = await look(shard, [held.name for held in sample])
        for held, size in zip(sample, sizes, strict=True):
            if size is not None and size != held.size:
                await self._doubt(held)
        if None in sizes and await self._is_missed(shard, sample, sizes):
            log.warning("shard %s lacks files that it should have; looking for all that are missing", shard.id)
            self._sweeps[shard.id] = Sweep(shard, self._catalogue, self._observer)
        return len(sample)

    async def _doubt(self, held: HeldReplica) -> None:
        await self._catalogue.mark_suspect(held.shard, held.name.generation)

    async def _is_missed(self, shard: Auditable, sample: Sequence[HeldReplica], sizes: Sequence[int | None]) -> bool:
        """Say whether a row still wants one of the files that are not there: others remove replicas all the time."""
        await shard.check_intact()
        missing = [held for held, size in zip(sample, sizes, strict=True) if size is None]
        for held in missing:
            before = Generation(UUID(int=held.name.generation.int - 1))
            if held.name in [one.name for one in await self._catalogue.sample(shard.id, [before], 1)]:
                return True
        return False

    def _point(self, first: Generation, last: Generation) -> Generation:
        return Generation(UUID(int=self._chance.randint(first.int - 1, last.int)))

    async def _sweep_on(self) -> Step:
        shard, sweep = next(iter(self._sweeps.items()))
        try:
            step = await sweep.step()
        except BaseException:
            self._end(shard)
            raise
        if step.idle:
            log.warning("shard %s: %d replicas were missing", shard, sweep.dropped)
            self._end(shard)
        return Step(done=step.done, progress=step.progress)

    def _end(self, shard: ShardId) -> None:
        self._sweeps.pop(shard).close()


class Sweep:
    """One comparison of a shard, for rows without files alone."""

    def __init__(self, shard: Auditable, catalogue: PresenceCatalogue, observer: AuditObserver) -> None:
        self.dropped = 0
        self._shard = shard
        self._catalogue = catalogue
        self._observer = observer
        self._comparison = Comparison(shard, catalogue)
        self._is_listed = False
        self._done = 0

    def close(self) -> None:
        self._comparison.close()

    async def step(self) -> Step:
        if not self._is_listed:
            self._is_listed = not await self._comparison.list_some()
            return Step(progress=Progress(0, None))
        page = await self._comparison.next_page()
        if page is None:
            return Step(idle=True)
        self._done += len(page.rows)
        self.dropped += await drop_absent(self._shard, page.absent(), self._catalogue, self._observer)
        return Step(done=len(page.rows), progress=Progress(self._done, None))


async def drop_absent(
    shard: Auditable, rows: Sequence[Row], catalogue: PresenceCatalogue, observer: AuditObserver
) -> int:
    """Let the rows go whose files are absent, looked for once more; return how many were.

    Raises ``ShardUnavailable`` when the shard cannot be trusted to say so.
    """
    absent = await really_absent(shard, rows)
    for start in range(0, len(absent), DROP_BATCH):
        batch = [row.generation for row in absent[start : start + DROP_BATCH]]
        dropped = await catalogue.drop_absent(shard.id, batch)
        observer.observe_verdict(shard.id, "absent", dropped.dropped)
        observer.observe_verdict(shard.id, "last", dropped.kept)
    return len(absent)


async def really_absent(shard: Auditable, rows: Sequence[Row]) -> list[Row]:
    """Return those of ``rows`` whose files are not there, on a shard that is intact before and after the look."""
    if not rows:
        return []
    await shard.check_intact()
    sizes = await look(shard, [row.name for row in rows])
    await shard.check_intact()
    return [row for row, size in zip(rows, sizes, strict=True) if size is None]


async def look(shard: Auditable, names: Sequence[BlobName]) -> list[int | None]:
    """Return the sizes of files. A disk that hangs is unavailable."""
    sizes: list[int | None] = []
    for start in range(0, len(names), LOOK_BATCH):
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                sizes += await shard.sizes(names[start : start + LOOK_BATCH])
        except TimeoutError:
            raise ShardUnavailable(shard.id, f"looking for files took longer than {LOOK_SECONDS:g} s") from None
    return sizes
