"""Repositories as rows: making, finding, deleting with everything in them."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from repo_node.db import repositories
from repo_node.db.blobs import CommitOutcome
from repo_node.db.repositories import RepositoryExists
from repo_node.origin import Origin
from tests.repo_node.db.scene import REPOSITORY, OneConnection, Scene, commit, copies, digests_of, paths, table

EVENTS = "SELECT kind, repository, principal, request_id FROM events WHERE kind LIKE 'repository%' ORDER BY id"


async def create(scene: Scene, key: str, **more: Any) -> None:
    values = {"rclass": "local", "package_type": "generic", "description": "", "redundancy": None}
    await repositories.create(scene.database, key, **{**values, "by": Origin("bob", "r")} | more)


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


@pytest.mark.parametrize("bad", [{"rclass": "virtual"}, {"package_type": "npm"}, {"redundancy": 0}, {"redundancy": 17}])
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
