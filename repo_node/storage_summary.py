"""The job that counts what is stored."""

from __future__ import annotations

import asyncio
import time

from repo_node.db import storage_summary as rows
from repo_node.db.pool import Database
from repo_node.settings import LiveSettings
from sharding.maintenance.job import Step

REST = 100
"""Rest after a count, in times of what it took: where there is much to count, it is counted less often."""


class StorageSummaryJob:
    """The job ``storageinfo``, on the primary alone: a count is read by many, and begun by its pace or an operator."""

    name = "storageinfo"

    def __init__(self, database: Database, settings: LiveSettings) -> None:
        self._database = database
        self._settings = settings
        self._took_seconds = 0.0

    def idle_seconds(self) -> float:
        """Return how long to rest before the next count."""
        return max(self._settings.now.storage_summary_seconds, REST * self._took_seconds)

    async def step(self) -> Step:
        began = time.monotonic()
        async with asyncio.timeout(self._settings.now.storage_summary_seconds_max):
            calculated = await rows.calculate(self._database)
        self._took_seconds = time.monotonic() - began
        return Step(done=int(calculated), idle=True)
