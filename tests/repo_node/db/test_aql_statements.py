"""Statements of AQL on the pool's connections: what they leave there, and when they end."""

from __future__ import annotations

import pytest

from repo_node.db.aql import fetch_once
from repo_node.db.pool import Statement
from repo_node.db.searches import SearchTooLong
from tests.repo_node.db.scene import Scene

KEPT = Statement("kept", "SELECT statement FROM pg_prepared_statements")
LIMIT = Statement("limit", "SELECT current_setting('statement_timeout'), current_setting('plan_cache_mode')")


async def test_statements_that_come_once_push_none_out_that_come_all_the_time(scene: Scene) -> None:
    await scene.database.fetch(KEPT)
    for number in range(120):
        [row] = await fetch_once(scene.database, f"SELECT $1::bigint + {number} AS aql", [1], 5)
        assert row["aql"] == number + 1
    kept = [row["statement"] for row in await scene.database.fetch(KEPT)]
    assert KEPT.sql in kept and not any("aql" in statement for statement in kept)


async def test_s39_a_statement_ends_after_its_time_and_the_limit_with_it(scene: Scene) -> None:
    before = await scene.database.fetchrow(LIMIT)
    with pytest.raises(SearchTooLong):
        await fetch_once(scene.database, "SELECT pg_sleep($1::integer)", [5], 0.05)
    assert await scene.database.fetchrow(LIMIT) == before
