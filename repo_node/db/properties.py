"""Properties of artifacts and folders, as they are changed; what they are comes with the look-up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from repo_node.db.errors import CatalogueError
from repo_node.db.pool import Database, Statement
from repo_node.origin import Origin


class TooManyProperties(CatalogueError):
    """An item would have more properties than it may, in bytes; the message is its path."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Properties that get new values, and those that go."""

    put: Mapping[str, Sequence[str]]
    drop: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page of a tree begins: behind this."""

    folder: str = ""
    name: str = ""


CHANGE = Statement(
    "properties_change",
    """
    SELECT seen, last_folder, last_name
      FROM require_writable(),
           change_properties($1, $2, $3, $4, $5, $6, $7, $8::jsonb, $9::text[], $10, $11, $12, $13)
    """,
)


async def change(
    database: Database,
    repository_id: int,
    folder: str,
    name: str,
    changes: Changes,
    *,
    recursive: bool,
    after: Place,
    items_max: int,
    bytes_max: int,
    by: Origin,
) -> tuple[int, Place]:
    """Change a page of a tree, all or nothing; return how many items it had and where it ended. Safe to repeat.

    A page that is not full is the last. Raises ``TooManyProperties``.
    """
    put, drop = json.dumps(changes.put), list(changes.drop)
    scope = (repository_id, folder, name, recursive, after.folder, after.name, items_max)
    try:
        row: Any = await database.write(CHANGE, *scope, put, drop, bytes_max, *by)
    except asyncpg.PostgresError as error:
        if error.sqlstate == "HF007":
            raise TooManyProperties(str(error)) from None
        raise
    return int(row["seen"]), Place(row["last_folder"] or "", row["last_name"] or "")
