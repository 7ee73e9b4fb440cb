"""gc on real rows: what is referred to stays, whatever races it; the dry run tells what the real one does."""

from __future__ import annotations

import asyncio
import random
from datetime import datetime
from uuid import UUID, uuid4

import asyncpg
import pytest

from repo_node.db import artifacts, holds
from repo_node.db.blobs import CommitOutcome
from repo_node.db.garbage import DeletionsHeld, GarbageRows
from repo_node.db.lease import Lease, NotPrimary
from repo_node.metrics import Metrics
from repo_node.origin import Origin
from sharding.maintenance.gc import Gc, GcFeed, GcLimits
from sharding.model import Replica
from tests.repo_node.db.scene import OneConnection, Queries, Scene, commit, copies, digests_of, open_scene, table

LISTED = "SELECT shard_id, generation FROM removals"
SHAS = "SELECT sha256 FROM blobs ORDER BY id"
LIMITS = GcLimits(grace_seconds=0, percent_max=100, blobs_max=1_000_000, blobs_min=0)


@pytest.fixture
async def lease(scene: Scene, connection: asyncpg.Connection) -> Lease:
    return await take_lease(connection)


async def take_lease(connection: asyncpg.Connection, seconds: float = 3600) -> Lease:
    token = uuid4()
    epoch = await connection.fetchval("SELECT lease_acquire('n1', $1, 0, $2)", token, seconds)
    assert epoch is not None
    return Lease(epoch, token)


@pytest.fixture
async def garbage(scene: Scene) -> GarbageRows:
    return GarbageRows(scene.database)


async def run_gc(garbage: GarbageRows, lease: Lease, limits: GcLimits = LIMITS) -> int:
    job, removed = Gc(garbage, lambda: lease, lambda: limits, Metrics().deletion), 0
    while True:
        step = await job.step()
        removed += step.done
        if step.idle:
            return removed


async def delete(scene: Scene, path: str) -> None:
    folder, _, name = path.rpartition("/")
    assert await artifacts.delete(scene.database, scene.repository, folder, name, by=Origin("x", "r"))


async def test_deleted_content_goes_with_all_its_rows_and_its_files_are_listed(
    scene: Scene, connection: asyncpg.Connection, garbage: GarbageRows, lease: Lease
) -> None:
    _, gone = await scene.upload("a", b"gone")
    await scene.upload("b", b"kept")
    await connection.execute("SELECT suspect_replica($1, $2)", gone[0].shard, gone[0].generation)
    await delete(scene, "a")
    assert await run_gc(garbage, lease) == 1
    assert await table(connection, SHAS) == [(digests_of(b"kept").sha256,)]
    assert {tuple(row) for row in await connection.fetch(LISTED)} == {(one.shard, one.generation) for one in gone}
    for name in ("gc_candidates", "repair_queue"):
        assert await table(connection, f"SELECT * FROM {name}") == []
    [row] = await connection.fetch("SELECT sha256, detail FROM events WHERE kind = 'gc'")
    assert row["sha256"] == digests_of(b"gone").sha256 and '"released"' in row["detail"]
    [listed] = await connection.fetch("SELECT DISTINCT reason, epoch, sha256, size FROM removals")
    assert tuple(listed) == ("gc", lease.epoch, digests_of(b"gone").sha256, 4)


async def test_grace_keeps_what_was_released_lately(
    scene: Scene, connection: asyncpg.Connection, garbage: GarbageRows, lease: Lease
) -> None:
    await scene.upload("a", b"bytes")
    await delete(scene, "a")
    limits = GcLimits(3600, 100, 10, 10)
    assert await run_gc(garbage, lease, limits) == 0
    await connection.execute("UPDATE gc_candidates SET since = now() - interval '1 hour'")
    assert await run_gc(garbage, lease, limits) == 1


async def test_content_that_is_referred_to_again_is_no_candidate_any_more(
    scene: Scene, connection: asyncpg.Connection, garbage: GarbageRows, lease: Lease
) -> None:
    await scene.upload("a", b"bytes")
    await delete(scene, "a")
    await scene.upload("b", b"bytes")
    assert await run_gc(garbage, lease) == 0
    assert await table(connection, "SELECT * FROM gc_candidates") == []
    assert len(await table(connection, SHAS)) == 1


