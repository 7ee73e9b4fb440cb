"""Checks of shards as rows: orders, reports, sightings by the database's clock, strays condemned by their keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import asyncpg
import pytest

from repo_node.db import check_orders
from repo_node.db.blobs import mark_suspect
from repo_node.db.checks import CheckRows
from repo_node.db.errors import CatalogueUnavailable
from repo_node.origin import Origin
from sharding.listing import FoundReplica
from sharding.maintenance.comparison import FIRST, RowState
from sharding.maintenance.reconcile_catalogue import CheckOrder
from sharding.model import BlobName, Generation, Replica, ShardId
from tests.repo_node.db.scene import Scene, digests_of, table, until_blocked

ONE, TWO = ShardId(1), ShardId(2)
DAY = 86_400.0


@pytest.fixture
def rows(scene: Scene) -> CheckRows:
    return CheckRows(scene.database)


async def order(scene: Scene, shard: int | None = None, **more: bool) -> tuple[UUID, int]:
    request = uuid4()
    options = {"dry_run": False, "repair": False, **more}
    count = await check_orders.request_checks(scene.database, request, shard=shard, by=Origin("alice", "r"), **options)
    return request, count


def stray(generation: Generation | None = None, content: bytes = b"stray") -> FoundReplica:
    return FoundReplica(BlobName(digests_of(content).sha256, generation or Generation(uuid4())), 7)


# ---------------------------------------------------------------- orders


async def test_order_concerns_one_shard_or_all(scene: Scene) -> None:
    assert (await order(scene))[1] == 6
    assert (await order(scene, 3))[1] == 1
    assert (await order(scene, 99))[1] == 0


async def test_shard_nobody_can_look_at_is_left_out_and_told(scene: Scene, connection: asyncpg.Connection) -> None:
    await connection.execute("UPDATE nodes SET stopped_at = now() WHERE id = 'n2'")
    assert (await order(scene))[1] == 4
    assert await check_orders.unreached_shards(scene.database) == [3, 4]


async def test_checks_come_in_their_order_and_are_reported(scene: Scene, rows: CheckRows) -> None:
    first, _ = await order(scene, 1, dry_run=True)
    second, _ = await order(scene, 2, repair=True)
    one = await rows.next_check([ONE, TWO])
    assert one is not None
    assert one == CheckOrder(one.id, ONE, True, False)
    assert await rows.next_check([ONE, TWO]) == one, "whoever restarts begins it anew"
    await rows.note_progress(one.id, 3, 10)
    [shown] = await check_orders.list_checks(scene.database, first)
    assert (shown.done, shown.total, shown.started_at is not None, shown.finished_at) == (3, 10, True, None)
    await rows.finish_check(one.id, {"files": 10}, None)
    [shown] = await check_orders.list_checks(scene.database, first)
    assert (shown.report, shown.error, shown.finished_at is not None) == ({"files": 10}, None, True)
    two = await rows.next_check([ONE, TWO])
    assert two is not None and two == CheckOrder(two.id, TWO, False, True)
    await rows.finish_check(two.id, {}, "the disk is gone")
    assert (await check_orders.list_checks(scene.database, second))[0].error == "the disk is gone"
    assert await rows.next_check([ONE, TWO]) is None


async def test_last_reports_of_a_shard_are_kept(scene: Scene, rows: CheckRows) -> None:
    requests = []
    for _ in range(25):
        requests.append((await order(scene, 1))[0])
        current = await rows.next_check([ONE])
        assert current is not None
        await rows.finish_check(current.id, {}, None)
    kept = [bool(await check_orders.list_checks(scene.database, request)) for request in requests]
    assert kept == [False] * 5 + [True] * 20


async def test_check_is_due_once_in_a_period(scene: Scene, rows: CheckRows, connection: asyncpg.Connection) -> None:
    await rows.order_due([ONE, TWO], DAY, 600)
    assert await rows.next_check([ONE, TWO]) is None, "the shards are new"
    await connection.execute("UPDATE shards SET created_at = now() - interval '2 days'")
    for _ in range(2):
        await rows.order_due([ONE], DAY, 600)
    assert await table(connection, "SELECT count(*) FROM checks") == [(1,)]
    due = await rows.next_check([ONE])
    assert due is not None and not due.dry_run and not due.repair
    await rows.finish_check(due.id, {}, None)
    await rows.order_due([ONE], DAY, 600)
    assert await rows.next_check([ONE]) is None
    await connection.execute(
        "UPDATE checks SET started_at = started_at - interval '1 day', finished_at = finished_at - interval '1 day'"
    )
    await rows.order_due([ONE], DAY, 600)
    assert await rows.next_check([ONE]) is not None


async def test_failed_check_is_tried_again_after_a_while(
    scene: Scene, rows: CheckRows, connection: asyncpg.Connection
) -> None:
    await connection.execute("UPDATE shards SET created_at = now() - interval '2 days'")
    await rows.order_due([ONE], DAY, 600)
    failed = await rows.next_check([ONE])
    assert failed is not None
    await rows.finish_check(failed.id, {}, "no")
    await rows.order_due([ONE], DAY, 600)
    assert await rows.next_check([ONE]) is None
    await connection.execute("UPDATE checks SET finished_at = finished_at - interval '11 minutes'")
    await rows.order_due([ONE], DAY, 600)
    assert await rows.next_check([ONE]) is not None


async def test_requested_run_makes_every_shard_of_the_node_due(
    scene: Scene, rows: CheckRows, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        "INSERT INTO jobs (node_id, job, state, requested_at) VALUES ('n1', 'reconcile', 'idle', clock_timestamp())"
    )
    await rows.order_due([ONE, TWO, ShardId(3)], DAY, 600)
    assert await table(connection, "SELECT shard_id FROM checks ORDER BY 1") == [(1,), (2,)]
    for _ in range(2):
        current = await rows.next_check([ONE, TWO])
        assert current is not None
        await rows.finish_check(current.id, {}, None)
    await rows.order_due([ONE, TWO], DAY, 600)
    assert await rows.next_check([ONE, TWO]) is None


# ---------------------------------------------------------------- sightings


async def test_sighting_ages_by_the_databases_clock(
    scene: Scene, rows: CheckRows, connection: asyncpg.Connection
) -> None:
    seen = [(b"blobs/\xff\x00", 7), (b"tmp/x", (1 << 64) - 1)]
    assert await rows.sighting_ages(ONE, seen, note=False) == {path: 0.0 for path, _ in seen}
    assert await table(connection, "SELECT 1 FROM sightings") == []
    await rows.sighting_ages(ONE, seen, note=True)
    await connection.execute("UPDATE sightings SET first_seen_at = first_seen_at - interval '1 hour'")
    for note in (False, True):
        assert all(age > 3599 for age in (await rows.sighting_ages(ONE, seen, note=note)).values())
    assert max((await rows.sighting_ages(TWO, seen, note=False)).values()) == 0
    other = [(path, 8) for path, _ in seen]
    assert max((await rows.sighting_ages(ONE, other, note=False)).values()) == 0
    assert max((await rows.sighting_ages(ONE, other, note=True)).values()) < 60, "another file of that name"


async def test_unseen_is_forgotten(scene: Scene, rows: CheckRows, connection: asyncpg.Connection) -> None:
    await rows.sighting_ages(ONE, [(b"gone", 1), (b"still", 2)], note=True)
    await rows.sighting_ages(TWO, [(b"elsewhere", 1)], note=True)
    await order(scene, 1)
    current = await rows.next_check([ONE])
    assert current is not None
    await rows.sighting_ages(ONE, [(b"still", 2)], note=True)
    await rows.forget_unseen(ONE, current.id)
    assert await table(connection, "SELECT path FROM sightings ORDER BY 1") == [(b"elsewhere",), (b"still",)]


# ---------------------------------------------------------------- condemnation by key


async def test_condemned_stray_waits_to_be_moved(scene: Scene, rows: CheckRows, connection: asyncpg.Connection) -> None:
    one, two = stray(), stray()
    assert set(await rows.condemn_strays(ONE, [(one, 5), (two, 5)])) == {one.name.generation, two.name.generation}
    assert await rows.condemn_strays(ONE, [(one, 5)]) == []
    assert set(await rows.unmoved(ONE, 10)) == {one.name, two.name}
    assert {row.state for row in await rows.known(ONE, FIRST, 10)} == {RowState.CONDEMNED}
    await rows.note_moved(ONE, [one.name.generation, two.name.generation])
    assert {row.state for row in await rows.known(ONE, FIRST, 10)} == {RowState.ASIDE}
    await rows.aside_again(ONE, one)
    assert await rows.unmoved(ONE, 10) == [one.name]


async def test_file_that_has_a_row_or_is_to_be_removed_is_no_stray(
    scene: Scene, rows: CheckRows, connection: asyncpg.Connection
) -> None:
    _, (replica, _) = await scene.upload("a", b"stray", shards=(1, 3))
    removed = stray()
    await connection.execute(
        "SELECT remove_later(1::smallint, $1, $2, 'gc')",
        removed.name.generation,
        removed.name.sha256,
    )
    assert await rows.condemn_strays(ONE, [(stray(replica.generation), 5), (removed, 5)]) == []
    assert await table(connection, "SELECT 1 FROM quarantine") == []


async def test_late_commit_of_a_condemned_file_is_refused_and_leaves_nothing(
    scene: Scene, rows: CheckRows, connection: asyncpg.Connection
) -> None:
    late = stray()
    await rows.condemn_strays(ONE, [(late, 5)])
    replicas = [Replica(ONE, late.name.generation), Replica(ShardId(3), Generation(uuid4()))]
    with pytest.raises(CatalogueUnavailable):
        await scene.commit(scene.deployment("late", b"stray"), replicas)
    assert await table(connection, "SELECT 1 FROM blobs") == []


async def test_commit_and_condemnation_at_once_never_both_win(
    scene: Scene, rows: CheckRows, connection: asyncpg.Connection
) -> None:
    committed = 0
    for number in range(30):
        content = b"%d" % number
        file = stray(content=content)
        replicas = [Replica(ONE, file.name.generation), Replica(ShardId(3), Generation(uuid4()))]
        outcomes = await asyncio.gather(
            scene.commit(scene.deployment(f"a{number}", content), replicas),
            rows.condemn_strays(ONE, [(file, 5)]),
            return_exceptions=True,
        )
        is_committed = not isinstance(outcomes[0], BaseException)
        assert is_committed or isinstance(outcomes[0], CatalogueUnavailable)
        assert (outcomes[1] == []) is is_committed
        committed += is_committed
    live = "SELECT count(*) FROM replicas WHERE shard_id = 1 AND state = 'live'"
    assert await table(connection, live) == [(committed,)]


async def test_condemnation_waits_for_a_commit_under_way(
    scene: Scene, rows: CheckRows, connection: asyncpg.Connection
) -> None:
    file = stray()
    async with connection.transaction():
        await connection.execute(
            "INSERT INTO replicas (shard_id, generation, state) VALUES (1, $1, 'condemned')", file.name.generation
        )
        waiting = asyncio.create_task(rows.condemn_strays(ONE, [(file, 5)]))
        await until_blocked(connection)
    assert await waiting == []


async def test_strays_stay_and_the_quarantine_keeps_while_deletions_are_held(
    scene: Scene, rows: CheckRows, connection: asyncpg.Connection
) -> None:
    before, after = stray(), stray()
    await rows.condemn_strays(ONE, [(before, 5)])
    await rows.note_moved(ONE, [before.name.generation])
    await connection.execute("UPDATE quarantine SET moved_at = moved_at - interval '1 day'")
    hold = await hold_deletions(connection)
    assert await rows.condemn_strays(ONE, [(after, 5)]) == []
    assert await rows.expired(ONE, 60, 10) == []
    await connection.execute(hold)
    assert await rows.condemn_strays(ONE, [(after, 5)]) == [after.name.generation]
    assert await rows.expired(ONE, 60, 10) == [before.name]


async def test_leftovers_of_a_quarantine_stay_while_some_blob_has_no_good_copy(
    scene: Scene, rows: CheckRows, connection: asyncpg.Connection
) -> None:
    known, unknown = stray(), stray()
    await rows.condemn_strays(ONE, [(known, 5)])
    generations = [known.name.generation, unknown.name.generation]
    assert await rows.aside_known(ONE, generations) == {known.name.generation}
    assert await rows.aside_known(ShardId(2), generations) == set()
    assert await rows.leftovers_may_go()
    hold = await hold_deletions(connection)
    assert not await rows.leftovers_may_go()
    await connection.execute(hold)
    _, [one, other] = await scene.upload("a", shards=(1, 3))
    await mark_suspect(scene.database, one.shard, one.generation)
    assert await rows.leftovers_may_go(), "another good copy is left"
    await mark_suspect(scene.database, other.shard, other.generation)
    assert not await rows.leftovers_may_go()


async def hold_deletions(connection: asyncpg.Connection) -> str:
    """Hold deletions, and return the statement that releases them."""
    await connection.fetchval("SELECT place_hold('rebuild', 'a test')")
    return "DELETE FROM holds"


# ---------------------------------------------------------------- rebuild


async def test_found_file_is_entered_only_while_a_rebuild_is_on(
    scene: Scene, rows: CheckRows, connection: asyncpg.Connection
) -> None:
    file, digests = stray(), digests_of(b"stray")
    assert not await check_orders.is_rebuild_on(scene.database)
    assert await rows.adopt(ONE, file, digests) == "refused"
    async with rebuild_on(connection):
        assert await check_orders.is_rebuild_on(scene.database)
        assert await rows.adopt(ONE, file, digests) == "found"
        assert await rows.adopt(ONE, file, digests) == "refused", "it has a row now"
        assert await rows.adopt(ShardId(3), stray(), digests) == "adopted"
    assert await table(connection, "SELECT size, redundancy FROM blobs") == [(5, 2)]
    assert await table(connection, "SELECT shard_id, state FROM replicas ORDER BY 1") == [(1, "live"), (3, "live")]
    assert await table(connection, "SELECT count(*) FROM gc_candidates") == [(1,)]
    assert await table(connection, "SELECT 1 FROM repair_queue") == []
    assert await table(connection, "SELECT kind FROM events WHERE kind <> 'hold'") == [("found",)]


async def test_census_is_asked_for_when_a_rebuild_is_over(
    scene: Scene, rows: CheckRows, connection: asyncpg.Connection
) -> None:
    for rebuild in (False, True):
        before = await connection.fetchval("SELECT asked FROM census")
        await order(scene, 1, rebuild=rebuild)
        current = await rows.next_check([ONE])
        assert current is not None and current.rebuild is rebuild
        await rows.finish_check(current.id, {}, None)
        assert await connection.fetchval("SELECT asked FROM census") - before == int(rebuild)


async def test_condemned_and_removed_files_stay_dead_in_a_rebuild(
    scene: Scene, rows: CheckRows, connection: asyncpg.Connection
) -> None:
    condemned, removed = stray(), stray()
    await rows.condemn_strays(ONE, [(condemned, 5)])
    await connection.execute(
        "SELECT remove_later(1::smallint, $1, $2, 'gc')",
        removed.name.generation,
        removed.name.sha256,
    )
    async with rebuild_on(connection):
        for file in (condemned, removed):
            assert await rows.adopt(ONE, file, digests_of(b"stray")) == "refused"
    assert await table(connection, "SELECT 1 FROM blobs") == []


@asynccontextmanager
async def rebuild_on(connection: asyncpg.Connection) -> AsyncIterator[None]:
    await connection.fetchval("SELECT place_hold('rebuild', 'a test')")
    yield
    await connection.execute("DELETE FROM holds")
