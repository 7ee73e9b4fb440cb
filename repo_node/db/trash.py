"""The trash: what was deleted or overwritten, listed, brought back, and let go for good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import asyncpg

from repo_node.db.blobs import PathConflict
from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.garbage import as_primary
from repo_node.db.lease import Lease
from repo_node.db.pool import Database, Statement
from repo_node.origin import Origin
from repo_node.paths import join_path


@dataclass(frozen=True, slots=True)
class Trashed:
    """One thing in the trash, as it was at its place."""

    id: int
    repository: str
    folder: str
    name: str
    size: int
    sha256: bytes
    reason: str
    trashed_at: datetime
    trashed_by: str

    @property
    def path(self) -> str:
        return join_path(self.folder, self.name)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page of a listing begins: behind this."""

    repository: str = ""
    folder: str = ""
    name: str = ""
    id: int = 0


class Restored(StrEnum):
    RESTORED = "restored"
    ALREADY = "already"
    EXISTS = "exists"
    GONE = "gone"


DELETED = "deleted"
"""The reason of what was deleted; the other is ``overwritten``."""

BEYOND_ALL = chr(0x10FFFF) * 100
"""Above every folder: no segment of a path is long enough to be above it."""

COLUMNS = """
    t.id, t.repository, t.folder, t.name, b.size, b.sha256, t.reason, t.trashed_at, t.trashed_by
"""
LIST = Statement(
    "trash_list",
    f"""
    SELECT {COLUMNS} FROM trash t JOIN blobs b ON b.id = t.blob_id
     WHERE (t.repository, t.folder, t.name, t.id) > ($1, $2, $3, $4)
     ORDER BY t.repository, t.folder, t.name, t.id LIMIT $5
    """,
)
# Below a folder lies whatever is between folder || '/' and folder || '0'.
LIST_TREE = Statement(
    "trash_list_tree",
    f"""
    SELECT {COLUMNS} FROM trash t JOIN blobs b ON b.id = t.blob_id
     WHERE t.repository = $1 AND (t.folder, t.name, t.id) > ($2, $3, $4) AND t.folder < $7
       AND ($6 = '' OR t.folder = $6 OR (t.folder >= $6 || '/' AND t.folder < $6 || '0'))
     ORDER BY t.folder, t.name, t.id LIMIT $5
    """,
)
LIST_PATH = Statement(
    "trash_list_path",
    f"""
    SELECT {COLUMNS} FROM trash t JOIN blobs b ON b.id = t.blob_id
     WHERE t.repository = $1 AND t.folder = $2 AND t.name = $3 AND t.id > $4 ORDER BY t.id LIMIT $5
    """,
)
LAST_AT = Statement(
    "trash_last_at",
    f"""
    SELECT {COLUMNS} FROM trash t JOIN blobs b ON b.id = t.blob_id
     WHERE t.repository = $1 AND t.folder = $2 AND t.name = $3 ORDER BY t.id DESC LIMIT 1
    """,
)
# What came back from the trash keeps its created_at; an upload's is later. A snapshot is enough: whoever reads an
# older version as the newest, or what a restore threw away, does so after that restore was committed.
RESTORE = Statement(
    "trash_restore",
    """
    SELECT CASE WHEN NOT $9 AND EXISTS (
               SELECT 1 FROM artifacts a JOIN trash t ON t.id = $1
                WHERE a.repo_id = $2 AND a.folder = $3 AND a.name = $4 AND a.blob_id IS NOT NULL
                  AND a.created_at < a.restored_at AND t.trashed_at <= a.restored_at
           ) THEN 'already' ELSE restore_trash($1, $2, $3, $4, $5, $6, $7, $8) END AS outcome
      FROM require_writable()
    """,
)
EMPTY = Statement("trash_empty", "SELECT empty_trash($1::bigint[], 'released') AS gone FROM require_writable()")
RECORD_EMPTIED = Statement(
    "trash_emptied",
    """
    INSERT INTO events (kind, repository, path, principal, request_id, address, detail)
    VALUES ('trash_empty', $1, $2, $3, $4, $5, jsonb_build_object('items', $6::bigint))
    """,
)
# Ids and times grow together: the oldest are the first, and a page of them is enough to look at.
EXPIRE = Statement(
    "trash_expire",
    """
    WITH emptied AS MATERIALIZED (
        SELECT empty_trash(ARRAY(
                   SELECT o.id FROM (SELECT t.id, t.trashed_at FROM trash t ORDER BY t.id LIMIT $4) AS o
                    WHERE o.trashed_at < clock_timestamp() - make_interval(secs => $3)
               ), 'expired') AS gone
          FROM require_writable(), require_lease($1, $2) WHERE NOT deletions_held()
    ), noted AS (
        INSERT INTO events (kind, principal, request_id, detail)
        SELECT 'trash_expire', 'holdfast', '', jsonb_build_object('items', e.gone, 'epoch', $1::bigint)
          FROM emptied e WHERE e.gone > 0
    )
    SELECT gone FROM emptied
    """,
)


