"""Everything that lies on a shard, as one stream in the order of the rows, in bounded memory. Blocks.

Each directory is read and sorted by itself and its replicas go to a spool file as one run; the runs
are merged while they are read back. Only 56 bytes a replica, on disk, are kept, whatever the shard holds.
"""

from __future__ import annotations

import heapq
import os
import re
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from sharding.epoch import EPOCH_DRAFT, EPOCH_FILE
from sharding.identity import IDENTITY_DRAFT, IDENTITY_FILE, OPEN_DIRECTORY, STAGE
from sharding.model import BlobName, Generation

REPLICA = re.compile(rb"([0-9a-f]{64})\.([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")
FAN_OUT = re.compile(rb"[0-9a-f]{2}")
RECORD = struct.Struct("<16s32sQ")
"""Generation, sha256, inode."""

RUN_RECORDS_READ = 1024
ODDITIES_MAX = 10_000
"""Foreign things remembered of one shard; what is beyond is counted."""

KNOWN = frozenset(map(os.fsencode, (IDENTITY_FILE, IDENTITY_DRAFT, EPOCH_FILE, EPOCH_DRAFT))) | {
    b"blobs",
    b"tmp",
    b"quarantine",
    b"backups",
    b"lost+found",
}
"""What belongs at the top of a shard."""


class Oddity(StrEnum):
    """What lies on a shard and is no replica in its place."""

    WRONG_NAME = "wrong_name"
    """A replica in a directory where nobody looks for it."""
    TEMP = "temp"
    """Something in ``tmp/``, or in a stage there. A stage is none: it is in its place as long as its process lives."""
    FOREIGN = "foreign"
    LINK = "link"
    """A symbolic link; never followed."""


@dataclass(frozen=True, slots=True)
class OddEntry:
    """Something odd: its path below the shard's directory, and its inode."""

    oddity: Oddity
    path: bytes
    inode: int


@dataclass(frozen=True, slots=True)
class FoundReplica:
    """A file named as a replica, where a replica of that name belongs."""

    name: BlobName
    inode: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a directory. ``kind`` is ``file``, ``directory``, ``link`` or ``other``."""

    name: bytes
    inode: int
    kind: str


class ShardListing:
    """One walk over a shard: ``list_next`` until it is False, then iterate ``replicas``. Belongs to one task."""

    def __init__(self, top: int) -> None:
        self.oddities: list[OddEntry] = []
        self.oddities_beyond = 0
        self.replicas_count = 0
        self._top = top
        self._spool = tempfile.TemporaryFile(prefix="holdfast-listing-")  # noqa: SIM115 - closed by close
        self._runs: list[tuple[int, int]] = []
        self._directories: list[bytes] | None = None

    def close(self) -> None:
        self._spool.close()

    def list_next(self) -> bool:
        """List the top, then one more directory of replicas; False when there was none left. Raises ``OSError``."""
        if self._directories is None:
            self._directories = self._list_top()
            return True
        if not self._directories:
            return False
        self._list_fan_out(self._directories.pop())
        return True

    def replicas(self) -> Iterator[FoundReplica]:
        """Yield the replicas by generation."""
        self._spool.flush()
        for record in heapq.merge(*(self._run(start, count) for start, count in self._runs)):
            generation, sha256, inode = RECORD.unpack(record)
            yield FoundReplica(BlobName(sha256, Generation(UUID(bytes=generation))), inode)

    def _list_top(self) -> list[bytes]:
        found = []
        for entry in self._entries(b"."):
            if entry.name not in KNOWN:
                self._note(odd_kind(entry), entry.name, entry)
        self._list_staged(b"tmp")
        for entry in self._entries(b"blobs"):
            if FAN_OUT.fullmatch(entry.name) and entry.kind == "directory":
                found.append(entry.name)
            else:
                self._note(odd_kind(entry), b"blobs/" + entry.name, entry)
        return sorted(found, reverse=True)

    def _list_staged(self, directory: bytes) -> None:
        for entry in self._entries(directory):
            path = b"%b/%b" % (directory, entry.name)
            if directory == b"tmp" and entry.kind == "directory" and STAGE.fullmatch(entry.name):
                self._list_staged(path)
            else:
                self._note(Oddity.TEMP, path, entry)

    def _list_fan_out(self, fan_out: bytes) -> None:
        records = []
        for entry in self._entries(b"blobs/" + fan_out):
            path = b"blobs/%b/%b" % (fan_out, entry.name)
            match = REPLICA.fullmatch(entry.name)
            if match is None or entry.kind != "file":
                self._note(odd_kind(entry), path, entry)
                continue
            generation = UUID(match[2].decode())
            if b"%02x" % (generation.int >> 90 & 0xFF) != fan_out:
                self._note(Oddity.WRONG_NAME, path, entry)
                continue
            records.append(RECORD.pack(generation.bytes, bytes.fromhex(match[1].decode()), entry.inode))
        records.sort()
        self._runs.append((self._spool.seek(0, os.SEEK_END), len(records)))
        self._spool.write(b"".join(records))
        self.replicas_count += len(records)

    def _entries(self, directory: bytes) -> list[Entry]:
        """Return what is in a directory of the shard; nothing when it is gone by now."""
        try:
            opened = open_below(self._top, directory)
        except FileNotFoundError:
            return []
        try:
            with os.scandir(opened) as entries:
                # Through a descriptor names come as text; what they are on disk are bytes.
                return [Entry(os.fsencode(one.name), one.inode(), kind_of(one)) for one in entries]
        finally:
            os.close(opened)

    def _note(self, oddity: Oddity, path: bytes, entry: Entry) -> None:
        if len(self.oddities) < ODDITIES_MAX:
            self.oddities.append(OddEntry(oddity, path, entry.inode))
        else:
            self.oddities_beyond += 1

    def _run(self, start: int, count: int) -> Iterator[bytes]:
        for first in range(0, count, RUN_RECORDS_READ):
            wanted = min(RUN_RECORDS_READ, count - first) * RECORD.size
            data = os.pread(self._spool.fileno(), wanted, start + first * RECORD.size)
            for at in range(0, len(data), RECORD.size):
                yield data[at : at + RECORD.size]


def open_below(top: int, path: bytes) -> int:
    """Open the directory at ``path`` below the open directory ``top``, following no link anywhere."""
    directory = os.dup(top)
    for part in path.split(b"/"):
        if part in (b"", b"."):
            continue
        try:
            inner = os.open(part, OPEN_DIRECTORY, dir_fd=directory)
        finally:
            os.close(directory)
        directory = inner
    return directory


def kind_of(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    return "file" if entry.is_file(follow_symlinks=False) else "other"


def odd_kind(entry: Entry) -> Oddity:
    return Oddity.LINK if entry.kind == "link" else Oddity.FOREIGN
