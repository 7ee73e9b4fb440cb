"""Repair: gives blobs that lack copies new ones, on shards the ring wants. Every node takes part.

It never removes a replica of others. Where the process dies between a durable file and the row that
refers to it, the file is nobody's, and reconcile finds it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from sharding.crash_points import crash_point
from sharding.errors import BlobUnavailable
from sharding.janitor import Janitor
from sharding.maintenance.catalogue import (
    Claim,
    NotSettled,
    RepairCatalogue,
    Repaired,
    RepairOutcome,
    StoredBlob,
)
from sharding.maintenance.copier import Copied, Copier
from sharding.maintenance.courtesy import Courtesy
from sharding.maintenance.job import Progress, Step
from sharding.maintenance.placement import missing_homes
from sharding.maintenance.throttle import Throttle
from sharding.model import BlobName, Generation, Replica, ShardId
from sharding.tasks import run_all, stop
from sharding.view import StoreView

log = logging.getLogger(__name__)

BATCH_BLOBS = 64
BATCH_BYTES = 256 << 20
"""A larger blob is a batch of its own."""

FASTER_PER_COPY = 4
"""By how much the allowed rate grows with every further copy that is missing."""

ROUNDS_MAX = 3
"""How often a blob is copied to further shards in place of those that failed."""

HASTENED_MAX = 10_000
BACKLOG_SECONDS = 5.0
"""Between two counts of the queue."""

NOTHING = Copied((), (), 0)
ENDED = (RepairOutcome.WHOLE, RepairOutcome.GONE)


@dataclass(frozen=True, slots=True)
class RepairLimits:
    """Rates and times, asked anew for every step."""

    bytes_per_second_max: float | None
    claim_seconds: float
    retry_seconds: float
    retry_seconds_max: float
    copies_at_once: int = 8
    rest_share: float = 0.0
    """How long a rest follows a copy while clients are served, in times of the copy's own."""


class RepairObserver(Protocol):
    """Told how every repair ended."""

    def observe_repair(self, outcome: RepairOutcome, note: str | None) -> None: ...


