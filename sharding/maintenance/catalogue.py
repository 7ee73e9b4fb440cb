"""What the jobs that copy ask the catalogue, as Protocols; the node's database implements them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from sharding.model import Generation, Replica, ShardId
from sharding.reader import BlobCatalogue


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob as the jobs need it. ``first_digests`` are those of its first blocks."""

    id: int
    uid: UUID
    sha256: bytes
    size: int
    redundancy: int
    first_digests: bytes


@dataclass(frozen=True, slots=True)
class StoredReplica:
    """A copy, and what is known of its shard. ``stays``: the shard is to hold it (it is not draining or lost)."""

    shard: ShardId
    generation: Generation
    suspect: bool
    stays: bool

    @property
    def counts(self) -> bool:
        """Whether it is one of the blob's N, readable now or not."""
        return self.stays and not self.suspect

    @property
    def replica(self) -> Replica:
        return Replica(self.shard, self.generation, self.suspect)


@dataclass(frozen=True, slots=True)
class Claim:
    """A blob this node is to repair. ``good`` copies could be read when it was queued."""

    blob: StoredBlob
    replicas: tuple[StoredReplica, ...]
    good: int
    attempts: int
    renewed_at: datetime


class RepairOutcome(StrEnum):
    WHOLE = "whole"
    """N good copies in their zones: it is off the queue."""

    WAITING = "waiting"
    """All copies exist, but some cannot be read now; a verdict or a return will tell."""

    SHORT = "short"
    """Copies are still missing; it stays queued."""

    GONE = "gone"
    """There is no such blob any more."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair came to: the new durable copies, and, where they are too few, why and when to try again."""

    claim: Claim
    copies: tuple[Replica, ...]
    retry_seconds: float
    note: str | None


class NotSettled(Exception):
    """The catalogue could not be reached, and has taken note of nothing: the new copies are nobody's."""


@dataclass(frozen=True, slots=True)
class Settled:
    """How a repair ended. ``adopted`` are the new copies the blob has now; the others are surplus."""

    outcome: RepairOutcome
    adopted: frozenset[Generation]


class CopyCatalogue(Protocol):
    """What whoever copies a blob needs to know of it."""

    def of_blob(self, blob: StoredBlob) -> BlobCatalogue:
        """Return what a reader of ``blob`` asks."""
        ...


class RepairCatalogue(CopyCatalogue, Protocol):
    """The queue of blobs that lack copies. Every method may raise when the catalogue cannot be reached."""

    async def claim(self, count: int, bytes_max: int) -> list[Claim]:
        """Claim up to ``count`` blobs, fewest good copies first; nobody else has them until the claim expires."""
        ...

    async def renew(self, claims: Sequence[Claim]) -> None:
        """Hold claims for as long again as when they were made."""
        ...

    async def settle(self, repaired: Sequence[Repaired]) -> dict[int, Settled]:
        """Give each blob those of its new copies that it still lacks, and end the claims; return how, by blob.

        Returns only when the outcome is known. Raises ``NotSettled``; after any other error no file of the
        copies may be removed.
        """
        ...

    async def hasten(self, count: int) -> int:
        """Make up to ``count`` blobs whose repair was put off due now; return how many there were."""
        ...

    async def backlog(self) -> int:
        """Return how many blobs are queued."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """A live copy on a shard of this node, and all copies of its blob."""

    blob: StoredBlob
    generation: Generation
    replicas: tuple[StoredReplica, ...]


class MoveOutcome(StrEnum):
    MOVED = "moved"
    """The copy has taken the place of the old one, whose file goes later."""

    COPIED = "copied"
    """The copy is the blob's now, and the old one is still needed beside it."""

    SURPLUS = "surplus"
    """The copy is not needed; whoever made it removes it."""


class WalkCatalogue(CopyCatalogue, Protocol):
    """What the jobs ask that go over all copies on a shard, again and again, and remember how far they are."""

    async def next_batch(
        self, job: str, shard: ShardId, ring: str, *, count: int, period_seconds: float
    ) -> list[Held] | None:
        """Return the copies after those ``advance`` was last told of; none at the end of a pass.

        None when no pass is due: the last one was for this ring and ended less than ``period_seconds`` ago.
        """
        ...

    async def advance(self, job: str, shard: ShardId, ring: str, cursor: Generation | None) -> None:
        """Remember that a pass, begun for ``ring``, got past ``cursor``; None: it has ended."""
        ...

    async def move(self, blob: StoredBlob, old: Replica, new: Replica) -> MoveOutcome:
        """Put ``new`` in the place of ``old`` where that is still right. Returns only when the outcome is known."""
        ...

    async def trim(self, blob: StoredBlob, surplus: Replica) -> bool:
        """Take ``surplus`` out of service, its file to be removed later; False when it is needed after all."""
        ...
