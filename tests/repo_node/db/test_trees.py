"""A tree comes whole, in the order of its paths, whatever lies beside it and however large a page is.

What is not wanted of it is not read: a list costs what it shows.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import asyncpg
import pytest

from repo_node.auth.path_patterns import PathPatterns, expression_of, reach_of
from repo_node.db import trees
from repo_node.db.pool import Statement
from repo_node.db.searches import SearchTooLong
from repo_node.db.trees import Narrowing
from repo_node.paths import join_path
from tests.repo_node.db.scene import Scene

PAGE = "SELECT folder, name FROM tree_page($1, $2, $3, $4, $5, $6)"
PATHS = ["a", "a-b/x", "a.b", "a/x", "a/b/x", "a/b/c/x", "a/b-c/x", "a/b/y", "a0", "b/a/x", "a/é/x", "a/\U0001f600/x"]


async def tree(connection: asyncpg.Connection, repository: int, path: str, count: int) -> list[str]:
    folder, _, name = path.rpartition("/")
    found: list[str] = []
    after = ("", "")
    while rows := await connection.fetch(PAGE, repository, folder, name, *after, count):
        assert len(rows) <= count
        found += ["/".join(filter(None, (row["folder"], row["name"]))) for row in rows]
        after = (rows[-1]["folder"], rows[-1]["name"])
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 100])
@pytest.mark.parametrize("path", ["", "a", "a/b", "a-b", "a/b/c/x", "b", "none"])
async def test_a_tree_comes_whole(scene: Scene, connection: asyncpg.Connection, path: str, count: int) -> None:
    for one in PATHS[1:]:
        await scene.upload(one)
    everything = [
        row[0] for row in await connection.fetch("SELECT concat_ws('/', nullif(folder, ''), name) FROM artifacts")
    ]
    found = await tree(connection, scene.repository, path, count)
    inside = [one for one in everything if path in ("", one) or one.startswith(f"{path}/")]
    assert sorted(found) == sorted(inside)
    places = [tuple(one.rpartition("/")[::2]) for one in found]
    assert places == sorted(places)


# ------------------------------------------------------------------ walks, which pass over what is not wanted

WALKED = Narrowing(levels=None, folders=True, reach=None, shown=None)
LARGE_SQL = """
    INSERT INTO artifacts (repo_id, folder, name, blob_id, created_by, modified_by)
    SELECT $1, 'd' || i % 40 || '/sub', 'f' || i, (SELECT min(id) FROM blobs), 'x', 'x' FROM generate_series(1, 4000) AS i
    UNION ALL SELECT $1, '', 'd' || i, NULL, 'x', 'x' FROM generate_series(0, 39) AS i
    UNION ALL SELECT $1, 'd' || i, 'sub', NULL, 'x', 'x' FROM generate_series(0, 39) AS i
"""
READ_SQL = """
    SELECT pg_stat_get_xact_tuples_fetched('artifacts_pkey'::regclass) + pg_stat_get_xact_tuples_returned('artifacts'::regclass)
