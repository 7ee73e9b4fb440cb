"""Events for readers who poll: in the order of ids, none missed however transactions overtake one another."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import asyncpg
import pytest

from repo_node.db import events
from tests.repo_node.db.scene import Scene

WRITE = "INSERT INTO events (kind, principal, request_id) VALUES ($1, 'p', 'r') RETURNING id"


@pytest.fixture
async def slow(clean_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    value = await asyncpg.connect(clean_dsn, timeout=10)
    yield value
    value.terminate()


async def follow(scene: Scene, after: int = 0, count: int = 1000) -> list[int]:
    return [one.id for one in await events.page(scene.database, after, count)]


async def test_events_come_in_pages_with_what_there_is_to_know(scene: Scene) -> None:
    await scene.upload("f/a", b"one")
    await scene.upload("f/b", b"two")
    [first] = await events.page(scene.database, 0, 1)
    assert (first.kind, first.repository, first.path) == ("deploy", "generic-local", "f/a")
    assert first.sha256 is not None and len(first.sha256) == 32
    [second] = await events.page(scene.database, first.id, 1000)
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
