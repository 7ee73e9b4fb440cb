"""Content that is known already: found by a digest, and deployed without its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import accumulate, chain, starmap
from typing import Any
from uuid import UUID

import asyncpg

from repo_node.db.blobs import refusing_conflicts
from repo_node.db.pool import Database, Statement
from repo_node.db.scopes import RowScope, in_scope, scope_args
from repo_node.origin import Origin
from sharding.model import Generation, Replica, ShardId


class LinkOutcome(StrEnum):
    LINKED = "linked"
    UNKNOWN = "unknown"
    NO_REPOSITORY = "no_repository"


@dataclass(frozen=True, slots=True)
class KnownContent:
    """A blob that an artifact refers to, and its good replicas."""

    id: int
    size: int
    sha256: bytes
    sha1: bytes | None
    md5: bytes | None
    replicas: tuple[Replica, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """Everything the commit of an upload without bytes writes; ``copies_min`` and ``zones_min`` are what it demands."""

    upload: UUID
    started_at: datetime
    repository_id: int
    folder: str
    name: str
    properties_json: str
    by: Origin
    blob_id: int
    redundancy: int
    copies_min: int
    zones_min: int
    may_overwrite: bool = True


Linked = tuple[LinkOutcome, datetime | None]
"""What became of a link, and since when the artifact is there."""

LinkRequest = tuple[Link, Sequence[Generation]]
"""A link, and the generations of which their shards said, during its request, that the file is there."""


def find_statement(digest: str, scope: str | None = None) -> Statement:
    """Return the look-up of content by a digest; ``scope`` is a condition on the artifacts that have it.

    What only the trash or nothing refers to cannot be read by anybody, and so is not known to anybody. By sha256 it
    always gives one row.
    """
    return Statement(
        f"known_by_{digest}{'_in_scope' if scope else ''}",
        f"""
        SELECT k.*
          FROM (SELECT) AS one_row_at_least
          LEFT JOIN LATERAL (
                SELECT b.id, b.size, b.sha256, b.sha1, b.md5, c.shards, c.generations
                  FROM blobs b
                 CROSS JOIN LATERAL (
                       SELECT array_agg(g.shard_id) AS shards, array_agg(g.generation) AS generations
                         FROM good_replicas(b.id) g
                       ) c
                 WHERE b.{digest} = $1
                   AND (SELECT 1 FROM artifacts a WHERE a.blob_id = b.id AND {scope or "true"} LIMIT 1) IS NOT NULL
                 LIMIT 2
               ) k ON true
        """,
    )


DIGESTS = ("sha256", "sha1", "md5")
FIND_BY = {digest: find_statement(digest) for digest in DIGESTS}
FIND_BY_IN_SCOPE = {digest: find_statement(digest, in_scope(2)) for digest in DIGESTS}


LINK_SQL = """
    SELECT outcome, created_at
      FROM require_writable(), (SELECT {}) AS r (id),
           deploy_known($1, $2, r.id, $4, $5, $6::jsonb, $7, $8, $9, $10, $11::uuid[], $12, $13, $14)
"""
LINK = Statement("known_deploy", LINK_SQL.format("CAST($3 AS integer)"))
LINK_WITHOUT_OVERWRITING = Statement("known_deploy_new", LINK_SQL.format("limit_to('overwrite', $3)"))
LINK_TOGETHER = Statement(
    "known_deploy_group",
    """
    SELECT items, outcomes, times
      FROM require_writable(),
           deploy_known_together($1, $2, $3, $4, $5, $6::jsonb[], $7, $8, $9, $10, $11::uuid[], $12, $13, $14, $15,
                                 $16)
    """,
)


async def find_known(
    database: Database, name: str, digest: bytes, scope: RowScope | None = None
) -> KnownContent | None:
    """Return the content that artifacts in ``scope``, or any, have and whose digest ``name`` is ``digest``.

    None when there is none, and when there are two: then the digest tells nothing.
    """
    rows = await database.fetch(*find_request(name, digest, scope))
    return content_from(rows[0]) if len(rows) == 1 else None


def find_request(name: str, digest: bytes, scope: RowScope | None) -> tuple[Any, ...]:
    """Return the statement that looks for content, and its arguments."""
    return (FIND_BY[name], digest) if scope is None else (FIND_BY_IN_SCOPE[name], digest, *scope_args(scope))


def content_from(row: asyncpg.Record) -> KnownContent | None:
    if row["id"] is None:
        return None
    replicas = zip(row["shards"] or (), row["generations"] or (), strict=True)
    return KnownContent(
        id=row["id"],
        size=row["size"],
        sha256=row["sha256"],
        sha1=row["sha1"],
        md5=row["md5"],
        replicas=tuple(Replica(ShardId(shard), Generation(generation)) for shard, generation in replicas),
    )


async def link(database: Database, request: Link, confirmed: Sequence[Generation]) -> Linked:
    """Let an artifact refer to known content, in one round trip; safe to repeat with the same upload id.

    ``confirmed`` are the generations of which their shards said, during this request, that the file is there.
    Raises ``PathConflict``, ``NotPermitted``, ``OutcomeUnknown``, ``CatalogueUnavailable``.
    """
    with refusing_conflicts():
        row: Any = await database.write(
            LINK if request.may_overwrite else LINK_WITHOUT_OVERWRITING, *link_args(request, confirmed)
        )
    return linked_from(row)


def link_args(request: Link, confirmed: Sequence[Generation]) -> tuple[Any, ...]:
    return (
        request.upload,
        request.started_at,
        request.repository_id,
        request.folder,
        request.name,
        request.properties_json,
        request.by.principal,
        request.by.request_id,
        request.blob_id,
        request.redundancy,
        confirmed,
        request.copies_min,
        request.zones_min,
        request.by.address,
    )


def linked_from(row: asyncpg.Record) -> Linked:
    return LinkOutcome(row["outcome"]), row["created_at"]


async def link_together(database: Database, requests: Sequence[LinkRequest]) -> list[Linked]:
    """Do what ``link`` does several times, in one round trip and one transaction: all of it or nothing.

    Nothing is tried again. Raises ``OutcomeUnknown`` and ``CatalogueUnavailable``, which concern all of them; whatever
    else it raises may be the fault of one, or of somebody who was at the same place at the same time.
    """
    row: Any = await database.write(LINK_TOGETHER, *columns(requests), attempts=1)
    made = zip(row["items"], map(LinkOutcome, row["outcomes"]), row["times"], strict=True)
    linked = {item: (outcome, created_at) for item, outcome, created_at in made}
    return [linked[item] for item in range(1, len(requests) + 1)]


def columns(requests: Sequence[LinkRequest]) -> tuple[Any, ...]:
    """Return the arguments of ``deploy_known_together``, which counts requests from 1."""
    *first, confirmed, copies_min, zones_min, addresses = map(list, zip(*starmap(link_args, requests), strict=True))
    return (
        *first,
        [*chain.from_iterable(confirmed)],
        [*accumulate(map(len, confirmed))],
        copies_min,
        zones_min,
        addresses,
        ["" if link.may_overwrite else "overwrite" for link, _ in requests],
    )
