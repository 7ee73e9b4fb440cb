"""Known content found and linked, in one round trip for all who ask at the same time (``round_trips``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from repo_node.db import known
from repo_node.db.errors import OutcomeUnknown
from repo_node.db.known import KnownContent, Link, Linked, LinkRequest
from repo_node.db.pool import Database, Statement
from repo_node.db.round_trips import Expected, RoundTrips
from repo_node.db.scopes import RowScope
from sharding.model import Generation

TOGETHER = "sha256"
"""The digest by which most content is looked for, and by which there is one or none."""

LINKS_MAX = 16
"""Links that are made together: each may wait for a lock."""


class KnownContents:
    """Finds known content and lets artifacts refer to it; a round trip is for ``per_round_trip_max`` of them at most.

    Links are made together in one transaction, which waits for those that are expected, for as long as
    ``gather_seconds`` gives at most. What spoils it for one has them made one by one, so each has a result or an error
    of its own.
    """

    def __init__(
        self,
        database: Database,
        *,
        per_round_trip_max: int,
        wait_seconds_max: float,
        gather_seconds: Callable[[], float] = lambda: 0,
    ) -> None:
        self._database = database
        self._finds: dict[Statement, RoundTrips[tuple[Any, ...], KnownContent | None]] = {
            statement: RoundTrips(
                partial(self._find_each, statement),
                per_round_trip_max=per_round_trip_max,
                wait_seconds_max=wait_seconds_max,
            )
            for statement in (known.FIND_BY[TOGETHER], known.FIND_BY_IN_SCOPE[TOGETHER])
        }
        self._links: RoundTrips[LinkRequest, Linked] = RoundTrips(
            self._link_each,
            per_round_trip_max=min(per_round_trip_max, LINKS_MAX),
            wait_seconds_max=wait_seconds_max,
            given_up=OutcomeUnknown,
            gather_seconds=gather_seconds,
        )

    async def find(self, name: str, digest: bytes, scope: RowScope | None = None) -> KnownContent | None:
        """See ``known.find_known``."""
        if name != TOGETHER:
            return await known.find_known(self._database, name, digest, scope)
        statement, *arguments = known.find_request(name, digest, scope)
        return await self._finds[statement].ask(tuple(arguments))

    def expect_link(self) -> Expected:
        """Return what is to be held while it is found out whether content that was found can be linked."""
        return self._links.expect()

    async def link(self, request: Link, confirmed: Sequence[Generation]) -> Linked:
        """See ``known.link``."""
        return await self._links.ask((request, confirmed))

    async def close(self) -> None:
        """Stop. The outcome of links that are under way is unknown."""
        for find in self._finds.values():
            await find.close()
        await self._links.close()

    async def _find_each(self, statement: Statement, questions: Sequence[tuple[Any, ...]]) -> list[KnownContent | None]:
        if len(questions) == 1:
            rows = await self._database.fetch(statement, *questions[0])
        else:
            rows = await self._database.fetch_each(statement, questions)
        return [known.content_from(row) for row in rows]

    async def _link_each(self, requests: Sequence[LinkRequest]) -> list[Linked]:
        if len(requests) == 1:
            return [await known.link(self._database, *requests[0])]
        # By path: two groups then seldom wait for each other in a circle.
        order = sorted(range(len(requests)), key=lambda number: path_of(requests[number][0]))
        linked = await known.link_together(self._database, [requests[number] for number in order])
        found = dict(zip(order, linked, strict=True))
        return [found[number] for number in range(len(requests))]


def path_of(request: Link) -> tuple[int, str, str]:
    return request.repository_id, request.folder, request.name
