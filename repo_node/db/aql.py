"""What AQL finds, in pages. Each statement has a form of its own, so none is kept prepared in its connection.

A page begins behind the one before and is a statement of its own: no connection waits for whoever reads the answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from repo_node.aql.conditions import ItemQuery
from repo_node.db.aql_conditions import Compiler, sort_key
from repo_node.db.aql_operators import Arguments
from repo_node.db.aql_repositories import Names
from repo_node.db.errors import CatalogueError
from repo_node.db.pool import Database, Statement
from repo_node.db.scopes import RowScope, in_scope, in_subtrees, scope_args
from repo_node.db.searches import BLOB, COLUMNS, Hit, bounded, hit_from

PAGE = 1_000
PLACE = "a.repo_id, a.folder, a.name"
"""The order of items nobody asked to sort: that of their primary key."""

BY_PLACES = f"""
    {COLUMNS} FROM unnest($1::integer[], $2::text[], $3::text[]) WITH ORDINALITY AS k (repo_id, folder, name, place)
     CROSS JOIN LATERAL (
        SELECT f.* FROM artifacts f WHERE f.repo_id = k.repo_id AND f.folder = k.folder AND f.name = k.name LIMIT 1
     ) AS a {BLOB} ORDER BY k.place
"""
Place = tuple[int, str, str]
Admit = Callable[[], Awaitable[None]]
Fetch = Callable[[str, Sequence[Any]], Awaitable[Sequence[asyncpg.Record]]]


class TooManyResults(CatalogueError):
    """A query has more results than may be answered; the message is a sentence about it."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What may be found: what ``scope`` lets be read, in repositories that are called ``keys``, by id.

    ``names`` are what a query can call repositories, and the rows that it means by each.
    """

    names: Names
    keys: Mapping[int, str]
    scope: RowScope


@dataclass(frozen=True, slots=True)
class ResultLimits:
    """``results_max`` for what comes in no order of one's choice, ``sorted_max`` for what is sorted."""

    results_max: int
    sorted_max: int


