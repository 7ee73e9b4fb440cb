"""The job that keeps account of the repositories that have a quota."""

from __future__ import annotations

import asyncio

from repo_node.db import usage as rows
from repo_node.db.pool import Database
from repo_node.settings import LiveSettings
from sharding.maintenance.job import Step

CHANGES_MAX = 10_000


class Usage:
    """The job ``usage``: adds up what changed, and counts a repository whose quota is new.

    What a repository uses is what was counted and all that has changed since: each upload adds a row of its own, and
    reads those that this job has yet to add up. No upload waits for another, so a quota is exceeded by what is
    committed at the very moment when it runs out: by less than the sizes of the uploads whose commits, of some
    milliseconds each, overlap; each node has at most ``pool_connections_max`` of them. Until a repository is counted,
    its quota does not hold.
    """

    name = "usage"

    def __init__(self, database: Database, settings: LiveSettings) -> None:
        self._database = database
        self._settings = settings

    async def step(self) -> Step:
        folded = await rows.fold(self._database, changes_max=CHANGES_MAX)
        counted = False
        if folded.uncounted is not None:
            async with asyncio.timeout(self._settings.now.usage_count_seconds_max):
                counted = await rows.count(self._database, folded.uncounted)
        return Step(done=folded.changes, idle=folded.changes < CHANGES_MAX and not counted)
