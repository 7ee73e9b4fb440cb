"""``tree_page``: a tree comes whole, in the order of its paths, whatever lies beside it and however large a page is."""

from __future__ import annotations

import asyncpg
import pytest

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
