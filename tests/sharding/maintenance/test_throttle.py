"""The rate of a job that copies many things at once."""

from __future__ import annotations

import asyncio

import pytest

from sharding.maintenance.throttle import Throttle
from tests.sharding.memory import instant


@instant
async def test_takers_together_keep_the_rate() -> None:
    throttle, now = Throttle(lambda: 1000), asyncio.get_running_loop().time

    async def take(times: int) -> None:
        for _ in range(times):
            await throttle.take(500)

    await asyncio.gather(*(take(5) for _ in range(4)))
    assert now() == pytest.approx(9.5, abs=1.5)


@instant
async def test_large_amount_is_let_through_and_the_next_waits_for_it() -> None:
    throttle, now = Throttle(lambda: 1000), asyncio.get_running_loop().time
    await throttle.take(10_000)
    assert now() == 0
    await throttle.take(1)
    assert now() == pytest.approx(10, abs=0.3)


@instant
async def test_pause_is_no_allowance_for_a_burst() -> None:
    throttle, now = Throttle(lambda: 1000), asyncio.get_running_loop().time
    await throttle.take(1000)
    await asyncio.sleep(100)
    await throttle.take(1000)
    assert now() == 100
    await throttle.take(1000)
    assert now() == pytest.approx(101, abs=0.3)


@instant
async def test_changed_rate_is_heeded_while_somebody_waits() -> None:
    now = asyncio.get_running_loop().time
    throttle = Throttle(lambda: 1 if now() < 5 else None)
    await throttle.take(1_000_000)
    await throttle.take(1)
    assert now() == pytest.approx(5, abs=0.3)
