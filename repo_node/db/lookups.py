"""Where paths lead, asked of Postgres in one round trip for all who ask at the same time.

Nobody waits on purpose: who comes while nothing is being asked is asked for at once, who comes meanwhile goes
with the next round trip. So what a request hears was always asked after it came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextvars import Context
from copy import copy
from itertools import islice
from typing import NamedTuple

from repo_node.db import artifacts as rows
from repo_node.db.artifacts import LookUp
from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.pool import Database
from repo_node.paths import ArtifactPath
from sharding.tasks import stop

LATE_SECONDS = 0.02
"""A round trip that takes longer does not hold up who came after it: they are asked for beside it."""

ROUND_TRIPS_MAX = 4
"""Round trips under way at once, each on a connection of its own: where all are late, who comes waits for one."""


class Question(NamedTuple):
    """A path, and when it was asked for by the event loop's clock."""

    at: ArtifactPath
    asked_at: float


Answer = asyncio.Future[LookUp]


class LookUps:
    """Answers look-ups of single paths; a round trip is for ``per_round_trip_max`` of them at most."""

    def __init__(self, database: Database, *, per_round_trip_max: int, wait_seconds_max: float) -> None:
        self._database = database
        self._per_round_trip_max = per_round_trip_max
        self._wait_seconds_max = wait_seconds_max
        self._waiting: dict[Answer, Question] = {}
        self._lanes: set[asyncio.Task[None]] = set()
        self._prompt: asyncio.Task[None] | None = None
        """The lane whose round trip is not late: who comes goes with its next one."""

    async def resolve(self, at: ArtifactPath) -> LookUp:
        """Return what is at a path. Raises ``CatalogueUnavailable``."""
        loop = asyncio.get_running_loop()
        answer: Answer = loop.create_future()
        self._waiting[answer] = Question(at, loop.time())
        self._begin()
        try:
            return await answer
        finally:
            self._waiting.pop(answer, None)

    async def resolve_all(self, places: Sequence[ArtifactPath]) -> list[LookUp]:
        """Return what is at each of these paths, asked for together. Raises ``CatalogueUnavailable``."""
        loop = asyncio.get_running_loop()
        answers: list[Answer] = [loop.create_future() for _ in places]
        self._waiting.update({answer: Question(at, loop.time()) for answer, at in zip(answers, places, strict=True)})
        self._begin()
        try:
            return await asyncio.gather(*answers)
        finally:
            for answer in answers:
                self._waiting.pop(answer, None)

    async def close(self) -> None:
        """Stop. Whoever still waits hears that Postgres was not asked."""
        await stop(tuple(self._lanes))
        fail(self._waiting, CatalogueUnavailable("the node is leaving"))

    def _begin(self) -> None:
        if self._prompt is None and len(self._lanes) < ROUND_TRIPS_MAX:
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
                late = loop.call_later(LATE_SECONDS, self._give_way)
                try:
                    await self._ask(self._take(loop.time()))
                finally:
                    late.cancel()
        finally:
            # Not by a callback of the task, which comes after those who ask meanwhile.
            self._lanes.discard(lane)
            if self._prompt is lane:
                self._prompt = None

    def _give_way(self) -> None:
        self._prompt = None
        if self._waiting:
            self._begin()

    def _take(self, now: float) -> dict[Answer, Question]:
        """Take those who wait longest; who has waited too long gets no connection any more."""
        batch = dict(islice(self._waiting.items(), self._per_round_trip_max))
        for answer in batch:
            del self._waiting[answer]
        expired = {one: asked for one, asked in batch.items() if now - asked.asked_at > self._wait_seconds_max}
        fail(expired, CatalogueUnavailable("no connection to Postgres: all are in use"))
        return {one: asked for one, asked in batch.items() if one not in expired}

    async def _ask(self, batch: Mapping[Answer, Question]) -> None:
        """Answer everybody in ``batch``, each as if they had been asked for alone."""
        try:
            found = await self._resolve([question.at for question in batch.values()])
        except CatalogueUnavailable as error:
            fail(batch, error)
        except Exception as error:
            if len(batch) == 1:
                fail(batch, error)
            else:  # one of them may be to blame
                for answer, question in batch.items():
                    await self._ask({answer: question})
        else:
            for answer, one in zip(batch, found, strict=True):
                if not answer.done():
                    answer.set_result(one)
        finally:
            fail(batch, CatalogueUnavailable("the node is leaving"))

    async def _resolve(self, paths: list[ArtifactPath]) -> list[LookUp]:
        if len(paths) == 1:
            return [await rows.resolve(self._database, *key_of(paths[0]))]
        return await rows.resolve_each(self._database, [key_of(at) for at in paths]) if paths else []


def key_of(at: ArtifactPath) -> tuple[str, str, str]:
    return at.repository, at.folder, at.name


def fail(batch: Mapping[Answer, Question], error: Exception) -> None:
    """Give those in ``batch`` who have no answer yet an error each of their own."""
    for answer in batch:
        if not answer.done():
            own = copy(error)
            own.__cause__ = error
            answer.set_exception(own)
