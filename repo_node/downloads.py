"""Counts downloads in memory, and tells Postgres of many at once: no download writes.

What was counted in the last ``downloads_flush_seconds`` is lost when the process is killed, and so is a batch
whose outcome is not known: a count is rather too low than too high.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from datetime import datetime
from itertools import islice

from repo_node.db import downloads as rows
from repo_node.db.downloads import Downloads
from repo_node.db.errors import CatalogueUnavailable, ChangesRefused, OutcomeUnknown
from repo_node.db.pool import Database
from repo_node.metrics import Metrics
from repo_node.paths import ArtifactPath
from repo_node.settings import LiveSettings
from sharding.background import Background

BATCH = 1_000
CLOSE_SECONDS = 2.0

log = logging.getLogger("holdfast.downloads")


class DownloadCounts:
    """Counts what ``count`` is told of. ``clock`` is the database's time."""

    def __init__(
        self, database: Database, settings: LiveSettings, metrics: Metrics, clock: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._counted: dict[ArtifactPath, Downloads] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._flushes = Background(1)

    def count(self, at: ArtifactPath, who: str) -> None:
        """Count one download. Beyond ``downloads_counted_max`` artifacts at once, it is not counted."""
        before = self._counted.get(at)
        if before is None and len(self._counted) >= self._settings.now.downloads_counted_max:
            self._metrics.downloads_uncounted.inc()
            return
        self._counted[at] = Downloads(before.count + 1 if before else 1, self._clock(), who)
        self._flush_later()

    async def find(self, at: ArtifactPath) -> Downloads | None:
        """Return what Postgres knows of an artifact's downloads; None when nothing is there."""
        return await rows.find(self._database, at)

    def _flush_later(self) -> None:
        """See to it that what was counted is told in time, also where the time has become shorter."""
        if not self._counted:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + self._settings.now.downloads_flush_seconds
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        # Many downloads are told of together: what is logged then is of none of their requests.
        self._timer = loop.call_at(due, self._begin_flush, context=Context())

    def _begin_flush(self) -> None:
        self._timer = None
        if not self._flushes.start(self._flush()):
            self._flush_later()

    async def _flush(self) -> None:
        """Tell Postgres of what was counted; what it surely did not take is kept for the next time."""
        while self._counted:
            batch = list(islice(self._counted.items(), BATCH))
            for at, _ in batch:
                del self._counted[at]
            try:
                await rows.add(self._database, batch)
            except (CatalogueUnavailable, ChangesRefused):
                for at, downloads in batch:
                    self._counted[at] = together(downloads, self._counted.get(at))
                self._flush_later()
                return
            except OutcomeUnknown as error:
                self._metrics.downloads_uncounted.inc(sum(downloads.count for _, downloads in batch))
                log.warning("downloads may not have been counted", extra={"facts": {"cause": str(error)}})

    async def close(self) -> None:
        """Tell Postgres of the rest, if it answers soon."""
        if self._timer is not None:
            self._timer.cancel()
        self._begin_flush()
        await self._flushes.close(CLOSE_SECONDS)
        if self._timer is not None:
            self._timer.cancel()


def together(earlier: Downloads, later: Downloads | None) -> Downloads:
    if later is None:
        return earlier
    return Downloads(earlier.count + later.count, later.last_at, later.last_by)
