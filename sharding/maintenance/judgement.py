"""Is this replica right? The owner reads it again, past the page cache, and acts on what it finds.

Right: it counts (again). Right by its sha256 against its block digests: the digests are corrected. Bad:
another good copy permitting, it is condemned, and its file goes to quarantine. Absent: its row goes,
provided that the shard is intact. Whatever could not be looked at stays as it is.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass
from enum import StrEnum

from sharding.errors import ReplicaCorrupt, ReplicaMissing, ShardError, ShardUnavailable
from sharding.maintenance.audit_catalogue import AuditObserver, Fault, HeldReplica, JudgementCatalogue, Sentence
from sharding.model import BLOCK_BYTES, block_count
from sharding.shard import Auditable, Hasher, Part

log = logging.getLogger(__name__)

PORTION_BYTES = 32 * BLOCK_BYTES
"""Read in one hop to the threads of the disk."""

PORTION_SECONDS = 60.0
"""A disk that takes longer for a portion does not answer."""


class Verdict(StrEnum):
    RIGHT = "right"
    DIGESTS = "digests"
    """The bytes are right, the block digests were not."""
    CONDEMNED = "condemned"
    LAST = "last"
    """Bad or absent, and no other good copy exists."""
    ABSENT = "absent"
    GONE = "gone"
    """By the time of the verdict it was no blob's replica any more."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a whole replica was found to be; ``fault`` is None when its sha256 is right."""

    blocks: bytes
    fault: Fault | None = None


class Judgement:
    """Judges replicas of this node's own shards."""

    def __init__(self, catalogue: JudgementCatalogue, observer: AuditObserver) -> None:
        self._catalogue = catalogue
        self._observer = observer

    async def judge(self, shard: Auditable, held: HeldReplica) -> Verdict:
        """Read ``held`` again and act. Raises ``ShardUnavailable`` when the shard cannot be looked at."""
        try:
            evidence = await self._examine(shard, held)
        except ReplicaMissing:
            verdict = await self._dismiss_absent(shard, held)
        else:
            verdict = await self._pronounce(held, evidence)
        self._observer.observe_verdict(shard.id, verdict.value)
        if verdict not in (Verdict.RIGHT, Verdict.GONE):
            log.warning("replica %s on shard %s: %s", held.name, shard.id, verdict.value)
        return verdict

    async def _examine(self, shard: Auditable, held: HeldReplica) -> Evidence:
        """Return what the disk gives. Raises ``ReplicaMissing``, ``ShardUnavailable``."""
        hasher = hashlib.sha256()
        blocks = b""
        try:
            for offset in range(0, max(held.size, 1), PORTION_BYTES):
                blocks += await self._portion(shard, held, offset, hasher)
        except ReplicaCorrupt:
            # Unreadable, or of another size: the disk itself must be well to say so of one file.
            await shard.check_intact()
            return Evidence(b"", await self._fault_of(shard, held))
        right = hasher.digest() == held.name.sha256
        return Evidence(blocks, None if right else Fault.BYTES)

    async def _fault_of(self, shard: Auditable, held: HeldReplica) -> Fault:
        try:
            [size] = await shard.sizes([held.name])
        except ShardError:  # no file that can be opened: a link in its place, a damaged inode
            return Fault.UNREADABLE
        return Fault.UNREADABLE if size == held.size else Fault.SIZE

    async def _portion(self, shard: Auditable, held: HeldReplica, offset: int, hasher: Hasher) -> bytes:
        length = min(PORTION_BYTES, held.size - offset)
        part = Part(held.name, held.size, offset, length, hasher)
        [outcome] = await reread_within(shard, [part])
        self._observer.observe_reread(shard.id, length)
        if isinstance(outcome, ShardError):
            raise outcome
        return outcome

    async def _pronounce(self, held: HeldReplica, evidence: Evidence) -> Verdict:
        generation = held.name.generation
        if evidence.fault is not None:
            sentence = await self._catalogue.condemn(held.shard, generation, evidence.fault)
            match sentence:
                case Sentence.CONDEMNED:
                    return Verdict.CONDEMNED
                case Sentence.LAST:
                    return Verdict.LAST
                case Sentence.GONE:
                    return Verdict.GONE
        known = await self._catalogue.block_digests(held.blob, 0, block_count(held.size))
        if known != evidence.blocks:
            corrected = await self._catalogue.correct_digests(held.shard, generation, evidence.blocks)
            return Verdict.DIGESTS if corrected else Verdict.GONE
        await self._catalogue.reinstate(held.shard, generation)
        return Verdict.RIGHT

    async def _dismiss_absent(self, shard: Auditable, held: HeldReplica) -> Verdict:
        await shard.check_intact()
        [size] = await shard.sizes([held.name])
        if size is not None:
            raise ShardUnavailable(shard.id, f"{held.name} was absent and is there now; it will be looked at again")
        dropped = await self._catalogue.drop_absent(held.shard, [held.name.generation])
        return Verdict.ABSENT if dropped.dropped else Verdict.LAST if dropped.kept else Verdict.GONE


async def reread_within(shard: Auditable, parts: list[Part]) -> list[bytes | ShardError]:
    """Re-read ``parts``. A disk that hangs is unavailable, not bad."""
    try:
        async with asyncio.timeout(PORTION_SECONDS):
            return await shard.reread(parts)
    except TimeoutError:
        raise ShardUnavailable(shard.id, f"reading took longer than {PORTION_SECONDS:g} s") from None
