"""No step of a maintenance job reads a whole table, however the planner plans it."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from repo_node.db import moves, repair_queue, shards
from tests.repo_node.db.scene import copies
from tests.repo_node.db.test_plans import (
    REPLICA_SQL,
    filled_dsn,
    large,
    whole_scans,
)

__all__ = ["filled_dsn", "large"]

STEPS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "claim": (repair_queue.CLAIM.sql, (uuid4(), 60.0, 64, 1 << 30)),
    "replicas": (repair_queue.REPLICAS.sql, (list(range(1, 60)),)),
    "batch of a walk": (moves.BATCH.sql, (1, moves.START, 20)),
    "next batch of a walk": (moves.BATCH.sql, (1, uuid4(), 20)),
    "census": ("SELECT * FROM take_census(100, 3::smallint, 100)", ()),
    "lost": ("SELECT set_shard_state(1::smallint, 'lost', '', 'x', ''), * FROM walk_shard(50, 10, 10)", ()),
    "list of shards": (shards.LIST.sql, (1_000,)),
    "remove": ("SELECT remove_shard(1::smallint, 'x', '')", ()),
    "whole": ("SELECT is_whole(7, 2::smallint, 3)", ()),
}


@pytest.mark.parametrize("step", STEPS)
async def test_step_uses_indexes_alone(large: asyncpg.Connection, step: str) -> None:
    sql, args = STEPS[step]
    # What the step touches of its own tables is small here; the rest must be found by index.
    await large.fetch(sql, *args)
    assert await whole_scans(large) == []


async def test_look_for_sole_copies_reads_no_more_of_the_queue_than_its_part(large: asyncpg.Connection) -> None:
    await large.execute("SET LOCAL enable_seqscan = off")  # as in every connection of the pool
    await large.fetch(repair_queue.SOLE.sql, "n1", 10)
    assert await whole_scans(large) == []
    read = "SELECT idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'repair_queue'"
    assert await large.fetchval(read) <= 10


async def test_ends_of_repairs_moves_and_trims_use_indexes_alone(large: asyncpg.Connection) -> None:
    token = uuid4()
    claims = await large.fetch(repair_queue.CLAIM.sql, token, 60.0, 3, 1 << 30)
    ids = [row["blob_id"] for row in claims]
    [new] = copies(6)
    rows = await large.fetch(
        repair_queue.SETTLE.sql,
        token,
        ids,
        [row["renewed_at"] for row in claims],
        [1.0] * 3,
        [None] * 3,
        ids[:1],
        [new.shard],
        [new.generation],
    )
    assert len(rows) == 3
    first = await large.fetchrow(REPLICA_SQL, 8)
    assert first is not None
    await large.fetch(moves.MOVE.sql, 8, first["shard_id"], first["generation"], new.shard, uuid4())
    await large.fetch(moves.TRIM.sql, 8, first["shard_id"], first["generation"], "trim")
    assert await whole_scans(large) == []