class ItemFinder:
    """Finds the items of one query.

    ``fetch`` runs its statements, as ``fetch_once`` does; ``admit`` is awaited before an answer of several pages.
    """

    def __init__(self, fetch: Fetch, admit: Admit, query: ItemQuery, reach: Reach, limits: ResultLimits) -> None:
        self._fetch = fetch
        self._admit = admit
        self._query = query
        self._reach = reach
        self._limits = limits
        self._where = Arguments()
        compiler, scope = Compiler(reach.names, self._where), reach.scope
        within = sorted(compiler.within(query.condition) & {*scope.whole, *scope.partial})
        self._is_empty = not within or query.limit == 0
        repositories = f"a.repo_id = ANY ({self._where.add(within, 'integer[]')})"
        self._condition = f"{repositories} AND {compiler.write(query.condition)}"
        if set(within) & set(scope.partial):
            narrowed, args = in_subtrees(scope.within(within), 1 + len(self._where.values))
            self._where.values += args
            self._condition += f" AND {narrowed} AND {in_scope(1 + len(self._where.values))}"
            self._where.values += scope_args(scope)

    async def pages(self) -> AsyncGenerator[list[Hit], None]:
        """Yield what is found; the first page may be empty. Raises ``SearchTooLong``, ``TooManyResults``.

        What raises ``TooManyResults`` does so before the first page.
        """
        if self._is_empty:
            yield []
        elif self._query.sort:
            async for page in self._sorted():
                yield page
        elif self._query.limit is None and not self._query.offset:
            async for page in self._all():
                yield page
        else:
            async for page in self._in_place():
                yield page

    async def _all(self) -> AsyncGenerator[list[Hit], None]:
        """Yield everything: few by whatever index finds them, many in the order of the primary key."""
        arguments = self._arguments()
        some = await self._fetch(
            f"{self._items(arguments)} LIMIT {arguments.add(PAGE + 1, 'bigint')}", arguments.values
        )
        if len(some) <= PAGE:
            yield sorted(map(self._hit, some), key=lambda hit: (hit.item.repository, hit.item.folder, hit.item.name))
            return
        async for page in self._in_place():
            yield page

    async def _in_place(self) -> AsyncGenerator[list[Hit], None]:
        """Yield items in the order of the primary key; each page begins behind the last item of the one before."""
        left, offset, after = self._query.limit, self._query.offset, None
        if left is None or left > PAGE:
            await self._admit()
            await self._refuse_too_many(self._limits.results_max, "aql_results_max")
        while True:
            size = PAGE if left is None else min(PAGE, left)
            arguments = self._arguments()
            behind = "" if after is None else f" AND ({PLACE}) > ({place_of(after, arguments)})"
            window = f"LIMIT {arguments.add(size, 'bigint')} OFFSET {arguments.add(offset, 'bigint')}"
            sql = self._items(arguments, f"{behind} ORDER BY {PLACE} {window}", f"ORDER BY {PLACE}")
            rows = await self._fetch(sql, arguments.values)
            yield [self._hit(row) for row in rows]
            left = None if left is None else left - len(rows)
            if len(rows) < size or left == 0:
                return
            offset, after = 0, (rows[-1]["repo_id"], rows[-1]["folder"], rows[-1]["name"])

    async def _sorted(self) -> AsyncGenerator[list[Hit], None]:
        """Yield sorted items: their places first, all in one statement, and then page by page what they are."""
        if self._query.limit is None or self._query.limit > PAGE:
            await self._admit()
        maximum, arguments = self._limits.sorted_max, self._arguments()
        limit = maximum + 1 if self._query.limit is None else min(self._query.limit, maximum + 1)
        keys = ", ".join(sort_key(sort, self._reach.keys, arguments) for sort in self._query.sort)
        window = f"LIMIT {arguments.add(limit, 'bigint')} OFFSET {arguments.add(self._query.offset, 'bigint')}"
        sql = f"SELECT {PLACE} FROM artifacts a WHERE {self._condition} ORDER BY {keys}, {PLACE} {window}"
        places = await self._fetch(sql, arguments.values)
        if len(places) > maximum:
            raise too_many(maximum, "aql_sorted_results_max")
        for start in range(0, len(places) or 1, PAGE):
            columns = [[row[index] for row in places[start : start + PAGE]] for index in range(3)]
            yield [self._hit(row) for row in await self._fetch(BY_PLACES, columns)]

    async def _refuse_too_many(self, maximum: int, setting: str) -> None:
        """Count, before anything is answered, what would be too much. Raises ``TooManyResults``."""
        arguments = self._arguments()
        window = f"LIMIT {arguments.add(maximum + 1, 'bigint')} OFFSET {arguments.add(self._query.offset, 'bigint')}"
        sql = f"SELECT count(*) FROM (SELECT FROM artifacts a WHERE {self._condition} {window}) AS found"
        [row] = await self._fetch(sql, arguments.values)
        if min(row[0], self._query.limit or row[0]) > maximum:
            raise too_many(maximum, setting)

    def _arguments(self) -> Arguments:
        """Return the parameters of the condition, to which a statement adds its own."""
        return Arguments(list(self._where.values))

    def _items(self, arguments: Arguments, window: str = "", order: str = "") -> str:
        # The window inside: blobs are looked up for what it lets through alone.
        found = f"(SELECT a.* FROM artifacts a WHERE {self._condition}{window}) AS a"
        return f"{COLUMNS} FROM {found} {BLOB} {order}"

    def _hit(self, row: asyncpg.Record) -> Hit:
        return hit_from(row, self._reach.keys)


async def fetch_once(
    database: Database, sql: str, arguments: Sequence[Any], seconds_max: float
) -> Sequence[asyncpg.Record]:
    """Run a statement that will not come again. Raises ``SearchTooLong``, ``CatalogueUnavailable``."""
    statement = Statement("search_aql", sql)

    async def work(connection: asyncpg.Connection) -> Sequence[asyncpg.Record]:
        async with bounded(connection, statement.name, seconds_max):
            # Unnamed: what the connection keeps prepared are the statements that come all the time.
            prepared = await connection.prepare(statement.sql, name="")
            rows: Sequence[asyncpg.Record] = await prepared.fetch(*arguments)
        return rows

    return await database.search(statement, work, seconds_max=seconds_max)


def place_of(place: Place, arguments: Arguments) -> str:
    types = ("integer", "text", "text")
    return ", ".join(arguments.add(part, name) for part, name in zip(place, types, strict=True))


def too_many(maximum: int, setting: str) -> TooManyResults:
    return TooManyResults(f"The query has more than {maximum} results (setting {setting}): ask for less, or by limit.")
