"""Questions to Postgres that are asked in one round trip for all who ask at the same time.

Nobody waits on purpose: who comes while nothing is being asked is asked for at once, who comes meanwhile goes
with the next round trip. So what anybody hears was always asked after they came. But where it is known that others are
about to ask, as it is of a write, a round trip waits for those, and for nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from copy import copy
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

from repo_node.db.errors import CatalogueError, CatalogueUnavailable, ChangesRefused, OutcomeUnknown, RacesLost
from sharding.tasks import run_all, stop, wait

Q = TypeVar("Q")
A = TypeVar("A")

LATE_SECONDS = 0.02
"""A round trip that takes longer does not hold up who came after it: they are asked for beside it."""

ROUND_TRIPS_MAX = 4
"""Round trips under way at once, each on a connection of its own: where all are late, who comes waits for one."""

LEAVING = "the node is leaving"


class Waiting(NamedTuple, Generic[Q]):
    """A question, and when it was asked by the event loop's clock."""

    question: Q
    asked_at: float


class Expected:
    """Somebody who is about to ask. A context manager: behind it, they ask at once, or do not ask at all."""

    __slots__ = ("_trips",)

    def __init__(self, trips: RoundTrips[Any, Any]) -> None:
        self._trips = trips

    def __enter__(self) -> None:
        self._trips.expected.add(self)

    def __exit__(self, *_: object) -> None:
        self._trips.expected.discard(self)
        self._trips.came(self)


class RoundTrips(Generic[Q, A]):
    """Answers questions; a round trip is for ``per_round_trip_max`` of them at most.

    ``ask`` answers all or raises, and nothing was done. ``given_up`` is what those hear whose round trip is under way
    when the node leaves. ``gather_seconds`` gives how long a round trip waits at most for those that are expected.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[Q]], Awaitable[Sequence[A]]],
        *,
        per_round_trip_max: int,
        wait_seconds_max: float,
        given_up: type[CatalogueError] = CatalogueUnavailable,
        gather_seconds: Callable[[], float] = lambda: 0,
    ) -> None:
        self.expected: set[Expected] = set()
        self._ask_all = ask
        self._per_round_trip_max = per_round_trip_max
        self._wait_seconds_max = wait_seconds_max
        self._given_up = given_up
        self._gather_seconds = gather_seconds
        self._awaited: set[Expected] = set()
        """Of those that are expected, the ones that the next round trip waits for."""
        self._all_came = asyncio.Event()
        self._waiting: dict[asyncio.Future[A], Waiting[Q]] = {}
        self._lanes: set[asyncio.Task[None]] = set()
        self._prompt: asyncio.Task[None] | None = None
        """The lane whose round trip is not late: who comes goes with its next one."""
        self._closed = False

    def expect(self) -> Expected:
        """Return what is to be held while it takes a while to find out what will be asked."""
        return Expected(self)

    def came(self, one: Expected) -> None:
        """Note that ``one`` is not waited for any more."""
        self._awaited.discard(one)
        if not self._awaited:
            self._all_came.set()

    async def ask(self, question: Q) -> A:
        """Return the answer. Raises ``CatalogueUnavailable``, and what ``ask`` of the constructor does."""
        if self._closed:
            raise CatalogueUnavailable(LEAVING)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[A] = loop.create_future()
        self._waiting[answer] = Waiting(question, loop.time())
        self._begin()
        try:
            return await answer
        finally:
            self._waiting.pop(answer, None)

    async def close(self) -> None:
        """Stop. Whoever still waits, or comes later, hears that Postgres was not asked."""
        self._closed = True
        await stop(tuple(self._lanes))
        fail(self._waiting, CatalogueUnavailable(LEAVING))

    def _begin(self) -> None:
        if self._prompt is None and len(self._lanes) < ROUND_TRIPS_MAX and not self._closed:
            # In a context of its own: what is logged belongs to no single request.
            self._prompt = asyncio.get_running_loop().create_task(self._work(), context=Context())
            self._lanes.add(self._prompt)

    async def _work(self) -> None:
        """Make round trips until nobody waits, or until another lane has taken over."""
        loop, lane = asyncio.get_running_loop(), asyncio.current_task()
        assert lane is not None
        try:
            while self._waiting and self._prompt in (None, lane):
                self._prompt = lane
                await self._gather()
                late = loop.call_later(LATE_SECONDS, self._give_way)
                try:
                    await self._answer(self._take(loop.time()))
                finally:
                    late.cancel()
        finally:
            # Not by a callback of the task, which comes after those who ask meanwhile.
            self._lanes.discard(lane)
            if self._prompt is lane:
                self._prompt = None

    async def _gather(self) -> None:
        """Wait for those that are expected now, unless enough have come already."""
        if self.expected and len(self._waiting) < self._per_round_trip_max:
            self._awaited = set(self.expected)
            self._all_came.clear()
            await wait(self._all_came, self._gather_seconds())

    def _give_way(self) -> None:
        self._prompt = None
        if self._waiting:
            self._begin()

    def _take(self, now: float) -> dict[asyncio.Future[A], Q]:
        """Take those who wait longest; who has waited too long gets no connection any more."""
        batch = dict(islice(self._waiting.items(), self._per_round_trip_max))
        for answer in batch:
            del self._waiting[answer]
        expired = {one: asked for one, asked in batch.items() if now - asked.asked_at > self._wait_seconds_max}
        fail(expired, CatalogueUnavailable("no connection to Postgres: all are in use"))
        return {one: asked.question for one, asked in batch.items() if one not in expired}

    async def _answer(self, batch: Mapping[asyncio.Future[A], Q]) -> None:
        """Answer everybody in ``batch``, each as if they had been asked for alone."""
        try:
            found = await self._ask_all(list(batch.values())) if batch else ()
        except Exception as error:
            if len(batch) == 1 or concerns_all(error):
                fail(batch, error)
            else:  # one of them may be to blame, and may take long
                await run_all(self._answer({answer: question}) for answer, question in batch.items())
        else:
            for answer, one in zip(batch, found, strict=True):
                if not answer.done():
                    answer.set_result(one)
        finally:
            fail(batch, self._given_up(LEAVING))


def concerns_all(error: Exception) -> bool:
    """Say whether a failure would have met each of those who were asked for together."""
    if isinstance(error, RacesLost):
        return False
    return isinstance(error, (CatalogueUnavailable, OutcomeUnknown, ChangesRefused))


def fail(batch: Mapping[asyncio.Future[A], object], error: Exception) -> None:
    """Give those in ``batch`` who have no answer yet an error each of their own."""
    for answer in batch:
        if not answer.done():
            own = copy(error)
            own.__cause__ = error
            answer.set_exception(own)
