"""Blobs and their replicas: the commit of an upload, the look-up of a download, suspicions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import asyncpg

from repo_node.db.errors import CatalogueError, CatalogueUnavailable
from repo_node.db.pool import Database, Statement
from repo_node.origin import Origin
from sharding.model import BLOCK_DIGEST_BYTES, BlobDigests, Generation, Replica, ShardId


class PathConflict(CatalogueError):
    """A path is, or runs through, an artifact where a folder is needed, or the other way round."""


class CommitOutcome(StrEnum):
    ADOPTED = "adopted"
    DEDUPLICATED = "deduplicated"
    CONFIRM = "confirm"
    TOO_OLD = "too_old"
    NO_REPOSITORY = "no_repository"


@dataclass(frozen=True, slots=True)
class Deployment:
    """Everything the commit of an upload writes, apart from where its copies are."""

    upload: UUID
    started_at: datetime
    repository_id: int
    folder: str
    name: str
    properties: Mapping[str, Sequence[str]]
    by: Origin
    blob_uid: UUID
    digests: BlobDigests
    redundancy: int
    may_overwrite: bool = True
    """Whether an artifact with other content or properties may be in the place."""


@dataclass(frozen=True, slots=True)
class CommitResult:
    """``existing`` are the replicas to confirm when the outcome is CONFIRM."""

    outcome: CommitOutcome
    created_at: datetime | None
    existing: tuple[Replica, ...]


def commit_statement(name: str, repository: str, limit: str = "") -> Statement:
    """Return the commit of an upload. ``repository`` is its id, which may come from a ``limit`` on what is done."""
    return Statement(
        name,
        f"""
        SELECT outcome, created_at, existing_shards, existing_generations
          FROM require_writable(), {limit}
               commit_upload($1, $2, $3, {repository}, $5, $6, $7::jsonb, $8, $9, $10, $11, $12, $13, $14, $15, $16,
                             $17::smallint[], $18::uuid[], $19, $20::uuid[], $21)
        """,
    )


COMMIT = commit_statement("upload_commit", "$4")
COMMIT_WITHOUT_OVERWRITING = commit_statement("upload_commit_new", "l.repo", "limit_to('overwrite', $4) AS l (repo),")
BLOCKS = Statement(
    "block_digests",
    "SELECT substring(block_digests FROM $2 FOR $3) AS digests FROM blobs WHERE id = $1",
)
REPLICAS = Statement(
    "replicas_of_blob",
    "SELECT shard_id, generation, state = 'suspect' AS suspect FROM replicas WHERE blob_id = $1",
)
SUSPECT = Statement("replica_suspect", "SELECT suspect_replica($1, $2) AS marked")


@contextmanager
def refusing_conflicts() -> Iterator[None]:
    """Raise what the commit of an upload may find in its way: ``PathConflict``, ``CatalogueUnavailable``."""
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        # Only a condemned generation can be there before us: the upload was overtaken by reconcile.
        raise CatalogueUnavailable(f"upload_commit: {error}") from error
    except asyncpg.PostgresError as error:
        if error.sqlstate == "HF001":
            raise PathConflict(str(error)) from None
        raise


async def commit_upload(
    database: Database,
    deployment: Deployment,
    replicas: Sequence[Replica],
    *,
    age_max_seconds: float,
    properties_json: str,
    short: bool,
    confirmed: Sequence[Generation] | None,
) -> CommitResult:
    """Make an upload visible, in one round trip; safe to repeat with the same upload id.

    ``short`` asks for a repair; ``confirmed`` are the generations of existing replicas whose shards
    confirmed the file during this upload, None when none was asked. Raises ``PathConflict``,
    ``NotPermitted``, ``OutcomeUnknown``, ``CatalogueUnavailable``.
    """
    args = commit_args(deployment, replicas, age_max_seconds, properties_json, short, confirmed)
    with refusing_conflicts():
        row: Any = await database.write(COMMIT if deployment.may_overwrite else COMMIT_WITHOUT_OVERWRITING, *args)
    return result_from(row)


def commit_args(
    deployment: Deployment,
    replicas: Sequence[Replica],
    age_max_seconds: float,
    properties_json: str,
    short: bool,
    confirmed: Sequence[Generation] | None,
) -> tuple[Any, ...]:
    digests = deployment.digests
    return (
        deployment.upload,
        deployment.started_at,
        timedelta(seconds=age_max_seconds),
        deployment.repository_id,
        deployment.folder,
        deployment.name,
        properties_json,
        deployment.by.principal,
        deployment.by.request_id,
        deployment.blob_uid,
        digests.sha256,
        digests.sha1,
        digests.md5,
        digests.size,
        digests.blocks,
        deployment.redundancy,
        [replica.shard for replica in replicas],
        [replica.generation for replica in replicas],
        short,
        confirmed,
        deployment.by.address,
    )


def result_from(row: asyncpg.Record) -> CommitResult:
    existing = zip(row["existing_shards"] or (), row["existing_generations"] or (), strict=True)
    return CommitResult(
        CommitOutcome(row["outcome"]),
        row["created_at"],
        tuple(Replica(ShardId(shard), Generation(generation)) for shard, generation in existing),
    )


async def block_digests(database: Database, blob: int, first: int, count: int) -> bytes:
    """Return the digests of ``count`` blocks from block ``first``; shorter when the blob is gone."""
    row = await database.fetchrow(BLOCKS, blob, 1 + first * BLOCK_DIGEST_BYTES, count * BLOCK_DIGEST_BYTES)
    return bytes(row["digests"]) if row else b""


async def replicas_of(database: Database, blob: int) -> tuple[Replica, ...]:
    """Return the replicas of a blob as they are now, suspect ones too."""
    rows = await database.fetch(REPLICAS, blob)
    return tuple(Replica(ShardId(row["shard_id"]), Generation(row["generation"]), row["suspect"]) for row in rows)


async def mark_suspect(database: Database, shard: ShardId, generation: Generation) -> bool:
    """Record that a reader found this replica bad, and queue a repair; False when it is no longer live."""
    row = await database.write(SUSPECT, shard, generation)
    return bool(row and row["marked"])
