"""What the owners of shards find out, as rows: suspicion cleared or confirmed, absence, the quarantine."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest

from repo_node.db import blobs
from repo_node.db.audits import AuditRows
from sharding.maintenance.audit_catalogue import Dropped, Fault, Sentence
from sharding.model import Generation, Replica, ShardId
from tests.repo_node.db.scene import Scene, digests_of, only_row, replicas_in, table, until_blocked

FIRST = Generation(UUID(int=0))
QUEUE_SQL = "SELECT reason FROM repair_queue"
EVENTS_SQL = "SELECT kind FROM events WHERE kind <> 'deploy' ORDER BY id"


@pytest.fixture
def rows(scene: Scene) -> AuditRows:
    return AuditRows(scene.database)


async def stored(scene: Scene, *shards: int) -> list[Replica]:
    _, written = await scene.upload("a", shards=shards)
    return written


async def make_suspect(scene: Scene, *replicas: Replica) -> None:
    for replica in replicas:
        assert await blobs.mark_suspect(scene.database, replica.shard, replica.generation)


async def test_suspects_come_by_generation(scene: Scene, rows: AuditRows) -> None:
    written = [(await scene.upload(f"a{n}", bytes([n]), shards=(1, 3)))[1][0] for n in range(5)]
    await make_suspect(scene, *written[:4])
    found = await rows.suspects(ShardId(1), FIRST, 3)
    order = sorted(replica.generation for replica in written[:4])
    assert [held.name.generation for held in found] == order[:3]
    assert [held.name.generation for held in await rows.suspects(ShardId(1), order[2], 3)] == order[3:]
    assert await rows.suspects(ShardId(3), FIRST, 3) == []


async def test_reinstated_replica_is_live(scene: Scene, rows: AuditRows, connection: asyncpg.Connection) -> None:
    one, two = await stored(scene, 1, 3)
    await make_suspect(scene, one)
    assert await rows.reinstate(one.shard, one.generation)
    assert not await rows.reinstate(one.shard, one.generation)
    assert await replicas_in(connection) == {one.generation: (1, "live"), two.generation: (3, "live")}


async def test_condemned_replica_is_no_blobs_and_waits_to_be_moved(
    scene: Scene, rows: AuditRows, connection: asyncpg.Connection
) -> None:
    one, two = await stored(scene, 1, 3)
    assert await rows.condemn(one.shard, one.generation, Fault.BYTES) is Sentence.CONDEMNED
    assert await replicas_in(connection) == {two.generation: (3, "live")}
    assert await table(connection, "SELECT shard_id, generation, state FROM replicas WHERE blob_id IS NULL") == [
        (1, one.generation, "condemned")
    ]
    assert await table(connection, QUEUE_SQL) == [("corrupt",)]
    assert await table(connection, EVENTS_SQL) == [("quarantine",)]
    [name] = await rows.unmoved(one.shard, 10)
    assert (name.sha256, name.generation) == (digests_of(b"bytes").sha256, one.generation)
    assert await rows.condemn(one.shard, one.generation, Fault.BYTES) is Sentence.GONE


async def test_last_good_copy_is_never_condemned(scene: Scene, rows: AuditRows, connection: asyncpg.Connection) -> None:
    one, two = await stored(scene, 1, 3)
    assert await rows.condemn(one.shard, one.generation, Fault.BYTES) is Sentence.CONDEMNED
    assert await rows.condemn(two.shard, two.generation, Fault.SIZE) is Sentence.LAST
    assert await replicas_in(connection) == {two.generation: (3, "suspect")}
    assert await rows.unmoved(two.shard, 10) == []


@pytest.mark.parametrize(
    "away",
    [
        "UPDATE shards SET state = 'offline' WHERE id = 3",
        "UPDATE shards SET state = 'lost' WHERE id = 3",
        "UPDATE nodes SET stopped_at = now() WHERE id = 'n2'",
        "UPDATE replicas SET state = 'suspect' WHERE shard_id = 3",
    ],
)
async def test_copy_that_is_out_of_sight_does_not_vouch_for_another(
    scene: Scene, rows: AuditRows, connection: asyncpg.Connection, away: str
) -> None:
    one, _ = await stored(scene, 1, 3)
    await connection.execute(away)
    assert await rows.condemn(one.shard, one.generation, Fault.BYTES) is Sentence.LAST
    assert await rows.drop_absent(one.shard, [one.generation]) == Dropped(0, 1)


async def test_two_owners_condemning_both_copies_at_once_leave_one(
    scene: Scene, rows: AuditRows, connection: asyncpg.Connection
) -> None:
    for round_ in range(20):
        _, (one, two) = await scene.upload(f"r{round_}", str(round_).encode(), shards=(1, 3))
        sentences = await asyncio.gather(
            rows.condemn(one.shard, one.generation, Fault.BYTES), rows.condemn(two.shard, two.generation, Fault.BYTES)
        )
        assert sorted(sentences) == [Sentence.CONDEMNED, Sentence.LAST]
        assert len(await replicas_in(connection, str(round_).encode())) == 1


async def test_condemnation_counts_after_it_has_the_lock(
    scene: Scene, rows: AuditRows, connection: asyncpg.Connection
) -> None:
    one, two = await stored(scene, 1, 3)
    async with connection.transaction():
        await connection.execute("SELECT 1 FROM blobs FOR NO KEY UPDATE")
        waiting = asyncio.create_task(rows.condemn(one.shard, one.generation, Fault.BYTES))
        await until_blocked(connection)
        await connection.execute("UPDATE replicas SET state = 'suspect' WHERE generation = $1", two.generation)
    assert await waiting is Sentence.LAST


async def test_condemnation_of_a_blob_that_gc_takes_is_void(
    scene: Scene, rows: AuditRows, connection: asyncpg.Connection
) -> None:
    one, _ = await stored(scene, 1, 3)
    async with connection.transaction():
        await connection.execute("SELECT 1 FROM blobs FOR UPDATE")
        waiting = asyncio.create_task(rows.condemn(one.shard, one.generation, Fault.BYTES))
        await until_blocked(connection)
        for name in ("artifacts WHERE blob_id IS NOT NULL", "replicas", "repair_queue", "blobs"):
            await connection.execute(f"DELETE FROM {name}")
    assert await waiting is Sentence.GONE
    assert await table(connection, "SELECT 1 FROM quarantine") == []


async def test_absent_rows_go_and_repairs_are_queued(
    scene: Scene, rows: AuditRows, connection: asyncpg.Connection
) -> None:
    written = [(await scene.upload(f"a{n}", bytes([n]), shards=(1, 3)))[1] for n in range(3)]
    gone = [pair[0].generation for pair in written]
    strange = Generation(uuid4())
    assert await rows.drop_absent(ShardId(1), [*gone, strange]) == Dropped(3, 0)
    assert await table(connection, "SELECT count(*) FROM replicas WHERE shard_id = 1") == [(0,)]
    assert await table(connection, QUEUE_SQL) == [("missing",)] * 3
    assert await table(connection, EVENTS_SQL) == [("absent",)]
    assert await rows.drop_absent(ShardId(1), gone) == Dropped(0, 0)


async def test_two_absent_copies_of_a_blob_on_one_shard_do_not_vouch_for_each_other(
    scene: Scene, rows: AuditRows, connection: asyncpg.Connection
) -> None:
    one, two = await stored(scene, 1, 1)
    assert await rows.drop_absent(ShardId(1), [one.generation, two.generation]) == Dropped(0, 2)
    assert {state for _, state in (await replicas_in(connection)).values()} == {"suspect"}


async def test_absence_on_two_shards_at_once_never_leaves_a_blob_without_a_row(
    scene: Scene, rows: AuditRows, connection: asyncpg.Connection
) -> None:
    pairs = [(await scene.upload(f"a{n}", bytes([n]), shards=(1, 3)))[1] for n in range(40)]
    first, second = zip(*pairs, strict=True)
    one, two = await asyncio.gather(
        rows.drop_absent(ShardId(1), [replica.generation for replica in first]),
        rows.drop_absent(ShardId(3), [replica.generation for replica in reversed(second)]),
    )
    assert one.dropped + two.dropped == 40 and one.kept + two.kept == 40
    sql = "SELECT count(DISTINCT blob_id), count(*) FROM replicas"
    assert await table(connection, sql) == [(40, 40)]


async def test_digests_are_corrected_once(scene: Scene, rows: AuditRows, connection: asyncpg.Connection) -> None:
    one, _ = await stored(scene, 1, 3)
    await make_suspect(scene, one)
    assert await rows.correct_digests(one.shard, one.generation, b"rightnow")
    assert await rows.correct_digests(one.shard, one.generation, b"rightnow")
    row = await only_row(connection, "SELECT id, block_digests FROM blobs")
    assert row["block_digests"] == b"rightnow"
    assert await rows.block_digests(row["id"], 0, 1) == b"rightnow"
    assert await table(connection, EVENTS_SQL) == [("digests",)]
    assert (await replicas_in(connection))[one.generation] == (1, "live")
    assert not await rows.correct_digests(ShardId(2), one.generation, b"rightnow")


async def test_quarantine_is_forgotten_after_its_time_by_the_databases_clock(
    scene: Scene, rows: AuditRows, connection: asyncpg.Connection
) -> None:
    one, other = await stored(scene, 1, 3)
    await rows.condemn(one.shard, one.generation, Fault.UNREADABLE)
    assert await rows.expired(one.shard, 0.0, 10) == [], "it has not been moved"
    await rows.note_moved(one.shard, [one.generation])
    assert await rows.unmoved(one.shard, 10) == []
    assert await rows.expired(one.shard, 3600.0, 10) == []
    await connection.execute("UPDATE quarantine SET moved_at = moved_at - interval '2 hours'")
    await make_suspect(scene, other)
    assert await rows.expired(one.shard, 3600.0, 10) == [], "it may be the best copy there is"
    await rows.reinstate(other.shard, other.generation)
    [name] = await rows.expired(one.shard, 3600.0, 10)
    await rows.forget(one.shard, [name.generation])
    assert await table(connection, "SELECT 1 FROM replicas WHERE state = 'condemned'") == []
    assert await table(connection, "SELECT 1 FROM quarantine") == []
