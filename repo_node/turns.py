"""Turns at what only so many may do at once, in the order in which they were asked for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from repo_node.errors import Overloaded


class Turns:
    """``at_once_max`` and ``wait_seconds_max`` are asked anew each time. Belongs to one event loop."""

    def __init__(self, at_once_max: Callable[[], int], wait_seconds_max: Callable[[], float]) -> None:
        self._at_once_max = at_once_max
        self._wait_seconds_max = wait_seconds_max
        self._under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold a turn for the length of the block. Raises ``Overloaded`` when none comes in time."""
        if self._waiting or self._under_way >= self._at_once_max():
            await self._wait()
        else:
            self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._pass_on()

    async def _wait(self) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            async with asyncio.timeout(self._wait_seconds_max()):
                await asyncio.shield(mine)
        except BaseException as error:
            if mine.done() and not mine.cancelled():
                self._under_way -= 1
                self._pass_on()
            else:
                self._waiting.remove(mine)
                mine.cancel()
            if isinstance(error, TimeoutError):
                raise Overloaded("As many searches are under way as may be at once; retry.") from None
            raise

    def _pass_on(self) -> None:
        while self._waiting and self._under_way < self._at_once_max():
            self._waiting.popleft().set_result(None)
            self._under_way += 1
