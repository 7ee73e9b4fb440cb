"""The rows of a few blobs in memory, with the rules of the real catalogue, for the audits of one shard."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from sharding.maintenance.audit_catalogue import (
    REPLICA_COST_BYTES,
    Dropped,
    Fault,
    HeldReplica,
    ScrubKind,
    ScrubPass,
    Sentence,
    Volume,
)
from sharding.maintenance.comparison import Row as ComparedRow
from sharding.maintenance.comparison import RowState
from sharding.model import BLOCK_DIGEST_BYTES, BlobName, Generation, ShardId
from tests.sharding.shard_contract import block_digests

FIRST = Generation(UUID(int=0))
Cursor = tuple[float, Generation, Volume, Volume | None, bool, float | None]


@dataclass
class Row:
    name: BlobName
    size: int
    state: str = "live"
    other_good_copies: int = 1


@dataclass
class AuditRows:
    """Satisfies ``SuspectCatalogue`` and ``ScrubCatalogue``. ``rows`` are the replicas of the one shard."""

    shard: ShardId
    rows: dict[Generation, Row] = field(default_factory=dict)
    blocks: dict[bytes, bytes] = field(default_factory=dict)
    repairs: list[bytes] = field(default_factory=list)
    to_move: dict[Generation, BlobName] = field(default_factory=dict)
    moved: dict[Generation, BlobName] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic
    asked_at: float = float("-inf")
    in_haste: bool = False
    cursors: dict[ScrubKind, Cursor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cursors = {kind: (self.clock(), FIRST, Volume(0, 0), None, False, None) for kind in ScrubKind}

    def add(self, name: BlobName, data: bytes, **more: int | str) -> HeldReplica:
        assert hashlib.sha256(data).digest() == name.sha256
        self.rows[name.generation] = Row(name, len(data), **more)  # type: ignore[arg-type]
        self.blocks[name.sha256] = block_digests(data)
        return self.held(name.generation)

    def held(self, generation: Generation) -> HeldReplica:
        row = self.rows[generation]
        return HeldReplica(self.shard, row.name, int.from_bytes(row.name.sha256[:6]), row.size)

    def state(self, name: BlobName) -> str | None:
        row = self.rows.get(name.generation)
        return row.state if row else None

    async def suspects(self, shard: ShardId, after: Generation, count: int) -> list[HeldReplica]:
        found = sorted(
            one for one, row in self.rows.items() if shard == self.shard and row.state == "suspect" and one > after
        )
        return [self.held(one) for one in found[:count]]

    async def block_digests(self, blob: int, first: int, count: int) -> bytes:
        for sha256, blocks in self.blocks.items():
            if int.from_bytes(sha256[:6]) == blob:
                return blocks[first * BLOCK_DIGEST_BYTES : (first + count) * BLOCK_DIGEST_BYTES]
        return b""

    async def mark_suspect(self, shard: ShardId, generation: Generation) -> bool:
        return self._change(generation, "live", "suspect")

    async def reinstate(self, shard: ShardId, generation: Generation) -> bool:
        return self._change(generation, "suspect", "live")

    async def correct_digests(self, shard: ShardId, generation: Generation, blocks: bytes) -> bool:
        row = self.rows.get(generation)
        if row is None:
            return False
        self.blocks[row.name.sha256] = blocks
        row.state = "live"
        return True

    async def condemn(self, shard: ShardId, generation: Generation, fault: Fault) -> Sentence:
        row = self.rows.get(generation)
        if row is None or row.state == "condemned":
            return Sentence.GONE
        self.repairs.append(row.name.sha256)
        self.faults.append(fault)
        if not row.other_good_copies:
            row.state = "suspect"
            return Sentence.LAST
        row.state = "condemned"
        self.to_move[generation] = row.name
        return Sentence.CONDEMNED

    async def drop_absent(self, shard: ShardId, generations: Sequence[Generation]) -> Dropped:
        dropped = kept = 0
        for generation in generations:
            row = self.rows.get(generation)
            if row is None or row.state == "condemned":
                continue
            self.repairs.append(row.name.sha256)
            if row.other_good_copies:
                del self.rows[generation]
                dropped += 1
            else:
                row.state = "suspect"
                kept += 1
        return Dropped(dropped, kept)

    async def unmoved(self, shard: ShardId, count: int) -> list[BlobName]:
        return list(self.to_move.values())[:count] if shard == self.shard else []

    async def note_moved(self, shard: ShardId, generations: Sequence[Generation]) -> None:
        for generation in generations:
            self.moved[generation] = self.to_move.pop(generation)

    async def expired(self, shard: ShardId, quarantine_seconds: float, count: int) -> list[BlobName]:
        return list(self.moved.values())[:count] if quarantine_seconds == 0 and shard == self.shard else []

    async def forget(self, shard: ShardId, generations: Sequence[Generation]) -> None:
        for generation in generations:
            del self.moved[generation], self.rows[generation]

    async def passes(self, shards: Sequence[ShardId]) -> list[ScrubPass]:
        return [self._pass(kind) for kind in ScrubKind]

    def _pass(self, kind: ScrubKind) -> ScrubPass:
        started, position, done, total, finished, covered = self.cursors[kind]
        ages = self.clock() - started, None if covered is None else self.clock() - covered
        asked = self.asked_at > started
        return ScrubPass(self.shard, kind, ages[0], position, done, total, finished, ages[1], asked, self.in_haste)

    async def begin_pass(self, shard: ShardId, kind: ScrubKind) -> None:
        self.cursors[kind] = (self.clock(), FIRST, Volume(0, 0), None, False, self.cursors[kind][5])

    async def survey(self, shard: ShardId, after: Generation, count: int) -> tuple[Generation | None, Volume]:
        found = sorted(one for one in self.rows if one > after)
        page = found[:2]
        cost = sum(max(self.rows[one].size, REPLICA_COST_BYTES) for one in page)
        return (page[-1] if len(found) > 2 else None), Volume(len(page), cost)

    async def note_total(self, shard: ShardId, kind: ScrubKind, total: Volume) -> None:
        started, position, done, _, finished, covered = self.cursors[kind]
        self.cursors[kind] = (started, position, done, total, finished, covered)

    async def live_replicas(self, shard: ShardId, after: Generation, count: int) -> list[HeldReplica]:
        found = sorted(one for one, row in self.rows.items() if row.state == "live" and one > after)
        return [replace(self.held(one), blocks=self.blocks[self.rows[one].name.sha256]) for one in found[:count]]

    async def advance(self, shard: ShardId, kind: ScrubKind, position: Generation, done: Volume) -> None:
        started, _, before, total, finished, covered = self.cursors[kind]
        self.cursors[kind] = (started, position, before + done, total, finished, covered)

    async def finish_pass(self, shard: ShardId, kind: ScrubKind) -> None:
        started, position, done, total, _, _ = self.cursors[kind]
        self.cursors[kind] = (started, position, done, total, True, started)

    async def bounds(self, shard: ShardId) -> tuple[Generation, Generation] | None:
        return (min(self.rows), max(self.rows)) if self.rows else None

    async def sample(self, shard: ShardId, after: Sequence[Generation], count: int) -> list[HeldReplica]:
        live = sorted(one for one, row in self.rows.items() if row.state == "live")
        found = {one for start in after for one in [one for one in live if one > start][:count]}
        return [self.held(one) for one in sorted(found)]

    async def known(self, shard: ShardId, after: Generation, count: int) -> list[ComparedRow]:
        found = sorted(one for one in self.rows if one > after)[:count]
        return [
            ComparedRow(one, RowState(self.rows[one].state), self.rows[one].name.sha256, self.rows[one].size)
            for one in found
        ]

    def _change(self, generation: Generation, before: str, after: str) -> bool:
        row = self.rows.get(generation)
        if row is None or row.state != before:
            return False
        row.state = after
        return True


@dataclass
class Observed:
    """An ``AuditObserver`` that remembers."""

    verdicts: list[str] = field(default_factory=list)
    reread_bytes: int = 0
    aside: tuple[int, int] = (0, 0)
    discarded: int = 0
    scrub_ages: dict[str, float] = field(default_factory=dict)

    def observe_verdict(self, shard: ShardId, verdict: str, count: int = 1) -> None:
        self.verdicts += [verdict] * count

    def observe_reread(self, shard: ShardId, count_bytes: int) -> None:
        self.reread_bytes += count_bytes

    def observe_aside(self, shard: ShardId, files: int, count_bytes: int) -> None:
        self.aside = files, count_bytes

    def observe_discarded(self, shard: ShardId, files: int = 1) -> None:
        self.discarded += files

    def observe_scrub_age(self, shard: ShardId, kind: str, seconds: float) -> None:
        self.scrub_ages[kind] = seconds
