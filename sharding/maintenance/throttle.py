"""Lets bytes through at a rate that may change at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

SLICE_SECONDS = 0.25
"""The longest sleep after which a changed rate is heeded."""

SLACK_SECONDS = 0.01
"""By so much may the bytes be ahead of the rate: a sleep for each small piece would cost more than the piece."""


class Throttle:
    """A bucket shared by everything one job copies at once. ``rate`` is asked anew all the time; None: no limit."""

    def __init__(self, rate: Callable[[], float | None]) -> None:
        self._rate = rate
        self._owed_bytes = 0.0
        self._at = float("-inf")
        # In turn, so that one waits by the clock and the others for it.
        self._turn = asyncio.Lock()

    async def take(self, count_bytes: int) -> None:
        """Return when ``count_bytes`` more may be moved. A large amount is let through, the next one waits for it."""
        async with self._turn:
            while (rate := self._rate()) is not None and self._settle(rate) > rate * SLACK_SECONDS:
                await asyncio.sleep(min(self._owed_bytes / rate, SLICE_SECONDS))
            self._owed_bytes = 0.0 if rate is None else self._owed_bytes + count_bytes

    def _settle(self, rate: float) -> float:
        """Return what is still owed now."""
        now = asyncio.get_running_loop().time()
        if self._owed_bytes:
            self._owed_bytes = max(0.0, self._owed_bytes - (now - self._at) * rate)
        self._at = now
        return self._owed_bytes
