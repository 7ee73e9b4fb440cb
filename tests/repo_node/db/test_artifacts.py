"""Artifacts and folders: look-up, listing, making folders, deletion and what it races with."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import asyncpg
import pytest

from repo_node.db import artifacts, blobs, paging
from repo_node.db.artifacts import Child
from repo_node.db.blobs import PathConflict
from repo_node.db.errors import CatalogueUnavailable
from repo_node.origin import Origin
from sharding.model import BLOCK_BYTES
from tests.repo_node.db.scene import (
    REPOSITORY,
    OneConnection,
    Queries,
    Scene,
    commit,
    copies,
    digests_of,
    only_row,
    open_scene,
    paths,
    table,
    until_blocked,
)

CANDIDATES = "SELECT b.sha256 FROM gc_candidates c JOIN blobs b ON b.id = c.blob_id ORDER BY b.id"
PAUSE_BEFORE = "IF v_blob IS NOT NULL THEN"
MADE = "SELECT kind, repository, path, principal, request_id FROM events"
DELETES = "SELECT path, sha256, detail, principal, request_id FROM events WHERE kind = 'delete' ORDER BY id"


async def delete(scene: Scene, path: str) -> int:
    folder, _, name = path.rpartition("/")
    return await artifacts.delete(scene.database, scene.repository, folder, name, by=Origin("bob", "request-2"))


async def make_folder(scene: Scene, path: str) -> None:
    await artifacts.make_folder(scene.database, scene.repository, path, by=Origin("bob", "r"))


async def children(scene: Scene, folder: str) -> list[Child]:
    pages = artifacts.children(scene.database, scene.repository, folder)
    return [child async for page in pages for child in page]


# ---------------------------------------------------------------- resolve


async def test_resolve_gives_the_artifact_with_blob_and_replicas(scene: Scene) -> None:
    deployment, written = scene.deployment("a/b", b"content", properties={"k": ["v"]}), copies(1, 3)
    result = await scene.commit(deployment, written)
    found = await artifacts.resolve(scene.database, REPOSITORY, "a", "b")
    assert found.repository_id == scene.repository
    item = found.item
    assert item is not None and item.blob is not None
    assert (item.repository, item.folder, item.name, item.path) == (REPOSITORY, "a", "b", "a/b")
    assert (item.created_at, item.created_by, item.modified_by) == (result.created_at, "alice", "alice")
    assert item.modified_at == deployment.started_at
    assert item.properties == {"k": ["v"]}
    digests = digests_of(b"content")
    assert (item.blob.size, item.blob.uid) == (7, deployment.blob_uid)
    assert (item.blob.sha256, item.blob.sha1, item.blob.md5) == (digests.sha256, digests.sha1, digests.md5)
    assert item.blob.first_digests == digests.blocks
    assert set(item.blob.replicas) == set(written)


async def test_resolve_marks_suspect_replicas(scene: Scene) -> None:
    _, [good, bad] = await scene.upload("a")
    await blobs.mark_suspect(scene.database, bad.shard, bad.generation)
    item = (await artifacts.resolve(scene.database, REPOSITORY, "", "a")).item
    assert item is not None and item.blob is not None
    assert {(r.generation, r.suspect) for r in item.blob.replicas} == {(good.generation, False), (bad.generation, True)}


async def test_resolve_gives_a_blob_without_any_replica(scene: Scene, connection: asyncpg.Connection) -> None:
    await scene.upload("a")
    await connection.execute("DELETE FROM replicas")
    item = (await artifacts.resolve(scene.database, REPOSITORY, "", "a")).item
    assert item is not None and item.blob is not None
    assert item.blob.replicas == ()


async def test_resolve_gives_a_folder_without_a_blob(scene: Scene) -> None:
    await scene.upload("a/b/c")
    item = (await artifacts.resolve(scene.database, REPOSITORY, "a", "b")).item
    assert item is not None
    assert (item.path, item.blob) == ("a/b", None)


@pytest.mark.parametrize(("folder", "name"), [("", "x"), ("a", "x"), ("a/b", "x"), ("A", "b"), ("", "")])
async def test_resolve_tells_a_missing_path_from_a_missing_repository(scene: Scene, folder: str, name: str) -> None:
    await scene.upload("a/b")
    found = await artifacts.resolve(scene.database, REPOSITORY, folder, name)
    assert (found.repository_id, found.item) == (scene.repository, None)
    found = await artifacts.resolve(scene.database, "no-such", folder, name)
    assert (found.repository_id, found.item) == (None, None)


async def test_resolve_brings_no_more_than_the_first_digests(scene: Scene) -> None:
    data_blocks = artifacts.FIRST_BLOCKS + 3
    small = digests_of(b"")
    blocks = b"".join(i.to_bytes(8, "big") for i in range(data_blocks))
    sha256 = hashlib.sha256(blocks).digest()
    large = type(small)(data_blocks * BLOCK_BYTES, sha256, small.sha1, small.md5, blocks)
    await scene.commit(scene.deployment("a", digests=large), copies(1, 3))
    item = (await artifacts.resolve(scene.database, REPOSITORY, "", "a")).item
    assert item is not None and item.blob is not None
    assert item.blob.first_digests == blocks[: 8 * artifacts.FIRST_BLOCKS]


# ---------------------------------------------------------------- children


async def test_children_are_direct_sorted_by_bytes_and_typed(scene: Scene) -> None:
    for path in ("f/b", "f/a/x", "f/B", "f/é", "f/a.b", "g/z", "top"):
        await scene.upload(path)
    assert await children(scene, "f") == [
        Child("B", False),
        Child("a", True),
        Child("a.b", False),
        Child("b", False),
        Child("é", False),
    ]
    assert await children(scene, "") == [Child("f", True), Child("g", True), Child("top", False)]
    assert await children(scene, "nowhere") == []


async def test_children_are_whole_over_many_pages(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "FIRST_PAGE", 2)
    monkeypatch.setattr(paging, "PAGE", 3)
    for count in range(9):
        assert len(await children(scene, "f")) == count
        await scene.upload(f"f/{count}")
    assert [child.name for child in await children(scene, "f")] == [str(i) for i in range(9)]
    pages = [len(page) async for page in artifacts.children(scene.database, scene.repository, "f")]
    assert pages == [2, 3, 3, 1]


# ---------------------------------------------------------------- make_folder


async def test_make_folder_makes_ancestors_and_is_no_error_twice(scene: Scene, connection: asyncpg.Connection) -> None:
    await make_folder(scene, "a/b/c")
    await make_folder(scene, "a/b/c")
    await make_folder(scene, "a/b")
    assert await paths(connection) == ["a", "a/b", "a/b/c"]
    assert await table(connection, "SELECT DISTINCT created_by, modified_by FROM artifacts") == [("bob", "bob")]
    assert await table(connection, MADE) == [("folder", REPOSITORY, "a/b/c", "bob", "r")], "one event for what was made"


async def test_make_folder_of_the_root_does_nothing(scene: Scene, connection: asyncpg.Connection) -> None:
    await make_folder(scene, "")
    assert await paths(connection) == []
    assert await table(connection, MADE) == []


@pytest.mark.parametrize("path", ["a/file", "a/file/below", "a/file/far/below"])
async def test_make_folder_refuses_a_path_through_an_artifact(
    scene: Scene, connection: asyncpg.Connection, path: str
) -> None:
    await scene.upload("a/file")
    with pytest.raises(PathConflict):
        await make_folder(scene, path)
    assert await paths(connection) == ["a", "a/file"]
    assert ("folder",) not in await table(connection, "SELECT kind FROM events")


async def test_make_folder_in_a_repository_that_is_gone_may_be_retried(scene: Scene) -> None:
    with pytest.raises(CatalogueUnavailable):
        await artifacts.make_folder(scene.database, 4711, "a", by=Origin("bob", "r"))


# ---------------------------------------------------------------- delete


async def test_delete_of_an_artifact_releases_its_blob_and_leaves_the_folder(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await scene.upload("f/a", b"one")
    await scene.upload("f/b", b"two")
    assert await delete(scene, "f/a") == 1
    assert await paths(connection) == ["f", "f/b"]
    assert await table(connection, CANDIDATES) == [(digests_of(b"one").sha256,)]
    event = await only_row(connection, DELETES)
    assert (event["path"], event["sha256"]) == ("f/a", digests_of(b"one").sha256)
    assert (json.loads(event["detail"]), event["principal"], event["request_id"]) == ({"items": 1}, "bob", "request-2")


async def test_delete_of_nothing_writes_nothing(scene: Scene, connection: asyncpg.Connection) -> None:
    await scene.upload("f/a")
    for path in ("f/b", "f/a/x", "g", ""):
        assert await delete(scene, path) == 0
    assert await table(connection, DELETES) == []
    assert await paths(connection) == ["f", "f/a"]


async def test_delete_of_a_folder_takes_its_tree_and_no_neighbour(scene: Scene, connection: asyncpg.Connection) -> None:
    inside = ("f/a", "f/a/1", "f/a/sub/2", "f/a/sub/deep/3", "f/a/0", "f/a/\x7f", "f/a/é")
    outside = ("f/a.b", "f/a0", "f/a00/1", "f/a./1", "f/ab/1", "f/a-/1", "fa/1", "g/f/a", "f/A/1")
    for path in (*inside[1:], *outside):
        await scene.upload(path, path.encode())
    before = await paths(connection)
    gone = {path for path in before if path == "f/a" or path.startswith("f/a/")}
    assert await delete(scene, "f/a") == len(gone)
    assert await paths(connection) == [path for path in before if path not in gone]
    assert {sha256 for (sha256,) in await table(connection, CANDIDATES)} == {
        digests_of(path.encode()).sha256 for path in inside[1:]
    }
    assert [(e[0], e[1], json.loads(e[2])) for e in await table(connection, DELETES)] == [
        ("f/a", None, {"items": len(gone)})
    ]


async def test_delete_of_a_folder_releases_each_blob_once(scene: Scene, connection: asyncpg.Connection) -> None:
    for i in range(5):
        await scene.upload(f"f/{i}", b"same")
    assert await delete(scene, "f") == 6
    assert await table(connection, CANDIDATES) == [(digests_of(b"same").sha256,)]


async def test_delete_reaches_one_repository_only(scene: Scene, connection: asyncpg.Connection) -> None:
    other = await connection.fetchval("INSERT INTO repositories (key, created_by) VALUES ('other', 'x') RETURNING id")
    await scene.upload("f/a")
    await scene.upload("f/a", repository_id=other)
    assert await delete(scene, "f") == 2
    assert await paths(connection, f"repo_id = {other}") == ["f", "f/a"]


async def test_delete_names_the_content_that_it_removed(scene: Scene, connection: asyncpg.Connection) -> None:
    """An overwrite that commits while the deletion waits for the row is what is deleted."""
    await scene.upload("a", b"old")
    await race(
        scene,
        connection,
        lambda: commit(OneConnection(connection), scene.deployment("a", b"young"), copies(1, 3)),
        lambda other: other.fetchval(artifacts.DELETE.sql, scene.repository, "", "a", 100, "bob", "r", None),
    )
    assert await paths(connection) == []
    assert (await only_row(connection, DELETES))["sha256"] == digests_of(b"young").sha256
    released = {sha256 for (sha256,) in await table(connection, CANDIDATES)}
    assert released == {digests_of(b"old").sha256, digests_of(b"young").sha256}


@pytest.mark.parametrize("was_folder", [False, True], ids=["artifact", "folder"])
async def test_delete_spares_what_took_the_place_of_what_it_saw(dsn: str, queries: Queries, was_folder: bool) -> None:
    """Between its look and its deletion, the artifact becomes a folder or the other way round."""
    before, after = ("a/b/c", "a/b") if was_folder else ("a/b", "a/b/c")
    async with open_scene(dsn, queries) as scene:
        connection = await asyncpg.connect(dsn)
        definition = await connection.fetchval("SELECT pg_get_functiondef('delete_step'::regproc)")
        paused = definition.replace(PAUSE_BEFORE, f"PERFORM pg_advisory_xact_lock(99); {PAUSE_BEFORE}")
        assert paused != definition
        await connection.execute(paused.replace(".delete_step(", ".paused_delete("))
        await scene.upload(before, b"old")

        async def replace() -> None:
            assert await delete(scene, "a/b")
            await scene.upload(after, b"young")

        gone = await race(
            scene,
            connection,
            lambda: connection.execute("SELECT pg_advisory_xact_lock(99)"),
            lambda other: other.fetchval(
                "SELECT gone FROM paused_delete($1, 'a', 'b', 100, 'bob', 'r')", scene.repository
            ),
            replace,
        )
        assert gone == 0
        assert after in await paths(connection)
        assert ("a/b" in await paths(connection, "blob_id IS NULL")) is not was_folder
        await connection.close()


async def test_upload_into_a_folder_that_is_being_deleted_lands_in_a_new_one(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await scene.upload("f/g/a")
    await race(
        scene,
        connection,
        lambda: connection.fetchval(artifacts.DELETE.sql, scene.repository, "", "f", 100, "bob", "r", None),
        lambda other: commit(OneConnection(other), scene.deployment("f/g/b", b"young"), copies(1, 3)),
    )
    assert await paths(connection) == ["f", "f/g", "f/g/b"]


async def test_delete_of_a_folder_waits_for_the_upload_that_enters_it(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await scene.upload("f/g/a", b"one")
    gone = await race(
        scene,
        connection,
        lambda: commit(OneConnection(connection), scene.deployment("f/g/h/b", b"two"), copies(1, 3)),
        lambda other: other.fetchval(artifacts.DELETE.sql, scene.repository, "", "f", 100, "bob", "r", None),
    )
    assert gone == 5
    assert await paths(connection) == []
    assert len(await table(connection, CANDIDATES)) == 2


@pytest.mark.parametrize("deletion_first", [False, True])
async def test_folder_made_while_its_parent_is_deleted_never_lacks_one(
    scene: Scene, connection: asyncpg.Connection, deletion_first: bool
) -> None:
    await make_folder(scene, "f")
    calls: list[Any] = [
        lambda c: c.fetchval(artifacts.MAKE_FOLDER.sql, scene.repository, "f/g/h", "bob", "r", None),
        lambda c: c.fetchval(artifacts.DELETE.sql, scene.repository, "", "f", 100, "bob", "r", None),
    ]
    first, second = reversed(calls) if deletion_first else calls
    await race(scene, connection, lambda: first(connection), second)
    assert await paths(connection) == (["f", "f/g", "f/g/h"] if deletion_first else [])


async def race(scene: Scene, connection: asyncpg.Connection, first: Any, second: Any, meanwhile: Any = None) -> Any:
    """Run ``first`` in a transaction, start ``second`` elsewhere until it waits, commit; return second's result."""
    other = await asyncpg.connect(scene.dsn)
    try:
        transaction = connection.transaction()
        await transaction.start()
        await first()
        task = asyncio.ensure_future(second(other))
        await until_blocked(connection)
        if meanwhile is not None:
            await meanwhile()
        await transaction.commit()
        return await asyncio.wait_for(task, 10)
    finally:
        other.terminate()


async def test_no_page_of_a_folder_is_larger_than_its_reader_wants(scene: Scene) -> None:
    for number in range(7):
        await scene.upload(f"f/{number}")
    found = artifacts.children(scene.database, scene.repository, "f", rows_max=3)
    assert [[child.name for child in page] async for page in found] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
