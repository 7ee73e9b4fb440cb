"""The pool's connections: how many, in which order, and that none is lost whoever gives up or breaks."""

from __future__ import annotations

import asyncio
import random
from typing import Any, cast

import asyncpg
import pytest

from repo_node.db.connections import Connections

SIZE = 3


class FakeConnection:
    """What a pool asks of a connection."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.closed = self.in_transaction = False

    def is_closed(self) -> bool:
        return self.closed

    def is_in_transaction(self) -> bool:
        return self.in_transaction

    def terminate(self) -> None:
        self.closed = True


class Maker:
    """Makes connections; while ``gate`` is closed it waits, and with ``fails`` it raises."""

    def __init__(self) -> None:
        self.made: list[FakeConnection] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = 0

    async def connect(self) -> asyncpg.Connection:
        await self.gate.wait()
        if self.fails:
            self.fails -= 1
            raise OSError("no way")
        self.made.append(FakeConnection(len(self.made)))
        return cast(asyncpg.Connection, self.made[-1])

    @property
    def open(self) -> int:
        return sum(not connection.closed for connection in self.made)


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def pool(maker: Maker) -> Connections:
    return Connections(maker.connect, size_max=SIZE)


async def take_all(pool: Connections) -> list[Any]:
    return [await pool.take() for _ in range(SIZE)]


async def begin_waiting(pool: Connections, count: int) -> list[asyncio.Task[Any]]:
    waiting = [asyncio.create_task(pool.take()) for _ in range(count)]
    await asyncio.sleep(0)
    return waiting


async def test_the_connection_used_last_is_taken_first(pool: Connections, maker: Maker) -> None:
    first, second, third = await take_all(pool)
    for connection in (third, first, second):
        pool.give_back(connection)
    assert (pool.size, pool.idle) == (SIZE, SIZE)
    assert [pool.take_now() for _ in range(SIZE + 1)] == [second, first, third, None]
    assert (pool.size, pool.idle, len(maker.made)) == (SIZE, 0, SIZE)


async def test_no_more_are_made_than_allowed_and_who_waits_is_served_in_order(pool: Connections, maker: Maker) -> None:
    taken = await take_all(pool)
    waiting = await begin_waiting(pool, 2)
    for connection in taken[:2]:
        pool.give_back(connection)
        assert pool.take_now() is None, "it belongs to who waits"
    assert [await task for task in waiting] == taken[:2]
    assert len(maker.made) == SIZE


@pytest.mark.parametrize("handed", [False, True])
async def test_who_gives_up_waiting_leaves_the_connection_to_the_next(pool: Connections, handed: bool) -> None:
    taken = await take_all(pool)
    first, second = await begin_waiting(pool, 2)
    if handed:
        pool.give_back(taken[0])
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    if not handed:
        pool.give_back(taken[0])
    assert await second is taken[0] and first.cancelled()


async def test_place_of_a_connection_that_broke_goes_to_who_waits_even_if_the_first_gives_up(
    pool: Connections, maker: Maker
) -> None:
    taken = await take_all(pool)
    first, second = await begin_waiting(pool, 2)
    taken[0].terminate()
    pool.give_back(taken[0])
    first.cancel()
    assert (await second).number == SIZE
    assert (pool.size, maker.open) == (SIZE, SIZE)


async def test_connection_that_breaks_on_its_way_to_who_waits_is_made_anew(pool: Connections, maker: Maker) -> None:
    taken = await take_all(pool)
    (waiting,) = await begin_waiting(pool, 1)
    pool.give_back(taken[0])
    taken[0].terminate()
    assert (await waiting).number == SIZE
    assert (pool.size, maker.open) == (SIZE, SIZE)


async def test_who_waits_tries_when_another_could_not_connect(pool: Connections, maker: Maker) -> None:
    maker.gate.clear()
    tasks = await begin_waiting(pool, SIZE + 1)
    maker.fails = 1
    maker.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [OSError, *[FakeConnection] * SIZE]
    assert pool.size == SIZE


async def test_who_is_cancelled_while_connecting_takes_up_no_place(pool: Connections, maker: Maker) -> None:
    maker.gate.clear()
    tasks = await begin_waiting(pool, SIZE)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert pool.size == 0
    maker.gate.set()
    assert len(await take_all(pool)) == SIZE


async def test_connection_that_died_while_idle_is_given_to_nobody(pool: Connections, maker: Maker) -> None:
    for connection in await take_all(pool):
        pool.give_back(connection)
    maker.made[-1].terminate()
    assert (pool.size, pool.idle) == (SIZE - 1, SIZE - 1)
    assert [connection.number for connection in await take_all(pool)] == [1, 0, SIZE]


async def test_connection_in_the_middle_of_a_transaction_is_dropped(pool: Connections, maker: Maker) -> None:
    connection: Any = await pool.take()
    connection.in_transaction = True
    pool.give_back(connection)
    assert connection.closed and pool.size == 0


async def test_connections_nobody_needed_for_long_are_closed_and_the_others_stay(
    pool: Connections, maker: Maker
) -> None:
    for connection in await take_all(pool):
        pool.give_back(connection)
    pool._close_unneeded()
    assert maker.open == SIZE, "they were needed not long ago"
    pool.give_back(await pool.take())
    pool._close_unneeded()
    assert [connection.closed for connection in maker.made] == [True, True, False]
    assert (pool.size, pool.idle) == (1, 1)
    pool.close()


async def test_closing_refuses_who_waits_and_drops_every_connection(pool: Connections, maker: Maker) -> None:
    maker.gate.set()
    taken = [await pool.take() for _ in range(SIZE - 1)]
    maker.gate.clear()
    connecting, waiting = await begin_waiting(pool, 2)
    pool.close()
    maker.gate.set()
    for task in (connecting, waiting):
        with pytest.raises(asyncpg.InterfaceError):
            await task
    pool.give_back(taken[0])
    with pytest.raises(asyncpg.InterfaceError):
        await pool.take()
    assert maker.open == 0


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_whatever_befalls_those_who_take(pool: Connections, maker: Maker, seed: int) -> None:
    chance = random.Random(seed)

    async def use() -> None:
        connection: Any = pool.take_now() or await pool.take()
        try:
            assert not connection.closed and maker.open <= SIZE
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            if chance.random() < 0.2:
                connection.terminate()
        finally:
            pool.give_back(connection)

    for _ in range(30):
        maker.fails = chance.choice([0, 0, 1])
        tasks = [asyncio.create_task(use()) for _ in range(3 * SIZE)]
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        for task in chance.sample(tasks, SIZE):
            task.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks, return_exceptions=True)
    maker.fails = 0
    taken = await take_all(pool)
    assert (pool.size, pool.idle, maker.open) == (SIZE, 0, SIZE) and len(set(taken)) == SIZE
    pool.close()
