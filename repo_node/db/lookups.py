"""Where paths lead, asked of Postgres in one round trip for all who ask at the same time (``round_trips``)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from repo_node.db import artifacts as rows
from repo_node.db.artifacts import LookUp
from repo_node.db.pool import Database
from repo_node.db.round_trips import RoundTrips
from repo_node.paths import ArtifactPath


class LookUps:
    """Answers look-ups of single paths; a round trip is for ``per_round_trip_max`` of them at most."""

    def __init__(self, database: Database, *, per_round_trip_max: int, wait_seconds_max: float) -> None:
        self._database = database
        self._round_trips: RoundTrips[ArtifactPath, LookUp] = RoundTrips(
            self._resolve, per_round_trip_max=per_round_trip_max, wait_seconds_max=wait_seconds_max
        )

    async def resolve(self, at: ArtifactPath) -> LookUp:
        """Return what is at a path. Raises ``CatalogueUnavailable``."""
        return await self._round_trips.ask(at)

    async def resolve_all(self, places: Sequence[ArtifactPath]) -> list[LookUp]:
        """Return what is at each of these paths, asked for together. Raises ``CatalogueUnavailable``."""
        return await asyncio.gather(*map(self._round_trips.ask, places))

    async def close(self) -> None:
        """Stop. Whoever still waits hears that Postgres was not asked."""
        await self._round_trips.close()

    async def _resolve(self, paths: Sequence[ArtifactPath]) -> list[LookUp]:
        if len(paths) == 1:
            return [await rows.resolve(self._database, *paths[0])]
        return await rows.resolve_each(self._database, paths)
