"""What lies in a folder, near and deep, a page at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from operator import itemgetter

import asyncpg

from repo_node.db.paging import pages
from repo_node.db.pool import Database, Statement
from repo_node.db.trash import BEYOND_ALL
from repo_node.paths import join_path, split_path


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
PERMITTED = "($5::text IS NULL OR concat_ws('/', nullif(a.folder, ''), a.name) ~ $5)"
LAST_MODIFIED = Statement(
    "tree_last_modified",
    f"""
    SELECT found.folder, found.name, found.modified_at FROM (
        (SELECT a.folder, a.name, a.modified_at FROM artifacts a
          WHERE a.repo_id = $1 AND a.folder = $2 AND a.blob_id IS NOT NULL AND {PERMITTED}
          ORDER BY a.modified_at DESC LIMIT 1)
        UNION ALL
        (SELECT a.folder, a.name, a.modified_at FROM artifacts a
          WHERE a.repo_id = $1 AND a.folder >= $3 AND a.folder < $4 AND a.blob_id IS NOT NULL
            AND {PERMITTED} ORDER BY a.modified_at DESC LIMIT 1)
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


async def last_modified(
    database: Database, repository_id: int, path: str, limit: str | None = None
) -> tuple[str, datetime] | None:
    """Return the path and the time of what was modified last in a folder, among the paths that match ``limit``.

    None when it holds no such artifact.
    """
    low, high = (f"{path}/", f"{path}0") if path else (chr(1), BEYOND_ALL)
    row = await database.fetchrow(LAST_MODIFIED, repository_id, path, low, high, limit)
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
