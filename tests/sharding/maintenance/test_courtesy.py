"""Whoever works beside clients rests while they are served, and only then."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from sharding.maintenance.courtesy import BUSY_SECONDS, REST_SECONDS_MAX, Courtesy
from tests.sharding.memory import instant


@instant
async def test_rest_is_taken_only_while_clients_are_served() -> None:
    served, now = 7, asyncio.get_running_loop().time
    courtesy = Courtesy(lambda: served)
    await courtesy.rest(1)
    assert now() == 0, "what was served before counts for nothing"
    served += 1
    await courtesy.rest(0.4)
    assert now() == pytest.approx(0.4)
    await courtesy.rest(0.4)
    assert now() == pytest.approx(0.8), "one request counts for a while"
    await asyncio.sleep(BUSY_SECONDS)
    await courtesy.rest(1)
    assert now() == pytest.approx(0.8 + BUSY_SECONDS)


@instant
async def test_rest_has_a_limit() -> None:
    numbers = count()
    await Courtesy(lambda: next(numbers)).rest(1e6)
    assert asyncio.get_running_loop().time() == REST_SECONDS_MAX