async def test_empty_blob_goes_too(scene: Scene, garbage: GarbageRows, lease: Lease) -> None:
    await scene.upload("a", b"")
    await delete(scene, "a")
    assert await run_gc(garbage, lease) == 1


async def test_content_in_the_trash_stays(
    scene: Scene, connection: asyncpg.Connection, garbage: GarbageRows, lease: Lease
) -> None:
    await connection.execute("UPDATE repositories SET trash = true")
    await scene.upload("a", b"bytes")
    await delete(scene, "a")
    await connection.execute("INSERT INTO gc_candidates (blob_id) SELECT id FROM blobs")
    assert await run_gc(garbage, lease) == 0
    assert len(await table(connection, SHAS)) == 1


async def test_reference_that_gc_does_not_know_of_ends_the_run(dsn: str, queries: Queries) -> None:
    async with open_scene(dsn, queries) as scene:
        connection = await asyncpg.connect(dsn)
        lease = await take_lease(connection)
        for path in ("a", "b"):
            await scene.upload(path, path.encode() * 9)
        await connection.execute("UPDATE repositories SET trash = false")
        await connection.execute("CREATE TABLE docker_layers (blob_id bigint REFERENCES blobs (id))")
        await connection.execute("INSERT INTO docker_layers SELECT max(id) FROM blobs")
        await delete(scene, "a")
        await delete(scene, "b")
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await run_gc(GarbageRows(scene.database), lease)
        assert len(await table(connection, SHAS)) == 2, "all or nothing"
        assert await table(connection, LISTED) == []
        await connection.close()


async def test_candidate_released_anew_since_it_was_read_is_spared(
    scene: Scene, connection: asyncpg.Connection, garbage: GarbageRows, lease: Lease
) -> None:
    await scene.upload("a", b"bytes")
    await delete(scene, "a")
    page = await garbage.page(0, 10, 0)
    await scene.upload("b", b"bytes")
    await delete(scene, "b")
    assert (await garbage.collect(lease, page, 0)).blobs == 0
    assert len(await table(connection, "SELECT * FROM gc_candidates")) == 1


async def test_deletion_of_the_last_reference_that_is_under_way_keeps_its_candidate(
    scene: Scene, connection: asyncpg.Connection, garbage: GarbageRows, lease: Lease
) -> None:
    await scene.upload("a", b"bytes")
    await connection.execute("INSERT INTO gc_candidates (blob_id, since) SELECT id, now() - interval '1 h' FROM blobs")
    async with connection.transaction():
        await connection.fetchval(artifacts.DELETE.sql, scene.repository, "", "a", 10, "x", "r", None)
        assert await run_gc(garbage, lease) == 0
    assert len(await table(connection, "SELECT * FROM gc_candidates")) == 1
    assert await run_gc(garbage, lease) == 1


async def test_upload_of_the_same_content_that_is_under_way_keeps_it(
    scene: Scene, connection: asyncpg.Connection, garbage: GarbageRows, lease: Lease
) -> None:
    """gc waits for nobody: it leaves the blob to another run."""
    _, there = await scene.upload("a", b"bytes")
    await delete(scene, "a")
    async with connection.transaction():
        result = await commit(OneConnection(connection), scene.deployment("b"), copies(1, 3), there)
        assert result.outcome is CommitOutcome.DEDUPLICATED
        async with asyncio.timeout(2):
            assert await run_gc(garbage, lease) == 0
    assert await run_gc(garbage, lease) == 0
    assert len(await table(connection, "SELECT * FROM blobs")) == 1


