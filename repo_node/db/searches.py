"""Searches over artifacts: each a statement of fixed form, bounded in results and, by Postgres, in time.

Every one is told the ids of the repositories that it may look into. They are planned for the values at hand, since
a pattern that begins with letters and one that begins with a star want different plans.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from repo_node.db.artifacts import Blob, Item, item_from
from repo_node.db.downloads import Downloads
from repo_node.db.errors import CatalogueError
from repo_node.db.pool import Database, Statement
from repo_node.db.scopes import RowScope, in_scope, in_subtrees, scope_args


class SearchTooLong(CatalogueError):
    """A search was ended because it took longer than it may."""


@dataclass(frozen=True, slots=True)
class Hit:
    """Something that was found; its blob comes without digests of blocks and without replicas."""

    repository_id: int
    item: Item
    downloads: Downloads


@dataclass(frozen=True, slots=True)
class Span:
    """Text from ``low``, up to but without ``high``."""

    low: str
    high: str


COLUMNS = """
    SELECT a.repo_id, a.folder, a.name, a.created_at, a.created_by, a.modified_at, a.modified_by, a.updated_at,
           a.properties, a.downloads, a.downloaded_at, a.downloaded_by,
           b.id AS blob_id, b.uid, b.size, b.sha256, b.sha1, b.md5
"""
# A look-up for each row: a page of results never makes it worth while to read all blobs.
BLOB = "LEFT JOIN LATERAL (SELECT s.* FROM blobs s WHERE s.id = a.blob_id LIMIT 1) b ON true"
PLAN = """
    SELECT set_config('statement_timeout', $1, true), set_config('plan_cache_mode', 'force_custom_plan', true),
           set_config('enable_seqscan', 'off', true)
"""


@dataclass(frozen=True, slots=True)
class Search(Statement):
    """A search through whole repositories; ``form`` gives the one that sees only rows of which a condition holds."""

    form: Callable[[str], str]
    args_count: int

    def scoped(self, scope: RowScope) -> tuple[Statement, tuple[Any, ...]]:
        """Return the search that sees only the rows in a scope, and its last arguments."""
        first = 1 + self.args_count
        args = scope_args(scope)
        narrowed, more = in_subtrees(scope, first + len(args))
        return Statement(f"{self.name}_in_scope", self.form(f"{narrowed} AND {in_scope(first)}")), (*args, *more)


def search(name: str, sql: Callable[[str], str]) -> Search:
    """Return a search for what ``sql`` gives, which is told a further condition on the rows ``a``."""
    plain = sql("true")
    return Search(f"search_{name}", plain, sql, max(int(number) for number in re.findall(r"\$(\d+)", plain)))


def search_rows(name: str, condition: str) -> Search:
    """Return the search for what fulfils ``condition`` in the repositories $1, of which $2 are enough."""
    return search(
        name,
        lambda scope: (
            f"""
            {COLUMNS} FROM artifacts a {BLOB} WHERE a.repo_id = ANY ($1::integer[]) AND {condition} AND {scope} LIMIT $2
        """
        ),
    )


# Where a pattern begins with a star, an index alone answers the inner look-up; the rest is read for what is found.
BY_NAME = search(
    "name",
    lambda scope: (
        f"""
    {COLUMNS} FROM (
        SELECT n.repo_id, n.folder, n.name FROM artifacts n
         WHERE n.name ~>=~ $3 AND n.name ~<~ $4 AND n.name LIKE $5 AND n.repo_id = ANY ($1::integer[]) OFFSET 0
    ) AS found CROSS JOIN LATERAL (
        SELECT f.* FROM artifacts f
         WHERE f.repo_id = found.repo_id AND f.folder = found.folder AND f.name = found.name
           AND f.blob_id IS NOT NULL LIMIT 1
    ) AS a {BLOB} WHERE {scope} LIMIT $2
    """
    ),
)
BY_PATH = search_rows(
    "path",
    """
    a.folder >= $3 AND a.folder < $4 AND a.name ~>=~ $5 AND a.name ~<~ $6
    AND concat_ws('/', nullif(a.folder, ''), a.name) ~ $7 AND a.blob_id IS NOT NULL
    """,
)
BY_SHA256, BY_SHA1, BY_MD5 = (
    search_rows(kind, f"a.blob_id IN (SELECT k.id FROM blobs k WHERE k.{kind} = $3)")
    for kind in ("sha256", "sha1", "md5")
)
# $4 are all names asked for; $5 and $6 are names and patterns of which some value must be alike.
PROPERTIES = """
    a.properties <> '{}' AND a.properties @> $3::jsonb AND a.properties ?& $4::text[]
    AND NOT EXISTS (
        SELECT 1 FROM unnest($5::text[], $6::text[]) AS wanted (key, pattern)
         WHERE NOT EXISTS (
            SELECT 1 FROM jsonb_array_elements_text(a.properties -> wanted.key) AS v WHERE v LIKE wanted.pattern))
