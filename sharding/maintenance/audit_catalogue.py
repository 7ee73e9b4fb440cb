"""What the jobs that look after a node's own shards need to know and to have written.

Every call concerns shards that this node owns. Each may raise whatever says that the catalogue does not
answer; the runner tries again later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from sharding.maintenance.comparison import Row
from sharding.model import BlobName, Generation, ShardId


@dataclass(frozen=True, slots=True)
class HeldReplica:
    """A replica that a shard should hold. ``blocks`` is None where they are too many to come along."""

    shard: ShardId
    name: BlobName
    blob: int
    size: int
    blocks: bytes | None = None


class Fault(StrEnum):
    """What is wrong with the bytes of a replica that is there."""

    BYTES = "bytes"
    SIZE = "size"
    UNREADABLE = "unreadable"


class Sentence(StrEnum):
    """What became of a replica proved bad."""

    CONDEMNED = "condemned"
    """Its row is no blob's any more; its file goes to quarantine."""
    LAST = "last"
    """No other good copy exists: it stays, marked suspect."""
    GONE = "gone"
    """It was no blob's any more."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Of absent replicas: rows that went, and rows kept as suspect because no other good copy exists."""

    dropped: int
    kept: int


class JudgementCatalogue(Protocol):
    """What a judgement looks up and has written."""

    async def block_digests(self, blob: int, first: int, count: int) -> bytes:
        """Return the digests of ``count`` blocks from block ``first``; shorter when the blob is gone."""
        ...

    async def mark_suspect(self, shard: ShardId, generation: Generation) -> bool:
        """Let a live replica no longer count, and queue a repair; False when it is not live."""
        ...

    async def reinstate(self, shard: ShardId, generation: Generation) -> bool:
        """Let a suspect replica count again; False when it is not suspect."""
        ...

    async def correct_digests(self, shard: ShardId, generation: Generation, blocks: bytes) -> bool:
        """Replace the block digests of the blob of a replica proved by its sha256; False when it is gone."""
        ...

    async def condemn(self, shard: ShardId, generation: Generation, fault: Fault) -> Sentence:
        """Under the lock of the blob: count anew, and take the replica away from it where another is good."""
        ...

    async def drop_absent(self, shard: ShardId, generations: Sequence[Generation]) -> Dropped:
        """The same for replicas whose files are absent; their rows go, or stay as suspect."""
        ...


class QuarantineCatalogue(Protocol):
    """The order of what goes to quarantine, and out of it."""

    async def unmoved(self, shard: ShardId, count: int) -> list[BlobName]:
        """Return condemned replicas whose files have not been moved yet."""
        ...

    async def note_moved(self, shard: ShardId, generations: Sequence[Generation]) -> None: ...

    async def expired(self, shard: ShardId, quarantine_seconds: float, count: int) -> list[BlobName]:
        """Return replicas moved longer ago than that, by the database's clock, whose blobs do without them."""
        ...

    async def forget(self, shard: ShardId, generations: Sequence[Generation]) -> None:
        """Forget condemned replicas whose files are gone for good."""
        ...


class SuspectCatalogue(JudgementCatalogue, QuarantineCatalogue, Protocol):
    async def suspects(self, shard: ShardId, after: Generation, count: int) -> list[HeldReplica]:
        """Return suspect replicas by generation, from the one after ``after``."""
        ...


class ScrubKind(StrEnum):
    """What a pass over a shard compares."""

    BLOCKS = "blocks"
    """The block digests."""
    PROOF = "proof"
    """The sha256 too."""


@dataclass(frozen=True, slots=True)
class Volume:
    """Replicas, and the bytes that reading them counts as (see ``REPLICA_COST_BYTES``)."""

    replicas: int
    cost_bytes: int

    def __add__(self, other: Volume) -> Volume:
        return Volume(self.replicas + other.replicas, self.cost_bytes + other.cost_bytes)


@dataclass(frozen=True, slots=True)
class ScrubPass:
    """How far a pass over a shard has come. Ages are by the database's clock.

    ``total`` is None until the shard has been surveyed. ``covered_age_seconds`` ago, or later, every
    replica then on the shard has been read; None when no pass has ended yet.
    """

    shard: ShardId
    kind: ScrubKind
    age_seconds: float
    position: Generation
    done: Volume
    total: Volume | None
    is_finished: bool
    covered_age_seconds: float | None
    is_asked_for: bool = False
    """An operator has asked for a pass since this one began."""
    in_haste: bool = False
    """An operator waits."""


REPLICA_COST_BYTES = 32 << 10
"""What a replica counts as at least: opening a small file costs a disk as much as reading some bytes."""


class ScrubCatalogue(JudgementCatalogue, Protocol):
    """Cursors of the passes, and the rows they walk over."""

    async def passes(self, shards: Sequence[ShardId]) -> list[ScrubPass]:
        """Return both passes of each shard; those never begun begin now."""
        ...

    async def begin_pass(self, shard: ShardId, kind: ScrubKind) -> None:
        """Let a finished pass begin anew, now."""
        ...

    async def survey(self, shard: ShardId, after: Generation, count: int) -> tuple[Generation | None, Volume]:
        """Return the volume of the next ``count`` live replicas, and where they end; None at the shard's end."""
        ...

    async def note_total(self, shard: ShardId, kind: ScrubKind, total: Volume) -> None: ...

    async def live_replicas(self, shard: ShardId, after: Generation, count: int) -> list[HeldReplica]:
        """Return live replicas by generation, with their block digests unless they are many."""
        ...

    async def advance(self, shard: ShardId, kind: ScrubKind, position: Generation, done: Volume) -> None:
        """Note that the pass has come to ``position``, having read ``done`` more."""
        ...

    async def finish_pass(self, shard: ShardId, kind: ScrubKind) -> None: ...


class PresenceCatalogue(JudgementCatalogue, Protocol):
    """What the presence check looks up; ``known`` as ``RowSource`` has it."""

    async def bounds(self, shard: ShardId) -> tuple[Generation, Generation] | None:
        """Return the first and the last generation of a shard; None when it has none."""
        ...

    async def sample(self, shard: ShardId, after: Sequence[Generation], count: int) -> list[HeldReplica]:
        """Return the ``count`` live replicas that follow each of ``after``, without digests, each once."""
        ...

    async def known(self, shard: ShardId, after: Generation, count: int) -> list[Row]: ...


class ScrubObserver(Protocol):
    def observe_reread(self, shard: ShardId, count_bytes: int) -> None: ...

    def observe_scrub_age(self, shard: ShardId, kind: str, seconds: float) -> None: ...


class AuditObserver(Protocol):
    """Told what the audits find; for metrics."""

    def observe_verdict(self, shard: ShardId, verdict: str, count: int = 1) -> None: ...

    def observe_reread(self, shard: ShardId, count_bytes: int) -> None: ...

    def observe_aside(self, shard: ShardId, files: int, count_bytes: int) -> None: ...

    def observe_discarded(self, shard: ShardId, files: int = 1) -> None:
        """``files`` have left the quarantine for good."""
        ...
