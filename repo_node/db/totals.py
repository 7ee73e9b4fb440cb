"""Counts over the whole store, for people who look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from repo_node.db.garbage import UNREFERENCED
from repo_node.db.pool import Database, Statement
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


BLOBS = Statement(
    "totals_blobs",
    f"""
    WITH good_shards AS (
        SELECT s.id FROM shards s JOIN nodes n ON n.id = s.node_id
         WHERE s.state NOT IN ('offline', 'lost') AND node_is_up(n)
    ), good AS (
        SELECT r.blob_id, count(DISTINCT r.shard_id) AS copies
          FROM replicas r JOIN good_shards g ON g.id = r.shard_id
         WHERE r.state = 'live' GROUP BY r.blob_id
    ), counted AS (
        SELECT b.size, {UNREFERENCED} AS unreferenced,
               CASE WHEN b.size > 0 THEN greatest(b.redundancy - coalesce(g.copies, 0), 0) ELSE 0 END AS missing
          FROM blobs b LEFT JOIN good g ON g.blob_id = b.id LEFT JOIN gc_candidates c ON c.blob_id = b.id
    )
    SELECT count(*) AS blobs, coalesce(sum(size), 0)::bigint AS bytes,
           count(*) FILTER (WHERE unreferenced) AS unreferenced_blobs,
           coalesce(sum(missing) FILTER (WHERE NOT unreferenced), 0)::bigint AS missing_copies,
           count(*) FILTER (WHERE missing > 0 AND NOT unreferenced) AS short_blobs,
           (SELECT count(*) FROM repair_queue) AS repair_queue
      FROM counted
    """,
)
REPLICAS = Statement(
    "totals_replicas",
    "SELECT shard_id, count(*) AS replicas FROM replicas WHERE state <> 'condemned' GROUP BY shard_id",
)


async def read(database: Database) -> Totals:
    """Count everything; reads every blob's row."""
    [row] = await database.survey(BLOBS)
    shards = await database.survey(REPLICAS)
    return Totals(
        row["blobs"],
        row["bytes"],
        row["unreferenced_blobs"],
        row["missing_copies"],
        row["short_blobs"],
        row["repair_queue"],
        {ShardId(shard["shard_id"]): shard["replicas"] for shard in shards},
    )