"""
BY_PROPERTIES = search_rows("properties", PROPERTIES)
BY_TIME = search_rows(
    "time",
    """
    a.blob_id IS NOT NULL AND (($5 AND a.created_at >= $3 AND a.created_at <= $4)
                               OR ($6 AND a.modified_at >= $3 AND a.modified_at <= $4)
                               OR ($7 AND a.downloaded_at >= $3 AND a.downloaded_at <= $4))
    """,
)
BY_USAGE = search_rows(
    "usage", "a.blob_id IS NOT NULL AND a.created_at < $4 AND (a.downloaded_at IS NULL OR a.downloaded_at < $3)"
)
IN_TREE = """
    ($7 = '' OR a.folder = $7 OR (a.folder >= $7 || '/' AND a.folder < $7 || '0'))
"""
PROPERTY_VALUES = search(
    "property_values",
    lambda scope: (
        f"""
    SELECT DISTINCT v.value FROM artifacts a, jsonb_array_elements_text(a.properties -> $8) AS v (value)
     WHERE a.repo_id = ANY ($1::integer[]) AND a.blob_id IS NOT NULL AND {PROPERTIES} AND {IN_TREE} AND {scope}
     LIMIT $2
    """
    ),
)
BY_PROPERTIES_IN_TREE = search_rows("properties_in_tree", f"a.blob_id IS NOT NULL AND {PROPERTIES} AND {IN_TREE}")
FOLDERS_IN = search(
    "folders",
    lambda scope: (
        f"""
    SELECT DISTINCT a.name FROM artifacts a
     WHERE a.repo_id = ANY ($1::integer[]) AND a.folder = $3 AND a.blob_id IS NULL AND {scope} LIMIT $2
    """
    ),
)


async def find(
    database: Database,
    asked: Search,
    repositories: Mapping[int, str],
    scope: RowScope,
    *args: Any,
    results_max: int,
    seconds_max: float,
) -> list[Hit]:
    """Return at most ``results_max`` of what a search finds in a scope, in no order; ``repositories`` are id to key.

    Raises ``SearchTooLong``, ``CatalogueUnavailable``.
    """
    rows = await _bounded(database, asked, scope, seconds_max, results_max, *args)
    return [hit_from(row, repositories) for row in rows]


async def values(
    database: Database, asked: Search, scope: RowScope, *args: Any, results_max: int, seconds_max: float
) -> list[str]:
    """Return at most ``results_max`` texts, as ``find`` does with items."""
    return [row[0] for row in await _bounded(database, asked, scope, seconds_max, results_max, *args)]


@asynccontextmanager
async def bounded(connection: asyncpg.Connection, name: str, seconds_max: float) -> AsyncIterator[None]:
    """Let statements of the transaction be planned for their values, and each take ``seconds_max`` at most.

    Raises ``SearchTooLong``.
    """
    # 0 would be for ever.
    await connection.fetchrow(PLAN, f"{max(int(seconds_max * 1000), 1)}ms")
    try:
        yield
    except asyncpg.QueryCanceledError:
        raise SearchTooLong(f"{name}: ended after {seconds_max:g} s") from None


async def _bounded(
    database: Database, asked: Search, scope: RowScope, seconds_max: float, results_max: int, *args: Any
) -> Sequence[asyncpg.Record]:
    # Whoever may read whole repositories pays for no condition on their rows.
    statement, limits = asked.scoped(scope) if scope.partial else (asked, ())
    every = ([*scope.whole, *scope.partial], results_max, *args, *limits)

    async def work(connection: asyncpg.Connection) -> Sequence[asyncpg.Record]:
        async with bounded(connection, statement.name, seconds_max):
            rows: Sequence[asyncpg.Record] = await connection.fetch(statement.sql, *every)
        return rows

    return await database.search(statement, work, seconds_max=seconds_max)


def hit_from(row: asyncpg.Record, repositories: Mapping[int, str]) -> Hit:
    item = item_from(row, repositories[row["repo_id"]], None if row["blob_id"] is None else blob_from(row))
    return Hit(row["repo_id"], item, Downloads(row["downloads"], row["downloaded_at"], row["downloaded_by"]))


def blob_from(row: asyncpg.Record) -> Blob:
    return Blob(row["blob_id"], row["uid"], row["size"], row["sha256"], row["sha1"], row["md5"], b"", ())


@dataclass(frozen=True, slots=True)
class Times:
    """Which times of an artifact a search by time looks at."""

    created: bool = False
    modified: bool = False
    downloaded: bool = False


def time_args(since: datetime, until: datetime, times: Times) -> tuple[Any, ...]:
    return since, until, times.created, times.modified, times.downloaded
