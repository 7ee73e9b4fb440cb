"""Repositories as rows: making, finding, deleting with everything in them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from repo_node.db import artifacts, permission_targets, repositories, trees, usage
from repo_node.db.blobs import CommitOutcome
from repo_node.db.commit_groups import CommitGroups, UploadToCommit
from repo_node.db.errors import CatalogueUnavailable, KeptOut
from repo_node.db.properties import Place
from repo_node.db.repositories import Configuration, RepositoryExists
from repo_node.db.transfers import Transfer, page
from repo_node.origin import Origin
from tests.repo_node.db.scene import (
    DAY_SECONDS,
    REPOSITORY,
    OneConnection,
    Scene,
    commit,
    copies,
    digests_of,
    paths,
    table,
    until_blocked,
)

EVENTS = "SELECT kind, repository, principal, request_id FROM events WHERE kind LIKE 'repository%' ORDER BY id"


async def create(scene: Scene, key: str, **more: Any) -> None:
    kind = {name: more.pop(name) for name in ("rclass", "package_type") if name in more}
    await repositories.create(scene.database, key, Configuration(**more), **kind, by=Origin("bob", "r"))


async def delete(scene: Scene, key: str) -> bool:
    return await repositories.delete(scene.database, key, by=Origin("bob", "r"))


async def test_created_repository_is_found_and_listed_by_key(scene: Scene, connection: asyncpg.Connection) -> None:
    await create(scene, "zeta", description="last", redundancy=3)
    await create(scene, "Alpha")
    assert [r.key for r in await repositories.list_all(scene.database)] == ["Alpha", REPOSITORY, "zeta"]
    row = await repositories.find(scene.database, "zeta")
    assert row is not None
    assert (row.key, row.rclass, row.package_type, row.description, row.redundancy) == (
        "zeta",
        "local",
        "generic",
        "last",
        3,
    )
    assert await repositories.find(scene.database, "ZETA") is None
    assert await table(connection, EVENTS) == [("repository_create", key, "bob", "r") for key in ("zeta", "Alpha")]


async def test_create_refuses_a_key_that_is_taken(scene: Scene, connection: asyncpg.Connection) -> None:
    with pytest.raises(RepositoryExists, match=REPOSITORY):
        await create(scene, REPOSITORY)
    assert await table(connection, EVENTS) == []


@pytest.mark.parametrize("bad", [{"rclass": "remote"}, {"package_type": "npm"}, {"redundancy": 0}, {"redundancy": 17}])
async def test_create_refuses_what_this_release_cannot_serve(scene: Scene, bad: dict[str, Any]) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await create(scene, "new", **bad)


async def test_delete_removes_the_content_and_releases_each_blob_once(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    other = await connection.fetchval("INSERT INTO repositories (key, created_by) VALUES ('other', 'x') RETURNING id")
    for path, data in (("f/a", b"one"), ("f/b", b"one"), ("g", b"two")):
        await scene.upload(path, data)
    await scene.upload("kept", b"two", repository_id=other)
    assert await delete(scene, REPOSITORY)
    assert await paths(connection) == ["kept"]
    released = await table(connection, "SELECT sha256 FROM gc_candidates c JOIN blobs b ON b.id = c.blob_id ORDER BY 1")
    assert released == sorted((digests_of(data).sha256,) for data in (b"one", b"two"))
    assert await table(connection, EVENTS) == [("repository_delete", REPOSITORY, "bob", "r")]
    assert await repositories.find(scene.database, REPOSITORY) is None


async def test_delete_of_no_repository_says_so(scene: Scene, connection: asyncpg.Connection) -> None:
    await scene.upload("a")
    assert not await delete(scene, "no-such")
    assert await table(connection, EVENTS) == []
    assert await paths(connection) == ["a"]


async def test_repository_made_anew_has_another_id_and_nothing_in_it(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await scene.upload("a")
    await delete(scene, REPOSITORY)
    await create(scene, REPOSITORY)
    found = await repositories.find(scene.database, REPOSITORY)
    assert found is not None and found.id != scene.repository
    late = await scene.commit(scene.deployment("a"), copies(1, 3))
    assert late.outcome is CommitOutcome.NO_REPOSITORY, "an upload that began before lands nowhere"
    assert await paths(connection) == []


async def test_delete_waits_for_the_upload_in_flight_and_takes_it_along(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    transaction = connection.transaction()
    await transaction.start()
    await commit(OneConnection(connection), scene.deployment("f/a"), copies(1, 3))
    task = asyncio.create_task(delete(scene, REPOSITORY))
    done, _ = await asyncio.wait([task], timeout=0.3)
    assert not done
    await transaction.commit()
    assert await task
    assert await paths(connection) == []
    assert await connection.fetchval("SELECT count(*) FROM gc_candidates") == 1


async def test_deletes_of_one_repository_at_once_succeed_once(scene: Scene, connection: asyncpg.Connection) -> None:
    await scene.upload("f/a")
    assert sorted(await asyncio.gather(*(delete(scene, REPOSITORY) for _ in range(5)))) == [False] * 4 + [True]
    assert len(await table(connection, EVENTS)) == 1


async def test_uploads_and_deletes_of_a_repository_at_once_break_nothing(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    outcomes: set[CommitOutcome] = set()

    async def upload() -> None:
        for i in range(12):
            found = await repositories.find(scene.database, REPOSITORY)
            if found is not None:
                outcome, _ = await scene.upload(f"d{i % 3}/f", bytes([i % 2]), repository_id=found.id)
                outcomes.add(outcome)

    async def churn() -> None:
        for _ in range(6):
            await delete(scene, REPOSITORY)
            await create(scene, REPOSITORY)

    await asyncio.gather(upload(), upload(), upload(), churn())
    assert outcomes
    orphans = "SELECT count(*) FROM artifacts WHERE repo_id NOT IN (SELECT id FROM repositories)"
    assert await connection.fetchval(orphans) == 0


# ---------------------------------------------------------------- what holds for the rows, whoever comes


async def change(scene: Scene, **fields: Any) -> None:
    assert await repositories.change(scene.database, REPOSITORY, fields, by=Origin("bob", "r")) is not None


@pytest.mark.parametrize("together", [False, True])
async def test_what_patterns_hide_is_not_committed(
    scene: Scene, connection: asyncpg.Connection, together: bool
) -> None:
    await scene.upload("keep/there")
    await change(scene, includes_pattern="keep/**")
    groups = CommitGroups(scene.database, lambda: 0.2)
    uploads = [
        UploadToCommit(
            scene.deployment(path, path.encode()), copies(1, 3), "{}", age_max_seconds=DAY_SECONDS, short=False
        )
        for path in ("keep/a", "keep/b", "keep/c", "hidden")
    ]
    with groups.expect() if together else contextlib.nullcontext():
        tasks = [asyncio.create_task(groups.commit(upload)) for upload in uploads]
        await asyncio.sleep(0.05 if together else 0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [getattr(result, "outcome", None) for result in results[:3]] == [CommitOutcome.ADOPTED] * 3
    assert isinstance(results[3], KeptOut)
    assert await paths(connection) == ["keep", "keep/a", "keep/b", "keep/c", "keep/there"]
    assert await connection.fetchval("SELECT count(*) FROM events WHERE path = 'hidden'") == 0


async def test_a_virtual_repository_takes_nothing_also_from_who_knows_of_none(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await create(scene, "all", rclass="virtual", members=(REPOSITORY,))
    await scene.upload("f/a")
    virtual = await repositories.find(scene.database, "all")
    assert virtual is not None
    transfer = Transfer(False, scene.repository, "f/a", virtual.id, "b", Origin("bob", "r"))
    with pytest.raises(CatalogueUnavailable):
        await page(
            scene.database,
            transfer,
            Place(),
            fail_fast=False,
            dry=False,
            items_max=10,
            path_bytes_max=1000,
            event=uuid4(),
        )
    assert await paths(connection) == ["f", "f/a"]


async def test_uploads_go_on_while_a_change_waits_for_who_counts(scene: Scene, connection: asyncpg.Connection) -> None:
    await change(scene, quota_bytes=1_000)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(usage.COUNT, scene.repository)
    await change(scene, description="changed")
    waiting = asyncio.create_task(change(scene, quota_bytes=2_000))
    await until_blocked(connection)
    assert not await usage.count(scene.database, scene.repository)
    async with asyncio.timeout(3):
        await scene.upload("f/a")
    assert not waiting.done()
    await transaction.commit()
    await waiting
    assert not await usage.count(scene.database, scene.repository)


@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
async def test_a_page_of_a_large_folder_does_not_sort_the_folder(
    scene: Scene, connection: asyncpg.Connection, plan: str
) -> None:
    await scene.upload("f/a")
    await connection.execute(
        "INSERT INTO artifacts (repo_id, folder, name, blob_id, created_by, modified_by)"
        " SELECT a.repo_id, a.folder, 'x' || n, a.blob_id, '', '' FROM artifacts a, generate_series(1, 20000) AS n"
        " WHERE a.name = 'a'"
    )
    await connection.execute("ANALYZE artifacts")
    await connection.execute(f"SET enable_seqscan = off; SET plan_cache_mode = {plan}")
    for statement in (trees.CHILDREN, artifacts.CHILDREN):
        found = await connection.fetch(f"EXPLAIN {statement.sql}", scene.repository, "f", "", 1000)
        text = "\n".join(row[0] for row in found)
        assert "artifacts_pkey" in text and "Sort" not in text, text


async def test_a_deleted_repository_leaves_the_permission_targets_that_name_it(
    scene: Scene, connection: asyncpg.Connection, watcher: asyncpg.Connection
) -> None:
    await create(scene, "gone")
    made = "INSERT INTO permission_targets (name, repositories) VALUES ($1, $2)"
    await connection.execute(made, "some", ["other", "gone", "ANY REMOTE"])
    await connection.execute(made, "no", ["other"])
    async with connection.transaction():
        # One that is being saved at this moment is waited for.
        await connection.execute(permission_targets.LOCK)
        await connection.execute(made, "late", ["gone"])
        deleting = asyncio.create_task(delete(scene, "gone"))
        await until_blocked(watcher)
    assert await deleting
    found = await table(connection, "SELECT name, repositories FROM permission_targets ORDER BY name")
    assert found == [("late", []), ("no", ["other"]), ("some", ["other", "ANY REMOTE"])]
    [(detail,)] = await table(connection, "SELECT detail FROM events WHERE kind = 'repository_delete'")
    assert json.loads(detail) == {"permission_targets": ["late", "some"]}
