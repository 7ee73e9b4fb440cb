"""Garbage collection: removes the rows of blobs that nothing has referred to for longer than a grace.

Only the primary runs it, and each of its transactions proves that anew. What it may remove was released
by a delete or an overwrite, or found by the feed; the catalogue looks again, under a lock, before each
blob goes. A run first counts what would go: implausibly much holds every deletion, until an operator
has looked. Any error ends the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from sharding.crash_points import crash_point
from sharding.maintenance.job import Progress, Step
from sharding.tasks import run_all

log = logging.getLogger(__name__)

L_contra = TypeVar("L_contra", contravariant=True)
L = TypeVar("L")

COUNT_PAGE = 10_000
COLLECT_PAGE = 1_000
PAGES_AT_ONCE = 2
FEED_PAGE = 5_000


@dataclass(frozen=True, slots=True)
class GcLimits:
    """``percent_max`` is of all blobs, and does not bind below ``blobs_min``."""

    grace_seconds: float
    percent_max: int
    blobs_max: int
    blobs_min: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A blob to which nothing may refer, ``since`` a time. It goes when it is ``due`` and not ``referenced``."""

    blob: int
    since: datetime
    reason: str
    sha256: bytes
    size: int
    files: int
    due: bool
    referenced: bool

    @property
    def goes(self) -> bool:
        return self.due and not self.referenced


@dataclass(frozen=True, slots=True)
class Count:
    """A page of candidates: how many there are, how many of them would go, and where the next page begins."""

    seen: int
    going: int
    last: int | None


@dataclass(frozen=True, slots=True)
class Page:
    """Candidates that are due, each with the time it was seen with; ``last`` is None behind the last page."""

    blobs: Sequence[int]
    since: Sequence[datetime]
    last: int | None


@dataclass(frozen=True, slots=True)
class Collected:
    """``files`` went to the removal list; ``referenced`` candidates were none."""

    blobs: int
    bytes: int
    files: int
    referenced: int


class GarbageCatalogue(Protocol[L_contra]):
    """What gc asks of the catalogue. ``lease`` proves that this node is the primary; see each method's error."""

    async def held(self) -> bool:
        """Say whether deletions are held."""
        ...

    async def count(self, after: int, candidates_max: int, grace_seconds: float) -> Count: ...

    async def blobs(self) -> int:
        """Return how many blobs there are, about."""
        ...

    async def allowance(self) -> int:
        """Return how many blobs an operator has lately allowed a run to remove, though that be implausible."""
        ...

    async def page(self, after: int, candidates_max: int, grace_seconds: float) -> Page: ...

    async def collect(self, lease: L_contra, page: Page, grace_seconds: float) -> Collected:
        """Remove what nothing refers to, all or nothing. Raises when ``lease`` has ended or deletions are held."""
        ...

    async def feed(self, lease: L_contra, after: int, blobs_max: int) -> tuple[int | None, int]:
        """Make candidates of the next blobs that nobody released; return where to go on, and how many."""
        ...

    async def hold_for_volume(self, detail: str, blobs: int) -> None:
        """Hold every deletion; once released, a run may remove ``blobs``."""
        ...


class GcObserver(Protocol):
    """Told what gc did; for metrics."""

    def observe_candidates(self, count: int) -> None: ...

    def observe_collected(self, blobs: int, count_bytes: int) -> None: ...


