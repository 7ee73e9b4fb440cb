"""The commit of an upload: every outcome, every refusal, and what each leaves in the tables."""

from __future__ import annotations

import asyncio
import json
import random
import string
from datetime import datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest

from repo_node.db import blobs, repositories
from repo_node.db.blobs import CommitOutcome, PathConflict
from repo_node.db.errors import CatalogueUnavailable
from repo_node.origin import Origin
from repo_node.settings import Settings
from sharding.model import BLOCK_BYTES, Generation, Replica, ShardId
from tests.repo_node.db.scene import (
    OneConnection,
    Queries,
    Scene,
    commit,
    copies,
    digests_of,
    only_row,
    open_scene,
    paths,
    replicas_in,
    table,
    until_blocked,
)

QUEUE = "SELECT encode(b.sha256, 'hex'), q.reason FROM repair_queue q JOIN blobs b ON b.id = q.blob_id"
CANDIDATES = "SELECT b.sha256 FROM gc_candidates c JOIN blobs b ON b.id = c.blob_id"
EVERYTHING = """
    SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM blobs), (SELECT count(*) FROM replicas),
           (SELECT count(*) FROM artifacts), (SELECT count(*) FROM repair_queue), (SELECT count(*) FROM gc_candidates)
"""
NOTHING = [(0, 0, 0, 0, 0, 0)]


# ---------------------------------------------------------------- new content


async def test_new_content_is_adopted(scene: Scene, connection: asyncpg.Connection) -> None:
    deployment, ours = scene.deployment("libs/a.jar", b"new", properties={"k": ["v", "w"]}), copies(1, 3)
    result = await scene.commit(deployment, ours)
    assert result.outcome is CommitOutcome.ADOPTED
    assert result.existing == ()
    assert await replicas_in(connection, b"new") == {r.generation: (r.shard, "live") for r in ours}
    blob = await only_row(connection, "SELECT * FROM blobs")
    assert (blob["uid"], blob["size"], blob["redundancy"]) == (deployment.blob_uid, 3, 2)
    digests = digests_of(b"new")
    assert (blob["sha256"], blob["sha1"], blob["md5"]) == (digests.sha256, digests.sha1, digests.md5)
    assert blob["block_digests"] == digests.blocks
    row = await only_row(connection, "SELECT * FROM artifacts WHERE blob_id IS NOT NULL")
    assert (row["folder"], row["name"], row["blob_id"]) == ("libs", "a.jar", blob["id"])
    assert (row["created_by"], row["modified_by"], json.loads(row["properties"])) == (
        "alice",
        "alice",
        {"k": ["v", "w"]},
    )
    assert row["modified_at"] == deployment.started_at
    assert row["created_at"] == row["updated_at"] == result.created_at
    assert await table(connection, QUEUE) == []


async def test_commit_writes_one_event(scene: Scene, connection: asyncpg.Connection) -> None:
    deployment = scene.deployment("libs/a.jar", b"new")
    await scene.commit(deployment, copies(1, 3))
    [event] = await connection.fetch("SELECT * FROM events")
    assert (event["kind"], event["repository"], event["path"]) == ("deploy", "generic-local", "libs/a.jar")
    assert (event["upload_id"], event["sha256"]) == (deployment.upload, deployment.digests.sha256)
    assert (event["adopted"], event["principal"], event["request_id"]) == (True, "alice", "request-1")


async def test_path_at_the_root_has_no_folder(scene: Scene, connection: asyncpg.Connection) -> None:
    await scene.upload("top.bin")
    assert await paths(connection) == ["top.bin"]
    assert await connection.fetchval("SELECT path FROM events") == "top.bin"


async def test_folders_are_made_for_every_ancestor(scene: Scene, connection: asyncpg.Connection) -> None:
    await scene.upload("a/b/c/one")
    await scene.upload("a/b/two")
    assert await paths(connection, "blob_id IS NULL") == ["a", "a/b", "a/b/c"]