async def list_all(database: Database, after: Position, items_max: int) -> list[Trashed]:
    """Return a page of the whole trash, by place and age."""
    rows = await database.fetch(LIST, after.repository, after.folder, after.name, after.id, items_max)
    return [trashed_from(row) for row in rows]


async def list_tree(database: Database, repository: str, folder: str, after: Position, items_max: int) -> list[Trashed]:
    """Return a page of what lay in a folder of a repository and below it, by place and age; '' is the whole."""
    if folder and after.folder < folder:
        after = Position(repository, folder)
    beyond = f"{folder}0" if folder else BEYOND_ALL
    rows = await database.fetch(LIST_TREE, repository, after.folder, after.name, after.id, items_max, folder, beyond)
    return [trashed_from(row) for row in rows]


async def list_path(
    database: Database, repository: str, folder: str, name: str, after: int, items_max: int
) -> list[Trashed]:
    """Return a page of what lay at exactly this path, by age, behind an id."""
    return [trashed_from(row) for row in await database.fetch(LIST_PATH, repository, folder, name, after, items_max)]


async def find_last(database: Database, repository: str, folder: str, name: str) -> Trashed | None:
    """Return what was thrown away last at exactly this path."""
    row = await database.fetchrow(LAST_AT, repository, folder, name)
    return None if row is None else trashed_from(row)


async def restore(
    database: Database,
    trashed: int,
    repository_id: int,
    folder: str,
    name: str,
    *,
    replace: bool,
    by: Origin,
    again: bool = False,
) -> Restored:
    """Bring one thing back to a path; with ``replace`` what is there goes to the trash. Raises ``PathConflict``.

    ``ALREADY``: the path holds what a restore brought back after this went to the trash, or threw this away for; with
    ``again`` that does not matter.
    """
    try:
        row: Any = await database.write(RESTORE, trashed, repository_id, folder, name, replace, *by, again)
    except asyncpg.ForeignKeyViolationError as error:
        raise CatalogueUnavailable("the repository was deleted at this moment") from error
    except asyncpg.PostgresError as error:
        if error.sqlstate == "HF001":
            raise PathConflict(str(error)) from None
        raise
    return Restored(row["outcome"])


async def empty(database: Database, ids: Sequence[int]) -> int:
    """Let go of these for good; return how many were there."""
    row: Any = await database.write(EMPTY, list(ids))
    return int(row["gone"])


async def record_emptied(
    database: Database, repository: str | None, path: str | None, *, items: int, by: Origin
) -> None:
    """Note who emptied the trash, or a part of it."""
    await database.write(RECORD_EMPTIED, repository, path, *by, items)


async def expire(database: Database, lease: Lease, *, age_seconds: float, items_max: int) -> int:
    """Let go of the oldest that have been in the trash for longer; return how many. Raises ``NotPrimary``."""
    row = await as_primary(database.write(EXPIRE, lease.epoch, lease.token, age_seconds, items_max))
    return 0 if row is None else int(row["gone"])


def trashed_from(row: asyncpg.Record) -> Trashed:
    return Trashed(
        id=row["id"],
        repository=row["repository"],
        folder=row["folder"],
        name=row["name"],
        size=row["size"],
        sha256=row["sha256"],
        reason=row["reason"],
        trashed_at=row["trashed_at"],
        trashed_by=row["trashed_by"],
    )