class Repair:
    """The job ``repair``. One step takes a batch off the queue, most endangered first."""

    name = "repair"

    def __init__(
        self,
        view: Callable[[], StoreView],
        catalogue: RepairCatalogue,
        janitor: Janitor,
        limits: Callable[[], RepairLimits],
        observer: RepairObserver,
        mint: Callable[[], Generation],
        served: Callable[[], int] = lambda: 0,
    ) -> None:
        self._view = view
        self._courtesy = Courtesy(served)
        self._catalogue = catalogue
        self._janitor = janitor
        self._limits = limits
        self._observer = observer
        self._urgent: dict[int, int] = {}
        self._copier = Copier(view, catalogue, janitor, Throttle(self.rate), mint)
        self._writable = view().writable
        self._done = 0
        self._total, self._counted_at = 0, float("-inf")

    def rate(self) -> float | None:
        """Return the bytes a second that may be written now: more for each further copy the worst blob lacks."""
        base = self._limits().bytes_per_second_max
        return None if base is None else base * FASTER_PER_COPY ** (max(self._urgent.values(), default=1) - 1)

    async def step(self) -> Step:
        await self._notice_new_room()
        claims = await self._catalogue.claim(BATCH_BLOBS, BATCH_BYTES)
        if not claims:
            return Step(idle=True, progress=await self._end_run())
        keeping = asyncio.create_task(self._keep(claims))
        try:
            repaired, moved = await self._copy_all(claims)
            done = await self._settle(repaired)
        finally:
            await stop((keeping,))
        self._done += done
        # Where nothing at all came of it, the rest of the queue fares alike: no reason to rush through it.
        is_over = done == 0 and moved == 0
        return Step(done, moved, idle=is_over, progress=await (self._end_run() if is_over else self._progress()))

    async def _progress(self) -> Progress:
        now = asyncio.get_running_loop().time()
        if now - self._counted_at > BACKLOG_SECONDS:
            self._total = self._done + await self._catalogue.backlog()
            self._counted_at = now
        return Progress(self._done, max(self._total, self._done))

    async def _end_run(self) -> Progress | None:
        """Return what the run has done. What waits still, or was done by others meanwhile, is none of its total."""
        await self._progress()
        done, self._done, self._total = self._done, 0, max(self._total - self._done, 0)
        return Progress(done, done) if done else None

    async def _notice_new_room(self) -> None:
        """Let what waited for a shard try again as soon as one has come."""
        before, self._writable = self._writable, self._view().writable
        if not self._writable <= before:
            hastened = 0
            while hastened < HASTENED_MAX and (more := await self._catalogue.hasten(1_000)):
                hastened += more

    async def _keep(self, claims: Sequence[Claim]) -> None:
        """Renew the claims while they are worked on; one that is lost all the same does no harm."""
        while True:
            await asyncio.sleep(self._limits().claim_seconds / 3)
            with suppress(Exception):
                await self._catalogue.renew(claims)

    async def _copy_all(self, claims: Sequence[Claim]) -> tuple[list[Repaired], int]:
        """Make what copies can be made; return what came of each claim, and the bytes written."""
        repaired: list[Repaired] = []
        moved, turn = 0, asyncio.Semaphore(self._limits().copies_at_once)

        async def work(claim: Claim) -> None:
            nonlocal moved
            copied, note = await self._copy_in_turn(claim, turn)
            moved += copied.moved_bytes
            repaired.append(Repaired(claim, copied.copies, self._retry_seconds(claim), note))

        try:
            await run_all(work(claim) for claim in claims)
        except BaseException:
            # Nobody was told of them.
            self._drop(repaired, frozenset())
            raise
        return repaired, moved

    async def _copy_in_turn(self, claim: Claim, turn: asyncio.Semaphore) -> tuple[Copied, str | None]:
        lacking, clock = max(1, claim.blob.redundancy - claim.good), asyncio.get_running_loop().time
        async with turn:
            self._urgent[claim.blob.id] = lacking
            began = clock()
            try:
                copied = await self._copy(claim)
                if lacking == 1:
                    await self._courtesy.rest((clock() - began) * self._limits().rest_share)
                return copied
            except Exception as error:
                # One blob must not keep the others of its batch from being repaired.
                log.warning("blob %s was not repaired", claim.blob.sha256.hex(), exc_info=error)
                return NOTHING, "failed"
            finally:
                del self._urgent[claim.blob.id]

    async def _copy(self, claim: Claim) -> tuple[Copied, str | None]:
        """Make the copies the blob lacks; also say, in a word, why there are not enough."""
        blob, held = claim.blob, {replica.shard for replica in claim.replicas if replica.counts}
        if blob.size == 0:
            return NOTHING, None
        made, failed = NOTHING, set[ShardId]()
        try:
            for _ in range(ROUNDS_MAX):
                have = held | {copy.shard for copy in made.copies}
                targets = missing_homes(self._view(), blob.uid, blob.redundancy, have, avoid=failed)
                if not targets:
                    short = len(have) < blob.redundancy
                    return made, "no_place" if short and not failed else "failed" if short else None
                if not claim.replicas:
                    return made, "no_source"
                made += (copied := await self._copier.copy(blob, claim.replicas, targets))
                # A shard that fails gets no second try: the ring has others, and this one a next time.
                failed |= {target.shard for target in targets} - {copy.shard for copy in copied.copies}
                if not copied.failures:
                    break
        except BlobUnavailable as error:
            log.warning("no copy to repair from: %s", error)
            return made, "no_source"
        except BaseException:
            self._remove(blob, made.copies)
            raise
        missing = blob.redundancy - len(held) - len(made.copies)
        return made, ("failed" if failed else "no_place") if missing > 0 else None

    def _retry_seconds(self, claim: Claim) -> float:
        limits = self._limits()
        return float(min(limits.retry_seconds * 2 ** min(claim.attempts, 20), limits.retry_seconds_max))

    async def _settle(self, repaired: Sequence[Repaired]) -> int:
        """Tell the catalogue, remove what it has no use for, and return of how many blobs something came."""
        crash_point("repair.copied")
        try:
            settled = await self._catalogue.settle(repaired)
        except NotSettled:
            self._drop(repaired, frozenset())
            raise
        crash_point("repair.settled")
        adopted = frozenset(generation for one in settled.values() for generation in one.adopted)
        self._drop(repaired, adopted)
        for one in repaired:
            self._observer.observe_repair(settled[one.claim.blob.id].outcome, one.note)
        return sum(one.outcome in ENDED or bool(one.adopted) for one in settled.values())

    def _drop(self, repaired: Sequence[Repaired], adopted: Collection[Generation]) -> None:
        """Remove copies of our own, but for those that are the blobs' now."""
        for one in repaired:
            self._remove(one.claim.blob, [copy for copy in one.copies if copy.generation not in adopted])

    def _remove(self, blob: StoredBlob, copies: Sequence[Replica]) -> None:
        for copy in copies:
            self._janitor.delete_replica(copy.shard, BlobName(blob.sha256, copy.generation))
