"""No statement of a request reads a whole table: counted by Postgres itself, in functions and foreign keys too."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID, uuid4

import asyncpg
import pytest

from repo_node.db import artifacts, blobs, downloads, events, known, principals, properties, transfers, trees
from repo_node.db.blobs import CommitOutcome
from repo_node.db.commit_groups import COMMIT_GROUP, UploadToCommit, columns
from repo_node.db.known import Link
from repo_node.db.pool import Database
from repo_node.origin import Origin
from sharding.model import Generation, Replica, ShardId
from tests.postgres import TestServer, run_apart
from tests.repo_node.db.scene import (
    DAY_SECONDS,
    NODES_SQL,
    REPOSITORY,
    SHARDS_SQL,
    OneConnection,
    Scene,
    commit,
    copies,
)

ROWS = 4_000
FILL_SQL = f"""
    INSERT INTO blobs (uid, sha256, sha1, md5, size, redundancy, block_digests)
    SELECT gen_random_uuid(), sha256(i::text::bytea), substring(sha256(i::text::bytea) FOR 20),
           substring(sha256(i::text::bytea) FOR 16), 10, 2, '\\x0011223344556677'
      FROM generate_series(1, {ROWS}) AS i;
    INSERT INTO replicas (shard_id, generation, blob_id)
    SELECT 1 + (b.id + 2 * k) % 6, gen_random_uuid(), b.id FROM blobs b, generate_series(1, 2) AS k;
    INSERT INTO artifacts (repo_id, folder, name, created_by, modified_by)
    SELECT r.id, '', 'd' || i, 'x', 'x' FROM repositories r, generate_series(0, 39) AS i;
    INSERT INTO artifacts (repo_id, folder, name, blob_id, created_by, modified_by)
    SELECT r.id, 'd' || b.id % 40, 'f' || b.id, b.id, 'x', 'x' FROM repositories r, blobs b;
    INSERT INTO events (kind, upload_id, repository, path, principal, request_id)
    SELECT 'deploy', gen_random_uuid(), 'generic-local', 'd' || i % 40 || '/f' || i, 'x', 'x'
      FROM generate_series(1, {ROWS}) AS i;
    INSERT INTO tokens (user_id, secret_sha256, ending, description, scopes)
    SELECT u.id, sha256(i::text::bytea), '', '', '{{read}}' FROM users u, generate_series(1, {ROWS}) AS i WHERE u.is_admin;
    INSERT INTO gc_candidates (blob_id) SELECT id FROM blobs WHERE id % 2 = 0;
    INSERT INTO repair_queue (blob_id, reason) SELECT id, 'suspect' FROM blobs WHERE id % 2 = 0;
