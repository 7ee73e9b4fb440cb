"""What readers of one blob ask: where its copies are, and what its blocks should be."""

from __future__ import annotations

from repo_node.db import blobs
from repo_node.db.artifacts import FIRST_BLOCKS, Blob
from repo_node.db.pool import Database
from repo_node.metrics import Metrics
from sharding.background import Background
from sharding.errors import ReplicaCorrupt, ReplicaMissing
from sharding.maintenance.catalogue import StoredBlob
from sharding.model import BLOCK_DIGEST_BYTES, Replica, block_count


class CatalogueOfBlob:
    """What one reader asks about one blob: the look-up's own answer first, then Postgres."""

    def __init__(self, database: Database, blob: Blob | StoredBlob, reports: Background, metrics: Metrics) -> None:
        self._database = database
        self._blob = blob
        self._reports = reports
        self._metrics = metrics
        self._window_start = 0
        self._window = blob.first_digests

    async def block_digests(self, first: int, count: int) -> bytes:
        start = (first - self._window_start) * BLOCK_DIGEST_BYTES
        stop = start + count * BLOCK_DIGEST_BYTES
        if start < 0 or stop > len(self._window):
            blocks = min(FIRST_BLOCKS, block_count(self._blob.size) - first)
            self._window = await blobs.block_digests(self._database, self._blob.id, first, blocks)
            self._window_start, start, stop = first, 0, count * BLOCK_DIGEST_BYTES
        return self._window[start:stop]

    async def replicas(self) -> tuple[Replica, ...]:
        return await blobs.replicas_of(self._database, self._blob.id)

    def report(self, replica: Replica, error: ReplicaMissing | ReplicaCorrupt) -> None:
        self._reports.start(self._mark(replica, error))

    async def _mark(self, replica: Replica, error: ReplicaMissing | ReplicaCorrupt) -> None:
        if await blobs.mark_suspect(self._database, replica.shard, replica.generation):
            fault = "missing" if isinstance(error, ReplicaMissing) else "corrupt"
            self._metrics.bad_replicas.labels(fault).inc()
