"""Trims, moves, walks, the census, verdicts and the lifecycle of shards, as the schema's functions do them."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import asyncpg
import pytest

from repo_node.db import moves, shards, stretches, walks
from repo_node.db.walks import Verdict
from repo_node.origin import Origin
from sharding.maintenance.catalogue import MoveOutcome
from sharding.model import Generation, Replica, ShardId
from tests.repo_node.db.scene import REPOSITORY, Scene, copies, digests_of, only_row, replicas_in, table, until_blocked
from tests.repo_node.db.test_repair_queue import blob_id, locked_blob, stored

LIVE_SQL = "SELECT shard_id, generation FROM replicas WHERE state = 'live' ORDER BY shard_id"


async def set_state(connection: asyncpg.Connection, shard: int, state: str) -> None:
    assert await connection.fetchval("SELECT set_shard_state($1, $2, 'test', 'alice', 'r1')", shard, state)


async def add_copy(connection: asyncpg.Connection, shard: int, state: str = "live") -> Replica:
    [new] = copies(shard)
    await connection.execute(
        "INSERT INTO replicas (shard_id, generation, blob_id, state) SELECT $1, $2, max(id), $3 FROM blobs",
        shard,
        new.generation,
        state,
    )
    return new


async def live(connection: asyncpg.Connection) -> list[int]:
    return [row["shard_id"] for row in await connection.fetch(LIVE_SQL)]


async def test_few_copies_are_counted_and_of_many_the_statistics_tell(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    for number in range(12):
        await stored(scene, bytes([number]) * 3, shards=(1, 3))
    await connection.execute("ANALYZE replicas")
    exact = await shards.list_all(scene.database)
    assert {(one.replicas, one.is_counted) for one in exact.values()} == {(12, True), (0, True)}
    bounded = await shards.list_all(scene.database, counted_max=5)
    assert [(bounded[ShardId(n)].replicas, bounded[ShardId(n)].is_counted) for n in (1, 2)] == [(12, False), (0, True)]


# ---------------------------------------------------------------- trim and move


@pytest.mark.parametrize(
    ("shards", "spoil", "trims"),
    [
        ((1, 3, 5), "", True),
        ((1, 3), "", False),
        ((1, 3, 4), "", False),  # the one on 1 is alone in its zone
        ((1, 2, 3), "", True),
        ((1, 3, 5), "UPDATE nodes SET stopped_at = now() WHERE id = 'n3'", False),
        ((1, 3, 5), "UPDATE shards SET state = 'draining' WHERE id = 5", False),
        ((1, 3, 5), "UPDATE shards SET state = 'lost' WHERE id = 5", False),
        ((1, 3, 5), "UPDATE replicas SET state = 'suspect' WHERE shard_id = 5", False),
        ((1, 1, 3), "", True),
    ],
)
async def test_trim_leaves_n_good_copies_in_their_zones(
    scene: Scene, connection: asyncpg.Connection, shards: tuple[int, ...], spoil: str, trims: bool
) -> None:
    written = await stored(scene, shards=shards)
    await connection.execute(spoil or "SELECT 1")
    before = await replicas_in(connection)
    assert await moves.trim(scene.database, await blob_id(connection), written[0], "trim") is trims
    gone = before.keys() - (await replicas_in(connection)).keys()
    assert gone == ({written[0].generation} if trims else set())
    listed = await table(connection, "SELECT generation, reason FROM removals")
    assert listed == ([(written[0].generation, "trim")] if trims else [])


async def test_trim_of_a_copy_that_is_suspect_or_gone_does_nothing(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    written = await stored(scene, shards=(1, 3, 5))
    blob = await blob_id(connection)
    await connection.fetchval("SELECT suspect_replica(1::smallint, $1)", written[0].generation)
    assert not await moves.trim(scene.database, blob, written[0], "trim")
    assert not await moves.trim(scene.database, blob, Replica(ShardId(2), Generation(uuid4())), "trim")
    assert not await moves.trim(scene.database, blob + 1, written[1], "trim")


async def test_two_trims_at_once_never_leave_too_few(scene: Scene, connection: asyncpg.Connection) -> None:
    written = await stored(scene, shards=(1, 3, 5))
    blob = await blob_id(connection)
    trimmed = await asyncio.gather(*(moves.trim(scene.database, blob, one, "trim") for one in written))
    assert sum(trimmed) == 1
    assert len(await live(connection)) == 2


async def test_trim_counts_out_a_replica_suspected_while_it_waited(
    scene: Scene, connection: asyncpg.Connection, clean_dsn: str
) -> None:
    written = await stored(scene, shards=(1, 3, 5))
    blob = await blob_id(connection)
    async with locked_blob(clean_dsn) as other:
        trimming = asyncio.create_task(moves.trim(scene.database, blob, written[0], "trim"))
        await until_blocked(connection)
        await other.fetchval("SELECT suspect_replica(3::smallint, $1)", written[1].generation)
    assert await trimming is False


async def test_move_flips_the_row_and_lists_the_old_file(scene: Scene, connection: asyncpg.Connection) -> None:
    old, kept = await stored(scene)
    [new] = copies(5)
    blob = await blob_id(connection)
    for _ in range(2):  # the second time, the first one's answer was lost
        outcome = await moves.move(scene.database, blob, old, new)
        assert outcome in (MoveOutcome.MOVED, MoveOutcome.COPIED)
    assert set(await replicas_in(connection)) == {new.generation, kept.generation}
    assert await table(connection, "SELECT generation, reason FROM removals") == [(old.generation, "rebalance")]


async def test_move_keeps_the_old_copy_while_the_blob_needs_it(scene: Scene, connection: asyncpg.Connection) -> None:
    old, other = await stored(scene)
    await connection.fetchval("SELECT suspect_replica(3::smallint, $1)", other.generation)
    [new] = copies(5)
    assert await moves.move(scene.database, await blob_id(connection), old, new) is MoveOutcome.COPIED
    assert await live(connection) == [1, 5]


@pytest.mark.parametrize("spoil", ["gone", "draining", "there", "condemned", "blob"])
async def test_move_that_is_no_longer_wanted_is_surplus(
    scene: Scene, connection: asyncpg.Connection, spoil: str
) -> None:
    old, _ = await stored(scene)
    [new] = copies(5)
    blob = await blob_id(connection)
    match spoil:
        case "gone":
            await connection.execute("DELETE FROM replicas WHERE generation = $1", old.generation)
        case "draining":
            await connection.execute("UPDATE shards SET state = 'draining' WHERE id = 5")
        case "there":
            await add_copy(connection, 5)
        case "condemned":
            await connection.execute(
                "INSERT INTO replicas (shard_id, generation, state) VALUES (5, $1, 'condemned')", new.generation
            )
        case "blob":
            blob += 1
    before = await live(connection)
    assert await moves.move(scene.database, blob, old, new) is MoveOutcome.SURPLUS
    assert await live(connection) == before


async def test_walk_of_own_copies_resumes_where_it_was_and_rests_between_passes(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    for number in range(5):
        await stored(scene, bytes([number]))

    async def batch(ring: str = "r1", period: float = 1000) -> list[Generation] | None:
        found = await moves.next_batch(scene.database, "trim", ShardId(1), ring, count=2, period_seconds=period)
        return None if found is None else [held.generation for held in found]

    seen: list[Generation] = []
    while part := await batch():
        assert len(part) <= 2
        seen += part
        await moves.advance(scene.database, "trim", ShardId(1), "r1", part[-1])
    assert seen == sorted(
        row[0] for row in await connection.fetch("SELECT generation FROM replicas WHERE shard_id = 1")
    )
    await moves.advance(scene.database, "trim", ShardId(1), "r1", None)
    assert await batch() is None
    assert await batch("r2") == seen[:2]
    assert await batch(period=0) == seen[:2]
    # A pass that began for one ring and ended under another is followed by one for that.
    await moves.advance(scene.database, "trim", ShardId(1), "r2", seen[1])
    await moves.advance(scene.database, "trim", ShardId(1), "r3", None)
    assert await batch("r3") == seen[:2]


# ---------------------------------------------------------------- walks


async def walk(scene: Scene, count: int = 100) -> list[tuple[str, int, int, bool]]:
    """Take every step that is due."""
    steps = []
    while (step := await walks.walk(scene.database, count, again_seconds=100, lost_again_seconds=100)) is not None:
        steps.append((step.kind, step.walked, step.acted, step.ended))
    return steps


async def test_lost_shard_asks_for_what_is_no_longer_whole(scene: Scene, connection: asyncpg.Connection) -> None:
    for number in range(5):
        await stored(scene, bytes([number]))
    await stored(scene, b"enough", (1, 3, 5))
    await set_state(connection, 1, "lost")
    steps = await walk(scene, 4)
    assert [(kind, walked, ended) for kind, walked, _, ended in steps] == [("lost", 4, False), ("lost", 2, True)]
    assert sum(acted for _, _, acted, _ in steps) == 5
    rows = await table(connection, "SELECT DISTINCT reason, urgency, count(*) OVER () FROM repair_queue")
    assert rows == [("lost", 1, 5)]
    # A second pass finds nothing that is not queued already.
    await connection.execute("UPDATE shard_walks SET due_at = now()")
    await walk(scene)
    assert await connection.fetchval("SELECT count(*) FROM repair_queue") == 5


async def test_draining_shard_asks_for_everything_on_it(scene: Scene, connection: asyncpg.Connection) -> None:
    await stored(scene, b"a")
    await stored(scene, b"b", (1, 3, 5))
    await set_state(connection, 1, "draining")
    assert await walk(scene) == [("drain", 2, 2, True)]
    assert await connection.fetchval("SELECT count(*) FROM repair_queue WHERE reason = 'drain'") == 2
    await set_state(connection, 1, "active")
    assert await connection.fetchval("SELECT count(*) FROM shard_walks") == 0


async def test_returning_shard_counts_nothing_until_it_is_read(scene: Scene, connection: asyncpg.Connection) -> None:
    await stored(scene)
    await set_state(connection, 1, "lost")
    assert await shards.change(scene.database, 1, "activate", by=Origin("alice", "r")) == "returning"
    assert (await only_row(connection, "SELECT state FROM shards WHERE id = 1"))["state"] == "lost"
    await walk(scene)
    row = await only_row(connection, "SELECT state, state_reason FROM shards WHERE id = 1")
    assert row["state"] == "active"
    assert await table(connection, "SELECT state FROM replicas WHERE shard_id = 1") == [("suspect",)]
    assert await connection.fetchval("SELECT count(*) FROM shard_walks") == 0


async def test_two_walkers_share_the_shards(scene: Scene, connection: asyncpg.Connection) -> None:
    for number in range(10):
        await stored(scene, bytes([number]))
    for shard in (1, 3):
        await set_state(connection, shard, "draining")
    steps = await asyncio.gather(*(walk(scene, 3) for _ in range(3)))
    assert sum(walked for part in steps for _, walked, _, _ in part) == 20
    assert await connection.fetchval("SELECT count(*) FROM repair_queue") == 10


# ---------------------------------------------------------------- the census


async def census(scene: Scene, redundancy: int = 2, count: int = 3) -> tuple[int, int]:
    """Take the pass that is due; return how many blobs were counted and queued."""
    counted = queued = 0
    while (step := await walks.census(scene.database, count, redundancy=redundancy, period_seconds=100)) is not None:
        counted, queued = counted + step.counted, queued + step.queued
    return counted, queued


async def test_census_raises_and_lowers_redundancy_and_asks_for_what_is_missing(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    for number in range(7):
        await stored(scene, bytes([number]))
    await stored(scene, b"")
    await census(scene)
    assert await census(scene) == (0, 0), "not due"
    await connection.execute("INSERT INTO settings (key, value, updated_by) VALUES ('redundancy', '3', 'x')")
    assert await census(scene, 3) == (7, 7)
    assert await table(connection, "SELECT DISTINCT redundancy FROM blobs WHERE size > 0") == [(3,)]
    assert await table(connection, "SELECT DISTINCT reason FROM repair_queue") == [("redundancy",)]
    await connection.execute("UPDATE settings SET value = '2'")
    assert (await census(scene, 2))[0] == 7
    assert await table(connection, "SELECT DISTINCT redundancy FROM blobs") == [(2,)]


async def test_repositorys_own_redundancy_holds_for_what_it_refers_to(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await stored(scene)
    await connection.execute("UPDATE repositories SET redundancy = 4")
    assert await census(scene) == (1, 1)
    assert (await only_row(connection, "SELECT redundancy FROM blobs"))["redundancy"] == 4
    # What nothing refers to keeps its own until it is collected, and is not worth a copy.
    await connection.execute("DELETE FROM artifacts; DELETE FROM repair_queue; UPDATE repositories SET redundancy = 2")
    assert await census(scene) == (1, 0)
    assert (await only_row(connection, "SELECT redundancy FROM blobs"))["redundancy"] == 4


async def test_census_asks_for_copies_of_what_only_the_trash_refers_to_and_of_no_garbage(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await connection.execute("UPDATE repositories SET trash = true")
    for name in ("restorable", "garbage"):
        await scene.upload(name, name.encode(), shards=(1,))
        await connection.execute("SELECT delete_item($1, '', $2, 'x', 'r')", scene.repository, name)
    await connection.execute("SELECT empty_trash(ARRAY(SELECT id FROM trash WHERE name = 'garbage'), 'released')")
    await connection.execute("DELETE FROM repair_queue; UPDATE census SET due_at = now()")
    assert await census(scene) == (2, 1)
    asked = "SELECT b.sha256 FROM repair_queue q JOIN blobs b ON b.id = q.blob_id"
    assert await table(connection, asked) == [(digests_of(b"restorable").sha256,)]


async def test_census_does_not_ask_for_copies_on_a_node_that_is_merely_down(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await stored(scene)
    await connection.execute("UPDATE nodes SET stopped_at = now() WHERE id = 'n1'; UPDATE census SET due_at = now()")
    assert await census(scene) == (1, 0)
    await set_state(connection, 1, "lost")
    assert await census(scene) == (1, 1)


async def test_change_during_a_pass_makes_another_one_due(scene: Scene, connection: asyncpg.Connection) -> None:
    for number in range(4):
        await stored(scene, bytes([number]))
    await connection.execute("UPDATE census SET asked = asked + 1, due_at = now(), cursor = 0")
    await walks.census(scene.database, 3, redundancy=2, period_seconds=100)
    await connection.execute("INSERT INTO settings (key, value, updated_by) VALUES ('redundancy', '3', 'x')")
    assert await census(scene, 3) == (1 + 4, 1 + 4)


# ---------------------------------------------------------------- verdicts


async def silence(connection: asyncpg.Connection, *shard_ids: int, seconds: float = 400) -> None:
    """Let the shards have been reported ``seconds`` ago."""
    await connection.execute(
        "INSERT INTO shard_space (shard_id, capacity_bytes, free_bytes, writable, reported_at)"
        " SELECT s, 10, 10, true, now() - make_interval(secs => $2) FROM unnest($1::smallint[]) AS s"
        " ON CONFLICT (shard_id) DO UPDATE SET reported_at = excluded.reported_at",
        shard_ids,
        seconds,
    )


async def declare(scene: Scene, seconds: float = 300) -> Verdict:
    return await walks.declare_lost(scene.database, seconds, "node n2")


async def states(connection: asyncpg.Connection) -> dict[int, str]:
    return dict(await table(connection, "SELECT id, state FROM shards ORDER BY id"))  # type: ignore[arg-type]


async def test_silent_shards_of_one_zone_are_lost(scene: Scene, connection: asyncpg.Connection) -> None:
    await silence(connection, 3, 4, 5, 6, seconds=0)
    await silence(connection, 1, 2)
    assert await declare(scene, 500) == Verdict([], None)
    assert await declare(scene) == Verdict([ShardId(1), ShardId(2)], None)
    assert await declare(scene) == Verdict([], None)
    assert [state for state in (await states(connection)).values()] == ["lost"] * 2 + ["active"] * 4
    event = await only_row(connection, "SELECT * FROM events WHERE detail ->> 'shard' = '1'")
    assert (event["kind"], event["principal"]) == ("shard_state", "node n2")
    assert "silent for more than 300 s" in event["detail"]
    assert await table(connection, "SELECT shard_id, kind FROM shard_walks ORDER BY 1") == [(1, "lost"), (2, "lost")]


async def test_disk_without_an_answer_below_a_living_node_is_silent(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await connection.execute("UPDATE shards SET created_at = now() + interval '1 day'")
    await silence(connection, 1, seconds=0)
    await connection.execute("UPDATE shard_space SET capacity_bytes = 0, reported_at = now()")
    since = (await only_row(connection, "SELECT silent_since FROM shard_space"))["silent_since"]
    await connection.execute("UPDATE shard_space SET capacity_bytes = 0, reported_at = now()")
    assert (await only_row(connection, "SELECT silent_since FROM shard_space"))["silent_since"] == since
    await asyncio.sleep(0.05)
    await connection.execute("UPDATE shard_space SET capacity_bytes = 0, reported_at = now()")
    assert (await declare(scene, 0.04)).declared == [ShardId(1)]
    await connection.execute("UPDATE shard_space SET capacity_bytes = 10")
    assert (await only_row(connection, "SELECT silent_since FROM shard_space"))["silent_since"] is None


@pytest.mark.parametrize(
    ("silent", "before", "words"),
    [
        ((1, 3), "", "one zone at most"),
        ((1, 2, 3), "", "one zone at most"),
        ((1, 2), "UPDATE shards SET state = 'lost' WHERE id = 5; INSERT INTO shard_walks VALUES (5, 'lost')", "zone"),
        ((1, 2), "DELETE FROM shards WHERE id IN (3, 5, 6)", "2 of 3 shards"),
        ((1, 2), "DELETE FROM shards WHERE id IN (5, 6)", "2 of 4 shards"),
    ],
)
async def test_verdict_takes_one_zone_at_most_and_never_half_of_the_shards(
    scene: Scene, connection: asyncpg.Connection, silent: tuple[int, ...], before: str, words: str
) -> None:
    await connection.execute(before or "SELECT 1")
    await silence(connection, *silent)
    expected = await states(connection)
    verdict = await declare(scene)
    assert verdict.declared == [] and words in (verdict.refused or "")
    assert await states(connection) == expected


async def test_second_zone_may_be_lost_once_the_first_one_is_made_good(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await set_state(connection, 5, "lost")
    await silence(connection, 1)
    assert (await declare(scene)).refused
    await walk(scene)
    assert (await declare(scene)).declared == [ShardId(1)]


async def test_lost_shard_that_answers_again_returns_but_not_one_an_administrator_gave_up(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await silence(connection, 1, 2)
    await declare(scene)
    assert await shards.change(scene.database, 2, "replace", by=Origin("a", "r")) == "done"
    assert await walks.return_shards(scene.database) == []
    await silence(connection, 1, 2, seconds=-1)
    await connection.execute("UPDATE shards SET state_reason = 'replaced by another disk' WHERE id = 2")
    assert await walks.return_shards(scene.database) == [ShardId(1)]
    await walk(scene)
    assert (await states(connection))[1] == "active"
    assert (await states(connection))[2] == "lost"


# ---------------------------------------------------------------- the lifecycle


async def change(scene: Scene, shard: int, action: str) -> str:
    return await shards.change(scene.database, shard, action, by=Origin("alice", "r"))


async def remove(scene: Scene, shard: int) -> str:
    return await shards.remove(scene.database, shard, by=Origin("alice", "r"))


async def test_shard_is_changed_as_administrators_ask(scene: Scene, connection: asyncpg.Connection) -> None:
    assert await change(scene, 99, "drain") == "absent"
    for action, state in (("drain", "draining"), ("readonly", "read_only"), ("activate", "active")):
        assert await change(scene, 1, action) == "done"
        assert await change(scene, 1, action) == "unchanged"
        assert (await states(connection))[1] == state
    assert await change(scene, 1, "replace") == "done"
    assert (await states(connection))[1] == "lost"
    assert await change(scene, 1, "drain") == "lost"
    assert await change(scene, 1, "activate") == "replaced"
    standing = (await shards.list_all(scene.database))[ShardId(1)]
    assert (standing.replaced, standing.reason, standing.walk) == (True, "replaced by another disk", "lost")


async def leave(connection: asyncpg.Connection, node: str = "n1") -> None:
    await connection.execute("UPDATE nodes SET stopped_at = now() WHERE id = $1", node)


async def test_shard_is_removed_only_when_it_is_drained_and_closed(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await stored(scene)
    assert await remove(scene, 99) == "absent"
    assert await remove(scene, 1) == "not_drained"
    await change(scene, 1, "drain")
    assert await remove(scene, 1) == "in_use"
    await leave(connection)
    assert await remove(scene, 1) == "holds"
    await connection.execute("DELETE FROM replicas WHERE shard_id = 1")
    await silence(connection, 1)
    assert await remove(scene, 1) == "removed"
    assert 1 not in await states(connection)


async def test_lost_shard_goes_when_no_blob_needs_it_any_more(scene: Scene, connection: asyncpg.Connection) -> None:
    await stored(scene, b"whole", (1, 3, 5))
    await stored(scene, b"short", (1, 3))
    await leave(connection)
    await change(scene, 1, "replace")
    assert await remove(scene, 1) == "forgetting"
    await walk(scene)
    standing = (await shards.list_all(scene.database))[ShardId(1)]
    assert (standing.walk, standing.kept_back, standing.replicas, standing.passes) == ("forget", 1, 1, 1)
    await add_copy(connection, 5)
    await connection.execute("UPDATE shard_walks SET due_at = now()")
    await walk(scene)
    assert 1 not in await states(connection)
    assert await table(connection, "SELECT kind FROM events WHERE kind = 'shard_remove'") == [("shard_remove",)]


async def give_up(scene: Scene, shard: int, copies: int) -> str:
    return await shards.give_up_last_copies(scene.database, shard, copies, by=Origin("alice", "r"))


async def test_last_copies_on_a_lost_shard_go_only_when_their_number_is_said(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await stored(scene, b"safe", (1, 3, 5))
    await stored(scene, b"one", (1,))
    await stored(scene, b"two", (1,))
    await stored(scene, b"short", (1, 3))
    assert await give_up(scene, 99, 1) == "absent"
    assert await give_up(scene, 1, 2) == "not_lost"
    await leave(connection)
    await change(scene, 1, "replace")
    assert await give_up(scene, 1, 2) == "not_counted"
    assert await remove(scene, 1) == "forgetting"
    await walk(scene)
    standing = (await shards.list_all(scene.database))[ShardId(1)]
    assert (standing.kept_back, standing.last_copies) == (3, 2)
    found = await shards.last_copies(scene.database, 1, 1)
    assert (found.blobs, found.artifacts, len(found.paths)) == (2, 2, 1)
    assert found.paths[0].startswith(f"{REPOSITORY}/d/")
    for wrong in (1, 3):
        assert await give_up(scene, 1, wrong) == "counted_otherwise"
    assert (await shards.list_all(scene.database))[ShardId(1)].replicas == 3
    assert await give_up(scene, 1, 2) == "forgetting"
    await walk(scene)
    standing = (await shards.list_all(scene.database))[ShardId(1)]
    assert (standing.kept_back, standing.last_copies, standing.replicas) == (1, 0, 1), "one can be repaired, and stays"
    assert await table(connection, "SELECT count(*) FROM artifacts WHERE blob_id IS NOT NULL") == [(4,)]
    assert await table(connection, "SELECT detail ->> 'copies' FROM events WHERE kind = 'shard_give_up'") == [("2",)]
    await add_copy(connection, 5)
    await connection.execute("UPDATE shard_walks SET due_at = now()")
    await walk(scene)
    assert 1 not in await states(connection)


async def test_last_copies_are_the_same_in_stretches_of_any_length(
    scene: Scene, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, shard_ids in ((b"safe", (1, 3)), (b"one", (1,)), (b"other", (3,)), (b"two", (1,)), (b"twice", (1, 1))):
        await stored(scene, name, shard_ids)
    assert [(await shards.last_copies(scene.database, shard, 9)).blobs for shard in (1, 3, 5)] == [3, 1, 0]
    await connection.execute("UPDATE shards SET state = 'lost' WHERE id IN (1, 3)")
    whole = await shards.last_copies(scene.database, 1, 2)
    assert (whole.blobs, whole.artifacts, len(whole.paths)) == (4, 4, 2)
    for length in (1, 2):
        monkeypatch.setattr(stretches, "IDS", length)
        assert await shards.last_copies(scene.database, 1, 2) == whole


async def test_no_more_last_copies_are_given_up_than_were_counted(scene: Scene, connection: asyncpg.Connection) -> None:
    await stored(scene, b"one", (1,))
    await leave(connection)
    await change(scene, 1, "replace")
    assert await remove(scene, 1) == "forgetting"
    await walk(scene)
    assert await give_up(scene, 1, 1) == "forgetting"
    await stored(scene, b"later", (1,))
    await walk(scene)
    standing = (await shards.list_all(scene.database))[ShardId(1)]
    assert (standing.replicas, standing.last_copies) == (1, 1)


async def test_node_is_removed_when_it_is_down_and_has_no_shards(scene: Scene, connection: asyncpg.Connection) -> None:
    async def removed(node: str) -> str:
        return await shards.remove_node(scene.database, node, by=Origin("alice", "r"))

    await connection.execute("INSERT INTO jobs (node_id, job, state) VALUES ('n1', 'repair', 'idle')")
    assert await removed("nobody") == "absent"
    assert await removed("n1") == "up"
    await leave(connection)
    assert await removed("n1") == "has_shards"
    await connection.execute("DELETE FROM shards WHERE node_id = 'n1'")
    assert await removed("n1") == "removed"
    assert await table(connection, "SELECT id FROM nodes ORDER BY id") == [("n2",), ("n3",)]
