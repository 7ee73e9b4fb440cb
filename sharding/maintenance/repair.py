"""Repair: gives blobs that lack copies new ones, on shards the ring wants. Every node takes part.

It never removes a replica of others. Where the process dies between a durable file and the row that
refers to it, the file is nobody's, and reconcile finds it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from sharding.errors import BlobUnavailable
from sharding.janitor import Janitor
from sharding.maintenance.catalogue import Claim, RepairCatalogue, RepairOutcome
from sharding.maintenance.copier import Copied, Copier
from sharding.maintenance.job import Progress, Step
from sharding.maintenance.placement import missing_homes
from sharding.maintenance.throttle import Throttle
from sharding.model import BlobName, Generation, Replica
from sharding.tasks import run_all, stop
from sharding.view import StoreView

log = logging.getLogger(__name__)

BATCH_BLOBS = 64
BATCH_BYTES = 256 << 20
"""A larger blob is a batch of its own."""

COPIES_AT_ONCE = 8
FASTER_PER_COPY = 4
"""By how much the allowed rate grows with every further copy that is missing."""

HASTENED_MAX = 10_000
BACKLOG_SECONDS = 5.0
"""Between two counts of the queue."""

NOTHING = Copied((), (), 0)


@dataclass(frozen=True, slots=True)
class RepairLimits:
    """Rates and times, asked anew for every step."""

    bytes_per_second_max: float | None
    claim_seconds: float
    retry_seconds: float
    retry_seconds_max: float


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
    ) -> None:
        self._view = view
        self._catalogue = catalogue
        self._janitor = janitor
        self._limits = limits
        self._observer = observer
        self._urgent: dict[int, int] = {}
        self._copier = Copier(view, catalogue, janitor, Throttle(self.rate), mint)
        self._turn = asyncio.Semaphore(COPIES_AT_ONCE)
        self._writable = view().writable
        self._done = 0
        self._backlog: tuple[float, int] = (float("-inf"), 0)

    def rate(self) -> float | None:
        """Return the bytes a second that may be written now: more for each further copy the worst blob lacks."""
        base = self._limits().bytes_per_second_max
        return None if base is None else base * FASTER_PER_COPY ** (max(self._urgent.values(), default=1) - 1)

    async def step(self) -> Step:
        await self._notice_new_room()
        claims = await self._catalogue.claim(BATCH_BLOBS, BATCH_BYTES)
        if not claims:
            self._done = 0
            await self._progress()
            return Step(idle=True)
        keeping = asyncio.create_task(self._keep(claims))
        try:
            results = await run_all(self._repair(claim) for claim in claims)
        finally:
            await stop((keeping,))
        done = sum(ended for ended, _ in results)
        self._done += done
        moved = sum(moved_bytes for _, moved_bytes in results)
        # Where nothing at all came of it, the rest of the queue fares alike: no reason to rush through it.
        return Step(done, moved, idle=done == 0 and moved == 0, progress=await self._progress())

    async def _progress(self) -> Progress:
        at, count = self._backlog
        now = asyncio.get_running_loop().time()
        if now - at > BACKLOG_SECONDS:
            count = await self._catalogue.backlog()
            self._backlog = (now, self._done + count)
            return Progress(self._done, self._done + count)
        return Progress(self._done, max(count, self._done))

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

    async def _repair(self, claim: Claim) -> tuple[bool, int]:
        """Repair one blob; return whether something came of it, and the bytes written."""
        async with self._turn:
            self._urgent[claim.blob.id] = max(1, claim.blob.redundancy - claim.good)
            try:
                copied, note = await self._copy(claim)
                return await self._settle(claim, copied, note)
            finally:
                del self._urgent[claim.blob.id]

    async def _copy(self, claim: Claim) -> tuple[Copied, str | None]:
        """Make the copies the blob lacks; also say, in a word, why there are not enough."""
        blob, held = claim.blob, {replica.shard for replica in claim.replicas if replica.counts}
        if blob.size == 0:
            return NOTHING, None
        targets = missing_homes(self._view(), blob.uid, blob.redundancy, held)
        short = len(held) + len(targets) < blob.redundancy
        if not targets:
            return NOTHING, "no_place" if short else None
        if not claim.replicas:
            return NOTHING, "no_source"
        try:
            copied = await self._copier.copy(blob, claim.replicas, targets)
        except BlobUnavailable as error:
            log.warning("no copy to repair from: %s", error)
            return NOTHING, "no_source"
        return copied, "failed" if copied.failures else "no_place" if short else None

    async def _settle(self, claim: Claim, copied: Copied, note: str | None) -> tuple[bool, int]:
        limits = self._limits()
        retry = min(limits.retry_seconds * 2 ** min(claim.attempts, 20), limits.retry_seconds_max)
        settled = await self._catalogue.settle(claim, copied.copies, retry_seconds=retry, note=note)
        self._drop(claim, [copy for copy in copied.copies if copy.generation not in settled.adopted])
        self._observer.observe_repair(settled.outcome, note)
        ended = settled.outcome in (RepairOutcome.WHOLE, RepairOutcome.GONE)
        return ended or bool(settled.adopted), copied.moved_bytes

    def _drop(self, claim: Claim, surplus: Sequence[Replica]) -> None:
        """Remove copies of our own that came too late: the catalogue has said that they are not the blob's."""
        for copy in surplus:
            self._janitor.delete_replica(copy.shard, BlobName(claim.blob.sha256, copy.generation))
