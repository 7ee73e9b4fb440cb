"""What the maintenance jobs that copy blobs ask the catalogue, answered from Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from repo_node.blob_catalogue import CatalogueOfBlob
from repo_node.db import moves, repair_queue
from repo_node.db.errors import CatalogueUnavailable, OutcomeUnknown
from repo_node.db.pool import Database
from repo_node.metrics import Metrics
from repo_node.outcome import until_known
from repo_node.settings import LiveSettings
from sharding.background import Background
from sharding.maintenance.catalogue import Claim, Held, MoveOutcome, NotSettled, Repaired, Settled, StoredBlob
from sharding.model import Generation, Replica, ShardId
from sharding.reader import BlobCatalogue

REPORTS_MAX = 1_000

OUTCOME_SECONDS = 300.0
"""How long an unknown end of a repair is asked for. After that its files are nobody's until reconcile looks."""


class Copies:
    """The ``CopyCatalogue`` of one node. ``close`` ends the reports of bad replicas."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics
        self._reports = Background(REPORTS_MAX)

    def of_blob(self, blob: StoredBlob) -> BlobCatalogue:
        return CatalogueOfBlob(self._database, blob, self._reports, self._metrics)

    async def close(self) -> None:
        await self._reports.close(wait_seconds=2)


class RepairQueue:
    """The ``RepairCatalogue`` of one node; its claims bear a token of this process."""

    def __init__(self, database: Database, copies: Copies, settings: LiveSettings, metrics: Metrics) -> None:
        self._database = database
        self._settings = settings
        self._metrics = metrics
        self._token = uuid4()
        self.of_blob = copies.of_blob

    async def claim(self, count: int, bytes_max: int) -> list[Claim]:
        seconds = self._settings.now.repair_claim_seconds
        return await repair_queue.claim(self._database, self._token, seconds=seconds, count=count, bytes_max=bytes_max)

    async def renew(self, claims: Sequence[Claim]) -> None:
        blobs = [claim.blob.id for claim in claims]
        await repair_queue.renew(self._database, self._token, blobs, self._settings.now.repair_claim_seconds)

    async def settle(self, repaired: Sequence[Repaired]) -> dict[int, Settled]:
        try:
            known = await until_known(
                lambda: repair_queue.settle(self._database, self._token, repaired), wait_seconds=OUTCOME_SECONDS
            )
        except OutcomeUnknown:
            raise
        except CatalogueUnavailable as error:
            raise NotSettled(str(error)) from error
        return known.result

    async def hasten(self, count: int) -> int:
        return await repair_queue.hasten(self._database, count)

    async def backlog(self) -> int:
        """Return how many blobs are queued, and let the metrics know which."""
        parts = await repair_queue.backlog(self._database)
        self._metrics.healing.show_backlog(parts)
        return sum(part.blobs for part in parts)


class Walks:
    """The ``WalkCatalogue`` of one node."""

    def __init__(self, database: Database, copies: Copies) -> None:
        self._database = database
        self.of_blob = copies.of_blob

    async def next_batch(
        self, job: str, shard: ShardId, ring: str, *, count: int, period_seconds: float
    ) -> list[Held] | None:
        return await moves.next_batch(self._database, job, shard, ring, count=count, period_seconds=period_seconds)

    async def advance(self, job: str, shard: ShardId, ring: str, cursor: Generation | None) -> None:
        await moves.advance(self._database, job, shard, ring, cursor)

    async def move(self, blob: StoredBlob, old: Replica, new: Replica) -> MoveOutcome:
        known = await until_known(lambda: moves.move(self._database, blob.id, old, new), wait_seconds=OUTCOME_SECONDS)
        return known.result

    async def trim(self, blob: StoredBlob, surplus: Replica) -> bool:
        return await moves.trim(self._database, blob.id, surplus, "trim")
