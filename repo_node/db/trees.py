"""What lies in a folder, near and deep, a page at a time."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from operator import itemgetter

import asyncpg

from repo_node.db.paging import FIRST_PAGE, PAGE, pages
from repo_node.db.pool import Database, Statement
from repo_node.db.searches import bounded
from repo_node.db.trash import BEYOND_ALL
from repo_node.paths import join_path, split_path


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What of a tree is wanted: down to ``levels`` (None: all), with ``folders`` or without.

    ``reach`` and ``shown`` are regular expressions, None for all: of the folders in which something may be wanted, and
    of the artifacts that are.
    """

    levels: int | None
    folders: bool
    reach: str | None
    shown: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of a list; ``sha256`` and ``size`` are None for a folder."""

    folder: str
    name: str
    modified_at: datetime
    updated_at: datetime
    has_properties: bool
    size: int | None
    sha1: bytes | None
    sha256: bytes | None

    @property
    def path(self) -> str:
        return join_path(self.folder, self.name)

    @property
    def is_folder(self) -> bool:
        return self.sha256 is None


COLUMNS = """
    t.folder, t.name, t.modified_at, t.updated_at, t.properties <> '{}' AS has_properties, b.size, b.sha1, b.sha256
"""
# A look-up for each row, whatever the planner makes of the number of rows that a page has.
BLOB = "LEFT JOIN LATERAL (SELECT s.size, s.sha1, s.sha256 FROM blobs s WHERE s.id = t.blob_id LIMIT 1) b ON true"
CHILDREN = Statement(
    "tree_children",
    f"""
    SELECT {COLUMNS} FROM artifacts t JOIN repositories r ON r.id = t.repo_id {BLOB}
     WHERE t.repo_id = $1 AND t.folder = $2 AND t.name > $3
       AND (t.blob_id IS NULL OR shows(r.paths_regex, t.folder, t.name))
     ORDER BY t.name LIMIT $4
    """,
)
TREE = Statement(
    "tree_page",
    f"""
    SELECT {COLUMNS} FROM tree_page($1, $2, $3, $4, $5, $6) t {BLOB}
     ORDER BY t.folder, t.name
    """,
)
# The last row of a page behind which there is more is no item, and finds no blob.
WALK = Statement(
    "tree_walk",
    f"""
    SELECT {COLUMNS}, w.more FROM tree_walk($1, $2, $3, $4, $5, $6, $7, $8, $9) w, LATERAL (SELECT (w.item).*) t {BLOB}
     ORDER BY w.more, t.folder, t.name
    """,
)
PERMITTED = "($5::text IS NULL OR concat_ws('/', nullif(a.folder, ''), a.name) ~ $5)"
# Of a large folder, the index of times knows what is of late, and none knows what is the last.
LATELY = "a.modified_at >= coalesce(now() - $6::interval, '-infinity')"
WINDOWS = (timedelta(days=1), timedelta(days=30), None)
LAST_MODIFIED = Statement(
    "tree_last_modified",
    f"""
    SELECT found.folder, found.name, found.modified_at FROM (
        (SELECT a.folder, a.name, a.modified_at FROM artifacts a
          WHERE a.repo_id = $1 AND a.folder = $2 AND a.blob_id IS NOT NULL AND {LATELY} AND {PERMITTED}
          ORDER BY a.modified_at DESC LIMIT 1)
        UNION ALL
        (SELECT a.folder, a.name, a.modified_at FROM artifacts a
          WHERE a.repo_id = $1 AND a.folder >= $3 AND a.folder < $4 AND a.blob_id IS NOT NULL
            AND {LATELY} AND {PERMITTED} ORDER BY a.modified_at DESC LIMIT 1)
    ) AS found ORDER BY found.modified_at DESC LIMIT 1
    """,
)


async def children(
    database: Database, repository_id: int, path: str, *, rows_max: int | None = None
) -> AsyncGenerator[Sequence[Entry], None]:
    """Yield pages of what lies directly in a folder, by name; the first may be empty."""
    fetch = partial(database.fetch, CHILDREN, repository_id, path)
    by_name = pages(fetch, "", itemgetter("name"), rows_max=rows_max)
    async with aclosing(by_name):
        async for rows in by_name:
            yield [entry_from(row) for row in rows]


async def tree(
    database: Database, repository_id: int, path: str, *, rows_max: int | None = None
) -> AsyncGenerator[Sequence[Entry], None]:
    """Yield pages of an artifact or a folder and all that lies in it, by path; the first may be empty."""

    async def fetch(after: tuple[str, str], limit: int) -> list[asyncpg.Record]:
        return await database.fetch(TREE, repository_id, *split_path(path), *after, limit)

    by_path = pages(fetch, ("", ""), itemgetter("folder", "name"), rows_max=rows_max)
    async with aclosing(by_path):
        async for rows in by_path:
            yield [entry_from(row) for row in rows]


async def walk(
    database: Database, repository_id: int, path: str, wanted: Narrowing, *, rows_max: int | None = None
) -> AsyncGenerator[Sequence[Entry], None]:
    """Yield pages, some of them empty, of what lies in a folder and is wanted, by path.

    It costs what it shows and the places at which it passes over the rest: a page has at most ``rows_max`` of both.
    """
    narrowed = (wanted.levels, wanted.folders, wanted.reach, wanted.shown)
    after, limit, most = ("", ""), FIRST_PAGE, PAGE if rows_max is None else rows_max
    while True:
        rows = await database.fetch(WALK, repository_id, path, *after, min(limit, most), *narrowed)
        more = bool(rows) and rows[-1]["more"]
        yield [entry_from(row) for row in rows if not row["more"]]
        if not more:
            return
        after, limit = (rows[-1]["folder"], rows[-1]["name"]), most


async def last_modified(
    database: Database, repository_id: int, path: str, limit: str | None = None, *, seconds_max: float
) -> tuple[str, datetime] | None:
    """Return the path and the time of what was modified last in a folder, among the paths that match ``limit``.

    None when it holds no such artifact. Raises ``SearchTooLong``.
    """
    low, high = (f"{path}/", f"{path}0") if path else (chr(1), BEYOND_ALL)

    async def work(connection: asyncpg.Connection) -> asyncpg.Record | None:
        ends_at = time.monotonic() + seconds_max
        for window in WINDOWS:
            async with bounded(connection, LAST_MODIFIED.name, ends_at - time.monotonic()):
                row = await connection.fetchrow(LAST_MODIFIED.sql, repository_id, path, low, high, limit, window)
            if row is not None:
                return row
        return None

    row = await database.search(LAST_MODIFIED, work, seconds_max=seconds_max)
    return None if row is None else (join_path(row["folder"], row["name"]), row["modified_at"])


def entry_from(row: asyncpg.Record) -> Entry:
    return Entry(
        folder=row["folder"],
        name=row["name"],
        modified_at=row["modified_at"],
        updated_at=row["updated_at"],
        has_properties=row["has_properties"],
        size=row["size"],
        sha1=row["sha1"],
        sha256=row["sha256"],
    )
