"""Lets bytes through at a rate that may change at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

SLICE_SECONDS = 0.25
"""The longest sleep after which a changed rate is heeded."""


class Throttle:
    """A bucket shared by everything one job copies at once. ``rate`` is asked anew all the time; None: no limit."""

    def __init__(self, rate: Callable[[], float | None]) -> None:
        self._rate = rate
        self._owed_bytes = 0.0
        self._at = float("-inf")

    async def take(self, count_bytes: int) -> None:
        """Return when ``count_bytes`` more may be moved. A large amount is let through, the next one waits for it."""
        while self._settle() > 0:
            rate = self._rate()
            if rate is None:
                break
            await asyncio.sleep(min(self._owed_bytes / rate, SLICE_SECONDS))
        self._owed_bytes += count_bytes

    def _settle(self) -> float:
        """Return what is still owed now."""
        now, rate = asyncio.get_running_loop().time(), self._rate()
        if rate is None:
            self._owed_bytes = 0.0
        elif self._owed_bytes:
            self._owed_bytes = max(0.0, self._owed_bytes - (now - self._at) * rate)
        self._at = now
        return self._owed_bytes
