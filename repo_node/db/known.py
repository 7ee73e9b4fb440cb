"""Content that is known already: found by a digest, and deployed without its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

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


def find_statement(digest: str, scope: str | None = None) -> Statement:
    """Return the look-up of content by a digest; ``scope`` is a condition on the artifacts that have it.

    What only the trash or nothing refers to cannot be read by anybody, and so is not known to anybody.
    """
    return Statement(
        f"known_by_{digest}{'_in_scope' if scope else ''}",
        f"""
        SELECT b.id, b.size, b.sha256, b.sha1, b.md5, c.shards, c.generations
          FROM blobs b
         CROSS JOIN LATERAL (
               SELECT array_agg(g.shard_id) AS shards, array_agg(g.generation) AS generations FROM good_replicas(b.id) g
               ) c
         WHERE b.{digest} = $1
           AND (SELECT 1 FROM artifacts a WHERE a.blob_id = b.id AND {scope or "true"} LIMIT 1) IS NOT NULL
         LIMIT 2
        """,
    )


DIGESTS = ("sha256", "sha1", "md5")
FIND_BY = {digest: find_statement(digest) for digest in DIGESTS}
FIND_BY_IN_SCOPE = {digest: find_statement(digest, in_scope(2)) for digest in DIGESTS}
LINK = Statement(
    "known_deploy",
    """
    SELECT outcome, created_at
      FROM require_writable(),
           deploy_known($1, $2, $3, $4, $5, $6::jsonb, $7, $8, $9, $10, $11::uuid[], $12, $13, $14)
    """,
)
LINK_WITHOUT_OVERWRITING = Statement(
    "known_deploy_new",
    """
    SELECT outcome, created_at
      FROM require_writable(), limit_to('overwrite', $3) AS l (repo),
           deploy_known($1, $2, l.repo, $4, $5, $6::jsonb, $7, $8, $9, $10, $11::uuid[], $12, $13, $14)
    """,
)


async def find_known(
    database: Database, name: str, digest: bytes, scope: RowScope | None = None
) -> KnownContent | None:
    """Return the content that artifacts in ``scope``, or any, have and whose digest ``name`` is ``digest``.

    None when there is none, and when there are two: then the digest tells nothing.
    """
    if scope is None:
        rows = await database.fetch(FIND_BY[name], digest)
    else:
        rows = await database.fetch(FIND_BY_IN_SCOPE[name], digest, *scope_args(scope))
    if len(rows) != 1:
        return None
    [row] = rows
    replicas = zip(row["shards"] or (), row["generations"] or (), strict=True)
    return KnownContent(
        id=row["id"],
        size=row["size"],
        sha256=row["sha256"],
        sha1=row["sha1"],
        md5=row["md5"],
        replicas=tuple(Replica(ShardId(shard), Generation(generation)) for shard, generation in replicas),
    )


async def link(
    database: Database, request: Link, confirmed: Sequence[Generation]
) -> tuple[LinkOutcome, datetime | None]:
    """Let an artifact refer to known content, in one round trip; safe to repeat with the same upload id.

    ``confirmed`` are the generations of which their shards said, during this request, that the file is there.
    Raises ``PathConflict``, ``NotPermitted``, ``OutcomeUnknown``, ``CatalogueUnavailable``.
    """
    with refusing_conflicts():
        row: Any = await database.write(
            LINK if request.may_overwrite else LINK_WITHOUT_OVERWRITING,
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
    return LinkOutcome(row["outcome"]), row["created_at"]
