"""Counts over the whole store, for people who look at it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from repo_node.db.garbage import UNREFERENCED
from repo_node.db.pool import Database, Statement
from repo_node.db.stretches import stretches
from sharding.model import ShardId


@dataclass(frozen=True, slots=True)
class Totals:
    """``missing_copies`` are the good replicas wanted and not there; ``short_blobs`` the blobs that lack any.

    ``unreferenced_blobs`` wait for garbage collection: nothing is missing of them, and they count in ``blobs`` alone.
    """

    blobs: int
    bytes: int
    unreferenced_blobs: int
    missing_copies: int
    short_blobs: int
    repair_queue: int
    replicas: Mapping[ShardId, int]


REPAIRS = Statement("totals_repairs", "SELECT count(*) AS repair_queue FROM repair_queue")
BLOBS = Statement(
    "totals_blobs",
    f"""
    WITH good_shards AS (
        SELECT s.id FROM shards s JOIN nodes n ON n.id = s.node_id
         WHERE s.state NOT IN ('offline', 'lost') AND node_is_up(n)
    ), good AS (
        SELECT r.blob_id, count(DISTINCT r.shard_id) AS copies
          FROM replicas r JOIN good_shards g ON g.id = r.shard_id
         WHERE r.state = 'live' AND r.blob_id > $1 AND r.blob_id <= $2 GROUP BY r.blob_id
    ), counted AS (
        SELECT b.size, {UNREFERENCED} AS unreferenced,
               CASE WHEN b.size > 0 THEN greatest(b.redundancy - coalesce(g.copies, 0), 0) ELSE 0 END AS missing
          FROM blobs b LEFT JOIN good g ON g.blob_id = b.id LEFT JOIN gc_candidates c ON c.blob_id = b.id
         WHERE b.id > $1 AND b.id <= $2
    )
    SELECT count(*) AS blobs, coalesce(sum(size), 0)::bigint AS bytes,
           count(*) FILTER (WHERE unreferenced) AS unreferenced_blobs,
           coalesce(sum(missing) FILTER (WHERE NOT unreferenced), 0)::bigint AS missing_copies,
           count(*) FILTER (WHERE missing > 0 AND NOT unreferenced) AS short_blobs
      FROM counted
    """,
)
# What is condemned has no blob.
REPLICAS = Statement(
    "totals_replicas",
    """
    SELECT shard_id, count(*) AS replicas FROM replicas WHERE blob_id > $1 AND blob_id <= $2 GROUP BY shard_id
    """,
)


async def read(database: Database) -> Totals:
    """Count everything, a stretch of blobs after another; reads every blob's row."""
    [waiting] = await database.survey(REPAIRS)
    blobs: Counter[str] = Counter()
    replicas: Counter[ShardId] = Counter()
    async for stretch in stretches(database):
        [row] = await database.survey(BLOBS, *stretch)
        blobs.update(dict(row))
        replicas.update(
            {ShardId(one["shard_id"]): one["replicas"] for one in await database.survey(REPLICAS, *stretch)}
        )
    return Totals(
        blobs["blobs"],
        blobs["bytes"],
        blobs["unreferenced_blobs"],
        blobs["missing_copies"],
        blobs["short_blobs"],
        waiting["repair_queue"],
        replicas,
    )
