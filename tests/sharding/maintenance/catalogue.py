"""The catalogue of the jobs that copy, in memory: the rules of the schema's functions, without a database."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from sharding.digests import block_digests
from sharding.errors import ReplicaCorrupt, ReplicaMissing
from sharding.maintenance.catalogue import (
    Claim,
    Held,
    MoveOutcome,
    Repaired,
    RepairOutcome,
    Settled,
    StoredBlob,
    StoredReplica,
)
from sharding.model import BlobName, Generation, Replica, ShardId
from tests.sharding.memory import Cluster, mint

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Rows:
    """One blob's rows."""

    blob: StoredBlob
    digests: bytes
    live: dict[Generation, ShardId] = field(default_factory=dict)
    suspect: dict[Generation, ShardId] = field(default_factory=dict)


class MemoryCatalogue:
    """Satisfies ``RepairCatalogue`` and ``WalkCatalogue``. A draining shard's copies do not count."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.rows: dict[int, Rows] = {}
        self.queue: dict[int, float] = {}
        self.draining: set[ShardId] = set()
        self.removals: set[tuple[ShardId, BlobName]] = set()
        self.outcomes: list[tuple[RepairOutcome, str | None]] = []
        self.moves: list[MoveOutcome] = []
        self.trims: list[bool] = []
        self.cursors: dict[tuple[str, ShardId], tuple[Generation | None, str, bool]] = {}

    # ------------------------------------------------------------------ what a test does

    def add(self, data: bytes, shards: Sequence[int], redundancy: int = 2) -> Rows:
        """Store a blob with a durable copy on each of ``shards``."""
        blocks, number = block_digests(data), len(self.rows) + 1
        sha256 = hashlib.sha256(data).digest()
        rows = Rows(StoredBlob(number, mint(), sha256, len(data), redundancy, blocks), blocks)
        for shard in shards:
            generation = Generation(mint())
            self.cluster.memory[ShardId(shard)].files[BlobName(sha256, generation)] = data
            rows.live[generation] = ShardId(shard)
        self.rows[number] = rows
        return rows

    def lose(self, rows: Rows, shard: int) -> None:
        """Remove the copies on a shard, as a reader would notice it."""
        for generation in [one for one, at in rows.live.items() if at == shard]:
            self.cluster.memory[ShardId(shard)].files.pop(BlobName(rows.blob.sha256, generation), None)
            self.mark(rows, generation)

    def mark(self, rows: Rows, generation: Generation) -> None:
        if generation in rows.live:
            rows.suspect[generation] = rows.live.pop(generation)
            self.enqueue(rows)

    def enqueue(self, rows: Rows) -> None:
        self.queue[rows.blob.id] = 0.0

    def shards(self, rows: Rows) -> list[int]:
        return sorted(rows.live.values())

    # ------------------------------------------------------------------ the rules

    def counting(self, rows: Rows, without: Generation | None = None) -> set[ShardId]:
        return {at for one, at in rows.live.items() if at not in self.draining and one != without}

    def zones(self, shards: set[ShardId]) -> int:
        return len({self.cluster.members[shard].zone for shard in shards})

    def is_whole(self, rows: Rows, without: Generation | None = None) -> bool:
        shards, wanted = self.counting(rows, without), rows.blob.redundancy
        return len(shards) >= wanted and self.zones(shards) >= min(wanted, self.cluster.view.zones)

    def remove_later(self, rows: Rows, generation: Generation) -> None:
        self.removals.add((rows.live.pop(generation), BlobName(rows.blob.sha256, generation)))

    def stored(self, rows: Rows) -> tuple[StoredReplica, ...]:
        live = [StoredReplica(at, one, False, at not in self.draining) for one, at in rows.live.items()]
        return (*live, *(StoredReplica(at, one, True, True) for one, at in rows.suspect.items()))

    # ------------------------------------------------------------------ RepairCatalogue

    def of_blob(self, blob: StoredBlob) -> MemoryCatalogue.OfBlob:
        return MemoryCatalogue.OfBlob(self, blob)

    async def claim(self, count: int, bytes_max: int) -> list[Claim]:
        await asyncio.sleep(0)
        now = asyncio.get_running_loop().time()
        due = sorted(
            (one for one, at in self.queue.items() if at <= now),
            key=lambda one: len(self.counting(self.rows[one])) or 99,
        )[:count]
        for number in due:
            self.queue[number] = now + 60
        return [
            Claim(rows.blob, self.stored(rows), len(set(rows.live.values())), 0, NOW)
            for rows in (self.rows[number] for number in due)
        ]

    async def renew(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            if claim.blob.id in self.queue:
                self.queue[claim.blob.id] = asyncio.get_running_loop().time() + 60

    async def settle(self, repaired: Sequence[Repaired]) -> dict[int, Settled]:
        await asyncio.sleep(0)
        return {one.claim.blob.id: self._settle(one.claim, one.copies, one.retry_seconds) for one in repaired}

    def _settle(self, claim: Claim, copies: Sequence[Replica], retry_seconds: float) -> Settled:
        rows = self.rows.get(claim.blob.id)
        if rows is None:
            return Settled(RepairOutcome.GONE, frozenset())
        adopted = set()
        for copy in copies:
            here, zone = self.counting(rows), self.cluster.members[copy.shard].zone
            new_zone = zone not in {self.cluster.members[shard].zone for shard in here}
            few = len(here) < rows.blob.redundancy
            spread = self.zones(here) < min(rows.blob.redundancy, self.cluster.view.zones)
            if copy.shard not in here and copy.shard not in self.draining and (few or (new_zone and spread)):
                rows.live[copy.generation] = copy.shard
                adopted.add(copy.generation)
        if self.is_whole(rows):
            for generation in [one for one, at in rows.live.items() if at in self.draining]:
                self.remove_later(rows, generation)
            self.queue.pop(claim.blob.id, None)
            return Settled(RepairOutcome.WHOLE, frozenset(adopted))
        self.queue[claim.blob.id] = asyncio.get_running_loop().time() + retry_seconds
        return Settled(RepairOutcome.SHORT, frozenset(adopted))

    async def hasten(self, count: int) -> int:
        now = asyncio.get_running_loop().time()
        late = [one for one, at in self.queue.items() if at > now][:count]
        self.queue.update(dict.fromkeys(late, now))
        return len(late)

    async def backlog(self) -> int:
        return len(self.queue)

    def observe_repair(self, outcome: RepairOutcome, note: str | None) -> None:
        self.outcomes.append((outcome, note))

    # ------------------------------------------------------------------ WalkCatalogue

    async def next_batch(
        self, job: str, shard: ShardId, ring: str, *, count: int, period_seconds: float
    ) -> list[Held] | None:
        await asyncio.sleep(0)
        cursor, known, resting = self.cursors.get((job, shard), (None, "", False))
        if resting and known == ring and period_seconds > 0:
            return None
        held = [
            Held(rows.blob, one, self.stored(rows))
            for rows in self.rows.values()
            for one, at in rows.live.items()
            if at == shard and one > (cursor or UUID(int=0))
        ]
        return sorted(held, key=lambda one: one.generation)[:count]

    async def advance(self, job: str, shard: ShardId, ring: str, cursor: Generation | None) -> None:
        self.cursors[job, shard] = (cursor, ring, cursor is None)

    async def move(self, blob: StoredBlob, old: Replica, new: Replica) -> MoveOutcome:
        await asyncio.sleep(0)
        rows = self.rows.get(blob.id)
        if (
            rows is None
            or old.generation not in rows.live
            or new.shard in self.counting(rows)
            or new.shard in self.draining
        ):
            return MoveOutcome.SURPLUS
        rows.live[new.generation] = new.shard
        return MoveOutcome.MOVED if self._trim(rows, old.generation) else MoveOutcome.COPIED

    async def trim(self, blob: StoredBlob, surplus: Replica) -> bool:
        await asyncio.sleep(0)
        return blob.id in self.rows and self._trim(self.rows[blob.id], surplus.generation)

    def _trim(self, rows: Rows, generation: Generation) -> bool:
        if generation not in rows.live or not self.is_whole(rows, without=generation):
            return False
        self.remove_later(rows, generation)
        return True

    def observe_move(self, outcome: MoveOutcome) -> None:
        self.moves.append(outcome)

    def observe_trim(self, trimmed: bool) -> None:
        self.trims.append(trimmed)

    class OfBlob:
        """The ``BlobCatalogue`` of one blob; a bad copy that a reader reports becomes suspect at once."""

        def __init__(self, catalogue: MemoryCatalogue, blob: StoredBlob) -> None:
            self._catalogue = catalogue
            self._blob = blob

        async def block_digests(self, first: int, count: int) -> bytes:
            rows = self._catalogue.rows.get(self._blob.id)
            return b"" if rows is None else rows.digests[8 * first : 8 * (first + count)]

        async def replicas(self) -> tuple[Replica, ...]:
            rows = self._catalogue.rows.get(self._blob.id)
            return () if rows is None else tuple(one.replica for one in self._catalogue.stored(rows))

        def report(self, replica: Replica, error: ReplicaMissing | ReplicaCorrupt) -> None:
            rows = self._catalogue.rows.get(self._blob.id)
            if rows is not None:
                self._catalogue.mark(rows, replica.generation)
