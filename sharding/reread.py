"""Reads replicas from the disk itself, not from memory. Every function blocks.

Where the file system allows it, reads go around the page cache (O_DIRECT): they see what the medium
holds, cost no copy and push nothing out. Elsewhere the pages are given up before and after reading.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sharding.digests import block_digests
from sharding.errors import ReplicaCorrupt, ReplicaMissing, ShardError, ShardRefused
from sharding.files import OPEN_FILE, ShardFiles
from sharding.model import BLOCK_BYTES
from sharding.shard import Part

BUFFER_BYTES = 4 * BLOCK_BYTES
"""Read in one call: large enough that calls do not count, small enough to stay in the processor's cache."""


class Rereader:
    """Re-reads replicas of one shard into buffers of its own, which are used again and again."""

    def __init__(self, files: ShardFiles) -> None:
        self._files = files
        self._local = threading.local()

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
        with self._files.fan_out(name) as directory:
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
        digests = b""
        for offset in range(part.offset, part.offset + part.length, BUFFER_BYTES):
            wanted = min(BUFFER_BYTES, part.offset + part.length - offset)
            data = self._read(file, offset, wanted, is_direct)
            if len(data) != wanted:
                raise ReplicaCorrupt(self._files.shard, f"{name} ended at {offset + len(data)} of {part.size} bytes")
            digests += block_digests(data)
            if part.hasher is not None:
                part.hasher.update(data)
        return digests

    def _read(self, file: int, offset: int, wanted: int, is_direct: bool) -> memoryview:
        """Return up to ``wanted`` bytes, valid until the next call on this thread."""
        # Whole pages, as a direct read asks for, beyond the end of the file too, where it stops by itself.
        buffer = self._buffer()[: -(-wanted // mmap.PAGESIZE) * mmap.PAGESIZE]
        if not is_direct:
            os.posix_fadvise(file, offset, BUFFER_BYTES, os.POSIX_FADV_DONTNEED)
        taken = 0
        while taken < wanted and (count := os.preadv(file, [buffer[taken:]], offset + taken)):
            taken += count
            if is_direct and taken % mmap.PAGESIZE:
                break
        if not is_direct:
            os.posix_fadvise(file, offset, BUFFER_BYTES, os.POSIX_FADV_DONTNEED)
        return buffer[: min(taken, wanted)]

    def _buffer(self) -> memoryview:
        buffer: memoryview | None = getattr(self._local, "buffer", None)
        if buffer is None:
            # Anonymous memory begins at a page, as direct reads want it.
            buffer = self._local.buffer = memoryview(mmap.mmap(-1, BUFFER_BYTES))
        return buffer


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
