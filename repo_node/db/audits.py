"""What the owners of shards find out about their replicas, and what becomes of those."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg

from repo_node.db import blobs
from repo_node.db.pool import Database, Statement
from sharding.maintenance.audit_catalogue import (
    Dropped,
    Fault,
    HeldReplica,
    Sentence,
)
from sharding.model import BlobName, Generation, ShardId

SUSPECTS = Statement(
    "audit_suspects",
    """
    SELECT r.generation, b.sha256, b.id, b.size, NULL::bytea AS blocks
      FROM replicas r JOIN blobs b ON b.id = r.blob_id
     WHERE r.shard_id = $1 AND r.generation > $2 AND r.state = 'suspect'
     ORDER BY r.generation LIMIT $3
    """,
)
REINSTATE = Statement("audit_reinstate", "SELECT reinstate_replica($1, $2) AS done")
CORRECT_DIGESTS = Statement("audit_correct_digests", "SELECT correct_block_digests($1, $2, $3) AS done")
CONDEMN = Statement("audit_condemn", "SELECT condemn_replica($1, $2, $3) AS sentence")
DROP_ABSENT = Statement("audit_drop_absent", "SELECT dropped, kept FROM drop_absent_replicas($1, $2::uuid[])")
UNMOVED = Statement(
    "quarantine_unmoved",
    "SELECT sha256, generation FROM quarantine WHERE shard_id = $1 AND moved_at IS NULL LIMIT $2",
)
NOTE_MOVED = Statement(
    "quarantine_moved",
    "UPDATE quarantine SET moved_at = now() WHERE shard_id = $1 AND generation = ANY ($2::uuid[]) AND moved_at IS NULL",
)
# A bad copy is better than none: it stays while its blob has no good one.
EXPIRED = Statement(
    "quarantine_expired",
    """
    SELECT q.sha256, q.generation FROM quarantine q
     WHERE q.shard_id = $1 AND q.moved_at < now() - $2::interval AND NOT (SELECT strays_are_held())
       AND NOT EXISTS (SELECT 1 FROM blobs b
                        WHERE b.sha256 = q.sha256 AND NOT EXISTS (SELECT 1 FROM good_replicas(b.id)))
     ORDER BY q.moved_at LIMIT $3
    """,
)
FORGET = Statement(
    "quarantine_forget",
    """
    WITH gone AS (
        DELETE FROM quarantine WHERE shard_id = $1 AND generation = ANY ($2::uuid[]) RETURNING shard_id, generation
    )
    DELETE FROM replicas r USING gone g
     WHERE r.shard_id = g.shard_id AND r.generation = g.generation AND r.state = 'condemned'
       AND NOT EXISTS (SELECT 1 FROM removals x WHERE x.shard_id = r.shard_id AND x.generation = r.generation)
    """,
)


class AuditRows:
    """Satisfies ``SuspectCatalogue`` over a database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def suspects(self, shard: ShardId, after: Generation, count: int) -> list[HeldReplica]:
        return [held_replica(shard, row) for row in await self.database.fetch(SUSPECTS, shard, after, count)]

    async def block_digests(self, blob: int, first: int, count: int) -> bytes:
        return await blobs.block_digests(self.database, blob, first, count)

    async def mark_suspect(self, shard: ShardId, generation: Generation) -> bool:
        return await blobs.mark_suspect(self.database, shard, generation)

    async def reinstate(self, shard: ShardId, generation: Generation) -> bool:
        row: Any = await self.database.write(REINSTATE, shard, generation)
        return bool(row["done"])

    async def correct_digests(self, shard: ShardId, generation: Generation, blocks: bytes) -> bool:
        row: Any = await self.database.write(CORRECT_DIGESTS, shard, generation, blocks)
        return bool(row["done"])

    async def condemn(self, shard: ShardId, generation: Generation, fault: Fault) -> Sentence:
        row: Any = await self.database.write(CONDEMN, shard, generation, fault.value)
        return Sentence(row["sentence"])

    async def drop_absent(self, shard: ShardId, generations: Sequence[Generation]) -> Dropped:
        row: Any = await self.database.write(DROP_ABSENT, shard, generations)
        return Dropped(row["dropped"], row["kept"])

    async def unmoved(self, shard: ShardId, count: int) -> list[BlobName]:
        return [blob_name(row) for row in await self.database.fetch(UNMOVED, shard, count)]

    async def note_moved(self, shard: ShardId, generations: Sequence[Generation]) -> None:
        await self.database.write(NOTE_MOVED, shard, generations)

    async def expired(self, shard: ShardId, quarantine_seconds: float, count: int) -> list[BlobName]:
        rows = await self.database.fetch(EXPIRED, shard, timedelta(seconds=quarantine_seconds), count)
        return [blob_name(row) for row in rows]

    async def forget(self, shard: ShardId, generations: Sequence[Generation]) -> None:
        await self.database.write(FORGET, shard, generations)


def held_replica(shard: ShardId, row: asyncpg.Record) -> HeldReplica:
    blocks = row["blocks"]
    return HeldReplica(shard, blob_name(row), row["id"], row["size"], None if blocks is None else bytes(blocks))


def blob_name(row: asyncpg.Record) -> BlobName:
    return BlobName(bytes(row["sha256"]), Generation(row["generation"]))
