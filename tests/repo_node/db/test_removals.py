"""The removal list: a listed generation is never live, nor ever will be; holds stop everything."""

from __future__ import annotations

import asyncio
import random
from uuid import UUID, uuid4

import asyncpg
import pytest

from repo_node.db import holds
from repo_node.db.blobs import CommitOutcome
from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.removals import RemovalRows
from repo_node.origin import Origin
from sharding.model import Generation, ShardId
from tests.repo_node.db.scene import Scene, copies, digests_of, replicas_in, table

ONE = ShardId(1)
NEVER_LIVE = """
    SELECT count(*) FROM removals m LEFT JOIN replicas r USING (shard_id, generation)
     WHERE r.state IS DISTINCT FROM 'condemned' OR r.blob_id IS NOT NULL
"""
LATER = "SELECT remove_later($1, $2, $3, $4, $5, make_interval(secs => $6))"
UNLESS_LIVE = "SELECT remove_unless_live($1, $2, $3, 'upload', 5)"


BY = Origin("alice", "r")


async def list_it(
    connection: asyncpg.Connection, shard: int, generation: UUID, delay: float = 0, reason: str = "trim"
) -> None:
    await connection.execute(LATER, shard, generation, digests_of(b"bytes").sha256, reason, 5, delay)


async def test_listed_replica_is_condemned_and_due_after_its_delay(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    _, [first, second] = await scene.upload("a", b"bytes")
    rows = RemovalRows(scene.database)
    await list_it(connection, first.shard, first.generation, delay=3600)
    assert set(await replicas_in(connection)) == {second.generation}
    assert (await rows.due(first.shard, 10)).files == ()
    await connection.execute("UPDATE removals SET not_before = now()")
    due = await rows.due(first.shard, 10)
    [file] = due.files
    assert (file.name.generation, file.name.sha256, file.size, file.reason) == (
        first.generation, digests_of(b"bytes").sha256, 5, "trim",
    )  # fmt: skip
    assert (due.epoch, due.held, due.live) == (0, False, False)
    assert (await rows.due(second.shard, 10)).files == ()


async def test_delay_is_the_setting_unless_it_is_given(scene: Scene, connection: asyncpg.Connection) -> None:
    await connection.execute("INSERT INTO settings VALUES ('removal_delay_seconds', '120', now(), 'x')")
    await connection.execute("SELECT remove_later(1::smallint, $1, $2, 'gc')", uuid4(), bytes(32))
    [[seconds]] = await table(connection, "SELECT extract(epoch FROM not_before - queued_at)::int FROM removals")
    assert seconds == 120


async def test_removed_file_is_forgotten_with_its_condemned_row(scene: Scene, connection: asyncpg.Connection) -> None:
    _, [first, _] = await scene.upload("a", b"bytes")
    rows = RemovalRows(scene.database)
    await list_it(connection, first.shard, first.generation)
    await rows.done(first.shard, [first.generation])
    assert await table(connection, "SELECT * FROM removals") == []
    assert await table(connection, "SELECT * FROM replicas WHERE state = 'condemned'") == []
    await rows.done(first.shard, [first.generation])


async def test_done_takes_away_no_row_that_was_not_listed(scene: Scene, connection: asyncpg.Connection) -> None:
    _, [first, second] = await scene.upload("a", b"bytes")
    await RemovalRows(scene.database).done(first.shard, [first.generation])
    assert set(await replicas_in(connection)) == {first.generation, second.generation}


async def test_failed_removal_waits_longer_each_time(scene: Scene, connection: asyncpg.Connection) -> None:
    generation = uuid4()
    await list_it(connection, 1, generation)
    waits = []
    for _ in range(12):
        await RemovalRows(scene.database).failed(ONE, [Generation(generation)])
        [[wait]] = await table(
            connection, "SELECT extract(epoch FROM not_before - clock_timestamp())::float FROM removals"
        )
        waits.append(round(wait))
    assert waits == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]


async def test_listing_twice_is_listing_once(scene: Scene, connection: asyncpg.Connection) -> None:
    generation = uuid4()
    await list_it(connection, 1, generation, reason="trim")
    await list_it(connection, 1, generation, delay=99, reason="gc")
    assert await table(connection, "SELECT reason FROM removals") == [("trim",)]


async def test_condemned_generation_cannot_become_live(scene: Scene, connection: asyncpg.Connection) -> None:
    _, [first, _] = await scene.upload("a", b"bytes")
    await list_it(connection, first.shard, first.generation)
    blob = await connection.fetchval("SELECT id FROM blobs")
    with pytest.raises(asyncpg.PostgresError) as refused:
        await connection.execute(
            "UPDATE replicas SET blob_id = $1, state = 'live' WHERE generation = $2", blob, first.generation
        )
    assert refused.value.sqlstate == "HF004"
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await connection.execute("DELETE FROM replicas WHERE generation = $1", first.generation)


