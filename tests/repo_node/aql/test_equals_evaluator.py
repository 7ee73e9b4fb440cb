"""What Postgres finds for a query is what the plain evaluator finds, whatever the query."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from repo_node.aql.checking import QueryLimits, check
from repo_node.aql.tree import AqlError, Order, Query
from repo_node.config import DatabaseSection
from repo_node.db.aql import ItemFinder, Reach, ResultLimits, fetch_once
from repo_node.db.pool import Database, open_database
from repo_node.db.scopes import RowScope
from repo_node.db.searches import Hit
from tests.postgres import TestServer
from tests.repo_node.aql import strategies
from tests.repo_node.aql.evaluator import Thing, found
from tests.repo_node.db.scene import Queries

NOW = datetime(2026, 1, 10, tzinfo=UTC)
LIMITS = QueryLimits(1_000, 1_000)
IDS = {key: number for number, key in enumerate(strategies.REPOSITORIES, 11)}
SORTABLE = ("repo", "path", "name", "type", "size", "created", "created_by", "depth", "actual_sha1", "stat.downloaded")
BLOB_SQL = """
    INSERT INTO blobs (id, uid, sha256, sha1, size, redundancy, block_digests) OVERRIDING SYSTEM VALUE
    SELECT $1::bigint, gen_random_uuid(), sha256($1::bigint::text::bytea), $2, $3::bigint, 1,
           substring('\\x0011223344556677'::bytea FOR 8 * least($3::bigint, 1)::integer)
"""
ARTIFACT_SQL = """
    INSERT INTO artifacts (repo_id, folder, name, blob_id, created_at, created_by, modified_by, properties, downloads,
                           downloaded_at)
    VALUES ($1, $2, $3, $4, $5, $6, 'x', $7, $8, $9)
