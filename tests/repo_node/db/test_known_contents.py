"""Known content found and linked together: each as if alone, and one that is wrong or waits spoils no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest

from repo_node.db.blobs import PathConflict
from repo_node.db.errors import ChangesRefused, NotPermitted, OutcomeUnknown
from repo_node.db.known import KnownContent, Link, Linked, LinkOutcome
from repo_node.db.known_contents import LINKS_MAX, KnownContents
from repo_node.db.pool import open_database
from repo_node.db.scopes import RowScope
from sharding.model import Replica
from tests.repo_node.db.scene import Queries, Scene, database_section, digests_of, paths, table, until_blocked
from tests.repo_node.db.severing_proxy import Fate, open_proxy
from tests.repo_node.db.test_known import blob_of, link_of

TOGETHER = ("known_deploy_group", "ok")


def open_contents(database: Any) -> KnownContents:
    return KnownContents(database, per_round_trip_max=64, wait_seconds_max=5.0)


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
