"""Uploads committed together: each has its own outcome, and what is written is what it would be one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from repo_node.db import commit_groups
from repo_node.db.blobs import CommitOutcome, CommitResult, Deployment, PathConflict
from repo_node.db.commit_groups import CommitGroups, UploadToCommit
from repo_node.db.errors import CatalogueUnavailable, ChangesRefused, OutcomeUnknown
from repo_node.origin import Origin
from sharding.model import Replica
from tests.repo_node.db.scene import (
    DAY_SECONDS,
    Queries,
    Scene,
    copies,
    digests_of,
    open_scene,
    paths,
    replicas_in,
    table,
    until_blocked,
)
from tests.repo_node.db.severing_proxy import Fate, open_proxy

TOGETHER = ("upload_commit_group", "ok")
ALONE = ("upload_commit", "ok")
Upload = tuple[Deployment, list[Replica]]
ROWS = {
    "blobs": "SELECT sha256, sha1, md5, size, redundancy, block_digests, uid FROM blobs ORDER BY sha256",
    "replicas": """
        SELECT b.sha256, r.shard_id, r.generation, r.state FROM replicas r JOIN blobs b ON b.id = r.blob_id
         ORDER BY r.generation
    """,
    "artifacts": """
        SELECT a.repo_id, a.folder, a.name, b.sha256, a.created_by, a.modified_at, a.modified_by, a.properties,
               a.created_at = e.at AND a.updated_at = e.at
          FROM artifacts a LEFT JOIN blobs b ON b.id = a.blob_id LEFT JOIN events e ON e.sha256 = b.sha256
         ORDER BY 1, 2, 3
    """,
    "events": """
        SELECT kind, upload_id, repository, path, sha256, adopted, principal, request_id FROM events ORDER BY upload_id
    """,
    "repair_queue": "SELECT blob_id FROM repair_queue",
    "gc_candidates": "SELECT blob_id FROM gc_candidates",
}
FORGET = (
    """DELETE FROM artifacts a USING blobs b, events e
     WHERE b.id = a.blob_id AND e.sha256 = b.sha256 AND e.upload_id = ANY ($1)""",
    """DELETE FROM replicas r USING blobs b, events e
     WHERE b.id = r.blob_id AND e.sha256 = b.sha256 AND e.upload_id = ANY ($1)""",
    "DELETE FROM blobs b USING events e WHERE e.sha256 = b.sha256 AND upload_id = ANY ($1)",
    "DELETE FROM events WHERE upload_id = ANY ($1)",
)


@pytest.fixture
async def groups(scene: Scene) -> AsyncIterator[CommitGroups]:
    value = CommitGroups(scene.database)
    yield value
    await value.close()


def order(deployment: Deployment, replicas: Sequence[Replica], **more: Any) -> UploadToCommit:
    values = {"properties_json": '{"k": ["v"]}', "age_max_seconds": DAY_SECONDS, "short": False}
    return UploadToCommit(deployment, replicas, **(values | more))


def begin_all(groups: CommitGroups, uploads: Sequence[Upload]) -> list[asyncio.Task[CommitResult]]:
    """Begin uploads that came while a statement was under way, which has ended now."""
    lead = groups._take_lead()
    committing = [asyncio.create_task(groups.commit(order(*upload))) for upload in uploads]
    asyncio.get_running_loop().call_soon(groups._pass_on, lead)
    return committing


async def commit_all(groups: CommitGroups, uploads: Sequence[Upload]) -> list[CommitResult | BaseException]:
    return await asyncio.gather(*begin_all(groups, uploads), return_exceptions=True)


def outcome_of(result: CommitResult | BaseException) -> Any:
    return result.outcome if isinstance(result, CommitResult) else type(result)


def plain(scene: Scene, count: int, folder: str = "f", salt: str = "") -> list[Upload]:
    return [(scene.deployment(f"{folder}/{n}", f"{salt}{n}".encode()), copies(1, 3)) for n in range(count)]


async def everything(connection: asyncpg.Connection) -> dict[str, list[tuple[Any, ...]]]:
    return {name: await table(connection, sql) for name, sql in ROWS.items()}


async def test_group_writes_what_its_uploads_would_by_themselves(
    scene: Scene, connection: asyncpg.Connection, groups: CommitGroups, queries: Queries
) -> None:
    await scene.upload("f/there", b"before")
    await scene.upload("a/b/there", b"before too")
    uploads = [
        *plain(scene, 7),
        (scene.deployment("root.bin", b"root", by=Origin("bob", "other")), copies(2, 5)),
        (scene.deployment("a/b/deep", b"deep"), copies(1, 3, 5)),
        (scene.deployment("f/empty", b""), []),
        (scene.deployment("f/sha256", digests=replace(digests_of(b"alone"), sha1=None, md5=None)), copies(1, 3)),
    ]
    queries.seen.clear()
    together = await commit_all(groups, uploads)
    assert queries.seen == [TOGETHER]
    assert [outcome_of(result) for result in together] == [CommitOutcome.ADOPTED] * len(uploads)
    times = dict(await table(connection, "SELECT upload_id, at FROM events"))
    assert [result.created_at for result in together if isinstance(result, CommitResult)] == [
        times[deployment.upload] for deployment, _ in uploads
    ]
    written = await everything(connection)
    # Each again: its event says that it is done.
    assert {outcome_of(result) for result in await commit_all(groups, uploads)} == {CommitOutcome.ADOPTED}
    assert await everything(connection) == written
    ids = [deployment.upload for deployment, _ in uploads]
    await connection.execute("SET session_replication_role = replica")
    for statement in FORGET:
        await connection.execute(statement, ids)
    for upload in uploads:
        await groups.commit(order(*upload))
    assert await everything(connection) == written


async def test_lone_upload_takes_one_round_trip_whatever_it_is(
    scene: Scene, groups: CommitGroups, queries: Queries
) -> None:
    for path in ("new/folder/a", "new/folder/a", "new/folder/b"):
        queries.seen.clear()
        result = await groups.commit(order(scene.deployment(path, path.encode() + bytes(len(queries.seen))), copies(1)))
        assert result.outcome in (CommitOutcome.ADOPTED, CommitOutcome.CONFIRM)
        assert queries.seen == [ALONE]


async def test_each_of_a_group_has_its_own_outcome(
    scene: Scene, connection: asyncpg.Connection, groups: CommitGroups
) -> None:
    await scene.upload("f/there", b"there")
    await scene.upload("f/sub/x", b"x")
    late = scene.deployment("f/late", b"late")
    long_ago = late.started_at - timedelta(days=2)
    cases: dict[str, tuple[Deployment, Any]] = {
        "plain": (scene.deployment("f/plain", b"plain"), CommitOutcome.ADOPTED),
        "overwrites": (scene.deployment("f/there", b"newer"), CommitOutcome.ADOPTED),
        "known": (scene.deployment("f/again", b"x"), CommitOutcome.CONFIRM),
        "new folder": (scene.deployment("g/h/new", b"g"), CommitOutcome.ADOPTED),
        "is a folder": (scene.deployment("f/sub", b"sub"), PathConflict),
        "below an artifact": (scene.deployment("f/there/below", b"below"), PathConflict),
        "too old": (scene.deployment("f/late", b"late", started_at=long_ago), CommitOutcome.TOO_OLD),
        "no repository": (scene.deployment("f/gone", b"gone", repository_id=999), CommitOutcome.NO_REPOSITORY),
        "also plain": (scene.deployment("f/plain too", b"plain too"), CommitOutcome.ADOPTED),
    }
    results = await commit_all(groups, [(deployment, copies(1, 3)) for deployment, _ in cases.values()])
    found = dict(zip(cases, map(outcome_of, results), strict=True))
    assert found == {name: expected for name, (_, expected) in cases.items()}
    assert await paths(connection, "blob_id IS NOT NULL") == [
        "f/plain", "f/plain too", "f/sub/x", "f/there", "g/h/new",
    ]  # fmt: skip
    events = {row[0] for row in await table(connection, "SELECT upload_id FROM events")}
    assert events >= {cases[name][0].upload for name in ("plain", "overwrites", "new folder", "also plain")}
    assert not events & {cases[name][0].upload for name in ("known", "is a folder", "too old", "no repository")}


@pytest.mark.parametrize("what", ["content", "path"])
async def test_the_same_twice_at_once_is_what_it_is_one_after_the_other(
    scene: Scene, connection: asyncpg.Connection, groups: CommitGroups, what: str
) -> None:
    await scene.upload("f/there", b"there")
    uploads = plain(scene, 6)
    same = {"content": [(f"f/t{n}", b"twin") for n in range(3)], "path": [("f/t", bytes([n])) for n in range(3)]}
    twins = [(scene.deployment(path, data), copies(1, 3)) for path, data in same[what]]
    results = await commit_all(groups, [*uploads[:3], twins[0], *uploads[3:], *twins[1:]])
    outcomes = [outcome_of(results[n]) for n in (3, 7, 8)]
    if what == "content":
        assert sorted(outcomes) == [CommitOutcome.ADOPTED, CommitOutcome.CONFIRM, CommitOutcome.CONFIRM]
    else:
        assert outcomes == [CommitOutcome.ADOPTED] * 3
        assert len(await table(connection, "SELECT 1 FROM gc_candidates")) == 2
    assert {outcome_of(result) for n, result in enumerate(results) if n not in (3, 7, 8)} == {CommitOutcome.ADOPTED}


async def test_two_nodes_with_the_same_contents_at_once_store_each_once(
    clean_dsn: str, scene: Scene, connection: asyncpg.Connection, groups: CommitGroups, queries: Queries
) -> None:
    await scene.upload("f/there", b"there")
    other = CommitGroups(scene.database)
    for turn in range(10):
        ours = plain(scene, 8, "f", f"{turn}-")
        theirs = [(scene.deployment(f"f/their{turn}-{n}", f"{turn}-{n}".encode()), copies(2, 5)) for n in range(8)]
        theirs.reverse()
        results = await asyncio.gather(commit_all(groups, ours), commit_all(other, theirs))
        first, second = results[0], results[1][::-1]
        for number, both in enumerate(zip(first, second, strict=True)):
            assert sorted(map(outcome_of, both)) == [CommitOutcome.ADOPTED, CommitOutcome.CONFIRM], both
            winner = (ours if outcome_of(both[0]) is CommitOutcome.ADOPTED else theirs[::-1])[number]
            generations = {replica.generation for replica in winner[1]}
            assert set(await replicas_in(connection, f"{turn}-{number}".encode())) == generations
    assert ("upload_commit_group", "ok") in queries.seen
    await other.close()


async def test_content_that_gc_is_taking_away_keeps_only_its_own_upload_waiting(
    scene: Scene, connection: asyncpg.Connection, groups: CommitGroups
) -> None:
    await scene.upload("f/there", b"there")
    await scene.upload("f/old", b"going")
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("SELECT 1 FROM blobs FOR UPDATE")
    await connection.execute(
        """DELETE FROM replicas r USING blobs b WHERE b.id = r.blob_id AND b.sha256 = sha256('going')"""
    )
    await connection.execute("""DELETE FROM artifacts WHERE name = 'old'""")
    await connection.execute("DELETE FROM blobs WHERE sha256 = sha256('going')")
    again = asyncio.create_task(commit_all(groups, [(scene.deployment("f/new", b"going"), ours := copies(2, 5))]))
    await until_blocked(connection)
    results = await commit_all(groups, plain(scene, 4))
    assert {outcome_of(result) for result in results} == {CommitOutcome.ADOPTED}
    assert not again.done()
    await transaction.commit()
    assert [outcome_of(result) for result in await again] == [CommitOutcome.ADOPTED]
    assert set(await replicas_in(connection, b"going")) == {replica.generation for replica in ours}


async def test_condemned_generation_ends_its_own_upload_alone(
    scene: Scene, connection: asyncpg.Connection, groups: CommitGroups
) -> None:
    await scene.upload("f/there", b"there")
    uploads = plain(scene, 5)
    condemned = uploads[2][1][0]
    await connection.execute(
        "INSERT INTO replicas (shard_id, generation, state) VALUES ($1, $2, 'condemned')",
        condemned.shard,
        condemned.generation,
    )
    outcomes = [outcome_of(result) for result in await commit_all(groups, uploads)]
    assert outcomes == [CommitOutcome.ADOPTED] * 2 + [CatalogueUnavailable] + [CommitOutcome.ADOPTED] * 2
    assert await paths(connection, "blob_id IS NOT NULL") == ["f/0", "f/1", "f/3", "f/4", "f/there"]


async def test_repository_whose_folders_are_being_removed_holds_up_its_own_uploads_alone(
    scene: Scene, connection: asyncpg.Connection, groups: CommitGroups
) -> None:
    other = await connection.fetchval("INSERT INTO repositories (key, created_by) VALUES ('other', 'x') RETURNING id")
    await scene.upload("f/there", b"there")
    await scene.upload("f/there", b"there too", repository_id=other)
    await connection.execute("SELECT pg_advisory_lock(1, $1)", scene.repository)
    held = begin_all(groups, plain(scene, 3))
    free = [(scene.deployment(f"f/{n}", f"o{n}".encode(), repository_id=other), copies(1, 3)) for n in range(3)]
    results = await commit_all(groups, free)
    assert {outcome_of(result) for result in results} == {CommitOutcome.ADOPTED}
    await until_blocked(connection, 3)
    assert not any(upload.done() for upload in held)
    await connection.execute("SELECT pg_advisory_unlock_all()")
    assert {result.outcome for result in await asyncio.gather(*held)} == {CommitOutcome.ADOPTED}


async def test_group_that_has_to_wait_is_committed_one_by_one(
    scene: Scene, connection: asyncpg.Connection, groups: CommitGroups, queries: Queries
) -> None:
    await scene.upload("f/there", b"there")
    uploads = plain(scene, 4)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "INSERT INTO artifacts (repo_id, folder, name, created_by, modified_by) VALUES ($1, 'f', '2', 'x', 'x')",
        scene.repository,
    )
    committing = begin_all(groups, uploads)
    done, _ = await asyncio.wait((committing[0], committing[1], committing[3]), timeout=10)
    assert {task.result().outcome for task in done} == {CommitOutcome.ADOPTED}
    assert len(done) == 3
    assert not committing[2].done()
    await transaction.rollback()
    assert (await committing[2]).outcome is CommitOutcome.ADOPTED
    assert ("upload_commit_group", "error") in queries.seen


async def test_cluster_made_read_only_refuses_all_of_a_group(
    scene: Scene, connection: asyncpg.Connection, groups: CommitGroups
) -> None:
    await scene.upload("f/there", b"there")
    before = await everything(connection)
    await connection.execute("INSERT INTO settings VALUES ('read_only_reason', '\"moving\"', now(), 'x')")
    results = await commit_all(groups, plain(scene, 4))
    assert [outcome_of(result) for result in results] == [ChangesRefused] * 4
    assert await everything(connection) == before


@pytest.mark.parametrize("fate", Fate)
async def test_group_whose_answer_is_lost_has_one_effect_for_each(
    clean_dsn: str, connection: asyncpg.Connection, queries: Queries, fate: Fate
) -> None:
    async with (
        open_proxy(clean_dsn) as (proxy, dsn),
        open_scene(dsn, queries, statement_timeout_seconds=2.0, connect_timeout_seconds=5.0) as scene,
    ):
        await scene.upload("f/there", b"there")
        groups, uploads = CommitGroups(scene.database), plain(scene, 4)
        trap = proxy.set_trap(uploads[2][0].upload.bytes, fate)
        results = await commit_all(groups, uploads)
        assert trap.sprung
        assert [outcome_of(result) for result in results] == [OutcomeUnknown] * 4
        for _ in range(20):
            results = await commit_all(groups, uploads)
            if all(isinstance(result, CommitResult) for result in results):
                break
        assert [outcome_of(result) for result in results] == [CommitOutcome.ADOPTED] * 4
        for number, (deployment, ours) in enumerate(uploads):
            found = await replicas_in(connection, str(number).encode())
            assert set(found) == {replica.generation for replica in ours}
            events = await table(connection, "SELECT adopted FROM events WHERE upload_id = $1", deployment.upload)
            assert events == [(True,)]
        await groups.close()


async def test_upload_given_up_changes_nothing_for_the_others(scene: Scene, groups: CommitGroups) -> None:
    await scene.upload("f/there", b"there")
    committing = begin_all(groups, plain(scene, 5))
    await asyncio.sleep(0)
    committing[1].cancel()
    results = await asyncio.gather(*committing, return_exceptions=True)
    assert [outcome_of(result) for n, result in enumerate(results) if n != 1] == [CommitOutcome.ADOPTED] * 4
    assert isinstance(results[1], asyncio.CancelledError)


async def test_closed_groups_say_that_the_outcome_is_unknown(
    scene: Scene, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_groups, "GROUP_UPLOADS_MAX", 2)
    groups = CommitGroups(scene.database)
    await connection.execute("SELECT pg_advisory_lock(1, $1)", scene.repository)
    committing = begin_all(groups, plain(scene, 6))
    await until_blocked(connection, 2)
    await groups.close()
    results = await asyncio.gather(*committing[2:], return_exceptions=True)
    assert {outcome_of(result) for result in results} <= {OutcomeUnknown, CommitOutcome.ADOPTED}
    for task in committing:
        task.cancel()
    await asyncio.gather(*committing, return_exceptions=True)


@pytest.mark.parametrize("uploads", [1, commit_groups.GROUP_UPLOADS_MAX, commit_groups.GROUP_UPLOADS_MAX + 1])
async def test_group_is_bounded(scene: Scene, groups: CommitGroups, queries: Queries, uploads: int) -> None:
    await scene.upload("f/there", b"there")
    queries.seen.clear()
    results = await commit_all(groups, plain(scene, uploads))
    assert {outcome_of(result) for result in results} == {CommitOutcome.ADOPTED}
    together = uploads // commit_groups.GROUP_UPLOADS_MAX
    assert queries.seen == [TOGETHER] * together + [ALONE] * (uploads % commit_groups.GROUP_UPLOADS_MAX)


async def test_upload_waits_for_those_that_were_being_stored_and_is_committed_with_them(
    scene: Scene, queries: Queries
) -> None:
    await scene.upload("f/there", b"there")
    groups = CommitGroups(scene.database, gather_seconds=lambda: 600)
    first, second, third = plain(scene, 3)
    queries.seen.clear()
    with groups.expect():
        waiting = asyncio.create_task(groups.commit(order(*first)))
        await asyncio.sleep(0.05)
        late = groups.expect()
        late.__enter__()
        assert not queries.seen
    results = [outcome_of(await groups.commit(order(*second))), outcome_of(await waiting)]
    assert (results, queries.seen) == ([CommitOutcome.ADOPTED] * 2, [TOGETHER])
    late.__exit__()
    assert outcome_of(await groups.commit(order(*third))) is CommitOutcome.ADOPTED
    assert queries.seen == [TOGETHER, ALONE]
    await groups.close()


async def test_upload_is_committed_in_time_when_one_that_was_being_stored_never_comes(
    scene: Scene, queries: Queries
) -> None:
    groups = CommitGroups(scene.database, gather_seconds=lambda: 0.05)
    with groups.expect():
        assert outcome_of(await groups.commit(order(*plain(scene, 1)[0]))) is CommitOutcome.ADOPTED
    assert queries.seen == [ALONE]
    await groups.close()


async def test_upload_that_waits_for_others_is_given_up_when_the_node_ends(scene: Scene, queries: Queries) -> None:
    groups = CommitGroups(scene.database, gather_seconds=lambda: 600)
    with groups.expect():
        waiting = asyncio.create_task(groups.commit(order(*plain(scene, 1)[0])))
        await asyncio.sleep(0)
        await groups.close()
        with pytest.raises(OutcomeUnknown):
            await waiting
    assert not queries.seen
