"""The counts that people look at equal what the rows say."""

from __future__ import annotations

import asyncpg
import pytest

from repo_node.db import blobs, stretches, totals
from repo_node.db.totals import Totals
from sharding.model import ShardId
from tests.repo_node.db.scene import Scene, copies


async def test_empty_store_counts_nothing(scene: Scene) -> None:
    assert await totals.read(scene.database) == Totals(0, 0, 0, 0, 0, 0, {})


async def test_totals_count_blobs_bytes_and_what_is_missing(scene: Scene) -> None:
    await scene.upload("whole", b"12345", shards=(1, 3))
    await scene.upload("same", b"12345")
    await scene.upload("empty", b"")
    await scene.commit(scene.deployment("short", b"123", redundancy=3), copies(1), short=True)
    await scene.commit(scene.deployment("twice on a shard", b"1234"), copies(5, 5))
    assert await totals.read(scene.database) == Totals(
        blobs=4,
        bytes=12,
        unreferenced_blobs=0,
        missing_copies=3,
        short_blobs=2,
        repair_queue=1,
        replicas={ShardId(1): 2, ShardId(3): 1, ShardId(5): 2},
    )


@pytest.mark.parametrize(
    "misfortune",
    [
        "UPDATE shards SET state = 'lost' WHERE id = 3",
        "UPDATE shards SET state = 'offline' WHERE id = 3",
        "UPDATE nodes SET stopped_at = now() WHERE id = 'n2'",
    ],
)
async def test_copy_that_is_not_good_is_missing(scene: Scene, connection: asyncpg.Connection, misfortune: str) -> None:
    await scene.upload("a", shards=(1, 3))
    await connection.execute(misfortune)
    found = await totals.read(scene.database)
    assert (found.missing_copies, found.short_blobs, found.replicas) == (1, 1, {1: 1, 3: 1})


async def test_suspect_copy_is_missing_and_queued(scene: Scene) -> None:
    _, [bad, _] = await scene.upload("a", shards=(1, 3))
    await blobs.mark_suspect(scene.database, bad.shard, bad.generation)
    found = await totals.read(scene.database)
    assert (found.missing_copies, found.short_blobs, found.repair_queue) == (1, 1, 1)
    assert found.replicas == {1: 1, 3: 1}


async def test_nothing_is_missing_of_a_blob_that_nothing_refers_to(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    for path, data in (("deleted", b"1"), ("used elsewhere", b"2"), ("trashed", b"3")):
        await scene.upload(path, data, shards=(1, 3))
    await scene.upload("used", b"2")
    await connection.execute("SELECT suspect_replica(shard_id, generation) FROM replicas")
    for name in ("deleted", "used elsewhere"):
        await connection.execute("SELECT delete_item($1, '', $2, 'x', 'r')", scene.repository, name)
    await connection.execute("UPDATE repositories SET trash = true")
    await connection.execute("SELECT delete_item($1, '', 'trashed', 'x', 'r')", scene.repository)
    found = await totals.read(scene.database)
    assert (found.blobs, found.unreferenced_blobs) == (3, 1)
    assert (found.missing_copies, found.short_blobs, found.repair_queue) == (4, 2, 3)


async def test_totals_are_the_same_in_stretches_of_any_length(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        await scene.upload(f"a{number}", b"1" * number, shards=(1, 3 + number % 2))
    whole = await totals.read(scene.database)
    for length in (1, 2):
        monkeypatch.setattr(stretches, "IDS", length)
        assert await totals.read(scene.database) == whole