async def test_old_epoch_removes_nothing(
    scene: Scene, connection: asyncpg.Connection, garbage: GarbageRows, lease: Lease
) -> None:
    await scene.upload("a", b"bytes")
    await delete(scene, "a")
    await connection.execute("UPDATE lease SET expires_at = now()")
    newer = await take_lease(connection)
    assert newer.epoch == lease.epoch + 1
    page = await garbage.page(0, 10, 0)
    for stale in (lease, Lease(newer.epoch, lease.token), Lease(lease.epoch, newer.token)):
        with pytest.raises(NotPrimary):
            await garbage.collect(stale, page, 0)
        with pytest.raises(NotPrimary):
            await garbage.feed(stale, 0, 10)
    assert len(await table(connection, SHAS)) == 1
    assert (await garbage.collect(newer, page, 0)).blobs == 1


async def test_hold_in_the_middle_of_a_run_stops_it(
    scene: Scene, connection: asyncpg.Connection, garbage: GarbageRows, lease: Lease
) -> None:
    await scene.upload("a", b"bytes")
    await delete(scene, "a")
    page = await garbage.page(0, 10, 0)
    await holds.place(scene.database, "operator", "stop", by=Origin("x", "r"))
    with pytest.raises(DeletionsHeld):
        await garbage.collect(lease, page, 0)
    assert await run_gc(garbage, lease) == 0
    await holds.release(scene.database, by=Origin("x", "r"))
    assert await run_gc(garbage, lease) == 1


async def test_brake_counts_before_it_removes_and_release_lets_it_go(
    scene: Scene, connection: asyncpg.Connection, garbage: GarbageRows, lease: Lease
) -> None:
    for number in range(10):
        await scene.upload(f"f/{number}", b"content %d" % number)
    await delete(scene, "f")
    limits = GcLimits(0, 50, 1_000, 5)
    assert await run_gc(garbage, lease, limits) == 0
    [hold] = await holds.read(scene.database)
    assert hold.reason == "volume" and "10 of about 10" in hold.detail
    assert len(await table(connection, SHAS)) == 10
    await holds.release(scene.database, by=Origin("x", "r"))
    assert await run_gc(garbage, lease, limits) == 10


async def test_feed_makes_candidates_of_what_nobody_released(
    scene: Scene, connection: asyncpg.Connection, garbage: GarbageRows, lease: Lease
) -> None:
    for number in range(5):
        await scene.upload(f"f/{number}", b"content %d" % number)
    await connection.execute("DELETE FROM artifacts WHERE name IN ('1', '3')")
    feed = GcFeed(garbage, lambda: lease)
    while not (await feed.step()).idle:
        pass
    rows = await table(connection, "SELECT b.sha256, c.reason FROM gc_candidates c JOIN blobs b ON b.id = c.blob_id")
    assert rows == [(digests_of(b"content %d" % number).sha256, "missed") for number in (1, 3)]
    assert await garbage.feed(lease, 0, 2) == (2, 0)
    assert await garbage.feed(lease, 99, 2) == (None, 0)
    assert await run_gc(garbage, lease) == 2


async def test_dry_run_writes_nothing_and_says_what_the_real_one_does(
    scene: Scene, connection: asyncpg.Connection, garbage: GarbageRows, lease: Lease
) -> None:
    chance = random.Random(11)
    for number in range(60):
        await scene.upload(f"f/{number}", b"content %d" % (number % 40))
    for number in chance.sample(range(60), 40):
        await delete(scene, f"f/{number}")
    young = [row[0] for row in await connection.fetch("SELECT blob_id FROM gc_candidates ORDER BY random() LIMIT 5")]
    await connection.execute(
        "UPDATE gc_candidates SET since = now() - interval '2 h' WHERE NOT blob_id = ANY ($1)", young
    )
    before = await table(connection, "SELECT txid_current_snapshot()::text LIKE '%', count(*) FROM gc_candidates")
    told, after = [], 0
    while page := await garbage.candidates(after, 7, 3600):
        told += page
        after = page[-1].blob
    assert before == await table(connection, "SELECT true, count(*) FROM gc_candidates")
    going = {one.sha256 for one in told if one.goes}
    assert going and any(one.referenced for one in told) and any(not one.due for one in told)
    blobs = {row[0] for row in await connection.fetch(SHAS)}
    files = sum(one.files for one in told if one.goes)
    assert await run_gc(garbage, lease, GcLimits(3600, 100, 1_000, 0)) == len(going)
    assert blobs - {row[0] for row in await connection.fetch(SHAS)} == going
    assert len(await connection.fetch(LISTED)) == files


