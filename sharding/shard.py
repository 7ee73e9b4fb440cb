"""The roles a shard can play, as Protocols. The contracts stand here; implementations add only what differs.

Every method may raise ``ShardUnavailable`` when the shard cannot be reached in time, which says
nothing about what is on it. No method ever blocks the event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sharding.errors import ShardError
from sharding.listing import ShardListing
from sharding.model import BlobName, Buffer, Generation, ShardId


class StagedBlob(Protocol):
    """A blob on its way onto one shard: bytes in ``tmp/``, invisible until committed.

    Belongs to one task. After ``commit`` or ``abort`` only ``abort`` may be called: a commit that its
    guard refused never reached the shard. When the connection behind it breaks, or its process dies,
    the staged bytes vanish by themselves.
    """

    @property
    def written(self) -> int:
        """Bytes taken so far."""
        ...

    async def write(self, data: Buffer) -> None:
        """Append ``data``; it may be reused by the caller after the call returns.

        Raises ``ShardFull`` when the disk is full. After any error only ``abort`` may be called.
        """
        ...

    async def read(self, offset: int, length: int) -> Buffer:
        """Return exactly ``length`` staged bytes, so that a handoff can catch up from this copy."""
        ...

    async def commit(self, sha256: bytes, blocks: bytes) -> None:
        """Make the staged bytes durable under their final name.

        Returns after fdatasync of the file, rename, and fsync of the directory (and of every
        directory newly made). ``blocks`` are the writer's block digests: an owner across a wire
        compares them with its own and raises ``ReplicaCorrupt`` when bytes changed on the way.
        When it raises, the file may or may not be durable, and the caller deletes its generation.
        """
        ...

    async def abort(self) -> None:
        """Remove the staged bytes. Never raises; may be called twice."""
        ...


class Shard(Protocol):
    """A place that holds whole blobs and fails alone."""

    @property
    def id(self) -> ShardId: ...

    async def put(self, name: BlobName, data: Buffer) -> None:
        """Store a small blob (at most ``BLOCK_BYTES``) durably, in one call.

        Raises ``ShardFull``, ``ShardRefused``. When it raises, the caller deletes ``name``.
        """
        ...

    async def stage(self, generation: Generation, length: int | None = None) -> StagedBlob:
        """Open a writer for a blob, of about ``length`` bytes where that is known: it says how best to write.

        Raises ``ShardFull``, ``ShardRefused``.
        """
        ...

    async def read(self, name: BlobName, *, size: int, offset: int, length: int) -> Buffer:
        """Return exactly ``length`` bytes from ``offset`` of a blob that must be ``size`` bytes long.

        The bytes are as the disk gave them: the caller verifies. Raises ``ReplicaMissing`` when the
        file is not there, ``ReplicaCorrupt`` when its size is wrong or the disk cannot read it.
        """
        ...

    def recall(self, name: BlobName, *, size: int, offset: int, length: int) -> Buffer | None:
        """Return what ``read`` would where that takes no waiting at all; None says nothing about the file."""
        ...

    async def sizes(self, names: Sequence[BlobName]) -> list[int | None]:
        """Return the size of each file as it stands on disk now, None for one that is not there."""
        ...

    async def delete(self, name: BlobName) -> None:
        """Remove exactly this generation, durably; one that is not there is no error."""
        ...


@dataclass(frozen=True, slots=True)
class ShardSpace:
    """A shard's file system, in bytes. ``free_bytes`` is what is left above the reserve, never negative."""

    capacity_bytes: int
    free_bytes: int
    read_only: bool = False


class Measurable(Protocol):
    """The optional ability of a shard to tell its free space; only an owner has it."""

    async def space(self) -> ShardSpace: ...


class Epochs(Protocol):
    """The optional ability of a shard to tell primaries apart; only an owner has it.

    An epoch is the term of office of one primary node: a later one is higher. The shard remembers the
    highest it ever saw, durably, before it acts on it, unless its disk is full.
    """

    async def epoch(self) -> int:
        """Return the highest epoch the shard knows, 0 for none."""
        ...

    async def see_epoch(self, epoch: int) -> None:
        """Remember ``epoch``. Raises ``ShardRefused`` when a higher one is known."""
        ...

    async def remove(self, names: Sequence[BlobName], *, epoch: int) -> list[int | None]:
        """Remove exactly these generations, durably, in the name of the primary of ``epoch``.

        Return how many bytes each file had, None where there was none. Raises ``ShardRefused``, and nothing
        happens, when a higher epoch is known; after any other error some of them may be gone.
        """
        ...


class Hasher(Protocol):
    """What hashlib makes."""

    def update(self, data: memoryview, /) -> None: ...

    def digest(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Part:
    """``length`` bytes from ``offset`` (a block's start) of a replica of ``size`` bytes, to be read again.

    ``hasher`` is fed the bytes on the way.
    """

    name: BlobName
    size: int
    offset: int
    length: int
    hasher: Hasher | None = None


@dataclass(frozen=True, slots=True)
class Aside:
    """What lies in a shard's quarantine."""

    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class AsideEntry:
    """One name in a shard's quarantine."""

    name: bytes
    inode: int


class Auditable(Protocol):
    """The optional ability of a shard to judge its own replicas; only an owner has it, and only its node uses it."""

    @property
    def id(self) -> ShardId: ...

    async def reread(self, parts: Sequence[Part]) -> list[bytes | ShardError]:
        """Read each part from the disk, past the page cache, and return its block digests, or why there are none.

        That is ``ReplicaMissing`` or ``ReplicaCorrupt`` as ``Shard.read`` says. Everything else is raised.
        """
        ...

    async def check_intact(self) -> None:
        """Raise ``ShardUnavailable`` unless the shard's path still leads to this very shard, with its ``blobs/``.

        Only then is a file that is missing really absent.
        """
        ...

    async def sizes(self, names: Sequence[BlobName]) -> list[int | None]:
        """See ``Shard.sizes``."""
        ...

    async def set_aside(self, name: BlobName) -> bool:
        """Move this replica to the quarantine, durably, unless it is there; False when it is in neither place."""
        ...

    async def set_aside_entry(self, path: bytes, inode: int) -> bool:
        """Move what is at ``path`` below the shard's directory to the quarantine, whatever it is.

        False, and nothing is done, when it is not there or is another than was seen (by its inode).
        """
        ...

    async def aside(self) -> Aside:
        """Return what lies in the quarantine."""
        ...

    async def aside_entries(self) -> list[AsideEntry]:
        """Return what lies in the quarantine, one by one."""
        ...

    async def discard_aside_entry(self, entry: AsideEntry) -> bool:
        """Remove what is in the quarantine for good, durably, whatever it is.

        False, and nothing is done, when it is not there, is another by now, or is a directory that is not empty:
        nobody has seen what is in that.
        """
        ...

    async def discard_aside(self, names: Iterable[BlobName]) -> None:
        """Remove replicas from the quarantine for good; those that are not there are no error."""
        ...

    def listing(self) -> ShardListing:
        """Begin a listing of everything on the shard; the caller closes it."""
        ...

    async def list_next(self, listing: ShardListing) -> bool:
        """List one more directory; False when there was none left."""
        ...
