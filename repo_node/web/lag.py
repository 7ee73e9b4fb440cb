"""Measures how late the event loop runs: the one number that shows blocking work on it."""

from __future__ import annotations

import asyncio

from repo_node.metrics import Metrics

PERIOD_SECONDS = 0.5


async def watch_lag(metrics: Metrics) -> None:
    """Observe the loop's lag until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + PERIOD_SECONDS
        await asyncio.sleep(PERIOD_SECONDS)
        metrics.loop_lag_seconds.observe(max(loop.time() - due, 0.0))