"""
PATTERNS: list[tuple[list[str], list[str]]] = [
    (["a/b/**"], []),
    (["a/b/c/*", "a-b/**"], []),
    (["**/x"], []),
    (["*/b/**"], []),
    (["**"], ["a/**"]),
    (["none/**"], []),
]
"""Includes and excludes."""


async def walked(scene: Scene, path: str, wanted: Narrowing, rows_max: int) -> list[str]:
    pages = trees.walk(scene.database, scene.repository, path, wanted, rows_max=rows_max)
    found = [page async for page in pages]
    assert all(len(page) <= rows_max for page in found)
    return [entry.path for page in found for entry in page]


@pytest.fixture
async def leafy(scene: Scene, connection: asyncpg.Connection) -> list[tuple[str, str, bool]]:
    """Every path, in the order of lists, and whether it is a folder."""
    for one in PATHS[1:]:
        await scene.upload(one)
    rows = await connection.fetch("SELECT folder, name, blob_id IS NULL FROM artifacts ORDER BY folder, name")
    return [tuple(row) for row in rows]


async def test_a_walk_ends_where_levels_do(scene: Scene, leafy: list[tuple[str, str, bool]]) -> None:
    everything = [(join_path(folder, name), is_folder) for folder, name, is_folder in leafy]
    for path, levels, rows_max in product(("", "a", "a/b", "a-b", "none"), (1, 2, 3, None), (1, 3, 100)):
        inside = [one for one in everything if not path or one[0].startswith(f"{path}/")]
        near = [one for one in inside if levels is None or one[0][len(path) :].strip("/").count("/") < levels]
        assert await walked(scene, path, replace(WALKED, levels=levels), rows_max) == [one for one, _ in near]
        files = replace(WALKED, levels=levels, folders=False)
        assert await walked(scene, path, files, rows_max) == [one for one, is_folder in near if not is_folder]


async def test_a_walk_finds_all_that_patterns_show(scene: Scene, leafy: list[tuple[str, str, bool]]) -> None:
    for given, rows_max in product(PATTERNS, (1, 3, 100)):
        patterns = PathPatterns.of(*given)
        wanted = Narrowing(None, True, reach_of([patterns]), expression_of([patterns]))
        found = await walked(scene, "", wanted, rows_max)
        shown = [
            join_path(folder, name)
            for folder, name, is_folder in leafy
            if (patterns.reach if is_folder else patterns.allow)(join_path(folder, name))
        ]
        assert [one for one in found if one in shown] == shown


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (replace(WALKED, levels=2), 80),
        (replace(WALKED, reach="^(?:d7(?:/.*)?)?$", shown="^d7/", folders=False), 100),
        (replace(WALKED, reach="^(?:d7(?:/.*)?)?$", shown="^d7/sub/f7$", folders=False), 1),
    ],
    ids=["levels", "a tree", "an artifact"],
)
async def test_a_walk_reads_hardly_more_than_it_finds(
    scene: Scene, connection: asyncpg.Connection, wanted: Narrowing, count: int
) -> None:
    await scene.upload("x")
    await connection.execute(LARGE_SQL.replace("$1", str(scene.repository)))
    await connection.execute("ANALYZE artifacts")
    await connection.execute("BEGIN")
    before = await connection.fetchval(READ_SQL)
    asked = (scene.repository, "", "", "", 5_000, wanted.levels, wanted.folders, wanted.reach, wanted.shown)
    found = [row for row in await connection.fetch(trees.WALK.sql, *asked) if not row["more"]]
    # Each of the forty folders passed over costs the few rows that a cursor reads ahead.
    assert len([row for row in found if row["name"] != "x"]) == count
    assert await connection.fetchval(READ_SQL) - before < 1_500
    await connection.execute("ROLLBACK")


@pytest.mark.parametrize("limit", [None, "^d7/"])
async def test_the_last_modified_is_found_without_reading_what_is_older(
    scene: Scene, connection: asyncpg.Connection, limit: str | None
) -> None:
    await scene.upload("x")
    await connection.execute(LARGE_SQL.replace("$1", str(scene.repository)))
    await connection.execute("UPDATE artifacts SET modified_at = now() - interval '90 days' WHERE blob_id IS NOT NULL")
    await connection.execute("UPDATE artifacts SET modified_at = now() - interval '40 days' WHERE name = 'f7'")
    found = await trees.last_modified(scene.database, scene.repository, "", limit, seconds_max=4)
    assert found is not None and found[0] == "d7/sub/f7"
    await connection.execute("UPDATE artifacts SET modified_at = now() WHERE name = 'f47'")
    found = await trees.last_modified(scene.database, scene.repository, "", limit, seconds_max=4)
    assert found is not None and found[0] == "d7/sub/f47"
    assert await trees.last_modified(scene.database, scene.repository, "none", limit, seconds_max=4) is None


async def test_all_looks_for_the_last_modified_together_are_ended_in_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = "$1::integer, $2::text, $3::text, $4::text, $5::text, $6::interval"
    slow = f"SELECT FROM (SELECT pg_sleep(0.2)::text AS slept, {arguments} OFFSET 0) AS s WHERE slept <> ''"
    monkeypatch.setattr(trees, "LAST_MODIFIED", Statement("slow", slow))
    with pytest.raises(SearchTooLong):
        await trees.last_modified(scene.database, scene.repository, "", seconds_max=0.5)
