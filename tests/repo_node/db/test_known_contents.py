"""Known content found and linked together: each as if alone, and one that is wrong or waits spoils no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import asyncpg
import pytest

from repo_node.db.blobs import PathConflict
from repo_node.db.errors import CatalogueUnavailable, ChangesRefused, NotPermitted, OutcomeUnknown
from repo_node.db.known import KnownContent, Link, Linked, LinkOutcome
from repo_node.db.known_contents import LINKS_MAX, KnownContents
from repo_node.db.pool import open_database
from repo_node.db.scopes import RowScope
from repo_node.origin import Origin
from sharding.model import Generation, Replica
from tests.repo_node.db.scene import Queries, Scene, database_section, digests_of, paths, table, until_blocked
from tests.repo_node.db.severing_proxy import Fate, open_proxy
from tests.repo_node.db.test_known import COLLECT, blob_of, link_of

TOGETHER = ("known_deploy_group", "ok")


def open_contents(database: Any, *, gather_seconds: float = 0) -> KnownContents:
    return KnownContents(database, per_round_trip_max=64, wait_seconds_max=5.0, gather_seconds=lambda: gather_seconds)


@pytest.fixture
async def contents(scene: Scene) -> AsyncIterator[KnownContents]:
    made = open_contents(scene.database)
    yield made
    await made.close()


async def link_all(
    contents: KnownContents, asked: Sequence[Link], confirmed: Sequence[Replica]
) -> list[Linked | BaseException]:
    generations = [replica.generation for replica in confirmed]
    return await asyncio.gather(*(contents.link(one, generations) for one in asked), return_exceptions=True)


def outcomes(results: Sequence[Linked | BaseException]) -> list[LinkOutcome | type[BaseException]]:
    return [type(result) if isinstance(result, BaseException) else result[0] for result in results]


async def test_each_finds_what_they_would_alone_in_one_round_trip(
    scene: Scene, contents: KnownContents, queries: Queries
) -> None:
    for data in (b"one", b"two"):
        await scene.upload(f"f/{data.decode()}", data)
    queries.seen.clear()
    digests = [digests_of(data).sha256 for data in (b"one", b"none", b"two", b"one")]
    found = await asyncio.gather(*(contents.find("sha256", digest) for digest in digests))
    assert queries.seen == [("known_by_sha256", "ok")]
    assert [one and one.sha256 for one in found] == [digests[0], None, digests[2], digests[0]]
    queries.seen.clear()
    assert [await contents.find("sha256", digest) for digest in digests] == found
    assert [await contents.find("md5", digests_of(data).md5 or b"") for data in (b"one", b"none")] == found[:2]
    assert len(queries.seen) == 6


async def test_those_who_may_read_different_things_share_a_round_trip(
    scene: Scene, contents: KnownContents, queries: Queries
) -> None:
    await scene.upload("f/a", b"bytes")
    digest = digests_of(b"bytes").sha256
    all_of_it, nothing = RowScope((scene.repository,)), RowScope(())
    queries.seen.clear()
    found: list[KnownContent | None] = await asyncio.gather(
        *(contents.find("sha256", digest, scope) for scope in (all_of_it, nothing, all_of_it))
    )
    assert queries.seen == [("known_by_sha256_in_scope", "ok")]
    assert [one is not None for one in found] == [True, False, True]


async def test_links_that_come_together_are_made_in_one_transaction(
    scene: Scene, connection: asyncpg.Connection, contents: KnownContents, queries: Queries
) -> None:
    _, written = await scene.upload("a")
    blob = await blob_of(connection)
    asked = [link_of(scene, blob, f"x/{number % 5}/{number}") for number in reversed(range(LINKS_MAX))]
    queries.seen.clear()
    results = await link_all(contents, asked, written)
    assert queries.seen == [TOGETHER]
    assert outcomes(results) == [LinkOutcome.LINKED] * LINKS_MAX
    times = dict(await table(connection, "SELECT upload_id, at FROM events"))
    assert [result[1] for result in results if isinstance(result, tuple)] == [times[one.upload] for one in asked]
    assert await connection.fetchval("SELECT count(*) FROM artifacts WHERE blob_id = $1", blob) == LINKS_MAX + 1
    assert await connection.fetchval("SELECT count(DISTINCT xmin::text) FROM events WHERE NOT adopted") == 1
    # Each again: its event says that it is done.
    assert await link_all(contents, asked, []) == results


async def test_each_of_a_group_has_an_outcome_of_its_own(
    scene: Scene, connection: asyncpg.Connection, contents: KnownContents, queries: Queries
) -> None:
    _, written = await scene.upload("a")
    blob = await blob_of(connection)
    asked = [
        link_of(scene, blob, "b"),
        link_of(scene, blob, "b"),
        link_of(scene, 4711, "c"),
        link_of(scene, blob, "d", copies_min=3),
        link_of(scene, blob, "e", repository_id=4711),
        link_of(scene, blob, "f"),
    ]
    queries.seen.clear()
    linked, unknown = LinkOutcome.LINKED, LinkOutcome.UNKNOWN
    expected = [linked, linked, unknown, unknown, LinkOutcome.NO_REPOSITORY, linked]
    assert outcomes(await link_all(contents, asked, written)) == expected
    assert queries.seen == [TOGETHER]
    assert await paths(connection) == ["a", "b", "f"]


async def test_what_is_written_together_is_what_each_would_have_written_alone(
    scene: Scene, connection: asyncpg.Connection, contents: KnownContents, queries: Queries
) -> None:
    _, written = await scene.upload("f/a")
    by = Origin("bob", "request-2", "10.1.2.3")
    at = datetime.now().astimezone()
    asked = [
        link_of(scene, await blob_of(connection), path, properties_json='{"k": ["v"]}', by=by, started_at=at)
        for path in ("f/alone", "f/b", "top", "f/c")
    ]
    assert (await contents.link(asked[0], [replica.generation for replica in written]))[0] is LinkOutcome.LINKED
    queries.seen.clear()
    linked = await link_all(contents, asked[1:], written)
    assert (outcomes(linked), queries.seen) == ([LinkOutcome.LINKED] * 3, [TOGETHER])
    rows = """
        SELECT to_jsonb(e) - '{id,at,upload_id,path}'::text[], to_jsonb(a) - '{folder,name,created_at,updated_at}'::text[],
               a.created_at = e.at, a.updated_at = e.at
          FROM events e JOIN artifacts a ON concat_ws('/', nullif(a.folder, ''), a.name) = e.path
         WHERE e.upload_id = ANY ($1)
    """
    alone, *together = await table(connection, rows, [one.upload for one in asked])
    assert together == [alone] * 3


async def test_copies_confirmed_for_one_do_not_count_for_another(
    scene: Scene, connection: asyncpg.Connection, contents: KnownContents, queries: Queries
) -> None:
    _, written = await scene.upload("a")
    first, second = (replica.generation for replica in written)
    blob = await blob_of(connection)
    sets: list[list[Generation]] = [[first, second], [first], [], [second], [first, second]]
    asked = [link_of(scene, blob, str(number)) for number in range(len(sets))]
    queries.seen.clear()
    found = await asyncio.gather(*(contents.link(*one) for one in zip(asked, sets, strict=True)))
    linked, unknown = LinkOutcome.LINKED, LinkOutcome.UNKNOWN
    assert outcomes(found) == [linked, unknown, unknown, unknown, linked]
    assert queries.seen == [TOGETHER]


@pytest.mark.parametrize(
    "misfortune",
    [
        "UPDATE replicas SET state = 'suspect' WHERE shard_id = 3",
        "UPDATE shards SET state = 'lost' WHERE id = 3",
        "UPDATE nodes SET heartbeat_at = now() - interval '1 hour' WHERE id = 'n2'",
        "SELECT place_hold('lost_history', 'test')",
    ],
)
async def test_confirmed_copies_that_are_bad_by_now_do_not_count(
    scene: Scene, connection: asyncpg.Connection, contents: KnownContents, misfortune: str
) -> None:
    _, written = await scene.upload("a")
    await connection.execute(misfortune)
    asked = [link_of(scene, await blob_of(connection), path) for path in "bc"]
    assert outcomes(await link_all(contents, asked, written)) == [LinkOutcome.UNKNOWN] * 2
    assert await paths(connection) == ["a"]


async def test_fewer_copies_than_wanted_are_repaired_and_a_quota_is_counted(
    scene: Scene, connection: asyncpg.Connection, contents: KnownContents
) -> None:
    _, written = await scene.upload("a")
    blob = await blob_of(connection)
    await connection.execute("UPDATE repositories SET quota_bytes = 1000 WHERE id = $1", scene.repository)
    asked = [link_of(scene, blob, "b", redundancy=3), link_of(scene, blob, "c")]
    assert outcomes(await link_all(contents, asked, written)) == [LinkOutcome.LINKED] * 2
    assert await table(connection, "SELECT reason FROM repair_queue") == [("short_write",)]
    assert await connection.fetchval("SELECT redundancy FROM blobs") == 3
    assert await table(connection, "SELECT sum(bytes) FROM usage_changes") == [(10,)]


async def test_links_wait_for_gc_and_find_their_blob_gone(
    scene: Scene, connection: asyncpg.Connection, contents: KnownContents
) -> None:
    _, written = await scene.upload("a")
    _, others = await scene.upload("kept", b"other")
    gone = await connection.fetchval("SELECT blob_id FROM artifacts WHERE name = 'a'")
    kept = await connection.fetchval("SELECT blob_id FROM artifacts WHERE name = 'kept'")
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("DELETE FROM artifacts WHERE name = 'a'")
    await connection.execute("SELECT 1 FROM blobs WHERE id = $1 FOR UPDATE", gone)
    linking = asyncio.create_task(
        link_all(contents, [link_of(scene, gone, "b"), link_of(scene, kept, "c")], [*written, *others])
    )
    await until_blocked(connection)
    await connection.execute(COLLECT, gone)
    await transaction.commit()
    assert outcomes(await linking) == [LinkOutcome.UNKNOWN, LinkOutcome.LINKED]
    assert await paths(connection) == ["c", "kept"]


@pytest.mark.parametrize("is_slow", [False, True])
async def test_somebody_who_takes_a_path_meanwhile_is_overwritten_and_no_other_waits(
    scene: Scene, connection: asyncpg.Connection, contents: KnownContents, is_slow: bool
) -> None:
    _, written = await scene.upload("a")
    blob, generations = await blob_of(connection), [replica.generation for replica in written]
    other = await asyncpg.connect(scene.dsn)
    transaction = other.transaction()
    await transaction.start()
    put = "SELECT put_artifact($1, '', 'b', $2, '{}', 'other', now(), now())"
    await other.execute(put, scene.repository, blob)
    before, held, after = (
        asyncio.create_task(contents.link(link_of(scene, blob, path), generations)) for path in ("0", "b", "c")
    )
    if is_slow:
        assert [(await one)[0] for one in (before, after)] == [LinkOutcome.LINKED] * 2
    await until_blocked(connection)
    await transaction.commit()
    assert [(await one)[0] for one in (before, held, after)] == [LinkOutcome.LINKED] * 3
    assert await connection.fetchval("SELECT created_by FROM artifacts WHERE name = 'b'") == "alice"
    assert await connection.fetchval("SELECT count(*) FROM events WHERE NOT adopted") == 3
    await other.close()


# ---------------------------------------------------------------- who waits for whom


async def test_a_link_waits_for_those_that_are_expected(
    scene: Scene, connection: asyncpg.Connection, queries: Queries
) -> None:
    _, written = await scene.upload("a")
    blob, generations = await blob_of(connection), [replica.generation for replica in written]
    contents = open_contents(scene.database, gather_seconds=600)
    queries.seen.clear()
    with contents.expect_link():
        first = asyncio.create_task(contents.link(link_of(scene, blob, "b"), generations))
        with contents.expect_link():  # it will not ask
            await asyncio.sleep(0.05)
        assert queries.seen == []
    second = await contents.link(link_of(scene, blob, "c"), generations)
    assert ((await first)[0], second[0]) == (LinkOutcome.LINKED, LinkOutcome.LINKED)
    assert queries.seen == [TOGETHER]
    await contents.close()


async def test_a_link_waits_no_longer_than_it_may_and_for_nobody_who_came_later(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    _, written = await scene.upload("a")
    blob, generations = await blob_of(connection), [replica.generation for replica in written]
    contents = open_contents(scene.database, gather_seconds=0.05)
    with contents.expect_link():
        assert (await contents.link(link_of(scene, blob, "b"), generations))[0] is LinkOutcome.LINKED
    await contents.close()
    contents = open_contents(scene.database, gather_seconds=600)
    with ExitStack() as later:
        with contents.expect_link():
            linking = asyncio.create_task(contents.link(link_of(scene, blob, "c"), generations))
            await asyncio.sleep(0.05)
            later.enter_context(contents.expect_link())
        assert (await linking)[0] is LinkOutcome.LINKED
    await contents.close()


async def test_as_many_as_go_together_wait_for_nobody(scene: Scene, connection: asyncpg.Connection) -> None:
    _, written = await scene.upload("a")
    blob = await blob_of(connection)
    contents = open_contents(scene.database, gather_seconds=600)
    with contents.expect_link():
        asked = [link_of(scene, blob, f"b{number}") for number in range(LINKS_MAX)]
        assert outcomes(await link_all(contents, asked, written)) == [LinkOutcome.LINKED] * LINKS_MAX
    await contents.close()


async def test_the_end_of_the_node_ends_the_wait_for_those_that_are_expected(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    _, written = await scene.upload("a")
    contents = open_contents(scene.database, gather_seconds=600)
    with contents.expect_link():
        linking = asyncio.create_task(link_all(contents, [link_of(scene, await blob_of(connection), "b")], written))
        await asyncio.sleep(0.05)
        await contents.close()
    assert outcomes(await linking) == [CatalogueUnavailable]
    assert await paths(connection) == ["a"]


# ---------------------------------------------------------------- one that goes wrong


async def test_one_that_is_in_conflict_spoils_no_other(
    scene: Scene, connection: asyncpg.Connection, contents: KnownContents
) -> None:
    _, written = await scene.upload("a")
    blob = await blob_of(connection)
    asked = [link_of(scene, blob, path) for path in ("b", "a/below", "c")]
    assert outcomes(await link_all(contents, asked, written)) == [LinkOutcome.LINKED, PathConflict, LinkOutcome.LINKED]
    assert await paths(connection) == ["a", "b", "c"]


async def test_who_may_not_overwrite_is_refused_and_spoils_no_other(
    scene: Scene, connection: asyncpg.Connection, contents: KnownContents
) -> None:
    await scene.upload("there", b"before")
    _, written = await scene.upload("a", b"bytes")
    found = await contents.find("sha256", digests_of(b"bytes").sha256)
    assert found is not None
    asked = [link_of(scene, found.id, path, may_overwrite=False) for path in ("b", "there", "c")]
    asked += [link_of(scene, found.id, "a")]
    linked = LinkOutcome.LINKED
    assert outcomes(await link_all(contents, asked, written)) == [linked, NotPermitted, linked, linked]


async def test_one_that_waits_for_a_lock_keeps_no_other_waiting(
    scene: Scene, connection: asyncpg.Connection, contents: KnownContents
) -> None:
    _, written = await scene.upload("a")
    blob = await blob_of(connection)
    other = await asyncpg.connect(scene.dsn)
    transaction = other.transaction()
    await transaction.start()
    await other.execute("SELECT 1 FROM artifacts WHERE name = 'a' FOR UPDATE")
    generations = [replica.generation for replica in written]
    first, held, last = (
        asyncio.create_task(contents.link(link_of(scene, blob, path), generations)) for path in ("Z", "a", "b")
    )
    assert [(await one)[0] for one in (first, last)] == [LinkOutcome.LINKED] * 2
    await until_blocked(connection)
    # And nobody who comes now.
    assert (await contents.link(link_of(scene, blob, "c"), generations))[0] is LinkOutcome.LINKED
    assert not held.done()
    await transaction.rollback()
    assert (await held)[0] is LinkOutcome.LINKED
    await other.close()


async def test_read_only_cluster_refuses_all(
    scene: Scene, connection: asyncpg.Connection, contents: KnownContents
) -> None:
    _, written = await scene.upload("a")
    blob = await blob_of(connection)
    await connection.execute(
        "INSERT INTO settings (key, value, updated_by) VALUES ('read_only_reason', '\"backup\"', 'test')"
    )
    asked = [link_of(scene, blob, path) for path in "bc"]
    assert outcomes(await link_all(contents, asked, written)) == [ChangesRefused] * 2
    assert await paths(connection) == ["a"]


async def test_outcome_is_unknown_where_the_answer_is_lost_and_a_repeat_tells_it(
    scene: Scene, connection: asyncpg.Connection, contents: KnownContents
) -> None:
    _, written = await scene.upload("a")
    blob = await blob_of(connection)
    asked = [link_of(scene, blob, path) for path in "bc"]
    async with (
        open_proxy(scene.dsn) as (proxy, dsn),
        open_database(database_section(dsn), Queries()) as database,
    ):
        severed = open_contents(database)
        proxy.set_trap(asked[1].upload.bytes, Fate.UNANSWERED)
        assert outcomes(await link_all(severed, asked, written)) == [OutcomeUnknown] * 2
        await severed.close()
    assert outcomes(await link_all(contents, asked, written)) == [LinkOutcome.LINKED] * 2
    assert await paths(connection) == ["a", "b", "c"]


async def test_the_end_of_the_node_leaves_the_outcome_of_what_is_under_way_unknown(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    _, written = await scene.upload("a")
    contents, blob = open_contents(scene.database), await blob_of(connection)
    other = await asyncpg.connect(scene.dsn)
    async with other.transaction():
        await other.execute("SELECT 1 FROM artifacts WHERE name = 'a' FOR UPDATE")
        linking = asyncio.create_task(link_all(contents, [link_of(scene, blob, "a")], written))
        await until_blocked(connection)
        await contents.close()
    assert outcomes(await linking) == [OutcomeUnknown]
    await other.close()
