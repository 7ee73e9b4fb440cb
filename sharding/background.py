"""Work nobody waits for, but that somebody owns: bounded, and ended in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from sharding.tasks import stop

log = logging.getLogger(__name__)


class Background:
    """A bounded set of tasks. What goes wrong in one is logged, never lost."""

    def __init__(self, tasks_max: int) -> None:
        self._tasks_max = tasks_max
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def start(self, work: Coroutine[Any, Any, None]) -> bool:
        """Start ``work``; False, and nothing is done, when too much is under way already, or after ``close``."""
        if self._closed or len(self._tasks) >= self._tasks_max:
            work.close()
            return False
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return True

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work failed", exc_info=error)

    async def close(self, wait_seconds: float) -> None:
        """Let what is under way end for at most ``wait_seconds``, then stop it."""
        self._closed = True
        if self._tasks:
            try:
                await asyncio.wait(self._tasks, timeout=wait_seconds)
            finally:
                await stop(tuple(self._tasks))
