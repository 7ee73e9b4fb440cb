"""The connections of a process to Postgres: so many at most, the one used last taken first, waiters served in order.

asyncpg's own pool makes a task, a timer and a wrapper for each statement, which costs as much as a small statement.
Here taking a connection and giving it back are two calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import asyncpg

from repo_node.db.servers import drop

IDLE_SECONDS = 300.0
"""How often those are closed that nobody has needed since the last time."""


class Connections:
    """Lends connections that ``connect`` makes, at most ``size_max`` of them. Belongs to one event loop.

    Each that was taken is given back; one that is closed by then, or in the middle of a transaction, is dropped.
    """

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]], *, size_max: int) -> None:
        self._connect = connect
        self._size_max = size_max
        self._idle: list[asyncpg.Connection] = []
        self._taken: set[asyncpg.Connection] = set()
        self._connecting = 0
        self._waiting: deque[asyncio.Future[asyncpg.Connection | None]] = deque()
        """Each gets a connection, or None, with which it may make one."""
        self._unneeded = 0
        """Of those that are idle, how many were so all the time since ``_close_unneeded``."""
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def size(self) -> int:
        """Connections that are open, or being made."""
        return self.idle + len(self._taken) + self._connecting

    @property
    def idle(self) -> int:
        """Open connections that nobody has taken."""
        return sum(not connection.is_closed() for connection in self._idle)

    def take_now(self) -> asyncpg.Connection | None:
        """Take a connection that is idle, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if len(self._idle) < self._unneeded:
                self._unneeded = len(self._idle)
            if not connection.is_closed():
                self._taken.add(connection)
                return connection
        return None

    async def take(self) -> asyncpg.Connection:
        """Take a connection, made anew if need be, when it is one's turn; the caller limits the time.

        Raises what ``connect`` does, and ``asyncpg.InterfaceError`` when these are closed.
        """
        if (connection := self.take_now()) is not None:
            return connection
        if self._closed:
            raise asyncpg.InterfaceError("the pool is closed")
        if len(self._taken) + self._connecting < self._size_max:
            self._connecting += 1
        elif (lent := await self._wait()) is not None:
            if not lent.is_closed():
                return lent
            self._taken.discard(lent)
            self._connecting += 1
        return await self._make()

    def give_back(self, connection: asyncpg.Connection) -> None:
        """Take back what ``take`` or ``take_now`` gave."""
        self._taken.discard(connection)
        if not connection.is_closed() and (self._closed or connection.is_in_transaction()):
            drop(connection)
        if connection.is_closed():
            self._pass_place_on()
        elif (waiter := self._next_waiter()) is not None:
            self._taken.add(connection)
            waiter.set_result(connection)
        else:
            self._idle.append(connection)
            if self._timer is None:
                self._look_later()

    def close(self) -> None:
        """Drop every connection, and refuse those who wait: none is waited for."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while (waiter := self._next_waiter()) is not None:
            waiter.set_exception(asyncpg.InterfaceError("the pool is closed"))
        for connection in (*self._idle, *self._taken):
            drop(connection)
        self._idle.clear()

    async def _wait(self) -> asyncpg.Connection | None:
        """Return the connection that another gives back, or None with the place of one that is gone."""
        turn: asyncio.Future[asyncpg.Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            # What came at the same time is for the next.
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                if (lent := turn.result()) is None:
                    self._connecting -= 1
                    self._pass_place_on()
                else:
                    self.give_back(lent)
            raise

    async def _make(self) -> asyncpg.Connection:
        """Make a connection in a place that counts as ``_connecting`` already."""
        try:
            connection = await self._connect()
        except BaseException:
            self._connecting -= 1
            self._pass_place_on()
            raise
        self._connecting -= 1
        if self._closed:
            drop(connection)
            raise asyncpg.InterfaceError("the pool is closed")
        self._taken.add(connection)
        return connection

    def _pass_place_on(self) -> None:
        """Let whoever waits first make a connection where one is gone."""
        if (waiter := self._next_waiter()) is not None:
            self._connecting += 1
            waiter.set_result(None)

    def _next_waiter(self) -> asyncio.Future[asyncpg.Connection | None] | None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():  # else it was given up
                return waiter
        return None

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._close_unneeded)

    def _close_unneeded(self) -> None:
        """Close those that were used longest ago, as many as nobody needed."""
        for connection in self._idle[: self._unneeded]:
            drop(connection)
        del self._idle[: self._unneeded]
        self._unneeded = len(self._idle)
        self._look_later()