@pytest.mark.parametrize("depth", [1, 2, 400])
async def test_longest_path_that_a_setting_can_allow_fits_its_index(scene: Scene, depth: int) -> None:
    """An entry of a b-tree has at most 2,704 bytes, and random characters are not compressed."""
    [bound] = [rule.le for rule in Settings.model_fields["path_bytes_max"].metadata if hasattr(rule, "le")]
    chance = random.Random(7)
    path = "".join(chance.choices(string.ascii_letters + string.digits, k=bound))
    parts = [path[i * bound // depth : (i + 1) * bound // depth - (i < depth - 1)] for i in range(depth)]
    assert len("/".join(parts)) == bound
    assert (await scene.upload("/".join(parts)))[0] is CommitOutcome.ADOPTED


async def test_short_write_queues_a_repair(scene: Scene, connection: asyncpg.Connection) -> None:
    deployment = scene.deployment("a", b"short")
    await scene.commit(deployment, copies(1), short=True)
    assert await table(connection, QUEUE) == [(deployment.digests.sha256.hex(), "short_write")]


async def test_empty_blob_needs_no_replica(scene: Scene, connection: asyncpg.Connection) -> None:
    assert (await scene.upload("empty", b""))[0] is CommitOutcome.ADOPTED
    assert (await scene.upload("again", b""))[0] is CommitOutcome.DEDUPLICATED
    assert await table(connection, "SELECT size, length(block_digests) FROM blobs") == [(0, 0)]
    assert await table(connection, "SELECT count(*) FROM replicas") == [(0,)]
    assert await table(connection, QUEUE) == []


async def test_block_digests_that_do_not_fit_the_size_are_refused(scene: Scene, connection: asyncpg.Connection) -> None:
    good = digests_of(bytes(BLOCK_BYTES + 1))
    assert len(good.blocks) == 16
    bad = type(good)(good.size, good.sha256, good.sha1, good.md5, good.blocks[:8])
    with pytest.raises(asyncpg.CheckViolationError):
        await scene.commit(scene.deployment("a", digests=bad), copies(1, 3))
    assert await table(connection, EVERYTHING) == NOTHING


# ---------------------------------------------------------------- known content


async def test_known_content_asks_for_confirmation_first(scene: Scene, connection: asyncpg.Connection) -> None:
    _, first = await scene.upload("a")
    before = await table(connection, EVERYTHING)
    result = await scene.commit(scene.deployment("b"), copies(2, 5))
    assert (result.outcome, result.created_at) == (CommitOutcome.CONFIRM, None)
    assert set(result.existing) == set(first)
    assert await table(connection, EVERYTHING) == before, "asking for a confirmation changed something"


async def test_known_content_is_deduplicated_with_enough_confirmed(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    _, first = await scene.upload("a")
    result = await scene.commit(scene.deployment("b"), copies(2, 5), first)
    assert result.outcome is CommitOutcome.DEDUPLICATED
    assert set(await replicas_in(connection)) == {r.generation for r in first}
    assert await table(connection, "SELECT adopted FROM events ORDER BY id") == [(True,), (False,)]
    assert await table(connection, QUEUE) == []


@pytest.mark.parametrize("confirmed", [0, 1], ids=["none", "one of two"])
async def test_known_content_is_adopted_with_too_few_confirmed(
    scene: Scene, connection: asyncpg.Connection, confirmed: int
) -> None:
    _, first = await scene.upload("a")
    ours = copies(2, 5)
    result = await scene.commit(scene.deployment("b"), ours, first[:confirmed])
    assert result.outcome is CommitOutcome.ADOPTED
    assert set(await replicas_in(connection)) == {r.generation for r in (*first, *ours)}
    assert [reason for _, reason in await table(connection, QUEUE)] == ["short_write"]


async def test_two_confirmed_files_on_one_shard_count_once(scene: Scene) -> None:
    both = copies(1, 1)
    await scene.commit(scene.deployment("a"), both)
    assert (await scene.commit(scene.deployment("b"), copies(3, 5), both)).outcome is CommitOutcome.ADOPTED


async def test_generations_that_are_not_the_blobs_confirm_nothing(scene: Scene) -> None:
    await scene.upload("a")
    await scene.upload("other", b"other")
    _, others = await scene.upload("other", b"other2", shards=(1, 3))
    assert (await scene.commit(scene.deployment("b"), copies(2, 5), others)).outcome is CommitOutcome.ADOPTED


MISFORTUNES = {
    "suspect": "UPDATE replicas SET state = 'suspect' WHERE shard_id = 3",
    "offline": "UPDATE shards SET state = 'offline' WHERE id = 3",
    "lost": "UPDATE shards SET state = 'lost' WHERE id = 3",
    "stopped": "UPDATE nodes SET stopped_at = now() WHERE id = 'n2'",
    "silent": "UPDATE nodes SET heartbeat_at = now() - interval '11 seconds' WHERE id = 'n2'",
    "silent as set": """INSERT INTO settings VALUES ('node_down_seconds', '3', now(), 'x');
                        UPDATE nodes SET heartbeat_at = now() - interval '4 seconds' WHERE id = 'n2'""",
}


@pytest.mark.parametrize("misfortune", MISFORTUNES)
async def test_a_bad_replica_does_not_count_although_confirmed(
    scene: Scene, connection: asyncpg.Connection, misfortune: str
) -> None:
    _, first = await scene.upload("a", shards=(1, 3))
    await connection.execute(MISFORTUNES[misfortune])
    asked = await scene.commit(scene.deployment("b"), copies(2, 5))
    assert [r.shard for r in asked.existing] == [1], "only the good one is worth asking for"
    result = await scene.commit(scene.deployment("b"), copies(2, 5), first)
    assert result.outcome is CommitOutcome.ADOPTED
    assert sorted(shard for shard, _ in (await replicas_in(connection)).values()) == [1, 2, 3, 5]


@pytest.mark.parametrize("state", ["active", "read_only", "draining"])
async def test_a_replica_on_a_shard_that_serves_reads_counts(
    scene: Scene, connection: asyncpg.Connection, state: str
) -> None:
    _, first = await scene.upload("a", shards=(1, 3))
    await connection.execute("UPDATE shards SET state = $1 WHERE id = 3", state)
    assert (await scene.commit(scene.deployment("b"), copies(2, 5), first)).outcome is CommitOutcome.DEDUPLICATED


async def test_a_silence_shorter_than_set_is_no_misfortune(scene: Scene, connection: asyncpg.Connection) -> None:
    _, first = await scene.upload("a", shards=(1, 3))
    await connection.execute("UPDATE nodes SET heartbeat_at = now() - interval '11 seconds' WHERE id = 'n2'")
    await connection.execute("INSERT INTO settings VALUES ('node_down_seconds', '60.5', now(), 'x')")
    assert (await scene.commit(scene.deployment("b"), copies(2, 5), first)).outcome is CommitOutcome.DEDUPLICATED


async def test_known_content_without_any_good_replica_is_adopted_at_once(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await scene.upload("a", shards=(1, 2))
    await connection.execute("UPDATE shards SET state = 'lost' WHERE node_id = 'n1'")
    ours = copies(3, 5)
    assert (await scene.commit(scene.deployment("b"), ours)).outcome is CommitOutcome.ADOPTED
    assert {r.generation for r in ours} < set(await replicas_in(connection))


async def test_uploads_while_copies_are_short_do_not_pile_up_replicas(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    first = copies(1, 3)
    await scene.commit(scene.deployment("a", redundancy=3), first, short=True)
    result = await scene.commit(scene.deployment("b", redundancy=3), copies(1, 3), first)
    assert result.outcome is CommitOutcome.DEDUPLICATED, "ours are where confirmed ones are"
    assert len(await replicas_in(connection)) == 2
    assert len(await table(connection, QUEUE)) == 1
    result = await scene.commit(scene.deployment("c", redundancy=3), copies(1, 4), first)
    assert result.outcome is CommitOutcome.ADOPTED, "ours reach one more shard"
    assert len(await replicas_in(connection)) == 4


async def test_larger_redundancy_raises_the_blobs_and_adopts(scene: Scene, connection: asyncpg.Connection) -> None:
    _, first = await scene.upload("a")
    asked = await scene.commit(scene.deployment("b", redundancy=3), copies(2, 4, 6))
    assert asked.outcome is CommitOutcome.CONFIRM
    assert await connection.fetchval("SELECT redundancy FROM blobs") == 2, "nothing is done before the confirmation"
    result = await scene.commit(scene.deployment("b", redundancy=3), copies(2, 4, 6), first)
    assert result.outcome is CommitOutcome.ADOPTED
    assert await connection.fetchval("SELECT redundancy FROM blobs") == 3


async def test_smaller_redundancy_neither_lowers_the_blobs_nor_suffices(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    first = copies(1, 3, 5)
    await scene.commit(scene.deployment("a", redundancy=3), first)
    result = await scene.commit(scene.deployment("b", redundancy=1), copies(2), first[:2])
    assert result.outcome is CommitOutcome.ADOPTED, "two confirmed of the three that the blob is to have"
    assert await connection.fetchval("SELECT redundancy FROM blobs") == 3
    assert [reason for _, reason in await table(connection, QUEUE)] == ["short_write"]


async def test_short_write_that_is_dropped_queues_nothing(scene: Scene, connection: asyncpg.Connection) -> None:
    _, first = await scene.upload("a")
    result = await scene.commit(scene.deployment("b"), copies(2), first, short=True)
    assert result.outcome is CommitOutcome.DEDUPLICATED
    assert await table(connection, QUEUE) == []


# ---------------------------------------------------------------- repeats and refusals


@pytest.mark.parametrize("known", [False, True], ids=["adopted", "deduplicated"])
async def test_repeat_gives_the_same_answer_and_has_no_effect(
    scene: Scene, connection: asyncpg.Connection, known: bool
) -> None:
    confirmed = (await scene.upload("a"))[1] if known else None
    deployment, ours = scene.deployment("libs/b"), copies(2, 5)
    first = await scene.commit(deployment, ours, confirmed)
    before = await table(connection, EVERYTHING)
    assert await scene.commit(deployment, ours, confirmed) == first
    assert await scene.commit(deployment, ours) == first, "not even a confirmation is asked for"
    assert await table(connection, EVERYTHING) == before
    created_at = await connection.fetchval("SELECT created_at FROM artifacts WHERE folder = 'libs'")
    assert created_at == first.created_at


async def test_repeat_after_the_path_was_overwritten_does_not_write_again(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    deployment, ours = scene.deployment("a", b"old"), copies(1, 3)
    first = await scene.commit(deployment, ours)
    await scene.upload("a", b"young")
    assert await scene.commit(deployment, ours) == first
    sha256 = await connection.fetchval("SELECT b.sha256 FROM artifacts a JOIN blobs b ON b.id = a.blob_id")
    assert sha256 == digests_of(b"young").sha256


async def test_repeat_is_answered_although_it_is_too_old_by_now(scene: Scene) -> None:
    deployment, ours = scene.deployment("a"), copies(1, 3)
    first = await scene.commit(deployment, ours)
    assert await scene.commit(deployment, ours, age_max_seconds=0) == first


async def test_repeat_is_answered_although_the_repository_is_gone_by_now(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    """Else the caller would remove files that another artifact refers to by now."""
    other = await connection.fetchval("INSERT INTO repositories (key, created_by) VALUES ('other', 'x') RETURNING id")
    deployment, ours = scene.deployment("a"), copies(1, 3)
    first = await scene.commit(deployment, ours)
    await scene.upload("b", repository_id=other)
    await repositories.delete(scene.database, "generic-local", by=Origin("x", "r"))
    assert await scene.commit(deployment, ours) == first


async def test_repeat_waits_for_the_first_and_has_its_answer(scene: Scene, connection: asyncpg.Connection) -> None:
    deployment, ours = scene.deployment("a"), copies(1, 3)
    other = await asyncpg.connect(scene.dsn)
    transaction = connection.transaction()
    await transaction.start()
    first = await commit(OneConnection(connection), deployment, ours)
    repeat = asyncio.create_task(commit(OneConnection(other), deployment, ours))
    await until_blocked(connection)
    await transaction.commit()
    assert await repeat == first
    assert await table(connection, EVERYTHING) == [(1, 1, 2, 1, 0, 0)]
    await other.close()


async def test_repeat_does_the_work_when_the_first_was_rolled_back(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    deployment, ours = scene.deployment("a"), copies(1, 3)
    other = await asyncpg.connect(scene.dsn)
    transaction = connection.transaction()
    await transaction.start()
    await commit(OneConnection(connection), deployment, ours)
    repeat = asyncio.create_task(commit(OneConnection(other), deployment, ours))
    await until_blocked(connection)
    await transaction.rollback()
    assert (await repeat).outcome is CommitOutcome.ADOPTED
    assert await table(connection, EVERYTHING) == [(1, 1, 2, 1, 0, 0)]
    await other.close()


async def test_upload_older_than_the_limit_is_refused(scene: Scene, connection: asyncpg.Connection) -> None:
    old = datetime.now().astimezone() - timedelta(seconds=61)
    result = await scene.commit(scene.deployment("a", started_at=old), copies(1, 3), age_max_seconds=60)
    assert (result.outcome, result.created_at) == (CommitOutcome.TOO_OLD, None)
    assert await table(connection, EVERYTHING) == NOTHING
    result = await scene.commit(scene.deployment("a", started_at=old), copies(1, 3), age_max_seconds=90)
    assert result.outcome is CommitOutcome.ADOPTED


async def test_upload_to_a_repository_that_is_gone_is_refused(scene: Scene, connection: asyncpg.Connection) -> None:
    result = await scene.commit(scene.deployment("a", repository_id=4711), copies(1, 3))
    assert (result.outcome, result.created_at) == (CommitOutcome.NO_REPOSITORY, None)
    assert await table(connection, EVERYTHING) == NOTHING


@pytest.mark.parametrize("path", ["a/b/file/more", "a/b/file/x/y/z"])
async def test_path_through_an_artifact_is_a_conflict(scene: Scene, connection: asyncpg.Connection, path: str) -> None:
    await scene.upload("a/b/file")
    before = await table(connection, EVERYTHING)
    with pytest.raises(PathConflict):
        await scene.commit(scene.deployment(path, b"other"), copies(1, 3))
    assert await table(connection, EVERYTHING) == before


async def test_path_of_a_folder_is_a_conflict(scene: Scene, connection: asyncpg.Connection) -> None:
    await scene.upload("a/b/file")
    before = await table(connection, EVERYTHING)
    with pytest.raises(PathConflict):
        await scene.commit(scene.deployment("a/b", b"other"), copies(1, 3))
    assert await table(connection, EVERYTHING) == before


async def test_condemned_generation_refuses_the_whole_upload(scene: Scene, connection: asyncpg.Connection) -> None:
    ours = copies(1, 3)
    await connection.execute(
        "INSERT INTO replicas (shard_id, generation, state) VALUES (3, $1, 'condemned')", ours[1].generation
    )
    deployment = scene.deployment("a")
    with pytest.raises(CatalogueUnavailable):
        await scene.commit(deployment, ours)
    assert await table(connection, EVERYTHING) == [(0, 0, 1, 0, 0, 0)]
    assert (await scene.commit(deployment, copies(1, 3))).outcome is CommitOutcome.ADOPTED


async def test_same_generation_on_another_shard_is_no_conflict(scene: Scene, connection: asyncpg.Connection) -> None:
    [ours] = copies(1)
    await connection.execute(
        "INSERT INTO replicas (shard_id, generation, state) VALUES (3, $1, 'condemned')", ours.generation
    )
    assert (await scene.commit(scene.deployment("a"), [ours])).outcome is CommitOutcome.ADOPTED


async def test_unknown_shard_is_refused(scene: Scene, connection: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await scene.commit(scene.deployment("a"), copies(77))
    assert await table(connection, EVERYTHING) == NOTHING


# ---------------------------------------------------------------- overwriting


async def test_overwrite_makes_the_old_blob_a_candidate(scene: Scene, connection: asyncpg.Connection) -> None:
    await scene.upload("a", b"old", properties={"k": ["old"]})
    young = scene.deployment("a", b"young", properties={"k": ["young"]}, by=Origin("bob", "r"))
    result = await scene.commit(young, copies(1, 3))
    assert await table(connection, CANDIDATES) == [(digests_of(b"old").sha256,)]
    [row] = await connection.fetch("SELECT a.*, b.sha256 FROM artifacts a JOIN blobs b ON b.id = a.blob_id")
    assert (row["sha256"], row["created_by"], row["modified_by"]) == (digests_of(b"young").sha256, "bob", "bob")
    assert json.loads(row["properties"]) == {"k": ["young"]}
    assert row["modified_at"] == young.started_at
    assert row["created_at"] == row["updated_at"] == result.created_at


async def test_same_content_again_makes_no_candidate(scene: Scene, connection: asyncpg.Connection) -> None:
    await scene.upload("a", b"same")
    outcome, _ = await scene.upload("a", b"same")
    assert outcome is CommitOutcome.DEDUPLICATED
    assert await table(connection, CANDIDATES) == []


async def test_candidate_that_is_released_again_waits_anew(scene: Scene, connection: asyncpg.Connection) -> None:
    await scene.upload("a", b"old")
    await scene.upload("a", b"young")
    await connection.execute("UPDATE gc_candidates SET since = now() - interval '1 hour'")
    await scene.upload("a", b"old")
    await scene.upload("a", b"young")
    assert await connection.fetchval("SELECT max(now() - since) FROM gc_candidates") < timedelta(minutes=1)


async def test_second_of_two_first_uploads_releases_the_blob_of_the_first(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    other = await asyncpg.connect(scene.dsn)
    transaction = connection.transaction()
    await transaction.start()
    await commit(OneConnection(connection), scene.deployment("a", b"one"), copies(1, 3))
    second = asyncio.create_task(commit(OneConnection(other), scene.deployment("a", b"two"), copies(1, 3)))
    await until_blocked(connection)
    await transaction.commit()
    assert (await second).outcome is CommitOutcome.ADOPTED
    assert await table(connection, CANDIDATES) == [(digests_of(b"one").sha256,)]
    await other.close()


async def test_overwrite_that_waits_for_another_releases_the_blob_that_it_replaces(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await scene.upload("a", b"old")
    other = await asyncpg.connect(scene.dsn)
    transaction = connection.transaction()
    await transaction.start()
    await connection.fetch("SELECT 1 FROM artifacts FOR NO KEY UPDATE")
    second = asyncio.create_task(commit(OneConnection(other), scene.deployment("a", b"two"), copies(1, 3)))
    await until_blocked(connection)
    await commit(OneConnection(connection), scene.deployment("a", b"one"), copies(1, 3))
    await transaction.commit()
    assert (await second).outcome is CommitOutcome.ADOPTED
    released = {sha256 for (sha256,) in await table(connection, CANDIDATES)}
    assert released == {digests_of(b"old").sha256, digests_of(b"one").sha256}
    await other.close()


# ---------------------------------------------------------------- races


async def test_loser_of_the_race_for_new_content_sees_the_winners_blob(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    other = await asyncpg.connect(scene.dsn)
    transaction, ours = connection.transaction(), copies(1, 3)
    await transaction.start()
    await commit(OneConnection(connection), scene.deployment("a"), ours)
    loser = asyncio.create_task(commit(OneConnection(other), scene.deployment("b"), copies(2, 5)))
    await until_blocked(connection)
    await transaction.commit()
    result = await loser
    assert (result.outcome, set(result.existing)) == (CommitOutcome.CONFIRM, set(ours))
    await other.close()


async def test_commit_waits_for_gc_and_stores_anew_what_it_removed(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    _, first = await scene.upload("a")
    await connection.execute("DELETE FROM artifacts")
    other = await asyncpg.connect(scene.dsn)
    transaction, ours = connection.transaction(), copies(2, 5)
    await transaction.start()
    blob = await connection.fetchval("SELECT id FROM blobs FOR UPDATE")
    task = asyncio.create_task(commit(OneConnection(other), scene.deployment("b"), ours, first))
    await until_blocked(connection)
    await connection.execute("DELETE FROM replicas WHERE blob_id = $1", blob)
    await connection.execute("DELETE FROM blobs WHERE id = $1", blob)
    await transaction.commit()
    assert (await task).outcome is CommitOutcome.ADOPTED
    assert set(await replicas_in(connection)) == {r.generation for r in ours}
    await other.close()


async def test_commit_counts_what_is_left_after_a_reducer_that_it_waited_for(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    _, first = await scene.upload("a", shards=(1, 3))
    other = await asyncpg.connect(scene.dsn)
    transaction = connection.transaction()
    await transaction.start()
    assert await connection.fetchval(blobs.SUSPECT.sql, 3, first[1].generation)
    task = asyncio.create_task(commit(OneConnection(other), scene.deployment("b"), copies(2, 5), first))
    await until_blocked(connection)
    await transaction.commit()
    assert (await task).outcome is CommitOutcome.ADOPTED
    await other.close()


async def test_upload_that_raises_the_redundancy_holds_no_weaker_lock_while_it_waits(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    """Two that share a lock and both want the stronger one wait for each other until one is shot, a second later."""
    _, first = await scene.upload("a")
    other = await asyncpg.connect(scene.dsn)
    transaction = connection.transaction()
    await transaction.start()
    await connection.fetch("SELECT 1 FROM blobs FOR SHARE")
    raising = scene.deployment("b", redundancy=3)
    task = asyncio.create_task(commit(OneConnection(other), raising, copies(2, 4, 6), first))
    await until_blocked(connection)
    await connection.execute("UPDATE blobs SET redundancy = 3")
    await transaction.commit()
    assert (await task).outcome is CommitOutcome.ADOPTED
    await other.close()


@pytest.mark.parametrize("isolation", ["serializable", "repeatable read"])
async def test_commit_has_a_fresh_snapshot_whatever_the_databases_default(
    dsn: str, queries: Queries, isolation: str
) -> None:
    connection = await asyncpg.connect(dsn)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
    async with open_scene(dsn, queries) as scene:
        transaction, ours = connection.transaction(isolation="read_committed"), copies(1, 3)
        await transaction.start()
        await commit(OneConnection(connection), scene.deployment("a"), ours)
        loser = asyncio.create_task(scene.commit(scene.deployment("b"), copies(2, 5)))
        await until_blocked(connection)
        await transaction.commit()
        assert (await loser).outcome is CommitOutcome.CONFIRM
    assert ("upload_commit", "error") not in queries.seen, "no retry was needed"
    await connection.close()


# ---------------------------------------------------------------- beside the commit


async def test_suspect_replica_stops_counting_and_is_queued(scene: Scene, connection: asyncpg.Connection) -> None:
    _, [one, two] = await scene.upload("a")
    assert await blobs.mark_suspect(scene.database, one.shard, one.generation)
    assert await replicas_in(connection) == {one.generation: (1, "suspect"), two.generation: (3, "live")}
    assert [reason for _, reason in await table(connection, QUEUE)] == ["suspect"]
    assert not await blobs.mark_suspect(scene.database, one.shard, one.generation), "it was no longer live"


async def test_suspicion_of_an_unknown_or_condemned_replica_is_no_news(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    condemned = uuid4()
    await connection.execute(
        "INSERT INTO replicas (shard_id, generation, state) VALUES (1, $1, 'condemned')", condemned
    )
    for generation in (condemned, uuid4()):
        assert not await blobs.mark_suspect(scene.database, ShardId(1), Generation(generation))
    assert await table(connection, "SELECT state FROM replicas") == [("condemned",)]
    assert await table(connection, QUEUE) == []


async def test_replicas_of_tells_suspects_apart(scene: Scene, connection: asyncpg.Connection) -> None:
    _, [one, two] = await scene.upload("a")
    await blobs.mark_suspect(scene.database, two.shard, two.generation)
    blob = await connection.fetchval("SELECT id FROM blobs")
    assert set(await blobs.replicas_of(scene.database, blob)) == {one, Replica(two.shard, two.generation, True)}
    assert await blobs.replicas_of(scene.database, blob + 1) == ()


async def test_block_digests_are_read_by_the_slice(scene: Scene, connection: asyncpg.Connection) -> None:
    data = bytes(range(256)) * 4096 * 4 + b"tail"
    digests = digests_of(data)
    await scene.upload("a", data)
    blob = await connection.fetchval("SELECT id FROM blobs")
    assert await blobs.block_digests(scene.database, blob, 0, 5) == digests.blocks
    assert await blobs.block_digests(scene.database, blob, 3, 1) == digests.blocks[24:32]
    assert await blobs.block_digests(scene.database, blob, 4, 9) == digests.blocks[32:]
    assert await blobs.block_digests(scene.database, blob, 5, 1) == b""
    assert await blobs.block_digests(scene.database, blob + 1, 0, 1) == b""