"""


READABLE = "^(?:a/.*|ab/.*|[^/]*)$"
"""What may be read of one of the repositories."""
SHOWN = "^a/.*$"
"""What the virtual repository shows of b-repo; of a-repo it shows all."""


def things() -> list[Thing]:
    """Return some fifty artifacts and folders, the same each time."""
    chance = random.Random(7)
    places = list(itertools.product(strategies.REPOSITORIES, strategies.FOLDERS, strategies.NAMES))
    made = []
    for repo, folder, name in chance.sample(places, 60):
        is_folder = chance.random() < 0.2
        size = 0 if is_folder else chance.choice(strategies.SIZES)
        properties = {
            key: chance.sample(strategies.TEXT_VALUES, chance.randint(1, 3))
            for key in strategies.KEYS
            if chance.random() < 0.4
        }
        created = datetime(2026, 1, chance.choice((1, 5, 9)), tzinfo=UTC) + timedelta(
            microseconds=chance.choice((0, 999, 1000, 1001))
        )
        downloads = chance.choice((0, 0, 1, 2))
        is_shown = repo == "a-repo" or (repo == "b-repo" and re.match(SHOWN, f"{folder}/{name}"))
        made.append(
            Thing(
                repo, folder, name, size, None if is_folder else bytes([strategies.SIZES.index(size)] * 20), created,
                chance.choice(strategies.USERS), properties, downloads, created if downloads else None,
                "virtual" if is_shown else None,
            )
        )  # fmt: skip
    return made


ALL_THINGS = things()
THINGS = [
    one for one in ALL_THINGS if one.repo != "c%repo" or re.match(READABLE, f"{one.folder}/{one.name}".lstrip("/"))
]
assert 40 < len(THINGS) < len(ALL_THINGS)
BY_PLACE = {thing.place: thing for thing in THINGS}
Find = Callable[[Query], Sequence[Hit]]


async def fill(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    for key, number in IDS.items():
        await connection.execute(
            "INSERT INTO repositories (id, key, created_by) OVERRIDING SYSTEM VALUE VALUES ($1, $2, 'x')", number, key
        )
    for number, size in enumerate(strategies.SIZES):
        await connection.execute(BLOB_SQL, number, bytes([number] * 20), size)
    for one in ALL_THINGS:
        blob = None if one.sha1 is None else one.sha1[0]
        values = (one.created, one.created_by, json.dumps(one.properties), one.downloads, one.downloaded)
        await connection.execute(ARTIFACT_SQL, IDS[one.repo], one.folder, one.name, blob, *values)
    await connection.close()


@pytest.fixture(scope="module")
def find(postgres: TestServer) -> Iterator[Find]:
    """Return what answers a query from Postgres, on a pool as nodes have it."""
    scope = RowScope((IDS["a-repo"],), (IDS["b-repo"], IDS["c%repo"]), ("^.*$", READABLE))
    names = {key: RowScope((number,)) for key, number in IDS.items()}
    names["virtual"] = RowScope((IDS["a-repo"],), (IDS["b-repo"],), (SHOWN,))
    reach = Reach(names, {number: key for key, number in IDS.items()}, scope)
    with postgres.database(postgres.template()) as dsn, asyncio.Runner() as runner:
        runner.run(fill(dsn))
        opened = open_database(DatabaseSection(dsn=dsn), Queries())
        database: Database = runner.run(opened.__aenter__())

        async def admit() -> None: ...

        async def answer(query: Query) -> list[Hit]:
            def fetch(sql: str, arguments: Sequence[object]) -> Awaitable[Sequence[asyncpg.Record]]:
                return fetch_once(database, sql, arguments, 5)

            finder = ItemFinder(fetch, admit, check(query, NOW, LIMITS), reach, ResultLimits(1_000, 1_000))
            return [hit async for page in finder.pages() for hit in page]

        yield lambda query: runner.run(answer(query))
        runner.run(opened.__aexit__(None, None, None))


def places(hits: Sequence[Hit]) -> list[tuple[str, str, str]]:
    return [(hit.item.repository, hit.item.folder, hit.item.name) for hit in hits]


anything = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@anything
@given(strategies.QUERY)
def test_postgres_finds_what_the_evaluator_finds(find: Find, query: Query) -> None:
    expected = sorted(thing.place for thing in found(query, THINGS, NOW))
    assert sorted(places(asked(find, query))) == expected


@settings(anything, max_examples=30)
@given(
    strategies.QUERY,
    st.none() | st.integers(0, 20),
    st.integers(0, 20),
    st.lists(st.sampled_from(SORTABLE), max_size=2, unique=True),
    st.booleans(),
)
def test_offset_and_limit_cut_what_is_sorted(
    find: Find, query: Query, limit: int | None, offset: int, fields: list[str], descending: bool
) -> None:
    whole = replace(query, sort=Order(tuple(fields), descending) if fields else None)
    everything = [thing.place for thing in found(query, THINGS, NOW)]
    part = places(asked(find, replace(whole, limit=limit, offset=offset)))
    assert len(part) == len(everything[offset:][:limit]) and set(part) <= set(everything)
    if fields:
        all_of_it = places(find(whole))
        assert part == all_of_it[offset:][:limit]
        keys = [[BY_PLACE[place].value(field) for field in fields] for place in all_of_it]
        assert all(in_order(first, second, descending) for first, second in itertools.pairwise(keys))
    else:
        again = places(find(replace(whole, offset=offset)))
        assert part == again[:limit]


def asked(find: Find, query: Query) -> Sequence[Hit]:
    """Answer a query, but for the few that ask one property to be null."""
    try:
        return find(query)
    except AqlError as error:
        assert "null" in str(error)
        assume(False)
        return []


def in_order(first: list[object], second: list[object], descending: bool) -> bool:
    """Say whether one comes before the other: what has no value comes last, either way."""
    for a, b in zip(first, second, strict=True):
        if a != b:
            return b is None or (a is not None and (a > b if descending else a < b))  # type: ignore[operator]
    return True
