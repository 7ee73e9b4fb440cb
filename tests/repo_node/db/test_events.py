"""Events for readers who poll: in the order of ids, none missed however transactions overtake one another."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from repo_node.db import events
from repo_node.db.events import Wanted
from repo_node.db.lease import Lease, NotPrimary
from tests.repo_node.db.scene import Scene, become_primary, table

WRITE = "INSERT INTO events (kind, principal, request_id) VALUES ($1, 'p', 'r') RETURNING id"


@pytest.fixture
async def slow(clean_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    value = await asyncpg.connect(clean_dsn, timeout=10)
    yield value
    value.terminate()


async def follow(scene: Scene, after: int = 0, count: int = 1000) -> list[int]:
    return [one.id for one in (await events.after(scene.database, after, count)).events]


async def test_events_come_in_pages_with_what_there_is_to_know(scene: Scene) -> None:
    await scene.upload("f/a", b"one")
    await scene.upload("f/b", b"two")
    [first] = (await events.after(scene.database, 0, 1)).events
    assert (first.kind, first.repository, first.path) == ("deploy", "generic-local", "f/a")
    assert first.sha256 is not None and len(first.sha256) == 32
    [second] = (await events.after(scene.database, first.id, 1000)).events
    assert second.path == "f/b" and second.id > first.id
    assert await follow(scene, second.id) == []


async def test_event_behind_one_that_is_not_committed_waits_for_it(
    scene: Scene, connection: asyncpg.Connection, slow: asyncpg.Connection
) -> None:
    before = await connection.fetchval(WRITE, "before")
    writing = slow.transaction()
    await writing.start()
    hidden = await slow.fetchval(WRITE, "slow")
    behind = await connection.fetchval(WRITE, "behind")
    assert before < hidden < behind
    assert await follow(scene) == [before]
    assert await follow(scene, before) == []
    await writing.commit()
    assert await follow(scene, before) == [hidden, behind]


async def test_event_behind_one_that_was_rolled_back_comes(
    scene: Scene, connection: asyncpg.Connection, slow: asyncpg.Connection
) -> None:
    writing = slow.transaction()
    await writing.start()
    await slow.fetchval(WRITE, "slow")
    behind = await connection.fetchval(WRITE, "behind")
    await writing.rollback()
    assert await follow(scene) == [behind]


async def test_long_transaction_that_writes_no_event_delays_nobody(
    scene: Scene, connection: asyncpg.Connection, slow: asyncpg.Connection
) -> None:
    reading = slow.transaction(isolation="repeatable_read")
    await reading.start()
    await slow.fetchval("SELECT count(*) FROM events")
    await slow.execute("INSERT INTO gc_candidates (blob_id) SELECT id FROM blobs")
    written = await connection.fetchval(WRITE, "written")
    assert await follow(scene) == [written]
    await reading.rollback()


async def test_nothing_is_missed_while_many_write_and_dawdle(scene: Scene, clean_dsn: str) -> None:
    generator, written = random.Random(7), set[int]()

    async def write(number: int) -> None:
        connection = await asyncpg.connect(clean_dsn, timeout=10)
        try:
            for _ in range(60):
                transaction = connection.transaction()
                await transaction.start()
                mine = [await connection.fetchval(WRITE, f"writer {number}") for _ in range(generator.randrange(1, 4))]
                if generator.random() < 0.3:
                    await asyncio.sleep(generator.random() * 0.01)
                if generator.random() < 0.2:
                    await transaction.rollback()
                else:
                    await transaction.commit()
                    written.update(mine)
        finally:
            await connection.close()

    followed: list[int] = []
    writing = asyncio.gather(*map(write, range(8)))
    while not writing.done():
        followed += await follow(scene, followed[-1] if followed else 0, generator.randrange(1, 50))
    await writing
    while found := await follow(scene, followed[-1] if followed else 0):
        followed += found
    assert followed == sorted(written)


# ---------------------------------------------------------------- searches

NOTE = """
    INSERT INTO events (kind, repository, path, principal, request_id, detail)
    VALUES ($1, $2, $3, 'p', 'r', jsonb_strip_nulls(jsonb_build_object('from', $4::text))) RETURNING id
