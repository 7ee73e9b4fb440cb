"""The service for AQL: reads a query, checks it, and finds what it asks for among what its sender may read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any

import asyncpg

from repo_node.aql.checking import QueryLimits, check
from repo_node.aql.conditions import ItemQuery
from repo_node.aql.fields import PLACE_FIELDS
from repo_node.aql.grammar import parse
from repo_node.aql.tree import AqlError
from repo_node.auth.permissions import Principal
from repo_node.auth.read_scope import ReadScope
from repo_node.db.aql import ItemFinder, Reach, ResultLimits, fetch_once
from repo_node.db.pool import Database
from repo_node.db.repositories import Repository
from repo_node.db.searches import Hit
from repo_node.repositories import Repositories
from repo_node.settings import LiveSettings
from repo_node.turns import Turns

CHARACTERS_AT_ONCE = 2_048
"""A longer query is read beside the event loop: reading takes some 10 us for each character."""


class ItemQueries:
    """Answers queries. ``clock`` is the database's, by which ``$before`` and ``$last`` are reckoned."""

    def __init__(
        self,
        database: Database,
        repositories: Repositories,
        settings: LiveSettings,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._repositories = repositories
        self._settings = settings
        self._clock = clock
        self._turns = Turns(lambda: settings.now.aql_statements_at_once_max, lambda: settings.now.search_seconds_max)

    async def read(self, text: str, principal: Principal) -> ItemQuery:
        """Return the query that ``text`` is, if ``principal`` may ask it. Raises ``AqlError``."""
        now = self._settings.now
        if len(text.encode("utf-8", "surrogatepass")) > now.aql_query_bytes_max:
            raise AqlError(f"The query has more than {now.aql_query_bytes_max} bytes (setting aql_query_bytes_max).")
        if len(text) <= CHARACTERS_AT_ONCE:
            query = parse(text, nesting_max=now.aql_nesting_max)
        else:
            query = await asyncio.to_thread(parse, text, nesting_max=now.aql_nesting_max)
        found = check(query, self._clock(), QueryLimits(now.aql_criteria_max, now.aql_offset_max))
        if not principal.is_admin and not set(PLACE_FIELDS) <= set(found.shown.fields):
            raise AqlError("Who is no administrator must include repo, path and name.")
        return found

    async def find(self, query: ItemQuery, scope: ReadScope) -> AsyncGenerator[Sequence[Hit], None]:
        """Yield what is found in ``scope``, in pages; the first may be empty.

        Raises ``SearchTooLong``, ``TooManyResults``, ``Overloaded``.
        """
        now = self._settings.now
        limits = ResultLimits(now.aql_results_max, now.aql_sorted_results_max)
        finder = ItemFinder(self._fetch, query, reach_of(await self._repositories.list_all(), scope), limits)
        async with aclosing(finder.pages()) as pages:
            async for page in pages:
                yield page

    async def _fetch(self, sql: str, arguments: Sequence[Any]) -> Sequence[asyncpg.Record]:
        async with self._turns.turn():
            return await fetch_once(self._database, sql, arguments, self._settings.now.search_seconds_max)


def reach_of(repositories: Sequence[Repository], scope: ReadScope) -> Reach:
    """Return where a query looks. The name of a virtual repository would stand here for the ids of its members."""
    keys = {one.id: one.key for one in repositories}
    readable = scope.rows(keys)
    seen = {id: keys[id] for id in (*readable.whole, *readable.partial)}
    return Reach({key: (id,) for id, key in seen.items()}, seen, readable)
