"""How often and how patiently a failed call is repeated."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from repo_node.client.errors import ClientError

RETRY_AFTER_SECONDS_MAX = 60.0

T = TypeVar("T")
OnWait = Callable[[ClientError, float], None]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Repeat up to ``repeats_max`` times; the wait doubles from the first to the longest, with jitter."""

    repeats_max: int = 5
    wait_seconds_first: float = 0.25
    wait_seconds_max: float = 15.0

    def wait_seconds(self, repeat: int, retry_after_seconds: float | None, chance: float) -> float:
        """Return the wait before the ``repeat``-th repetition (from 1); ``chance`` in [0, 1) spreads clients.

        A Retry-After of the server is a lower bound, as far as ``RETRY_AFTER_SECONDS_MAX``.
        """
        longest = min(self.wait_seconds_max, self.wait_seconds_first * 2.0 ** min(repeat - 1, 32))
        jittered = longest * (0.5 + chance / 2)
        return max(jittered, min(retry_after_seconds or 0.0, RETRY_AFTER_SECONDS_MAX))


async def persist(
    operation: Callable[[int], Awaitable[T]],
    policy: RetryPolicy,
    *,
    idempotent: bool = True,
    on_wait: OnWait | None = None,
) -> T:
    """Run ``operation(attempt)``, attempts counted from 1, until it succeeds or repeating is pointless.

    What may have been done already is repeated only when it is ``idempotent``. ``on_wait`` hears of
    every failure that is repeated and of the seconds until then. Raises the last ``ClientError``.
    """
    attempt = 1
    while True:
        try:
            return await operation(attempt)
        except ClientError as error:
            if not error.retryable or attempt > policy.repeats_max or (error.may_be_done and not idempotent):
                raise
            wait = policy.wait_seconds(attempt, error.retry_after_seconds, random.random())
            if on_wait is not None:
                on_wait(error, wait)
        await asyncio.sleep(wait)
        attempt += 1


def read_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds a Retry-After header asks for (RFC 9110, 10.2.3), or None where it says nothing usable."""
    if value is None:
        return None
    if value.isascii() and value.strip().isdigit():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds())
