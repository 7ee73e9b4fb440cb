"""The repair queue: what is claimed in which order, how a repair ends, and every race it can lose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from repo_node.db import repair_queue
from sharding.maintenance.catalogue import Claim, Repaired, RepairOutcome, Settled
from sharding.model import Generation, Replica, ShardId
from tests.repo_node.db.scene import Scene, copies, only_row, replicas_in, table, until_blocked

TOKEN = UUID(int=7)


async def stored(scene: Scene, data: bytes = b"bytes", shards: tuple[int, ...] = (1, 3), **more: Any) -> list[Replica]:
    _, written = await scene.upload(f"d/{uuid4()}", data, shards=shards, **more)
    return written


async def blob_id(connection: asyncpg.Connection) -> int:
    return int((await only_row(connection, "SELECT max(id) AS id FROM blobs"))["id"])


async def suspect(connection: asyncpg.Connection, replica: Replica) -> None:
    assert await connection.fetchval("SELECT suspect_replica($1, $2)", replica.shard, replica.generation)


async def claim(scene: Scene, token: UUID = TOKEN, count: int = 100, bytes_max: int = 1 << 30) -> list[Claim]:
    return await repair_queue.claim(scene.database, token, seconds=60, count=count, bytes_max=bytes_max)


async def settle(
    scene: Scene, claimed: Claim, new: list[Replica], *, token: UUID = TOKEN, retry: float = 60
) -> Settled:
    repaired = Repaired(claimed, tuple(new), retry, "note")
    return (await repair_queue.settle(scene.database, token, [repaired]))[claimed.blob.id]


async def queue(connection: asyncpg.Connection) -> list[tuple[Any, ...]]:
    return await table(
        connection, "SELECT urgency, claim IS NULL, attempts, outcome FROM repair_queue ORDER BY blob_id"
    )


@asynccontextmanager
async def locked_blob(dsn: str, mode: str = "FOR NO KEY UPDATE") -> AsyncIterator[asyncpg.Connection]:
    """Hold the only blob's row in a transaction that ends with the block."""
    other = await asyncpg.connect(dsn, timeout=10)
    try:
        async with other.transaction():
            await other.execute(f"SELECT 1 FROM blobs {mode}")
            yield other
    finally:
        other.terminate()


# ---------------------------------------------------------------- claims


async def test_claim_tells_all_that_a_repair_needs(scene: Scene, connection: asyncpg.Connection) -> None:
    bad, good = await stored(scene)
    await suspect(connection, bad)
    [one] = await claim(scene)
    row = await only_row(connection, "SELECT id, uid, sha256, block_digests FROM blobs")
    assert (one.blob.id, one.blob.uid, one.blob.sha256) == (row["id"], row["uid"], row["sha256"])
    assert (one.blob.size, one.blob.redundancy, one.blob.first_digests) == (5, 2, row["block_digests"])
    assert (one.good, one.attempts) == (1, 0)
    assert {(r.shard, r.suspect, r.stays, r.counts) for r in one.replicas} == {
        (bad.shard, True, True, False),
        (good.shard, False, True, True),
    }


