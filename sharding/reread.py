"""Reads replicas from the disk itself, not from memory. Every function blocks.

Where the file system allows it, reads go around the page cache (O_DIRECT): they see what the medium
holds, cost no copy and push nothing out. Elsewhere the pages are given up before and after reading.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from sharding.digests import block_digests
from sharding.disk_errors import LOOKING, translated
from sharding.errors import ReplicaCorrupt, ReplicaMissing, ShardError, ShardRefused, ShardUnavailable
from sharding.files import OPEN_FILE, ShardFiles
from sharding.identity import IDENTITY_FILE
from sharding.model import BLOCK_BYTES
from sharding.room import PAGE_BYTES, room_for
from sharding.shard import Part


class Rereader:
    """Re-reads replicas of one shard, a block at a time."""

    def __init__(self, files: ShardFiles) -> None:
        self._files = files
        self._asking = threading.Lock()

    def check_answers(self) -> None:
        """Raise ``ShardUnavailable`` when the disk gives nothing: a dead one tells its free space from memory."""
        if not self._asking.acquire(blocking=False):  # one thread that hangs is enough
            raise ShardUnavailable(self._files.shard, "the disk has not answered the last question yet")
        try:
            with translated(self._files.shard, LOOKING, f"reading {self._files.path}/{IDENTITY_FILE}"):
                self._read_identity()
        finally:
            self._asking.release()

    def _read_identity(self) -> None:
        with (
            suppress(FileNotFoundError),  # the disk answered
            opened(IDENTITY_FILE, self._files.claim.directory) as (file, is_direct),
        ):
            read_into(room_for(BLOCK_BYTES), file, 0, PAGE_BYTES, is_direct)

    def reread(self, parts: Sequence[Part]) -> list[bytes | ShardError]:
        """See ``Auditable.reread``."""
        outcomes: list[bytes | ShardError] = []
        for part in parts:
            try:
                outcomes.append(self._reread(part))
            except (ReplicaMissing, ReplicaCorrupt) as error:
                outcomes.append(error)
        return outcomes

    def _reread(self, part: Part) -> bytes:
        if part.offset % BLOCK_BYTES or not 0 <= part.offset <= part.offset + part.length <= part.size:
            raise ShardRefused(
                self._files.shard, f"{part.length} bytes from {part.offset} are no blocks of {part.size}"
            )
        name = self._files.name(part.name)
        with self._files.fan_out(name, reading=True) as directory:
            if directory is None:
                raise ReplicaMissing(self._files.shard, f"re-reading {name}: its directory is not there")
            try:
                with opened(name, directory) as (file, is_direct):
                    return self._digest(part, name, file, is_direct)
            except OSError as error:
                raise self._files.reading_failed(name, error) from error

    def _digest(self, part: Part, name: str, file: int, is_direct: bool) -> bytes:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_size != part.size:
            raise ReplicaCorrupt(
                self._files.shard, f"{name} should be a file of {part.size} bytes and has {found.st_size}"
            )
        digests, room = b"", room_for(BLOCK_BYTES)
        for offset in range(part.offset, part.offset + part.length, BLOCK_BYTES):
            wanted = min(BLOCK_BYTES, part.offset + part.length - offset)
            data = read_into(room, file, offset, wanted, is_direct)
            if len(data) != wanted:
                ended_at = offset + len(data)
                raise ReplicaCorrupt(self._files.shard, f"{name} ended at {ended_at} of {part.size} bytes")
            digests += block_digests(data)
            if part.hasher is not None:
                part.hasher.update(data)
        return digests


def read_into(buffer: memoryview, file: int, offset: int, wanted: int, is_direct: bool) -> memoryview:
    """Return up to ``wanted`` bytes of ``file``, in ``buffer``."""
    # Whole pages, as a direct read asks for, beyond the end of the file too, where it stops by itself.
    buffer = buffer[: -(-wanted // PAGE_BYTES) * PAGE_BYTES]
    if not is_direct:
        os.posix_fadvise(file, offset, BLOCK_BYTES, os.POSIX_FADV_DONTNEED)
    taken = 0
    while taken < wanted and (count := os.preadv(file, [buffer[taken:]], offset + taken)):
        taken += count
        if is_direct and taken % PAGE_BYTES:
            break
    if not is_direct:
        os.posix_fadvise(file, offset, BLOCK_BYTES, os.POSIX_FADV_DONTNEED)
    return buffer[: min(taken, wanted)]


@contextmanager
def opened(name: str, directory: int) -> Iterator[tuple[int, bool]]:
    """Open a file, around the page cache if that can be."""
    try:
        file, is_direct = os.open(name, OPEN_FILE | os.O_DIRECT, dir_fd=directory), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        file, is_direct = os.open(name, OPEN_FILE, dir_fd=directory), False
    try:
        yield file, is_direct
    finally:
        os.close(file)