"""
LARGE = ("artifacts", "blobs", "replicas", "events", "tokens", "gc_candidates", "repair_queue")
SCANS_SQL = "SELECT relname FROM pg_stat_xact_user_tables WHERE seq_scan > 0 AND relname = ANY ($1) ORDER BY 1"
REPLICA_SQL = "SELECT shard_id, generation FROM replicas WHERE blob_id = $1 ORDER BY 1"


@pytest.fixture(scope="module")
def filled_dsn(postgres: TestServer) -> Iterator[str]:
    async def fill(dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        for statement in (NODES_SQL, SHARDS_SQL, FILL_SQL, "ANALYZE"):
            await connection.execute(statement)
        await connection.close()

    with postgres.database(postgres.template()) as dsn:
        run_apart(fill(dsn))
        yield dsn


@pytest.fixture(params=["force_custom_plan", "force_generic_plan"])
async def large(filled_dsn: str, request: pytest.FixtureRequest) -> AsyncIterator[asyncpg.Connection]:
    """A connection inside a transaction that is rolled back, to a database with thousands of rows of everything."""
    connection = await asyncpg.connect(filled_dsn, server_settings={"plan_cache_mode": request.param, "jit": "off"})
    try:
        await connection.execute("BEGIN")
        yield connection
    finally:
        connection.terminate()


def sha256(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


async def whole_scans(connection: asyncpg.Connection) -> list[str]:
    return [row[0] for row in await connection.fetch(SCANS_SQL, LARGE)]


async def test_a_whole_scan_is_noticed(large: asyncpg.Connection) -> None:
    await large.fetch("SELECT count(*) FROM events WHERE principal = 'y'")
    assert await whole_scans(large) == ["events"]


DIGESTS = {"sha256": 32, "sha1": 20, "md5": 16}
READS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "resolve an artifact": (artifacts.RESOLVE.sql, (REPOSITORY, "d7", "f7")),
    "resolve a folder": (artifacts.RESOLVE.sql, (REPOSITORY, "", "d7")),
    "resolve nothing": (artifacts.RESOLVE.sql, (REPOSITORY, "d7", "no-such")),
    "children": (artifacts.CHILDREN.sql, (1, "d7", "", 50)),
    "children, next page": (artifacts.CHILDREN.sql, (1, "d7", "f2", 50)),
    "list": (trees.CHILDREN.sql, (1, "d7", "", 50)),
    "list of a tree": (trees.TREE.sql, (1, "", "d7", "", "", 50)),
    "last modified": (trees.LAST_MODIFIED.sql, (1, "d7", "d7/", "d70", "^d7/", None)),
    "walk": (trees.WALK.sql, (1, "d7", "d7", "f2", 50, 2, True, "^(?:d7(?:/.*)?)?$", "^d7/")),
    "downloads": (downloads.FIND.sql, (REPOSITORY, "d7", "f7")),
    "tree": ("SELECT * FROM tree_page($1, $2, $3, $4, $5, $6)", (1, "", "d7", "", "", 50)),
    "tree, next page": ("SELECT * FROM tree_page($1, $2, $3, $4, $5, $6)", (1, "", "d7", "d7", "f2", 50)),
    "tree of the whole": ("SELECT * FROM tree_page($1, $2, $3, $4, $5, $6)", (1, "", "", "d1", "f2", 50)),
    "events after": (events.AFTER.sql, (0, 50, 10, None, None, None, None)),
    "events before": (events.BEFORE.sql, (50, 1, 10, None, None, None, None)),
    "events of a path": (events.AFTER.sql, (0, 50, 10, None, None, REPOSITORY, f"{REPOSITORY}/d7")),
    "stretch of events after": (events.AFTER_STRETCH, (0, 1 << 62, 50, datetime.now(UTC))),
    "stretch of events before": (events.BEFORE_STRETCH, (1 << 62, 50)),
    "token": (principals.FIND_TOKEN.sql, (sha256(7),)),
    "block digests": (blobs.BLOCKS.sql, (7, 1, 8)),
    "replicas": (blobs.REPLICAS.sql, (7,)),
    **{f"known by {name}": (known.FIND_BY[name].sql, (sha256(8)[:size],)) for name, size in DIGESTS.items()},
    "good replicas": ("SELECT * FROM good_replicas($1)", (7,)),
}


@pytest.mark.parametrize("read", READS)
async def test_read_uses_its_index(large: asyncpg.Connection, read: str) -> None:
    sql, args = READS[read]
    rows = await large.fetch(sql, *args)
    assert rows
    assert await whole_scans(large) == []


async def test_children_come_in_the_order_of_the_index(large: asyncpg.Connection) -> None:
    # A small part of the folder: all of it is read as fast in any order.
    plan = "\n".join(row[0] for row in await large.fetch("EXPLAIN " + artifacts.CHILDREN.sql, 1, "d7", "", 20))
    assert "artifacts_pkey" in plan
    assert "Sort" not in plan


Upload = Callable[[Scene, OneConnection, list[Replica]], Awaitable[CommitOutcome]]


async def upload_new(scene: Scene, one: OneConnection, _: list[Replica]) -> CommitOutcome:
    return (await commit(one, scene.deployment("new/folder/a", b"new"), copies(1, 3))).outcome


async def upload_over(scene: Scene, one: OneConnection, _: list[Replica]) -> CommitOutcome:
    return (await commit(one, scene.deployment("d7/f7", b"new"), copies(1, 3))).outcome


async def upload_known(scene: Scene, one: OneConnection, existing: list[Replica]) -> CommitOutcome:
    deployment = known_upload(scene)
    asked = await commit(one, deployment, copies(2, 4))
    assert set(asked.existing) == set(existing)
    return (await commit(one, deployment, copies(2, 4), existing)).outcome


async def upload_to_adopt(scene: Scene, one: OneConnection, _: list[Replica]) -> CommitOutcome:
    return (await commit(one, known_upload(scene), copies(2, 4), [])).outcome


async def upload_twice(scene: Scene, one: OneConnection, _: list[Replica]) -> CommitOutcome:
    deployment = scene.deployment("d7/f7", b"new")
    await commit(one, deployment, copies(1, 3))
    return (await commit(one, deployment, copies(1, 3))).outcome


async def upload_together(scene: Scene, one: OneConnection, _: list[Replica]) -> CommitOutcome:
    overwrites = scene.deployment("d7/f7", b"over")
    uploads = [known_upload(scene), overwrites, *(scene.deployment(f"d{n}/new", bytes([n])) for n in range(20))]
    orders = [UploadToCommit(upload, copies(1, 3), "{}", DAY_SECONDS, short=False) for upload in uploads]
    row: Any = await one.write(COMMIT_GROUP, *columns(orders))
    assert sorted(row["committed"]) == list(range(3, 23))
    return CommitOutcome.ADOPTED


def known_upload(scene: Scene) -> Any:
    """Return an upload of the content of blob 8."""
    deployment = scene.deployment("d8/again", b"0123456789")
    digests = deployment.digests
    return scene.deployment("d8/again", digests=type(digests)(10, sha256(8), digests.sha1, digests.md5, digests.blocks))


UPLOADS: dict[str, tuple[Upload, CommitOutcome]] = {
    "new": (upload_new, CommitOutcome.ADOPTED),
    "together": (upload_together, CommitOutcome.ADOPTED),
    "overwrite": (upload_over, CommitOutcome.ADOPTED),
    "known": (upload_known, CommitOutcome.DEDUPLICATED),
    "known, adopted": (upload_to_adopt, CommitOutcome.ADOPTED),
    "repeat": (upload_twice, CommitOutcome.ADOPTED),
}


@pytest.mark.parametrize("upload", UPLOADS)
async def test_commit_uses_indexes_alone(large: asyncpg.Connection, filled_dsn: str, upload: str) -> None:
    scene = Scene(filled_dsn, cast(Database, None), 1)
    existing = [
        Replica(ShardId(r["shard_id"]), Generation(UUID(str(r["generation"]))))
        for r in await large.fetch(REPLICA_SQL, 8)
    ]
    run, outcome = UPLOADS[upload]
    assert await run(scene, OneConnection(large), existing) is outcome
    assert await whole_scans(large) == []


async def test_deployment_of_known_content_uses_indexes_alone(large: asyncpg.Connection) -> None:
    rows = await large.fetch(REPLICA_SQL, 8)
    link = """
        SELECT outcome
          FROM deploy_known($1, now(), 1, 'd7', 'f7', '{}', 'x', 'x', 8, 2::smallint, $2, 1::smallint, 1::smallint)
    """
    assert await large.fetchval(link, uuid4(), [row["generation"] for row in rows]) == "linked"
    assert await whole_scans(large) == []


async def test_deployments_of_known_content_together_use_indexes_alone(large: asyncpg.Connection) -> None:
    asked = [
        (
            Link(uuid4(), datetime.now(UTC), 1, folder, f"k{blob}", "{}", Origin("x", "x"), blob, 2, 1, 1),
            [Generation(UUID(str(row["generation"]))) for row in await large.fetch(REPLICA_SQL, blob)],
        )
        for folder, blob in (("d7", 8), ("d7", 9), ("d8", 10), ("", 11))
    ]
    row = await large.fetchrow(known.LINK_TOGETHER.sql, *known.columns(asked))
    assert row is not None and row["outcomes"] == ["linked"] * 4
    assert await whole_scans(large) == []


async def test_suspicion_uses_indexes_alone(large: asyncpg.Connection) -> None:
    row = await large.fetchrow(REPLICA_SQL, 8)
    assert row is not None
    assert await large.fetchval(blobs.SUSPECT.sql, row["shard_id"], row["generation"])
    assert await whole_scans(large) == []


@pytest.mark.parametrize(("folder", "name", "gone"), [("d7", "f7", 1), ("", "d7", 101), ("d7", "no-such", 0)])
async def test_delete_uses_indexes_alone(large: asyncpg.Connection, folder: str, name: str, gone: int) -> None:
    assert await large.fetchval(artifacts.DELETE.sql, 1, folder, name, 1_000, "x", "r", None) == gone
    assert await whole_scans(large) == []


@pytest.mark.parametrize(("name", "recursive"), [("d7", True), ("d7", False), ("", True)])
async def test_changed_properties_use_indexes_alone(large: asyncpg.Connection, name: str, recursive: bool) -> None:
    args = (1, "", name, recursive, "", "", 50, '{"a": ["1"]}', ["b"], 1_000, "x", "r", None)
    assert await large.fetchval(properties.CHANGE.sql, *args) == (50 if recursive else 1)
    assert await whole_scans(large) == []


@pytest.mark.parametrize("move", [True, False])
@pytest.mark.parametrize(("folder", "name", "seen"), [("d7", "f7", 1), ("", "d7", 50)])
async def test_transfer_uses_indexes_alone(
    large: asyncpg.Connection, move: bool, folder: str, name: str, seen: int
) -> None:
    args = (move, False, 1, folder, name, 1, "new/place", "", "", 50, 1024, "x", "r", "^d7", None, None, None, uuid4())
    assert await large.fetchval(transfers.PAGE.sql, *args) == seen
    assert await whole_scans(large) == []


async def test_pruned_folders_use_indexes_alone(large: asyncpg.Connection) -> None:
    args = (1, "", chr(1), None, "", 1, "new/place", chr(1), "", 50)
    assert await large.fetchval(transfers.PRUNE.sql, *args) == 40
    assert await whole_scans(large) == []


async def test_counted_downloads_use_indexes_alone(large: asyncpg.Connection) -> None:
    count = 50
    numbers = [7 + 40 * i for i in range(count)]
    paths = [["generic-local"] * count, ["d7"] * count, [f"f{n}" for n in numbers]]
    status = await large.execute(downloads.ADD.sql, *paths, [2] * count, [datetime.now(UTC)] * count, ["x"] * count)
    assert status == f"UPDATE {count}"
    assert await whole_scans(large) == []


async def test_made_folder_uses_indexes_alone(large: asyncpg.Connection) -> None:
    assert await large.fetchval(artifacts.MAKE_FOLDER.sql, 1, "d7/new/folder", "x", "r", None)
    assert await whole_scans(large) == []


async def test_check_of_a_blobs_references_uses_indexes_alone(large: asyncpg.Connection) -> None:
    """What gc will do: the foreign keys look for references from every table."""
    await large.execute("DELETE FROM artifacts WHERE repo_id = 1 AND folder = 'd9' AND name = 'f9'")
    for name in ("replicas", "gc_candidates", "repair_queue"):
        await large.execute(f"DELETE FROM {name} WHERE blob_id = 9")
    assert await large.execute("DELETE FROM blobs WHERE id = 9") == "DELETE 1"
    assert await whole_scans(large) == []
