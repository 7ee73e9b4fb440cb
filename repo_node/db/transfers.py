"""Copies and moves, as rows: a page of a tree at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.pool import Database, Statement
from repo_node.db.properties import Place
from repo_node.db.trash import BEYOND_ALL
from repo_node.origin import Origin
from repo_node.paths import split_path


@dataclass(frozen=True, slots=True)
class Transfer:
    """What goes where; ``source`` and ``target`` are paths in their repositories, '' is the root."""

    move: bool
    from_repository: int
    source: str
    to_repository: int
    target: str
    by: Origin
    limits: tuple[str | None, str | None, str | None] = (None, None, None)
    """What the paths at the source, at the target and of what is overwritten must match."""

    @property
    def source_place(self) -> tuple[str, str]:
        return split_path(self.source)


@dataclass(frozen=True, slots=True)
class Page:
    """What became of a page of a tree."""

    seen: int
    artifacts: int
    folders: int
    last: Place
    failed: Sequence[tuple[str, str]]
    """Paths that could not be written, each with the reason, in the words of ``transfer_item``."""
    stopped: bool


class _Undone(Exception):
    """Ends the transaction of a dry run."""

    def __init__(self, row: asyncpg.Record | None) -> None:
        super().__init__()
        self.row = row


FORGET_SECONDS = 86_400
"""How long whoever repeats a copy or a move of a folder goes on with the first attempt, where that has not ended."""

REPEAT_SECONDS = 60
"""And where it has, so that its answer may have been lost: the same request in this time means the same."""

BEGIN = Statement(
    "transfer_begin",
    f"""
    WITH stale AS (
        DELETE FROM transfers WHERE id <> $1 AND started_at < now() - interval '{FORGET_SECONDS} seconds'
    )
    INSERT INTO transfers AS t (id, target) SELECT $1, $2 FROM require_writable()
    ON CONFLICT (id) DO UPDATE
       SET target = CASE WHEN t.started_at < now() - interval '{FORGET_SECONDS} seconds' THEN excluded.target
                         ELSE t.target END,
           started_at = now()
    RETURNING target
    """,
)
END = Statement(
    "transfer_end",
    f"UPDATE transfers SET started_at = now() - interval '{FORGET_SECONDS - REPEAT_SECONDS} seconds' WHERE id = $1",
)
FIND = Statement(
    "transfer_find",
    f"SELECT target FROM transfers WHERE id = $1 AND started_at >= now() - interval '{FORGET_SECONDS} seconds'",
)
PAGE = Statement(
    "transfer_page",
    """
    SELECT p.seen, p.artifacts, p.folders, p.last_folder, p.last_name, p.failed, p.reasons, p.stopped
      FROM require_writable(), transfer_page($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,
                                             $14, $15, $16, $17, $18) p
    """,
)
PRUNE = Statement(
    "transfer_prune",
    """
    SELECT p.seen, p.last_folder, p.last_name
      FROM require_writable(), prune_folders($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) p
    """,
)


def transfer_id(*asked: str) -> bytes:
    """Return what tells requests apart: the same words, the same id."""
    return hashlib.sha256(json.dumps(asked).encode()).digest()


async def begin(database: Database, identity: bytes, target: str) -> str:
    """Note that a folder is on its way to ``target``; return where an attempt that has not ended was on its way to."""
    row: Any = await database.write(BEGIN, identity, target)
    return str(row["target"])


async def end(database: Database, identity: bytes) -> None:
    """Note that everything has arrived, or been refused."""
    await database.write(END, identity)


async def find(database: Database, identity: bytes) -> str | None:
    """Return where an attempt that has not ended, or only lately, was on its way to."""
    row = await database.fetchrow(FIND, identity)
    return None if row is None else str(row["target"])


async def page(
    database: Database,
    transfer: Transfer,
    after: Place,
    *,
    fail_fast: bool,
    dry: bool,
    items_max: int,
    path_bytes_max: int,
    event: UUID,
) -> Page:
    """Copy or move a page of a tree; with ``dry``, only find out what would become of it.

    Safe to repeat with the same ``event``, which is that of this page alone: it is left once.

    A page that is not full is the last.
    """
    args = (
        transfer.move,
        fail_fast,
        transfer.from_repository,
        *transfer.source_place,
        transfer.to_repository,
        transfer.target,
        after.folder,
        after.name,
        items_max,
        path_bytes_max,
        transfer.by.principal,
        transfer.by.request_id,
        *transfer.limits,
        transfer.by.address,
        event,
    )

    async def and_undo(connection: asyncpg.Connection) -> asyncpg.Record:
        raise _Undone(await connection.fetchrow(PAGE.sql, *args))

    row: Any
    try:
        row = await (database.transact(PAGE, and_undo) if dry else database.write(PAGE, *args))
    except _Undone as undone:
        row = undone.row
    except asyncpg.ForeignKeyViolationError as error:
        raise CatalogueUnavailable("a repository was deleted at this moment") from error
    return Page(
        row["seen"],
        row["artifacts"],
        row["folders"],
        Place(row["last_folder"] or "", row["last_name"] or ""),
        list(zip(row["failed"], row["reasons"], strict=True)),
        row["stopped"],
    )


async def prune(database: Database, transfer: Transfer, *, items_max: int) -> None:
    """Take away the folders that a move has left empty, deepest first, in steps. Safe to repeat."""
    source, (folder, name) = transfer.source, transfer.source_place
    deeper = (f"{source}/", f"{source}0") if source else (chr(1), BEYOND_ALL)
    ranges: list[tuple[str, str, str | None]] = [(*deeper, None), (source, source + chr(1), None)]
    if source:
        ranges.append((folder, folder + chr(1), name))
    for low, high, only in ranges:
        before, seen = Place(high), items_max
        while seen == items_max:
            where = (transfer.from_repository, low, high, only, source, transfer.to_repository, transfer.target)
            row: Any = await database.write(PRUNE, *where, before.folder, before.name, items_max)
            seen, before = row["seen"], Place(row["last_folder"] or "", row["last_name"] or "")