def blobs_allowed(limits: GcLimits, blobs: int, allowance: int) -> int:
    """Return how many of ``blobs`` one run may remove: pure."""
    by_share = max(blobs * limits.percent_max // 100, limits.blobs_min)
    return max(min(by_share, limits.blobs_max), allowance)


@dataclass
class GcRun(Generic[L]):
    """One run: it belongs to one term of office."""

    lease: L
    allowed: int = 0
    going: int | None = None
    after: int = 0
    seen: int = 0
    removed: int = 0
    counted: int = 0


class Gc(Generic[L]):
    """The job ``gc``. ``lease`` gives what proves this node the primary now, None when it is not."""

    name = "gc"

    def __init__(
        self,
        catalogue: GarbageCatalogue[L],
        lease: Callable[[], L | None],
        limits: Callable[[], GcLimits],
        observer: GcObserver,
    ) -> None:
        self._catalogue = catalogue
        self._lease = lease
        self._limits = limits
        self._observer = observer
        self._run: GcRun[L] | None = None

    async def step(self) -> Step:
        """Count a page of candidates, or remove one; idle at the end of the run, or when deletions are held."""
        run, self._run = self._run, None
        lease = self._lease()
        if lease is None:
            return Step(idle=True)
        if run is None or run.lease != lease:
            if await self._catalogue.held():
                return Step(idle=True)
            run = GcRun(lease)
        # Only a step that ends well lets the run go on.
        step = await (self._count(run) if run.going is None else self._collect(run))
        if not step.idle:
            self._run = run
        return step

    async def _count(self, run: GcRun[L]) -> Step:
        count = await self._catalogue.count(run.after, COUNT_PAGE, self._limits().grace_seconds)
        run.seen += count.seen
        run.counted += count.going
        if count.last is not None:
            run.after = count.last
            return Step()
        self._observer.observe_candidates(run.seen)
        run.going, run.after = run.counted, 0
        blobs = await self._catalogue.blobs()
        run.allowed = blobs_allowed(self._limits(), blobs, await self._catalogue.allowance())
        if run.going > run.allowed:
            await self._brake(run, f"gc would remove {run.going} of about {blobs} blobs, {run.allowed} are allowed")
            return Step(idle=True)
        return Step(idle=not run.seen)

    async def _collect(self, run: GcRun[L]) -> Step:
        pages = await self._pages(run.after)
        found = sum(len(page.blobs) for page in pages)
        if run.removed + found > run.allowed + COLLECT_PAGE * PAGES_AT_ONCE:
            await self._brake(run, f"gc has removed {run.removed} blobs, and finds more than the {run.allowed} allowed")
            return Step(idle=True)
        grace_seconds = self._limits().grace_seconds
        if found:
            crash_point("gc.collecting")
        gone = await run_all(self._catalogue.collect(run.lease, page, grace_seconds) for page in pages if page.blobs)
        done = sum(one.blobs for one in gone)
        if done:
            crash_point("gc.collected")
        run.removed += done
        self._observer.observe_collected(done, sum(one.bytes for one in gone))
        last = pages[-1].last
        if last is None and run.removed:
            log.info("gc removed %d blobs of %d candidates", run.removed, run.seen)
        run.after = last or 0
        return Step(done=done, idle=last is None, progress=Progress(run.removed, run.going))

    async def _pages(self, after: int) -> list[Page]:
        """Return the next pages; no blob is on two of them, so that none waits for another."""
        pages: list[Page] = []
        while len(pages) < PAGES_AT_ONCE:
            pages.append(await self._catalogue.page(after, COLLECT_PAGE, self._limits().grace_seconds))
            if (last := pages[-1].last) is None:
                break
            after = last
        return pages

    async def _brake(self, run: GcRun[L], detail: str) -> None:
        log.error("%s; deletions are held: look with `holdfast gc --dry-run`, then `holdfast gc release`", detail)
        going = run.going or 0
        await self._catalogue.hold_for_volume(detail, going + going // 10)


class GcFeed(Generic[L]):
    """The job ``gc_feed``: looks through all blobs for those that nothing refers to and nobody released."""

    name = "gc_feed"

    def __init__(self, catalogue: GarbageCatalogue[L], lease: Callable[[], L | None]) -> None:
        self._catalogue = catalogue
        self._lease = lease
        self._after = 0

    async def step(self) -> Step:
        lease = self._lease()
        if lease is None:
            self._after = 0
            return Step(idle=True)
        last, found = await self._catalogue.feed(lease, self._after, FEED_PAGE)
        self._after = last or 0
        if found:
            log.warning("%d blobs without any reference were not among the candidates", found)
        return Step(done=found, idle=last is None)
