"""The service for AQL: reads a query, checks it, and finds what it asks for among what its sender may read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
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
from repo_node.db.scopes import RowScope
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
        self._statements = Turns("searches", lambda: settings.now.aql_statements_at_once_max)
        self._long_answers = Turns("long answers", lambda: settings.now.aql_long_answers_at_once_max)

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
        now, begun = self._settings.now, False

        async def fetch(sql: str, arguments: Sequence[Any]) -> Sequence[asyncpg.Record]:
            # An answer that has begun could only break off: the rest of it waits for its turns.
            async with self._statements.turn(None if begun else now.search_seconds_max):
                return await fetch_once(self._database, sql, arguments, now.search_seconds_max)

        limits = ResultLimits(now.aql_results_max, now.aql_sorted_results_max)
        reach = reach_of(await self._repositories.list_all(), scope)
        async with AsyncExitStack() as stack:

            async def admit() -> None:
                await stack.enter_async_context(self._long_answers.turn(now.search_seconds_max))

            finder = ItemFinder(fetch, admit, query, reach, limits)
            pages = await stack.enter_async_context(aclosing(finder.pages()))
            async for page in pages:
                begun = True
                yield page


def reach_of(repositories: Sequence[Repository], scope: ReadScope) -> Reach:
    """Return where a query looks. Here belongs what the name of a virtual repository means: its members' rows."""
    keys = {one.id: one.key for one in repositories}
    readable = scope.rows(keys)
    seen = {id: keys[id] for id in (*readable.whole, *readable.partial)}
    return Reach({key: RowScope((id,)) for id, key in seen.items()}, seen, readable)
