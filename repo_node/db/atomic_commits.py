"""The commit of several uploads as one: all of them become visible at the same moment, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import asyncpg

from repo_node.db.blobs import CommitOutcome, CommitResult, commit_args, refusing_conflicts, result_from
from repo_node.db.commit_groups import UploadToCommit
from repo_node.db.pool import Database, Statement
from sharding.model import Generation

# What one may not do, the next one may: each says its own limits.
TOGETHER = Statement(
    "uploads_commit_together",
    """
    SELECT outcome, created_at, existing_shards, existing_generations
      FROM require_writable(), limit_to($22, $4) AS l (repo),
           commit_upload($1, $2, $3, l.repo, $5, $6, $7::jsonb, $8, $9, $10, $11, $12, $13, $14, $15, $16,
                         $17::smallint[], $18::uuid[], $19, $20::uuid[], $21)
    """,
)
# Two that come with the same paths would wait for each other's, each in the order of its own digests.
TAKE_TURNS = "SELECT pg_advisory_xact_lock(2, r) FROM unnest($1::integer[]) AS r"
WAIT_AT_MOST = "SELECT set_config('lock_timeout', $1, true)"
TURN_WAIT, ANY_WAIT = "1000ms", "0"
"""Who waits for a turn until the statement's deadline has no answer, and must keep all copies: in doubt for nothing."""

DONE = frozenset({CommitOutcome.ADOPTED, CommitOutcome.DEDUPLICATED})


class _Undone(Exception):
    """Ends a transaction in which not all went well."""

    def __init__(self, results: list[CommitResult]) -> None:
        super().__init__()
        self.results = results


async def commit_together(
    database: Database, uploads: Sequence[UploadToCommit], confirmed: Mapping[bytes, Sequence[Generation]]
) -> list[CommitResult]:
    """Make uploads visible in one transaction; return the result of each. Safe to repeat with the same upload ids.

    Unless every outcome is ADOPTED or DEDUPLICATED, nothing was done. Of equal content, and of content in
    ``confirmed`` (sha256 to generations), the copies in the store are taken for proved. Give them in the order of
    their digests, in which everybody locks blobs. Raises ``PathConflict``, ``NotPermitted``,
    ``OutcomeUnknown``, ``CatalogueUnavailable``, ``RacesLost`` when others had all the turns.
    """
    args, proved = [], {digest: list(generations) for digest, generations in confirmed.items()}
    for upload in uploads:
        digest = upload.deployment.digests.sha256
        known = proved.get(digest)
        facts = (upload.age_max_seconds, upload.properties_json, upload.short, known)
        limits = "" if upload.deployment.may_overwrite else "overwrite"
        args.append((*commit_args(upload.deployment, upload.replicas, *facts), limits))
        proved[digest] = [*(known or ()), *(replica.generation for replica in upload.replicas)]

    repositories = sorted({upload.deployment.repository_id for upload in uploads})

    async def work(connection: asyncpg.Connection) -> list[CommitResult]:
        await connection.execute(WAIT_AT_MOST, TURN_WAIT)
        await connection.fetch(TAKE_TURNS, repositories)
        await connection.execute(WAIT_AT_MOST, ANY_WAIT)
        results = [result_from(row) for row in await connection.fetchmany(TOGETHER.sql, args)]
        if any(result.outcome not in DONE for result in results):
            raise _Undone(results)
        return results

    try:
        with refusing_conflicts():
            return await database.transact(TOGETHER, work)
    except _Undone as undone:
        return undone.results