async def test_fewest_good_copies_come_first_and_those_without_any_last(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await stored(scene, b"two of three", (1, 3), redundancy=3)
    for data, bad in ((b"none", 2), (b"one", 1)):
        for replica in (await stored(scene, data))[:bad]:
            await suspect(connection, replica)
    await connection.execute("SELECT enqueue_repair(id, 'census') FROM blobs ORDER BY id")
    assert [one.good for one in await claim(scene)] == [1, 2, 0]
    summary = await repair_queue.backlog(scene.database)
    assert sorted((part.good, part.blobs, part.bytes) for part in summary) == [(0, 1, 4), (1, 1, 3), (2, 1, 12)]
    assert all(0 <= part.oldest_seconds < 10 for part in summary)
    assert not any(part.unreferenced for part in summary)


async def test_backlog_sets_apart_what_nothing_refers_to(scene: Scene, connection: asyncpg.Connection) -> None:
    await scene.upload("deleted", b"1")
    await scene.upload("kept", b"22")
    await scene.upload("again", b"333")
    await connection.execute("SELECT suspect_replica(shard_id, generation) FROM replicas")
    for name in ("deleted", "again"):
        await connection.execute("SELECT delete_item($1, '', $2, 'x', 'r')", scene.repository, name)
    await scene.upload("again", b"333")
    found = {(part.unreferenced, part.good): part.bytes for part in await repair_queue.backlog(scene.database)}
    assert found == {(True, 0): 1, (False, 0): 2, (False, 2): 3}


async def test_claim_is_nobody_elses_until_it_expires(scene: Scene, connection: asyncpg.Connection) -> None:
    await suspect(connection, (await stored(scene))[0])
    assert len(await claim(scene)) == 1
    assert await claim(scene, uuid4()) == []
    await connection.execute("UPDATE repair_queue SET due_at = now() - interval '1 s'")
    assert len(await claim(scene, uuid4())) == 1


async def test_claims_of_two_nodes_at_once_do_not_wait_and_share_nothing(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    for number in range(20):
        await suspect(connection, (await stored(scene, bytes([number])))[0])
    claims = await asyncio.gather(*(claim(scene, uuid4(), count=5) for _ in range(4)))
    ids = [one.blob.id for part in claims for one in part]
    assert len(ids) == len(set(ids)) == 20


async def test_claim_takes_no_more_than_its_bytes_but_always_one(scene: Scene, connection: asyncpg.Connection) -> None:
    for number in range(4):
        await suspect(connection, (await stored(scene, bytes([number]) * 1000))[0])
    assert len(await claim(scene, bytes_max=1)) == 1
    assert len(await claim(scene, bytes_max=2500)) == 2


async def test_renewed_claim_holds_and_a_lost_one_is_not_renewed(scene: Scene, connection: asyncpg.Connection) -> None:
    await suspect(connection, (await stored(scene))[0])
    [one] = await claim(scene)
    await connection.execute("UPDATE repair_queue SET due_at = now() - interval '1 s'")
    await repair_queue.renew(scene.database, TOKEN, [one.blob.id], 60)
    assert await claim(scene, uuid4()) == []
    await connection.execute("UPDATE repair_queue SET due_at = now() - interval '1 s'")
    assert len(await claim(scene, uuid4())) == 1
    await connection.execute("UPDATE repair_queue SET due_at = now() - interval '1 s'")
    await repair_queue.renew(scene.database, TOKEN, [one.blob.id], 60)
    assert len(await claim(scene, uuid4())) == 1


async def test_hasten_makes_due_what_was_put_off_but_not_what_is_claimed(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    for number in range(3):
        await suspect(connection, (await stored(scene, bytes([number])))[0])
    for one in await claim(scene, count=2):
        await settle(scene, one, [])
    await claim(scene)
    assert await repair_queue.hasten(scene.database, 100) == 2
    assert len(await claim(scene)) == 2


# ---------------------------------------------------------------- the end of a repair


async def test_new_copy_makes_the_blob_whole_and_takes_it_off_the_queue(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    bad, good = await stored(scene)
    await suspect(connection, bad)
    [one] = await claim(scene)
    [new] = copies(1)  # the very shard of the suspect copy: it does not count
    assert await settle(scene, one, [new]) == Settled(RepairOutcome.WHOLE, frozenset({new.generation}))
    assert await queue(connection) == []
    assert await replicas_in(connection) == {
        bad.generation: (1, "suspect"),
        good.generation: (3, "live"),
        new.generation: (1, "live"),
    }


async def test_settling_twice_has_the_effect_of_once(scene: Scene, connection: asyncpg.Connection) -> None:
    await suspect(connection, (await stored(scene))[0])
    [one] = await claim(scene)
    new = copies(1)
    first = await settle(scene, one, new)
    assert await settle(scene, one, new) == first
    assert len(await replicas_in(connection)) == 3


@pytest.mark.parametrize(
    ("shards", "adopted"),
    [
        ((1, 5), 1),  # one is enough
        ((3,), 0),  # a live copy is there
        ((4,), 1),  # too few copies: the same zone is better than none
        ((1, 1), 1),
    ],
)
async def test_copies_that_are_not_needed_are_not_taken(
    scene: Scene, connection: asyncpg.Connection, shards: tuple[int, ...], adopted: int
) -> None:
    await suspect(connection, (await stored(scene))[0])
    [one] = await claim(scene)
    new = copies(*shards)
    assert (await settle(scene, one, new)).adopted == {copy.generation for copy in new[:adopted]}


async def test_copy_on_a_shard_that_takes_no_writes_any_more_is_not_taken(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await suspect(connection, (await stored(scene))[0])
    [one] = await claim(scene)
    await connection.execute("UPDATE shards SET state = 'draining' WHERE id = 5")
    assert (await settle(scene, one, copies(5))).adopted == frozenset()
    assert await queue(connection) == [(1, True, 1, "short: note")]


async def test_blob_in_too_few_zones_gets_one_more_copy_in_a_new_zone_only(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await stored(scene, shards=(1, 2))
    await connection.execute("SELECT enqueue_repair(id, 'short_write') FROM blobs")
    [one] = await claim(scene)
    new = copies(1, 4, 6)
    settled = await settle(scene, one, new)
    assert settled == Settled(RepairOutcome.WHOLE, frozenset({new[1].generation}))


async def test_condemned_generation_never_becomes_live_again(scene: Scene, connection: asyncpg.Connection) -> None:
    await suspect(connection, (await stored(scene))[0])
    [one] = await claim(scene)
    [new] = copies(5)
    await connection.execute(
        "INSERT INTO replicas (shard_id, generation, state) VALUES (5, $1, 'condemned')", new.generation
    )
    assert (await settle(scene, one, [new])).adopted == frozenset()


async def test_unsuccessful_repair_is_put_off_and_counted(scene: Scene, connection: asyncpg.Connection) -> None:
    await suspect(connection, (await stored(scene))[0])
    [one] = await claim(scene)
    assert (await settle(scene, one, [])).outcome is RepairOutcome.SHORT
    assert await claim(scene) == []
    await connection.execute("UPDATE repair_queue SET due_at = now()")
    [again] = await claim(scene)
    assert again.attempts == 1


async def test_copies_on_a_node_that_is_down_are_waited_for(scene: Scene, connection: asyncpg.Connection) -> None:
    await stored(scene)
    await connection.execute("SELECT enqueue_repair(id, 'short_write') FROM blobs")
    await connection.execute("UPDATE nodes SET stopped_at = now() WHERE id = 'n1'")
    [one] = await claim(scene)
    assert (await settle(scene, one, copies(5))) == Settled(RepairOutcome.WAITING, frozenset())
    await connection.execute("UPDATE nodes SET stopped_at = NULL; UPDATE repair_queue SET due_at = now()")
    [one] = await claim(scene)
    assert (await settle(scene, one, [])).outcome is RepairOutcome.WHOLE


async def test_blob_that_is_gone_takes_no_copy(scene: Scene, connection: asyncpg.Connection) -> None:
    await suspect(connection, (await stored(scene))[0])
    [one] = await claim(scene)
    for statement in ("repair_queue", "gc_candidates", "replicas", "artifacts WHERE blob_id IS NOT NULL", "blobs"):
        await connection.execute(f"DELETE FROM {statement}")
    assert await settle(scene, one, copies(5)) == Settled(RepairOutcome.GONE, frozenset())


async def test_draining_copy_goes_to_the_removals_only_when_the_blob_is_whole_without_it(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    old, kept = await stored(scene)
    await connection.execute("UPDATE shards SET state = 'draining' WHERE id = 1")
    await connection.execute("SELECT enqueue_repair(id, 'drain') FROM blobs")
    [one] = await claim(scene)
    assert [r.counts for r in one.replicas if r.shard == old.shard] == [False]
    assert (await settle(scene, one, [])).outcome is RepairOutcome.SHORT
    assert old.generation in await replicas_in(connection)
    await connection.execute("UPDATE repair_queue SET due_at = now()")
    [one] = await claim(scene)
    [new] = copies(5)
    assert (await settle(scene, one, [new])).outcome is RepairOutcome.WHOLE
    assert set(await replicas_in(connection)) == {kept.generation, new.generation}
    listed = await only_row(connection, "SELECT shard_id, generation, not_before > now() AS later FROM removals")
    assert tuple(listed) == (1, old.generation, True)


# ---------------------------------------------------------------- races


async def test_asked_anew_during_a_repair_stays_queued(scene: Scene, connection: asyncpg.Connection) -> None:
    await suspect(connection, (await stored(scene))[0])
    [one] = await claim(scene)
    await connection.execute("SELECT enqueue_repair(id, 'drain') FROM blobs")
    assert (await settle(scene, one, copies(5))).outcome is RepairOutcome.WHOLE
    assert len(await claim(scene)) == 1


async def test_of_two_repairs_of_one_blob_the_second_is_told_that_its_copy_is_surplus(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await suspect(connection, (await stored(scene))[0])
    [slow] = await claim(scene)
    await connection.execute("UPDATE repair_queue SET due_at = now()")
    other = uuid4()
    [quick] = await claim(scene, other)
    first, second = await asyncio.gather(settle(scene, quick, copies(5), token=other), settle(scene, slow, copies(6)))
    assert first.outcome is second.outcome is RepairOutcome.WHOLE
    assert len(first.adopted) + len(second.adopted) == 1
    assert await queue(connection) == []


async def test_replica_suspected_while_a_repair_waits_for_the_blob_is_counted_out(
    scene: Scene, connection: asyncpg.Connection, clean_dsn: str
) -> None:
    bad, good = await stored(scene)
    await suspect(connection, bad)
    [one] = await claim(scene)
    async with locked_blob(clean_dsn) as other:
        settling = asyncio.create_task(settle(scene, one, copies(5, 6)))
        await until_blocked(connection)
        await other.fetchval("SELECT suspect_replica($1, $2)", good.shard, good.generation)
    settled = await settling
    # With the second one bad as well, both new copies are needed, though two zones are not to be had.
    assert len(settled.adopted) == 2
    assert settled.outcome is RepairOutcome.SHORT
    assert len(await queue(connection)) == 1


async def test_blob_deleted_while_a_repair_waits_for_it_takes_no_copy(
    scene: Scene, connection: asyncpg.Connection, clean_dsn: str
) -> None:
    await suspect(connection, (await stored(scene))[0])
    [one] = await claim(scene)
    async with locked_blob(clean_dsn, "FOR UPDATE") as other:
        settling = asyncio.create_task(settle(scene, one, copies(5)))
        await until_blocked(connection)
        for statement in ("repair_queue", "replicas", "artifacts WHERE blob_id IS NOT NULL", "blobs"):
            await other.execute(f"DELETE FROM {statement}")
    assert await settling == Settled(RepairOutcome.GONE, frozenset())
    assert await connection.fetchval("SELECT count(*) FROM replicas") == 0


async def test_upload_of_the_same_content_and_a_repair_do_not_both_add_the_missing_copy(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    bad, good = await stored(scene)
    await suspect(connection, bad)
    [one] = await claim(scene)
    deployment = scene.deployment("d/again")
    settled, uploaded = await asyncio.gather(settle(scene, one, copies(5)), scene.commit(deployment, copies(6), [good]))
    live = [shard for shard, state in (await replicas_in(connection)).values() if state == "live"]
    assert len(live) in (2, 3)  # the upload cannot know of a copy that nobody confirmed to it
    assert settled.outcome is RepairOutcome.WHOLE, uploaded
    assert ShardId(3) in live
    assert Generation(bad.generation) in await replicas_in(connection)


async def test_batch_is_settled_blob_by_blob_and_two_batches_do_not_block_each_other(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    for number in range(12):
        await suspect(connection, (await stored(scene, bytes([number])))[0])
    claims = await claim(scene)
    forth = [Repaired(one, tuple(copies(5)), 60, None) for one in claims]
    back = [Repaired(one, tuple(copies(6)), 60, None) for one in reversed(claims)]
    first, second = await asyncio.gather(
        repair_queue.settle(scene.database, TOKEN, forth), repair_queue.settle(scene.database, TOKEN, back)
    )
    for one, other in zip(forth, reversed(back), strict=True):
        adopted = first[one.claim.blob.id].adopted | second[one.claim.blob.id].adopted
        assert len(adopted) == 1
        assert adopted <= {copy.generation for copy in (*one.copies, *other.copies)}
    assert await queue(connection) == []
    assert await repair_queue.settle(scene.database, TOKEN, []) == {}
