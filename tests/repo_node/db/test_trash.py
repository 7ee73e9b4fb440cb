"""The trash as rows: what leaves goes in with its blob, comes back as it was, and leaves for good after its time."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from repo_node import trash as trash_service
from repo_node.db import artifacts, repositories, trash
from repo_node.db.blobs import CommitOutcome, PathConflict
from repo_node.db.lease import Lease, NotPrimary
from repo_node.db.trash import Position, Restored, Trashed
from repo_node.origin import Origin
from repo_node.paths import ArtifactPath
from repo_node.recent import RecentItems
from repo_node.settings import LiveSettings
from repo_node.trash import Trash
from tests.repo_node.db.scene import Scene, digests_of, only_row, paths, table

CANDIDATES = "SELECT c.reason, b.sha256 FROM gc_candidates c JOIN blobs b ON b.id = c.blob_id ORDER BY b.id"


@pytest.fixture(autouse=True)
async def keeping(scene: Scene, connection: asyncpg.Connection) -> None:
    await connection.execute("UPDATE repositories SET trash = true")


async def delete(scene: Scene, path: str) -> int:
    folder, _, name = path.rpartition("/")
    return await artifacts.delete(scene.database, scene.repository, folder, name, by=Origin("bob", "r"))


async def restore(scene: Scene, one: Trashed, path: str, *, replace: bool = False) -> Restored:
    folder, _, name = path.rpartition("/")
    return await trash.restore(
        scene.database, one.id, scene.repository, folder, name, replace=replace, by=Origin("carol", "r2")
    )


async def everything(scene: Scene) -> list[Trashed]:
    return await trash.list_all(scene.database, Position(), 1_000)


async def test_deleted_artifact_keeps_its_blob_and_comes_back_as_it_was(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await scene.upload("a/b/c", b"bytes", properties={"build": ["7"]})
    before = await only_row(connection, "SELECT * FROM artifacts WHERE name = 'c'")
    assert await delete(scene, "a") == 3
    [one] = await everything(scene)
    assert (one.repository, one.path, one.reason, one.trashed_by, one.size) == (
        "generic-local", "a/b/c", "deleted", "bob", 5,
    )  # fmt: skip
    assert await table(connection, CANDIDATES) == []
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await connection.execute("DELETE FROM blobs")
    assert await restore(scene, one, "a/b/c") is Restored.RESTORED
    after = await only_row(connection, "SELECT * FROM artifacts WHERE name = 'c'")
    kept = ("blob_id", "created_at", "created_by", "modified_at", "modified_by", "properties")
    assert [after[name] for name in kept] == [before[name] for name in kept]
    assert json.loads(after["properties"]) == {"build": ["7"]}
    assert await paths(connection) == ["a", "a/b", "a/b/c"]
    assert await everything(scene) == []
    [event] = await connection.fetch("SELECT path, principal, detail FROM events WHERE kind = 'restore'")
    assert (event["path"], event["principal"]) == ("a/b/c", "carol")


async def test_overwritten_artifact_goes_to_the_trash_unless_it_is_the_same_content(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await scene.upload("a", b"one")
    await scene.upload("a", b"one")
    assert await everything(scene) == []
    await scene.upload("a", b"two")
    [one] = await everything(scene)
    assert (one.path, one.reason, one.sha256) == ("a", "overwritten", digests_of(b"one").sha256)
    assert await table(connection, CANDIDATES) == []


async def test_restore_over_something_swaps_the_two(scene: Scene) -> None:
    await scene.upload("a", b"one")
    await scene.upload("a", b"two")
    [one] = await everything(scene)
    assert await restore(scene, one, "a") is Restored.EXISTS
    assert await restore(scene, one, "a", replace=True) is Restored.RESTORED
    [two] = await everything(scene)
    assert two.sha256 == digests_of(b"two").sha256
    assert await restore(scene, one, "a", replace=True) is Restored.GONE


async def test_restore_refuses_a_folder_in_its_place_and_an_artifact_above_it(scene: Scene) -> None:
    await scene.upload("x/y", b"one")
    await delete(scene, "x")
    [one] = await everything(scene)
    await scene.upload("x/y/z", b"two")
    with pytest.raises(PathConflict):
        await restore(scene, one, "x/y", replace=True)
    await scene.upload("file", b"two")
    with pytest.raises(PathConflict):
        await restore(scene, one, "file/y")
    assert [found.id for found in await everything(scene)] == [one.id]


async def test_restore_where_more_copies_are_wanted_queues_a_repair(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await scene.upload("a", b"one")
    await delete(scene, "a")
    [one] = await everything(scene)
    await connection.execute("UPDATE repositories SET redundancy = 3")
    await restore(scene, one, "a")
    assert await table(connection, "SELECT redundancy FROM blobs") == [(3,)]
    assert await table(connection, "SELECT reason FROM repair_queue") == [("redundancy",)]


async def test_repository_without_trash_releases_at_once(scene: Scene, connection: asyncpg.Connection) -> None:
    change: dict[str, Any] = {"trash": False, "digests": None, "by": Origin("x", "r")}
    assert await repositories.change(scene.database, "generic-local", **change)
    assert not await repositories.change(scene.database, "none", **change)
    await scene.upload("a", b"one")
    await scene.upload("a", b"two")
    await delete(scene, "a")
    assert await everything(scene) == []
    assert len(await table(connection, CANDIDATES)) == 2


async def test_no_trash_is_kept_for_no_days(scene: Scene, connection: asyncpg.Connection) -> None:
    await connection.execute("INSERT INTO settings VALUES ('trash_days', '0', now(), 'x')")
    await scene.upload("a", b"one")
    await scene.upload("f/b", b"two")
    await delete(scene, "a")
    await delete(scene, "f")
    assert await everything(scene) == []
    assert len(await table(connection, CANDIDATES)) == 2


async def test_trash_outlives_its_repository(scene: Scene, connection: asyncpg.Connection) -> None:
    await scene.upload("f/a", b"one")
    assert await repositories.delete(scene.database, "generic-local", by=Origin("bob", "r"))
    [one] = await everything(scene)
    assert await restore(scene, one, "f/a") is Restored.GONE, "there is no such repository"
    assert [found.id for found in await everything(scene)] == [one.id]


async def test_expiry_lets_go_of_the_old_alone_in_bounded_steps(scene: Scene, connection: asyncpg.Connection) -> None:
    token = uuid4()
    lease = Lease(await connection.fetchval("SELECT lease_acquire('x', $1, 0, 60)", token), token)
    for number in range(10):
        await scene.upload(f"f/{number}", b"content %d" % number)
    await delete(scene, "f")
    await connection.execute("UPDATE trash SET trashed_at = now() - interval '2 days' WHERE id <= 7")
    with pytest.raises(NotPrimary):
        await trash.expire(scene.database, Lease(lease.epoch + 1, token), age_seconds=86_400, items_max=4)
    gone = [await trash.expire(scene.database, lease, age_seconds=86_400, items_max=4) for _ in range(3)]
    assert gone == [4, 3, 0]
    assert len(await everything(scene)) == 3
    assert {reason for reason, _ in await table(connection, CANDIDATES)} == {"expired"}
    await connection.fetchval("SELECT place_hold('rebuild', 'x')")
    await connection.execute("UPDATE trash SET trashed_at = now() - interval '2 days'")
    assert await trash.expire(scene.database, lease, age_seconds=86_400, items_max=4) == 0, "deletions are held"


async def test_listing_goes_through_every_page_once_and_stays_in_its_folder(scene: Scene) -> None:
    names = ("d/1", "d/2", "d-x/1", "d/e/1", "d0/1", "d", "e/1")
    for path in names:
        if path != "d":
            await scene.upload(path, path.encode())
    for folder in ("d", "d-x", "d0", "e"):
        await delete(scene, folder)
    await scene.upload("d", b"d")
    await delete(scene, "d")
    found, after = [], Position()
    while page := await trash.list_all(scene.database, after, 2):
        found += [one.path for one in page]
        after = Position(page[-1].repository, page[-1].folder, page[-1].name, page[-1].id)
    assert sorted(found) == sorted(names)
    below, after = [], Position()
    while page := await trash.list_tree(scene.database, "generic-local", "d", after, 1):
        below += [one.path for one in page]
        after = Position(page[-1].repository, page[-1].folder, page[-1].name, page[-1].id)
    assert below == ["d/1", "d/2", "d/e/1"]
    assert [one.path for one in await trash.list_path(scene.database, "generic-local", "", "d", 0, 9)] == ["d"]


async def test_content_in_the_trash_is_known_to_uploads(scene: Scene) -> None:
    await scene.upload("a", b"one")
    await delete(scene, "a")
    assert (await scene.upload("b", b"one"))[0] is CommitOutcome.DEDUPLICATED


async def test_release_before_this_one_deletes_by_the_old_function(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    """Both run side by side during an upgrade."""
    await scene.upload("f/a", b"one")
    await scene.upload("b", b"two")
    old = "SELECT delete_item($1, $2, $3, $4, $5) AS gone"
    assert await connection.fetchval(old, scene.repository, "", "f", "x", "r") == 2
    assert await connection.fetchval(old, scene.repository, "", "b", "x", "r") == 1
    assert await connection.fetchval(old, scene.repository, "", "b", "x", "r") == 0
    assert sorted(one.path for one in await everything(scene)) == ["b", "f/a"]


# ---------------------------------------------------------------- big folders


async def test_big_folder_goes_in_steps_and_is_whole_at_every_moment(
    scene: Scene, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "DELETE_PAGE", 7)
    for number in range(20):
        await scene.upload(f"f/{number % 4}/{number % 3}/{number}", b"content %d" % number)
    await scene.upload("f-neighbour/1", b"n")
    args = (scene.repository, "", "f", 7, "bob", "r", None)
    orphans = """
        SELECT count(*) FROM artifacts a WHERE a.folder <> '' AND NOT EXISTS (
            SELECT 1 FROM artifacts p WHERE p.repo_id = a.repo_id AND p.blob_id IS NULL
               AND concat_ws('/', nullif(p.folder, ''), p.name) = a.folder)
    """
    total = len(await paths(connection, "folder = 'f' OR folder LIKE 'f/%' OR (folder = '' AND name = 'f')"))
    steps = 0
    while True:
        row = await only_row(connection, artifacts.DELETE.sql, *args)
        assert row["gone"] <= 8
        assert await connection.fetchval(orphans) == 0
        steps += 1
        total -= row["gone"]
        if row["done"]:
            break
    assert total == 0 and steps > 3
    assert await paths(connection) == ["f-neighbour", "f-neighbour/1"]
    assert len(await everything(scene)) == 20


async def test_big_deletions_through_the_service_take_everything(
    scene: Scene, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (artifacts, repositories):
        monkeypatch.setattr(module, "DELETE_PAGE", 3)
    for number in range(9):
        await scene.upload(f"f/{number % 4}/{number}", b"content %d" % number)
        await scene.upload(f"g/{number}", b"content %d" % number)
    assert await delete(scene, "f") == 1 + 4 + 9
    assert await repositories.delete(scene.database, "generic-local", by=Origin("bob", "r"))
    assert await paths(connection) == []
    assert len(await everything(scene)) == 18


async def test_all_versions_of_a_path_are_listed_and_let_go_however_many_pages_that_takes(
    scene: Scene, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.upload("f/a", b"version 0")
    await connection.execute(
        """
        INSERT INTO trash (repository, folder, name, blob_id, created_at, created_by, modified_at, modified_by,
                           properties, reason, trashed_by)
        SELECT 'generic-local', place.folder, place.name, a.blob_id, a.created_at, 'x', a.modified_at, 'x', '{}',
               'deleted', 'x'
          FROM artifacts a,
               (VALUES ('f', 'a', 6), ('f/a', 'below', 2), ('f', 'b', 1)) AS place (folder, name, count),
               generate_series(1, place.count)
         WHERE a.name = 'a'
        """
    )
    live = LiveSettings()
    service, at = Trash(scene.database, RecentItems(live), live), ArtifactPath("generic-local", "f", "a")
    for items_max in (3, 4, 100):
        seen, after = [], Position()
        while page := await service.page(at, after, items_max):
            seen += [one.path for one in page]
            last = page[-1]
            after = Position(last.repository, last.folder, last.name, last.id)
        assert seen == ["f/a"] * 6 + ["f/a/below"] * 2
    monkeypatch.setattr(trash_service, "PAGE", 4)
    assert await service.empty(at, by=Origin("x", "r")) == 8
    assert [one.path for one in await everything(scene)] == ["f/b"]