"""


async def notes(connection: asyncpg.Connection, *rows: tuple[str, str | None, str | None, str | None]) -> list[int]:
    return [await connection.fetchval(NOTE, *row) for row in rows]


async def found(scene: Scene, **wanted: Any) -> list[int]:
    return [one.id for one in (await events.after(scene.database, 0, 1000, Wanted(**wanted))).events]


async def test_what_happened_to_a_path_is_found_however_it_was_named(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    ids = await notes(
        connection,
        ("repository_create", "r", None, None),
        ("folder", "r", "a", None),
        ("deploy", "r", "a/b/c", None),
        ("properties", "r", "a/b/c", None),
        ("delete", "r", "a/b", None),
        ("restore", "r", "a/b/c", "r/a/b/c"),
        ("move", "s", "elsewhere", "r/a"),
        ("delete", "r", "a/b/cc", None),
        ("deploy", "s", "a/b/c", None),
        ("repository_delete", "r", None, None),
        ("gc", None, None, None),
    )  # fmt: skip
    at = dict(enumerate(ids))
    assert await found(scene, repository="r", path="a/b/c") == [at[n] for n in (2, 3, 4, 5, 6, 9)]
    assert await found(scene, repository="r", path="a/b") == [at[n] for n in (2, 3, 4, 5, 6, 7, 9)]
    assert await found(scene, repository="r") == [at[n] for n in (0, 1, 2, 3, 4, 5, 6, 7, 9)]
    assert await found(scene, repository="r", path="a/b/c", kinds=["delete", "move"]) == [at[4], at[6]]
    assert await found(scene, kinds=["gc"]) == [at[10]]
    assert await found(scene, principal="p") == ids and await found(scene, principal="q") == []
    assert await found(scene, repository="r", path="%") == await found(scene, repository="r", path="a_b") == [at[9]]


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
@pytest.mark.parametrize("rows_max", [1, 3, 1000])
async def test_pages_in_either_direction_are_the_whole_log_whatever_one_request_may_read(
    scene: Scene, connection: asyncpg.Connection, count: int, rows_max: int
) -> None:
    ids = await notes(connection, *[(f"kind {n % 3}", None, None, None) for n in range(20)])
    for wanted, expected in ((Wanted(), ids), (Wanted(kinds=["kind 1"]), ids[1::3])):
        forth, back, page = list[int](), list[int](), events.Page((), 0, True)
        while page.more:
            page = await events.after(scene.database, page.next, count, wanted, rows_max=rows_max)
            forth += [one.id for one in page.events]
        page = await events.before(scene.database, None, count, wanted, rows_max=rows_max)
        while True:
            back += [one.id for one in page.events]
            if not page.more:
                break
            page = await events.before(scene.database, page.next, count, wanted, rows_max=rows_max)
        assert (forth, back[::-1]) == (expected, expected)


# ---------------------------------------------------------------- rows are only added

CHANGES = {
    "changed": "UPDATE events SET principal = 'somebody else'",
    "changed in its time": "UPDATE events SET at = at - interval '3 years'",
    "deleted": "DELETE FROM events",
    "truncated": "TRUNCATE events",
    "deleted by a join": "DELETE FROM events e USING repositories r WHERE r.key = e.repository",
}


@pytest.mark.parametrize("statement", CHANGES.values(), ids=CHANGES)
async def test_s40_an_event_cannot_be(scene: Scene, connection: asyncpg.Connection, statement: str) -> None:
    await scene.upload("a", b"a")
    before = await table(connection, "SELECT * FROM events")
    with pytest.raises(asyncpg.PostgresError) as caught:
        await connection.execute(statement)
    assert caught.value.sqlstate == "HF011"
    assert await table(connection, "SELECT * FROM events") == before


async def age(connection: asyncpg.Connection, days: float, count: int) -> None:
    await connection.execute(
        """
        INSERT INTO events (at, kind, principal, request_id)
        SELECT now() - make_interval(secs => $1 * 86400), 'old', 'p', 'r' FROM generate_series(1, $2)
        """,
        days,
        count,
    )


async def test_s40_events_go_when_they_are_old_enough_and_that_is_noted(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await age(connection, 367, 7)
    await age(connection, 365, 2)
    primary = await become_primary(connection)
    assert [await events.forget(scene.database, primary, 5) for _ in range(3)] == [5, 2, 0]
    rows = await table(connection, "SELECT kind, detail ->> 'events', detail ->> 'epoch' FROM events ORDER BY id")
    epoch = str(primary.epoch)
    kept = [("old", None, None)] * 2
    noted = [("audit_forget", "5", epoch), ("audit_forget", "2", epoch)]
    assert [row for row in rows if row[0] != "primary"] == [*kept, *noted]


async def test_events_are_kept_for_ever_where_audit_days_is_0_and_while_deletions_are_held(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await age(connection, 3_000, 3)
    primary = await become_primary(connection)
    await connection.execute("INSERT INTO settings (key, value, updated_by) VALUES ('audit_days', '0', 'x')")
    assert await events.forget(scene.database, primary, 5) == 0
    await connection.execute("UPDATE settings SET value = '100'")
    await connection.fetchval("SELECT place_hold('operator', 'x')")
    assert await events.forget(scene.database, primary, 5) == 0
    await connection.execute("UPDATE holds SET released_at = now()")
    assert await events.forget(scene.database, primary, 5) == 3


async def test_nobody_but_the_primary_lets_go_of_events(scene: Scene, connection: asyncpg.Connection) -> None:
    await age(connection, 3_000, 3)
    await become_primary(connection)
    with pytest.raises(NotPrimary):
        await events.forget(scene.database, Lease(1, uuid4()), 5)