# ---------------------------------------------------------------- collisions


COLLISIONS = 10_000
CONTENTS = 12
CLIENTS = 6
STATE = """
    SELECT array_agg(r.generation) FILTER (WHERE r.state = 'live') FROM artifacts a
      JOIN replicas r ON r.blob_id = a.blob_id WHERE a.repo_id = $1 AND a.folder = '' AND a.name = $2
"""
READY = "SELECT blob_id, since FROM gc_candidates ORDER BY blob_id"
COLLECT = "SELECT * FROM gc_collect($1, $2, $3::bigint[], $4::timestamptz[], '0')"


class Collider:
    """Uploads a content that gc is after, looks for its files, and deletes it again."""

    def __init__(self, scene: Scene, connection: asyncpg.Connection, files: set[UUID], number: int) -> None:
        self._scene = scene
        self._connection = connection
        self._files = files
        self._number = number
        self._chance = random.Random(number)
        self.collisions = 0

    async def collide(self) -> None:
        content, name = b"content %d" % self._chance.randrange(CONTENTS), f"{self._number}"
        written = copies(1, 3)
        self._files |= {one.generation for one in written}
        deployment = self._scene.deployment(name, content)
        one = OneConnection(self._connection)
        result = await commit(one, deployment, written)
        if result.outcome is CommitOutcome.CONFIRM:
            confirmed = [there for there in result.existing if there.generation in self._files]
            result = await commit(one, deployment, written, confirmed)
        if result.outcome is CommitOutcome.DEDUPLICATED:
            self._files -= {one.generation for one in written}
        await self.check(name, written)
        await self._connection.fetchval(artifacts.DELETE.sql, self._scene.repository, "", name, 10, "x", "r", None)
        self.collisions += 1

    async def check(self, name: str, written: list[Replica]) -> None:
        live = await self._connection.fetchval(STATE, self._scene.repository, name)
        assert live is not None and len(set(live) & self._files) >= 2, "an acknowledged upload has lost its files"


async def test_nothing_is_lost_in_ten_thousand_collisions_of_gc_with_deletes_and_uploads(
    dsn: str, queries: Queries
) -> None:
    files: set[UUID] = set()
    async with open_scene(dsn, queries) as scene:
        connections = [await asyncpg.connect(dsn) for _ in range(CLIENTS + 2)]
        await connections[0].execute("UPDATE repositories SET trash = false")
        lease = await take_lease(connections[0])
        colliders = [Collider(scene, connections[number], files, number) for number in range(CLIENTS)]
        over, collected = asyncio.Event(), [0, 0]

        async def collect() -> None:
            connection = connections[-1]
            while not over.is_set():
                rows = await connection.fetch(READY)
                since: list[datetime] = [row["since"] for row in rows]
                gone = await connection.fetchrow(COLLECT, lease.epoch, lease.token, [r["blob_id"] for r in rows], since)
                collected[0] += gone["removed_blobs"]

        async def remove() -> None:
            connection = connections[-2]
            while not over.is_set():
                listed = [row["generation"] for row in await connection.fetch(f"{LISTED} LIMIT 200")]
                files.difference_update(listed)
                await connection.execute("DELETE FROM removals WHERE generation = ANY ($1)", listed)
                collected[1] += len(listed)
                await asyncio.sleep(0)

        async def work(collider: Collider) -> None:
            while sum(one.collisions for one in colliders) < COLLISIONS:
                await collider.collide()

        jobs = [asyncio.create_task(collect()), asyncio.create_task(remove())]
        try:
            await asyncio.gather(*(work(one) for one in colliders))
        finally:
            over.set()
            await asyncio.gather(*jobs)
        print(f"{COLLISIONS} collisions, {collected[0]} blobs and {collected[1]} files removed meanwhile")
        assert collected[0] > 100 and collected[1] > 100
        for connection in connections:
            connection.terminate()
