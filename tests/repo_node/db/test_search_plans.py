"""Searches among a hundred thousand artifacts: each goes by the index that is meant for it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from repo_node.aql.checking import QueryLimits, check
from repo_node.aql.grammar import parse
from repo_node.db import artifacts, downloads, searches
from repo_node.db.aql import ItemFinder, Reach, ResultLimits
from repo_node.db.pool import Statement
from repo_node.db.scopes import RowScope
from repo_node.db.searches import Times, time_args
from repo_node.patterns import BEYOND_ALL, folder_span, like, literal_start, regex, span
from repo_node.searches import Wanted
from tests.postgres import TestServer, run_apart

ROWS = 100_000
FILL_SQL = f"""
    INSERT INTO repositories (key, created_by) VALUES ('other', 'x');
    INSERT INTO blobs (uid, sha256, sha1, md5, size, redundancy, block_digests)
    SELECT gen_random_uuid(), sha256(i::text::bytea), substring(sha256(i::text::bytea) FOR 20),
           substring(sha256(i::text::bytea) FOR 16), 10, 2, '\\x0011223344556677'
      FROM generate_series(1, {ROWS // 10}) AS i;
    INSERT INTO artifacts (repo_id, folder, name, blob_id, created_by, modified_by, created_at, modified_at, properties)
    SELECT 1 + i % 2, 'org/g' || i % 100 || '/a' || i % 1000 || '/1.' || i % 7, 'a' || i % 1000 || '-1.' || i || '.jar',
           1 + i % (SELECT max(id) FROM blobs), 'x', 'x', now() - make_interval(mins => {ROWS} - i),
           now() - make_interval(mins => {ROWS} - i),
           CASE WHEN i % 20 = 0 THEN jsonb_build_object('version', jsonb_build_array('1.' || i),
                                                        'qa', jsonb_build_array('q' || i % 1000)) ELSE '{{}}' END
      FROM generate_series(1, {ROWS}) AS i;
"""
NOW = datetime.now(UTC)


def by_name(pattern: str) -> tuple[str, tuple[Any, ...]]:
    names = span(literal_start(pattern))
    return searches.BY_NAME.sql, (names.low, names.high, like(pattern))


def by_path(pattern: str, names: str = "") -> tuple[str, tuple[Any, ...]]:
    folders, within = folder_span(pattern), span(names)
    return searches.BY_PATH.sql, (folders.low, folders.high, within.low, within.high, regex(pattern))


SEARCHES: dict[str, tuple[tuple[str, tuple[Any, ...]], str]] = {
    "name": (by_name("a77-1.1*"), "artifacts_by_name"),
    "name, from its middle": (by_name("*-1.77*"), "Index Only Scan using artifacts_pkey"),
    "path": (by_path("org/g7/a7/**/*.jar"), "artifacts_pkey"),
    "path, known by its name": (by_path("**/a77-*", "a77-"), "artifacts_by_name"),
    "property": ((searches.BY_PROPERTIES.sql, Wanted({"qa": ["q20"]}).args), "artifacts_by_property"),
    "property, alike": ((searches.BY_PROPERTIES.sql, Wanted({"qa": ["q2*"]}).args), "artifacts_by_property"),
    "created lately": (
        (searches.BY_TIME.sql, time_args(NOW - timedelta(hours=5), NOW, Times(created=True))),
        "artifacts_by_time",
    ),
    "sha256": ((searches.BY_SHA256.sql, (bytes.fromhex("7902699be42c8a8e46fbbb4501726517e86b22c56a189f7625a6da49081b2451"),)), "artifacts_of_blob"),
    "latest version": (
        (searches.BY_PROPERTIES_IN_TREE.sql, (*Wanted({"version": ["1.20"]}).args, "org")),
        "artifacts_by_property",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def many_dsn(postgres: TestServer) -> Iterator[str]:
    async def fill(dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        for statement in (FILL_SQL, "VACUUM ANALYZE"):
            await connection.execute(statement)
        await connection.close()

    with postgres.database(postgres.template()) as dsn:
        run_apart(fill(dsn))
        yield dsn


@pytest.fixture
async def many(many_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(many_dsn, server_settings={"jit": "off"})
    try:
        await connection.execute("BEGIN")
        await connection.fetchrow(searches.PLAN, "4000ms")
        yield connection
    finally:
        connection.terminate()


@pytest.mark.parametrize("search", SEARCHES)
async def test_search_goes_by_its_index(many: asyncpg.Connection, search: str) -> None:
    (sql, args), index = SEARCHES[search]
    rows = await many.fetch(sql, [1, 2], 50, *args)
    assert rows
    plan = "\n".join(row[0] for row in await many.fetch(f"EXPLAIN {sql}", [1, 2], 50, *args))
    assert index in plan, plan
    assert "Seq Scan" not in plan, plan


async def test_a_search_by_name_reads_no_artifact_that_it_does_not_answer(many: asyncpg.Connection) -> None:
    sql, args = by_name("*-1.77*")
    [row] = await many.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", [1, 2], 50, *args)
    assert "Index Only Scan" in json.dumps(row[0])


async def test_no_search_exceeds_its_time(many: asyncpg.Connection) -> None:
    await many.fetchrow(searches.PLAN, "1ms")
    with pytest.raises(asyncpg.QueryCanceledError):
        await many.fetch("SELECT pg_sleep(1)")


LITTLE = RowScope((), (1, 2), ("^org/g20(?:/.*)?$", "^org/g7/a7/.*$"), ((1, "org/g20"), (2, "org/g7/a7")))
OF_LITTLE = {
    "path": (searches.BY_PATH, ("", BEYOND_ALL, "", BEYOND_ALL, regex("**/*.jar"))),
    "property": (searches.BY_PROPERTIES, Wanted({"qa": ["*"]}).args),
    "usage": (searches.BY_USAGE, (NOW, NOW)),
}


@pytest.mark.parametrize("search", OF_LITTLE)
async def test_a_search_by_whoever_may_read_little_reads_little(many: asyncpg.Connection, search: str) -> None:
    asked, args = OF_LITTLE[search]
    found = []
    for scope in (LITTLE, replace(LITTLE, subtrees=())):
        statement, limits = asked.scoped(scope)
        every = ([1, 2], 5_000, *args, *limits)
        found.append({(row["folder"], row["name"]) for row in await many.fetch(statement.sql, *every)})
        if scope is LITTLE:
            plan = await plan_of(many, statement.sql, every)
            assert "artifacts_pkey" in plan and rows_removed(plan) < 2_000, plan
    assert found[0] == found[1] and found[0]


@pytest.mark.parametrize("read", [artifacts.RESOLVE, downloads.FIND], ids=lambda read: read.name)
async def test_a_plan_for_any_name_finds_an_artifact_by_its_place(many: asyncpg.Connection, read: Statement) -> None:
    await many.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    plan = await plan_of(many, read.sql, ("other", "org/g7/a7/1.0", "a7-1.7.jar"))
    assert "artifacts_pkey" in plan and "artifacts_by_name" not in plan, plan


# ------------------------------------------------------------------ AQL

KEYS = {1: "generic-local", 2: "other"}
JF = '{{"$or":[{{"$and":[{{"repo":"other","path":{path},"name":{name}}}]}}]}}'
QUERIES = {
    "jf: a tree": (JF.format(path='{"$match":"org/g7/*"}', name='{"$match":"*.jar"}'), "artifacts_pkey"),
    "jf: a folder": (JF.format(path='"org/g7/a7/1.0"', name='{"$match":"*"}'), "artifacts_pkey"),
    "jf: an artifact": (JF.format(path='"org/g7/a7/1.0"', name='"a7-1.7.jar"'), "Scan using artifacts_"),
    "jf: names that begin alike": (JF.format(path='{"$match":"*"}', name='{"$match":"a77-*"}'), "artifacts_by_name"),
    "jf: two trees": (
        '{"$or":[{"$and":[{"repo":"other","path":{"$match":"org/g7/a7"},"name":{"$match":"*"}}]},'
        '{"$and":[{"repo":"other","path":{"$match":"org/g7/a7/*"},"name":{"$match":"*"}}]}]}',
        "artifacts_pkey",
    ),
    "jf: a property": (
        '{"$and":[{"@qa":"q20"}],' + JF.format(path='{"$match":"*"}', name='{"$match":"*"}').replace("other", "generic-local")[1:],
        "artifacts_by_property",
    ),
    "one property that is like two things": (
        '{"$msp":[{"@qa":{"$match":"q2*"}},{"@qa":{"$nmatch":"q20*"}}]}', "artifacts_by_property",
    ),
    "a name": ('{"name":"a77-1.77.jar"}', "artifacts_by_name"),
    "sha1": ('{"actual_sha1":"7902699be42c8a8e46fbbb4501726517e86b22c5"}', "artifacts_of_blob"),
    "sha1 in one repository": (
        '{"repo":"generic-local","actual_sha1":"7902699be42c8a8e46fbbb4501726517e86b22c5"}', "artifacts_of_blob"
    ),
    "made lately": ('{"created":{"$last":"5 minutes"}}', "artifacts_by_time"),
    "made long ago and never downloaded": (
        '{"repo":"other","created":{"$lt":"FIRST"},"stat.downloaded":{"$eq":null}}', "artifacts_by_time"
    ),
}  # fmt: skip


EVERYWHERE = RowScope(tuple(KEYS))


async def statements_of(
    connection: asyncpg.Connection, query: str, scope: RowScope = EVERYWHERE
) -> list[tuple[str, Sequence[Any], int]]:
    """Return each statement that answers a query, its parameters, and how many rows it gives."""
    seen: list[tuple[str, Sequence[Any], int]] = []

    async def fetch(sql: str, arguments: Sequence[Any]) -> Sequence[asyncpg.Record]:
        rows = await connection.fetch(sql, *arguments)
        seen.append((sql, arguments, len(rows)))
        return rows

    async def admit() -> None: ...

    wanted = check(parse(query, nesting_max=40), NOW + timedelta(minutes=1), QueryLimits(100, 1_000_000))
    reach = Reach({key: RowScope((number,)) for number, key in KEYS.items()}, KEYS, scope)
    async with aclosing(ItemFinder(fetch, admit, wanted, reach, ResultLimits(1_000_000, 100_000)).pages()) as pages:
        async for _ in pages:
            pass
    return seen


def rows_removed(plan: str) -> int:
    return sum(map(int, re.findall(r"Rows Removed by Filter: (\d+)", plan)))


async def plan_of(connection: asyncpg.Connection, sql: str, arguments: Sequence[Any]) -> str:
    return "\n".join(
        row[0] for row in await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS OFF, TIMING OFF) {sql}", *arguments)
    )


@pytest.mark.parametrize("query", QUERIES)
async def test_query_goes_by_its_index(many: asyncpg.Connection, query: str) -> None:
    criteria, index = QUERIES[query]
    first = (NOW - timedelta(minutes=ROWS - 50)).isoformat()
    everything, partly = EVERYWHERE, RowScope((), tuple(KEYS), ("^org/.*$", "^org/.*$"))
    sort = '.sort({"$desc":["created"]}).limit(100)'
    for rest, scope in (("", everything), ("", partly), (".limit(100)", everything), (sort, everything)):
        seen = await statements_of(many, f"items.find({criteria.replace('FIRST', first)}){rest}", scope)
        sql, arguments, count = seen[0]
        assert count
        plan = await plan_of(many, sql, arguments)
        assert index in plan, plan
        assert "Seq Scan" not in plan, plan


@pytest.mark.parametrize("rest", ["", ".limit(100)", '.sort({"$desc":["created"]}).limit(100)'])
@pytest.mark.parametrize("criteria", ["", '{"name":{"$match":"*.jar"}}', '{"repo":"other"}'])
async def test_a_query_by_whoever_may_read_little_reads_little(
    many: asyncpg.Connection, criteria: str, rest: str
) -> None:
    query = f"items.find({criteria}){rest}"
    seen, same = [await statements_of(many, query, one) for one in (LITTLE, replace(LITTLE, subtrees=()))]
    assert [count for _, _, count in seen] == [count for _, _, count in same] and seen[0][2]
    for sql, arguments, _ in seen:
        plan = await plan_of(many, sql, arguments)
        assert "artifacts_pkey" in plan and rows_removed(plan) < 2_000, plan


@pytest.mark.parametrize("rest", [".limit(20000)", '.sort({"$asc":["size"]}).limit(10)'])
async def test_a_query_for_everything_looks_up_blobs_for_what_it_answers_alone(
    many: asyncpg.Connection, rest: str
) -> None:
    seen = await statements_of(many, f"items.find(){rest}")
    assert sum(count for _, _, count in seen) >= (10 if "sort" in rest else 20_000)
    sql, arguments, _ = seen[-1]
    plan = await plan_of(many, sql, arguments)
    assert "Seq Scan" not in plan and "blobs_pkey" in plan, plan
