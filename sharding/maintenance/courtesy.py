"""Gives way to clients: whoever works beside them rests after each piece of work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

BUSY_SECONDS = 0.5
"""So long after one of its requests a node counts as serving clients."""

REST_SECONDS_MAX = 2.0


class Courtesy:
    """``served`` is how many blobs clients have begun to read or write here, ever."""

    def __init__(self, served: Callable[[], int]) -> None:
        self._served = served
        self._seen = served()
        self._seen_at = float("-inf")

    async def rest(self, seconds: float) -> None:
        """Rest for ``seconds`` where clients are served, and not at all where none are."""
        now, count = asyncio.get_running_loop().time(), self._served()
        if count != self._seen:
            self._seen, self._seen_at = count, now
        if now - self._seen_at < BUSY_SECONDS:
            await asyncio.sleep(min(seconds, REST_SECONDS_MAX))