async def test_late_commit_of_a_listed_generation_fails(scene: Scene, connection: asyncpg.Connection) -> None:
    written = copies(1, 3)
    assert await connection.fetchval(UNLESS_LIVE, 1, written[0].generation, digests_of(b"bytes").sha256)
    with pytest.raises(CatalogueUnavailable):
        await scene.commit(scene.deployment("late"), written)
    assert await table(connection, "SELECT * FROM artifacts") == []


async def test_remove_unless_live_spares_what_was_committed(scene: Scene, connection: asyncpg.Connection) -> None:
    _, [first, second] = await scene.upload("a", b"bytes")
    assert not await connection.fetchval(UNLESS_LIVE, first.shard, first.generation, digests_of(b"bytes").sha256)
    assert set(await replicas_in(connection)) == {first.generation, second.generation}
    assert await table(connection, "SELECT * FROM removals") == []


async def test_listed_generation_is_never_live_while_commits_race_removals(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    """Each upload is committed while somebody who doubts its outcome lists its generations."""
    chance = random.Random(4)
    connections = [await asyncpg.connect(scene.dsn) for _ in range(4)]
    outcomes = {"committed": 0, "listed": 0}

    async def collide(number: int, other: asyncpg.Connection) -> None:
        written, data = copies(1, 3), b"content %d" % number

        async def commit() -> bool:
            await asyncio.sleep(chance.random() * 0.003)
            try:
                result = await scene.commit(scene.deployment(f"f/{number}", data), written)
            except CatalogueUnavailable:
                return False
            return result.outcome is CommitOutcome.ADOPTED

        async def doubt() -> list[bool]:
            await asyncio.sleep(chance.random() * 0.003)
            return [
                await other.fetchval(UNLESS_LIVE, one.shard, one.generation, digests_of(data).sha256) for one in written
            ]

        committed, listed = await asyncio.gather(commit(), doubt())
        assert committed != any(listed), (committed, listed)
        outcomes["committed" if committed else "listed"] += 1

    async def work(other: asyncpg.Connection, numbers: range) -> None:
        for number in numbers:
            await collide(number, other)

    await asyncio.gather(*(work(other, range(i * 1000, i * 1000 + 60)) for i, other in enumerate(connections)))
    assert await connection.fetchval(NEVER_LIVE) == 0
    assert all(outcomes.values()), outcomes
    for other in connections:
        other.terminate()


# ---------------------------------------------------------------- holds


async def test_hold_stops_removals_until_it_is_released(scene: Scene, connection: asyncpg.Connection) -> None:
    rows = RemovalRows(scene.database)
    await list_it(connection, 1, uuid4())
    assert not await holds.deletions_held(scene.database)
    assert await holds.place(scene.database, "operator", "maintenance of the database", by=BY)
    assert not await holds.place(scene.database, "operator", "again", by=BY)
    assert await holds.place(scene.database, "volume", "implausible", by=BY, allowance=7)
    assert await holds.deletions_held(scene.database)
    assert (await rows.due(ONE, 10)).held
    [first, second] = await holds.read(scene.database)
    assert (first.reason, first.detail) == ("operator", "maintenance of the database")
    assert (second.reason, second.allowance) == ("volume", 7)
    assert await holds.release(scene.database, by=BY) == ["operator", "volume"]
    assert await holds.release(scene.database, by=BY) == []
    assert not await holds.deletions_held(scene.database)
    assert not (await rows.due(ONE, 10)).held
    kinds = await table(connection, "SELECT kind, principal FROM events ORDER BY id")
    noted = [(kind, who) for kind, who in kinds if kind != "replica_remove"]
    assert noted == [("hold", "alice")] * 2 + [("release", "alice")] * 2
    assert await holds.place(scene.database, "operator", "once more", by=BY)


async def test_uploads_always_adopt_while_history_is_lost(scene: Scene, connection: asyncpg.Connection) -> None:
    await scene.upload("a", b"bytes")
    assert (await scene.upload("b", b"bytes"))[0] is CommitOutcome.DEDUPLICATED
    await holds.place(scene.database, "lost_history", "a shard knows more", by=BY)
    outcome, ours = await scene.upload("c", b"bytes")
    assert outcome is CommitOutcome.ADOPTED
    assert {one.generation for one in ours} <= set(await replicas_in(connection))
    await holds.release(scene.database, by=BY)
    assert (await scene.upload("d", b"bytes"))[0] is CommitOutcome.DEDUPLICATED
