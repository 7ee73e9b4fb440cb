"""A run of gc: counted first, braked when implausible, over at the first error, bound to one term of office."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.maintenance import gc as module
from sharding.maintenance.gc import Collected, Count, Gc, GcFeed, GcLimits, Page, blobs_allowed

AT = datetime(2020, 1, 1, tzinfo=UTC)
LIMITS = GcLimits(grace_seconds=60, percent_max=50, blobs_max=1_000, blobs_min=10)


@dataclass
class Garbage:
    """A catalogue whose blobs are numbers; the referenced ones are spared."""

    blobs_total: int = 1_000
    candidates: list[int] = field(default_factory=list)
    referenced: set[int] = field(default_factory=set)
    is_held: bool = False
    allowed: int = 0
    removed: list[int] = field(default_factory=list)
    leases: set[str] = field(default_factory=set)
    volume_holds: list[tuple[str, int]] = field(default_factory=list)
    fails_at: int | None = None
    missed: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    async def held(self) -> bool:
        return self.is_held

    def cut(self, after: int, most: int) -> tuple[list[int], int | None]:
        page = [blob for blob in sorted(self.candidates) if blob > after][:most]
        return page, page[-1] if len(page) == most else None

    async def count(self, after: int, candidates_max: int, grace_seconds: float) -> Count:
        page, last = self.cut(after, candidates_max)
        return Count(len(page), len(set(page) - self.referenced), last)

    async def blobs(self) -> int:
        return self.blobs_total

    async def allowance(self) -> int:
        return self.allowed

    async def page(self, after: int, candidates_max: int, grace_seconds: float) -> Page:
        page, last = self.cut(after, candidates_max)
        return Page(page, [AT] * len(page), last)

    async def collect(self, lease: str, page: Page, grace_seconds: float) -> Collected:
        self.leases.add(lease)
        if self.fails_at is not None and len(self.removed) >= self.fails_at:
            raise RuntimeError("the database says no")
        gone: Sequence[int] = [blob for blob in page.blobs if blob not in self.referenced]
        self.removed += gone
        self.candidates = [blob for blob in self.candidates if blob not in page.blobs]
        return Collected(len(gone), 10 * len(gone), 2 * len(gone), len(page.blobs) - len(gone))

    async def feed(self, lease: str, after: int, blobs_max: int) -> tuple[int | None, int]:
        page = [blob for blob in range(after + 1, self.blobs_total + 1)][:blobs_max]
        found = [blob for blob in page if blob in self.missed]
        self.candidates += found
        return page[-1] if page else None, len(found)

    async def hold_for_volume(self, detail: str, blobs: int) -> None:
        self.volume_holds.append((detail, blobs))
        self.is_held = True

    def observe_candidates(self, count: int) -> None:
        self.counts.append(count)

    def observe_collected(self, blobs: int, count_bytes: int) -> None:
        assert count_bytes == 10 * blobs


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COUNT_PAGE", 7)
    monkeypatch.setattr(module, "COLLECT_PAGE", 5)
    monkeypatch.setattr(module, "FEED_PAGE", 9)


class Term:
    """The lease of this node, which a test can take away."""

    def __init__(self) -> None:
        self.lease: str | None = "epoch 1"

    def __call__(self) -> str | None:
        return self.lease


def job_of(garbage: Garbage, term: Term | None = None) -> Gc[str]:
    return Gc(garbage, term or Term(), lambda: LIMITS, garbage)


async def run(job: Gc[str] | GcFeed[str], steps_max: int = 1_000) -> int:
    done = 0
    for _ in range(steps_max):
        step = await job.step()
        done += step.done
        if step.idle:
            return done
    raise AssertionError("the run does not end")


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 7, 14, 35, 100])
async def test_run_removes_what_nothing_refers_to(count: int) -> None:
    garbage = Garbage(candidates=list(range(1, count + 1)), referenced={3, 8})
    assert await run(job_of(garbage)) == len(garbage.removed)
    assert garbage.removed == [blob for blob in range(1, count + 1) if blob not in (3, 8)]
    assert garbage.volume_holds == [] and garbage.counts == [count]


async def test_held_deletions_stop_a_run_before_it_begins() -> None:
    garbage = Garbage(candidates=[1, 2], is_held=True)
    assert await run(job_of(garbage)) == 0
    assert garbage.removed == [] and garbage.counts == []


async def test_node_that_is_not_the_primary_does_nothing() -> None:
    garbage, term = Garbage(candidates=[1, 2]), Term()
    term.lease = None
    assert await run(job_of(garbage, term)) == 0
    assert garbage.removed == []


@pytest.mark.parametrize(("total", "going"), [(100, 51), (10_000, 1_001), (4, 11)])
async def test_implausible_volume_holds_deletions_and_removes_nothing(total: int, going: int) -> None:
    garbage = Garbage(blobs_total=total, candidates=list(range(1, going + 1)))
    await run(job_of(garbage))
    assert garbage.removed == []
    [(detail, allowance)] = garbage.volume_holds
    assert str(going) in detail and allowance >= going
    assert await run(job_of(garbage)) == 0, "and so it stays"


async def test_released_volume_goes() -> None:
    garbage = Garbage(blobs_total=100, candidates=list(range(1, 91)))
    job = job_of(garbage)
    await run(job)
    garbage.is_held, garbage.allowed = False, garbage.volume_holds[0][1]
    assert await run(job) == 90


async def test_brake_holds_in_the_middle_of_a_run_that_finds_more_than_it_counted() -> None:
    garbage = Garbage(blobs_total=40, candidates=list(range(1, 11)))
    job = job_of(garbage)
    await job.step()
    while not garbage.removed:
        await job.step()
    garbage.candidates += list(range(11, 200))
    await run(job)
    assert len(garbage.volume_holds) == 1
    assert len(garbage.removed) <= 20 + 10


async def test_error_ends_the_run_and_the_next_begins_anew() -> None:
    garbage = Garbage(candidates=list(range(1, 21)), fails_at=5)
    job = job_of(garbage)
    with pytest.raises(RuntimeError):
        await run(job)
    assert garbage.removed == [1, 2, 3, 4, 5]
    garbage.fails_at = None
    garbage.is_held = True
    assert await run(job) == 0, "a new run asks again what holds deletions"
    garbage.is_held = False
    await run(job)
    assert garbage.removed == list(range(1, 21))
    assert garbage.counts == [20, 15]


async def test_new_term_of_office_begins_a_new_run() -> None:
    garbage, term = Garbage(candidates=list(range(1, 21))), Term()
    job = job_of(garbage, term)
    while not garbage.removed:
        await job.step()
    term.lease = "epoch 3"
    await run(job)
    assert garbage.counts == [20, 10], "counted again"
    assert garbage.leases == {"epoch 1", "epoch 3"}


async def test_feed_finds_what_was_missed() -> None:
    garbage = Garbage(blobs_total=40, missed=[1, 9, 10, 40])
    feed = GcFeed(garbage, Term())
    assert await run(feed) == 4
    assert garbage.candidates == [1, 9, 10, 40]


@given(
    blobs=st.integers(0, 10**9),
    percent=st.integers(1, 100),
    most=st.integers(1, 10**9),
    least=st.integers(0, 10**6),
    allowance=st.integers(0, 10**9),
)
def test_brake_allows_what_its_limits_say(blobs: int, percent: int, most: int, least: int, allowance: int) -> None:
    allowed = blobs_allowed(GcLimits(60, percent, most, least), blobs, allowance)
    assert allowed >= allowance
    if allowance == 0:
        assert allowed <= most
        assert allowed <= max(least, blobs * percent / 100)
        assert allowed >= min(most, least)
    assert blobs_allowed(GcLimits(60, percent, most, least), blobs + 1, allowance) >= allowed
