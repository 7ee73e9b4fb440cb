"""What lies in a shard's quarantine and no row knows: left-over temps, foreign files, all that a lost database knew.

It stays as long as a bad replica does, counted from when it was first seen there, and goes one by one.
"""

from __future__ import annotations

import logging
from uuid import UUID

from sharding.listing import REPLICA
from sharding.maintenance.audit_catalogue import AuditObserver
from sharding.maintenance.reconcile_catalogue import ReconcileCatalogue
from sharding.model import Generation
from sharding.shard import AsideEntry, Auditable

log = logging.getLogger(__name__)

BATCH = 500


class Leftovers:
    """One look at them. Call ``step`` until it is False. ``quarantine_seconds`` of None keeps everything."""

    def __init__(
        self,
        shard: Auditable,
        catalogue: ReconcileCatalogue,
        observer: AuditObserver,
        quarantine_seconds: float | None,
    ) -> None:
        self._shard = shard
        self._catalogue = catalogue
        self._observer = observer
        self._quarantine_seconds = quarantine_seconds
        self._entries: list[AsideEntry] | None = None

    async def step(self) -> bool:
        """List them, or deal with a batch; False when there is none left. Raises ``ShardUnavailable``."""
        if self._entries is None:
            self._entries = await self._shard.aside_entries()
            return True
        batch, self._entries = self._entries[:BATCH], self._entries[BATCH:]
        generations = [generation for entry in batch if (generation := generation_of(entry)) is not None]
        known = await self._catalogue.aside_known(self._shard.id, generations)
        await self._look_at([entry for entry in batch if generation_of(entry) not in known])
        return bool(self._entries)

    async def _look_at(self, unknown: list[AsideEntry]) -> None:
        # Seen again at each check, so that the database's clock says for how long it has been there.
        seen = [(path_of(entry), entry.inode) for entry in unknown]
        ages = await self._catalogue.sighting_ages(self._shard.id, seen, note=True) if seen else {}
        if self._quarantine_seconds is None or not await self._catalogue.leftovers_may_go():
            return
        for entry in unknown:
            age = ages[path_of(entry)]
            if age >= self._quarantine_seconds and await self._shard.discard_aside_entry(entry):
                self._observer.observe_discarded(self._shard.id)
                name, days = path_of(entry).decode(errors="backslashreplace"), age / 86_400
                log.info("shard %s: %s left the quarantine for good after %.1f days", self._shard.id, name, days)


def generation_of(entry: AsideEntry) -> Generation | None:
    """Return the generation in the name of a replica that was set aside; None for anything else."""
    match = REPLICA.fullmatch(entry.name)
    return None if match is None else Generation(UUID(match[2].decode()))


def path_of(entry: AsideEntry) -> bytes:
    return b"quarantine/" + entry.name
