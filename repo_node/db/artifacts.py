"""Artifacts and folders: look-up, listing, making folders, deletion."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from operator import itemgetter
from typing import Any
from uuid import UUID

import asyncpg

from repo_node.db.blobs import PathConflict
from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.paging import pages
from repo_node.db.pool import Database, Statement
from repo_node.origin import Origin
from repo_node.paths import ArtifactPath, join_path
from sharding.model import BLOCK_DIGEST_BYTES, Generation, Replica, ShardId

FIRST_BLOCKS = 256
"""Block digests that come with the look-up: the whole of any blob up to 256 MiB."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob and where its copies are; ``first_digests`` cover its first ``FIRST_BLOCKS`` blocks.

    ``sha1`` and ``md5`` are None as long as no upload of it wanted them.
    """

    id: int
    uid: UUID
    size: int
    sha256: bytes
    sha1: bytes | None
    md5: bytes | None
    first_digests: bytes
    replicas: tuple[Replica, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """An artifact, or a folder when ``blob`` is None."""

    repository: str
    folder: str
    name: str
    created_at: datetime
    created_by: str
    modified_at: datetime
    modified_by: str
    updated_at: datetime
    properties: Mapping[str, Sequence[str]]
    blob: Blob | None

    @property
    def path(self) -> str:
        return join_path(self.folder, self.name)


def place_of(item: Item) -> ArtifactPath:
    """Return where an item lies."""
    return ArtifactPath(item.repository, item.folder, item.name)


@dataclass(frozen=True, slots=True)
class Child:
    name: str
    is_folder: bool


@dataclass(frozen=True, slots=True)
class LookUp:
    """What is at a path: the repository's id, or None when there is none, and the item, or None.

    An artifact that the repository's patterns hide is not there.
    """

    repository_id: int | None
    item: Item | None
    is_virtual: bool = False
    """Whether the repository has nothing of its own, and shows others."""


# OFFSET keeps the planner from joining the tables as wholes: where they are nearly empty that looks as cheap, and the
# plan is kept while they grow.
RESOLVE = Statement(
    "artifact_resolve",
    f"""
    SELECT r.id AS repo_id, r.key, r.rclass = 'virtual' AS is_virtual, a.folder, a.name, a.created_at, a.created_by,
           a.modified_at, a.modified_by, a.updated_at, a.properties, b.id AS blob_id, b.uid, b.size, b.sha256,
           b.sha1, b.md5, substring(b.block_digests FROM 1 FOR {FIRST_BLOCKS * BLOCK_DIGEST_BYTES}) AS first_digests,
           c.shards, c.generations, c.suspects
      FROM (SELECT) AS one_row_always
      LEFT JOIN repositories r ON r.key = $1
      LEFT JOIN LATERAL (
            SELECT * FROM artifacts f
             WHERE f.repo_id = r.id AND f.folder = $2 AND f.name = $3
               AND (f.blob_id IS NULL OR shows(r.paths_regex, f.folder, f.name)) OFFSET 0
           ) a ON true
      LEFT JOIN LATERAL (SELECT * FROM blobs f WHERE f.id = a.blob_id OFFSET 0) b ON true
      LEFT JOIN LATERAL (
            SELECT array_agg(p.shard_id) AS shards, array_agg(p.generation) AS generations,
                   array_agg(p.state = 'suspect') AS suspects
              FROM replicas p WHERE p.blob_id = b.id
           ) c ON true
    """,
)
CHILDREN = Statement(
    "folder_children",
    """
    SELECT a.name, a.blob_id IS NULL AS is_folder FROM artifacts a JOIN repositories r ON r.id = a.repo_id
     WHERE a.repo_id = $1 AND a.folder = $2 AND a.name > $3
       AND (a.blob_id IS NULL OR shows(r.paths_regex, a.folder, a.name))
     ORDER BY a.name LIMIT $4
    """,
)
# What was there when the statement began is told by its snapshot, which does not see what the function makes.
MAKE_FOLDER = Statement(
    "folder_make",
    r"""
    WITH known AS (
        SELECT 1 FROM artifacts a
         WHERE a.repo_id = $1 AND a.folder = coalesce(substring($2 FROM '^(.*)/[^/]*$'), '')
           AND a.name = substring($2 FROM '[^/]*$') AND a.blob_id IS NULL
    ), made AS MATERIALIZED (
        SELECT ensure_folder($1, $2, $3) AS made FROM require_writable()
    ), noted AS (
        INSERT INTO events (kind, repository, path, principal, request_id, address)
        SELECT 'folder', r.key, $2, $3, $4, $5 FROM repositories r, made m
         WHERE r.id = $1 AND $2 <> '' AND m.made AND NOT EXISTS (SELECT 1 FROM known)
    )
    SELECT m.made FROM made m
    """,
)
DELETE = Statement("item_delete", "SELECT gone, done FROM require_writable(), delete_step($1, $2, $3, $4, $5, $6, $7)")
DELETE_ARTIFACT = Statement(
    "artifact_delete",
    """
    SELECT gone, done
      FROM require_writable(), limit_to('folder', $1) AS l (repo), delete_step(l.repo, $2, $3, $4, $5, $6, $7)
    """,
)

DELETE_PAGE = 5_000
"""Rows that one step of a deletion removes: it keeps others from its repository for a fraction of a second."""


async def resolve(database: Database, repository: str, folder: str, name: str) -> LookUp:
    """Return what is at a path, with the blob and its replicas, in one query."""
    row: Any = await database.fetchrow(RESOLVE, repository, folder, name)
    return look_up_from(row)


async def resolve_each(database: Database, paths: Sequence[tuple[str, str, str]]) -> list[LookUp]:
    """Return what is at each of ``paths`` (repository, folder, name), in one round trip."""
    return [look_up_from(row) for row in await database.fetch_each(RESOLVE, paths)]


def look_up_from(row: asyncpg.Record) -> LookUp:
    if row["name"] is None:
        return LookUp(row["repo_id"], None, row["is_virtual"] is True)
    blob = None if row["blob_id"] is None else blob_from(row)
    return LookUp(row["repo_id"], item_from(row, row["key"], blob))


def item_from(row: asyncpg.Record, repository: str, blob: Blob | None) -> Item:
    return Item(
        repository=repository,
        folder=row["folder"],
        name=row["name"],
        created_at=row["created_at"],
        created_by=row["created_by"],
        modified_at=row["modified_at"],
        modified_by=row["modified_by"],
        updated_at=row["updated_at"],
        properties={} if row["properties"] == "{}" else json.loads(row["properties"]),
        blob=blob,
    )


def blob_from(row: asyncpg.Record) -> Blob:
    replicas = zip(row["shards"] or (), row["generations"] or (), row["suspects"] or (), strict=True)
    return Blob(
        id=row["blob_id"],
        uid=row["uid"],
        size=row["size"],
        sha256=row["sha256"],
        sha1=row["sha1"],
        md5=row["md5"],
        first_digests=row["first_digests"],
        replicas=tuple(Replica(ShardId(s), Generation(g), suspect) for s, g, suspect in replicas),
    )


async def children(
    database: Database, repository_id: int, folder: str, *, rows_max: int | None = None
) -> AsyncGenerator[list[Child], None]:
    """Yield what lies directly in a folder, by name, in pages (see ``paging.pages``)."""
    fetch = partial(database.fetch, CHILDREN, repository_id, folder)
    by_name = pages(fetch, "", itemgetter("name"), rows_max=rows_max)
    async with aclosing(by_name):
        async for rows in by_name:
            yield [Child(row["name"], row["is_folder"]) for row in rows]


async def make_folder(database: Database, repository_id: int, path: str, *, by: Origin) -> None:
    """Make a folder and its ancestors; one that exists is no error. Raises ``PathConflict``."""
    try:
        row: Any = await database.write(MAKE_FOLDER, repository_id, path, *by)
    except asyncpg.ForeignKeyViolationError as error:
        raise CatalogueUnavailable("the repository was deleted at this moment") from error
    if not row["made"]:
        raise PathConflict(f"a part of {path} is an artifact, not a folder")


async def delete(
    database: Database,
    repository_id: int,
    folder: str,
    name: str,
    *,
    by: Origin,
    folders: bool = True,
    check: Callable[[], object] = lambda: None,
) -> int:
    """Delete an artifact, or a folder with all in it; returns how many items went, 0 when there was none.

    Without ``folders``, a folder raises ``NotPermitted``.

    A large folder goes in steps, from its end; one that is interrupted has lost a part, and goes on when asked again.
    ``check`` is asked before each step, and ends the rest by raising.
    """
    items = 0
    while True:
        check()
        statement = DELETE if folders else DELETE_ARTIFACT
        row: Any = await database.write(statement, repository_id, folder, name, DELETE_PAGE, *by)
        items += int(row["gone"])
        if row["done"]:
            return items
