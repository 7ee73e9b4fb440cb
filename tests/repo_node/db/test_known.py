"""The commit of an upload without bytes: its outcomes, its repeats, and who it may meet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast
from uuid import uuid4

import asyncpg
import pytest

from repo_node.db import known
from repo_node.db.blobs import CommitOutcome, PathConflict
from repo_node.db.known import KnownContent, Link, LinkOutcome
from repo_node.db.pool import Database
from repo_node.origin import Origin
from sharding.model import Replica
from tests.repo_node.db.scene import OneConnection, Scene, digests_of, only_row, paths, table, until_blocked

EVERYTHING = """
    SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM artifacts), (SELECT count(*) FROM repair_queue),
           (SELECT count(*) FROM gc_candidates), (SELECT count(*) FROM replicas)
"""
COLLECT = """
    WITH gone AS (
        DELETE FROM replicas WHERE blob_id = $1
    ), free AS (
        DELETE FROM gc_candidates WHERE blob_id = $1
    )
    DELETE FROM blobs WHERE id = $1
"""


async def find(scene: Scene, data: bytes = b"bytes", name: str = "sha256") -> KnownContent | None:
    return await known.find_known(scene.database, name, getattr(digests_of(data), name))


def link_of(scene: Scene, blob: int, path: str = "linked", **overrides: Any) -> Link:
    folder, _, name = path.rpartition("/")
    values: dict[str, Any] = {
        "upload": uuid4(),
        "started_at": datetime.now().astimezone(),
        "repository_id": scene.repository,
        "folder": folder,
        "name": name,
        "properties_json": "{}",
        "by": Origin("alice", "request-1"),
        "blob_id": blob,
        "redundancy": 2,
        "copies_min": 2,
        "zones_min": 1,
    }
    return Link(**(values | overrides))


async def link(database: Database | OneConnection, asked: Link, confirmed: Sequence[Replica]) -> LinkOutcome:
    generations = [replica.generation for replica in confirmed]
    return (await known.link(cast(Database, database), asked, generations))[0]


async def blob_of(connection: asyncpg.Connection) -> int:
    row = await only_row(connection, "SELECT id FROM blobs")
    return int(row["id"])


@pytest.mark.parametrize("name", ["sha256", "sha1", "md5"])
async def test_content_is_found_with_its_good_replicas(scene: Scene, connection: asyncpg.Connection, name: str) -> None:
    _, written = await scene.upload("a", shards=(1, 3, 5))
    await connection.execute("UPDATE replicas SET state = 'suspect' WHERE shard_id = 3")
    await connection.execute("UPDATE shards SET state = 'lost' WHERE id = 5")
    found = await find(scene, name=name)
    assert found is not None
    assert (found.size, found.sha256) == (5, digests_of(b"bytes").sha256)
    assert found.replicas == (written[0],)
    assert await find(scene, b"other", name) is None


@pytest.mark.parametrize("name", ["sha1", "md5"])
async def test_a_digest_of_two_contents_names_none(scene: Scene, connection: asyncpg.Connection, name: str) -> None:
    await scene.upload("a", b"one")
    await scene.upload("b", b"two")
    await connection.execute(f"UPDATE blobs SET {name} = $1", getattr(digests_of(b"one"), name))
    assert await find(scene, b"one", name) is None
    await connection.execute("DELETE FROM artifacts WHERE name = 'b'")
    assert await find(scene, b"one", name) is not None


async def test_what_only_the_trash_has_is_not_found(scene: Scene, connection: asyncpg.Connection) -> None:
    await connection.execute("UPDATE repositories SET trash = true")
    await scene.upload("a")
    await connection.execute("SELECT delete_item($1, '', 'a', 'alice', 'r')", scene.repository)
    assert await connection.fetchval("SELECT count(*) FROM trash") == 1
    assert await find(scene) is None


async def test_a_link_writes_an_artifact_and_an_event(scene: Scene, connection: asyncpg.Connection) -> None:
    _, written = await scene.upload("a")
    asked = link_of(
        scene, await blob_of(connection), "x/y/linked", properties_json='{"k": ["v"]}', by=Origin("bob", "r")
    )
    outcome, created_at = await known.link(scene.database, asked, [replica.generation for replica in written])
    assert outcome is LinkOutcome.LINKED
    row = await only_row(connection, "SELECT * FROM artifacts WHERE name = 'linked'")
    assert (row["folder"], row["blob_id"], row["created_by"]) == ("x/y", asked.blob_id, "bob")
    assert (row["modified_at"], row["created_at"], row["properties"]) == (asked.started_at, created_at, '{"k": ["v"]}')
    event = await only_row(connection, "SELECT * FROM events WHERE upload_id = $1", asked.upload)
    assert (event["kind"], event["path"], event["adopted"]) == ("deploy", "x/y/linked", False)
    assert event["sha256"] == digests_of(b"bytes").sha256


@pytest.mark.parametrize(
    ("confirmed", "demand"),
    [([], {}), ([0], {}), ([0, 1], {"copies_min": 3}), ([0, 2], {"zones_min": 2}), ([0, 2, 3], {"copies_min": 3})],
    ids=["none", "one", "below the quorum", "in one zone", "two on one shard"],
)
async def test_too_few_confirmed_copies_change_nothing(
    scene: Scene, connection: asyncpg.Connection, confirmed: list[int], demand: dict[str, int]
) -> None:
    _, written = await scene.upload("a", shards=(1, 3, 2, 2))
    before = await table(connection, EVERYTHING)
    asked = link_of(scene, await blob_of(connection), **demand)
    assert await link(scene.database, asked, [written[index] for index in confirmed]) is LinkOutcome.UNKNOWN
    assert await table(connection, EVERYTHING) == before


@pytest.mark.parametrize(
    "misfortune",
    [
        "UPDATE replicas SET state = 'suspect' WHERE shard_id = 3",
        "UPDATE shards SET state = 'lost' WHERE id = 3",
        "UPDATE nodes SET heartbeat_at = now() - interval '1 hour' WHERE id = 'n2'",
        "DELETE FROM replicas WHERE shard_id = 3",
        "SELECT place_hold('lost_history', 'test')",
    ],
)
async def test_a_confirmed_copy_that_is_bad_by_now_does_not_count(
    scene: Scene, connection: asyncpg.Connection, misfortune: str
) -> None:
    _, written = await scene.upload("a")
    await connection.execute(misfortune)
    asked = link_of(scene, await blob_of(connection))
    assert await link(scene.database, asked, written) is LinkOutcome.UNKNOWN
    assert await paths(connection) == ["a"]


async def test_fewer_copies_than_wanted_are_repaired(scene: Scene, connection: asyncpg.Connection) -> None:
    _, written = await scene.upload("a")
    asked = link_of(scene, await blob_of(connection), redundancy=3)
    assert await link(scene.database, asked, written) is LinkOutcome.LINKED
    assert await table(connection, "SELECT reason FROM repair_queue") == [("short_write",)]
    assert await connection.fetchval("SELECT redundancy FROM blobs") == 3


async def test_an_empty_blob_needs_no_copies(scene: Scene, connection: asyncpg.Connection) -> None:
    await scene.upload("a", b"")
    assert await link(scene.database, link_of(scene, await blob_of(connection)), []) is LinkOutcome.LINKED
    assert await table(connection, "SELECT count(*) FROM repair_queue") == [(0,)]


async def test_a_repeat_gives_the_same_answer_and_has_no_effect(scene: Scene, connection: asyncpg.Connection) -> None:
    _, written = await scene.upload("a")
    asked = link_of(scene, await blob_of(connection))
    first = await known.link(scene.database, asked, [replica.generation for replica in written])
    before = await table(connection, EVERYTHING)
    assert await known.link(scene.database, asked, []) == first
    assert await table(connection, EVERYTHING) == before
    await connection.execute("DELETE FROM artifacts")
    await connection.execute(COLLECT, asked.blob_id)
    await connection.execute("DELETE FROM repositories WHERE id = $1", scene.repository)
    assert await known.link(scene.database, asked, []) == first


async def test_a_repeat_waits_for_the_first(scene: Scene, connection: asyncpg.Connection) -> None:
    _, written = await scene.upload("a")
    asked = link_of(scene, await blob_of(connection))
    other = await asyncpg.connect(scene.dsn)
    async with connection.transaction():
        assert await link(OneConnection(connection), asked, written) is LinkOutcome.LINKED
        repeat = asyncio.create_task(link(OneConnection(other), asked, written))
        await until_blocked(connection)
    assert await repeat is LinkOutcome.LINKED
    assert await connection.fetchval("SELECT count(*) FROM events WHERE upload_id = $1", asked.upload) == 1
    await other.close()


async def test_a_repository_that_is_gone_is_told(scene: Scene, connection: asyncpg.Connection) -> None:
    _, written = await scene.upload("a")
    asked = link_of(scene, await blob_of(connection), repository_id=4711)
    assert await link(scene.database, asked, written) is LinkOutcome.NO_REPOSITORY


@pytest.mark.parametrize("path", ["a/below", "folder"])
async def test_a_path_in_the_way_is_a_conflict(scene: Scene, connection: asyncpg.Connection, path: str) -> None:
    _, written = await scene.upload("a")
    await scene.upload("folder/b")
    before = await table(connection, EVERYTHING)
    with pytest.raises(PathConflict):
        await link(scene.database, link_of(scene, await blob_of(connection), path), written)
    assert await table(connection, EVERYTHING) == before


async def test_an_overwritten_blob_without_trash_becomes_a_candidate(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    _, written = await scene.upload("a", b"new")
    await scene.upload("b", b"old")
    found = await find(scene, b"new")
    assert found is not None
    assert await link(scene.database, link_of(scene, found.id, "b"), written) is LinkOutcome.LINKED
    candidates = "SELECT b.sha256 FROM gc_candidates c JOIN blobs b ON b.id = c.blob_id"
    assert await table(connection, candidates) == [(digests_of(b"old").sha256,)]


# ---------------------------------------------------------------- gc


async def test_a_link_waits_for_gc_and_finds_its_blob_gone(scene: Scene, connection: asyncpg.Connection) -> None:
    _, written = await scene.upload("a")
    blob = await blob_of(connection)
    other = await asyncpg.connect(scene.dsn)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("DELETE FROM artifacts")
    await connection.execute("SELECT 1 FROM blobs WHERE id = $1 FOR UPDATE", blob)
    linking = asyncio.create_task(link(OneConnection(other), link_of(scene, blob), written))
    await until_blocked(connection)
    await connection.execute(COLLECT, blob)
    await transaction.commit()
    assert await linking is LinkOutcome.UNKNOWN
    assert await paths(connection) == []
    await other.close()


async def test_gc_passes_over_a_candidate_that_is_being_linked(scene: Scene, connection: asyncpg.Connection) -> None:
    outcome, written = await scene.upload("a")
    assert outcome is CommitOutcome.ADOPTED
    blob = await blob_of(connection)
    other = await asyncpg.connect(scene.dsn)
    await connection.execute("DELETE FROM artifacts")
    await connection.execute("SELECT release_blob($1)", blob)
    lease, token = "SELECT lease_acquire('n1', $1, 0, 60)", uuid4()
    epoch = await connection.fetchval(lease, token)
    collect = """
        SELECT removed_blobs, referenced
          FROM gc_collect($1, $2, $3, (SELECT array_agg(since) FROM gc_candidates), interval '0')
    """
    transaction = other.transaction()
    await transaction.start()
    assert await link(OneConnection(other), link_of(scene, blob), written) is LinkOutcome.LINKED
    assert await table(connection, collect, epoch, token, [blob]) == [(0, 0)]
    await transaction.commit()
    assert await table(connection, collect, epoch, token, [blob]) == [(0, 1)]
    assert await table(connection, "SELECT count(*) FROM gc_candidates") == [(0,)]
    await other.close()


async def test_two_links_that_raise_the_redundancy_do_not_wait_for_each_other_in_a_circle(scene: Scene) -> None:
    _, written = await scene.upload("a", shards=(1, 3, 5))
    found = await find(scene)
    assert found is not None
    asked = [link_of(scene, found.id, f"to/{number}", redundancy=3) for number in range(8)]
    assert await asyncio.gather(*(link(scene.database, one, written) for one in asked)) == [LinkOutcome.LINKED] * 8
