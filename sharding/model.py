"""The nouns of the binary store: shards, replicas, digests.

Pure data. A *digest* names content, a blob's *uid* places it on the ring, a
*generation* names one file of one replica and is never used twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType
from uuid import UUID

BLOCK_BYTES = 1 << 20
"""Bytes covered by one block digest; the last block of a blob may be shorter."""

BLOCK_DIGEST_BYTES = 8
"""Length of one block digest: xxh3-64, big-endian."""

ALL_DIGESTS = ("sha256", "sha1", "md5")
"""The digests of a whole blob, the safest first."""

EXTRA_DIGESTS = frozenset(ALL_DIGESTS[1:])
"""What can be computed of a blob beside its sha256 and its block digests, for clients that verify it."""

ShardId = NewType("ShardId", int)
NodeId = NewType("NodeId", str)
ZoneId = NewType("ZoneId", str)
Generation = NewType("Generation", UUID)

Buffer = bytes | bytearray | memoryview


class ShardState(StrEnum):
    """What an administrator, or a verdict, says of a shard."""

    ACTIVE = "active"
    READ_ONLY = "read_only"
    DRAINING = "draining"
    OFFLINE = "offline"
    LOST = "lost"

    @property
    def takes_writes(self) -> bool:
        return self is ShardState.ACTIVE

    @property
    def serves_reads(self) -> bool:
        return self not in (ShardState.OFFLINE, ShardState.LOST)


@dataclass(frozen=True, slots=True)
class Member:
    """One shard as the ring sees it.

    ``uid`` is the identity written in the shard's ``shard.json``: the ring hashes it, so that a
    catalogue rebuilt with other numbers still places every blob where it was. ``weight`` is any
    positive number; only its ratio to the other weights of the zone matters.
    """

    shard: ShardId
    uid: UUID
    zone: ZoneId
    node: NodeId
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class BlobName:
    """The file name of one replica: content and generation."""

    sha256: bytes
    generation: Generation

    def __str__(self) -> str:
        return f"{self.sha256.hex()}.{self.generation}"


@dataclass(frozen=True, slots=True)
class Replica:
    """Where one copy of a blob is: a shard, and the generation of the file there."""

    shard: ShardId
    generation: Generation
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class BlobDigests:
    """Everything computed while a blob streamed in; ``sha1`` and ``md5`` are None where nobody wanted them."""

    size: int
    sha256: bytes
    sha1: bytes | None
    md5: bytes | None
    blocks: bytes
    """xxh3-64 of every block, 8 bytes each, big-endian, in order."""


def block_count(size: int) -> int:
    """Return how many blocks a blob of ``size`` bytes has; an empty blob has none."""
    return -(-size // BLOCK_BYTES)
