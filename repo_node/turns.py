"""Turns at what only so many may do at once, in the order in which they were asked for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from repo_node.errors import Overloaded


class Turns:
    """``at_once_max`` is asked anew each time; ``what`` says of what there are too many. Belongs to one event loop."""

    def __init__(self, what: str, at_once_max: Callable[[], int]) -> None:
        self._what = what
        self._at_once_max = at_once_max
        self._under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def turn(self, wait_seconds: float | None) -> AsyncIterator[None]:
        """Hold a turn for the length of the block. Raises ``Overloaded`` when none comes in ``wait_seconds``."""
        if self._waiting or self._under_way >= self._at_once_max():
            await self._wait(wait_seconds)
        else:
            self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._pass_on()

    async def _wait(self, seconds: float | None) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(mine)
        except BaseException as error:
            if mine.done():
                self._under_way -= 1
                self._pass_on()
            else:
                self._waiting.remove(mine)
            if isinstance(error, TimeoutError):
                raise Overloaded(f"As many {self._what} are under way as may be at once; retry.") from None
            raise

    def _pass_on(self) -> None:
        while self._waiting and self._under_way < self._at_once_max():
            self._waiting.popleft().set_result(None)
            self._under_way += 1
