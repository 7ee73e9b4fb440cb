"""One file on its way into a shard: made in ``tmp/``, written, renamed to its final name. Every method blocks.

A caller may give up while a thread is still inside the kernel. So a file is *abandoned* at once, by
a flag, and undone by whoever leaves it last: its descriptor is never closed under a running write,
and a rename that comes too late is taken back.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sharding.crash_points import crash_point
from sharding.direct_writes import DirectWrites
from sharding.disk_errors import READING, WRITING, translated
from sharding.errors import ReplicaCorrupt, ShardRefused, ShardUnavailable
from sharding.files import OPEN_FILE, OPEN_NEW, ShardFiles, fan_out_of, read_up_to
from sharding.model import BlobName, Buffer, Generation

FLUSH_BYTES = 64 << 20
"""Bytes that may wait in the page cache: they bound the time of the last fdatasync, whatever the blob's size."""

WINDOW_BYTES = 8 << 20
"""How far behind its end a long file leaves the page cache while it is written."""


class StagedFile:
    """A file in ``tmp/`` named by its generation. Calls may overlap with ``abandon`` and ``discard`` alone."""

    def __init__(self, files: ShardFiles, generation: Generation, length: int | None = None) -> None:
        self.written = 0
        self._files = files
        self._generation = generation
        self._name = str(generation)
        self._blob: BlobName | None = None
        self._file = -1
        self._unflushed = 0
        self._cached_from = self._leaving_to = 0
        self._leave_cache_at = files.cached_bytes_max
        # What will not stay in the page cache has no need to go through it.
        self._direct_from = 0 if length is not None and length > files.cached_bytes_max else files.cached_bytes_max
        self._lock = threading.Lock()
        self._users = 0
        self._abandoned = False

    def create(self) -> None:
        """Open the file. Raises ``ShardFull`` under the reserve, and as ``disk_errors`` says."""
        self._files.check_space()
        with self._in_use(), translated(self._files.shard, WRITING, f"creating tmp/{self._name}"):
            self._create()

    def append(self, data: Buffer) -> None:
        """Write all of ``data`` at the end. After an error the file can only be discarded."""
        with self._in_use(), translated(self._files.shard, WRITING, f"writing tmp/{self._name}"):
            if self._unflushed >= FLUSH_BYTES:
                self._flush()
            if self.written >= self._direct_from:
                self._direct.prefer(self.written, data)
            self._write(data)
            if self.written >= self._leave_cache_at and self._unflushed:
                self._leave_cache()

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` of the bytes written so far."""
        if offset < 0 or length < 0 or offset + length > self.written:
            raise ShardRefused(self._files.shard, f"{length} bytes from {offset} are not within {self.written} staged")
        with self._in_use(), translated(self._files.shard, READING, f"reading tmp/{self._name}"):
            # Opened once more: what is written around the page cache could be read by whole pages alone.
            file = os.open(self._name, OPEN_FILE, dir_fd=self._files.tmp)
            try:
                data = read_up_to(file, offset, length)
            finally:
                os.close(file)
        if len(data) != length:
            raise ReplicaCorrupt(self._files.shard, f"tmp/{self._name} ended at {offset + len(data)}")
        return data

    def publish(self, sha256: bytes) -> tuple[str, ...]:
        """Make the bytes durable, rename and close the file, and return the directories still to be synced."""
        with self._in_use(), translated(self._files.shard, WRITING, f"syncing tmp/{self._name}"):
            directories = (fan_out_of(self._final_name(sha256)), *self._publish(sha256, sync=False))
        self.close()
        return directories

    def store(self, sha256: bytes, data: Buffer) -> tuple[str, ...]:
        """Create, write and publish a small file in one call, and sync its directory too.

        Where many come at once each thus syncs it again, which the file system does together; a sync
        shared with others would be one more way to a thread and back. Returns as ``publish``.
        """
        self._files.check_space()
        with self._in_use(), translated(self._files.shard, WRITING, f"storing tmp/{self._name}"):
            self._create()
            self._write(data)
            self._check_wanted()
            directories = self._publish(sha256, sync=True)
        self.close()
        return directories

    def close(self) -> None:
        """Close the descriptor, unless a call still uses it."""
        with self._lock:
            if self._users:
                return
            file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def abandon(self) -> None:
        """Forbid every further step; does not block."""
        self._abandoned = True

    def discard(self) -> None:
        """Abandon the file, and remove what there is of it. Never raises; may be called twice."""
        self._abandoned = True
        self._remove()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._lock:
            self._check_wanted()
            self._users += 1
        try:
            yield
        except BaseException:
            self._abandoned = True
            raise
        finally:
            with self._lock:
                self._users -= 1
                last = self._abandoned and not self._users
            if last:
                self._remove()

    def _create(self) -> None:
        self._file = os.open(self._name, OPEN_NEW, 0o600, dir_fd=self._files.tmp)
        self._direct = DirectWrites(self._file)

    def _write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        while view:
            try:
                taken = os.write(self._file, view)
            except OSError as error:
                if not self._direct.forgive(error):
                    raise
                continue
            view = view[taken:]
            self.written += taken
            if not self._direct.is_on:
                self._unflushed += taken

    def _final_name(self, sha256: bytes) -> str:
        return self._files.name(BlobName(sha256, self._generation))

    def _publish(self, sha256: bytes, *, sync: bool) -> tuple[str, ...]:
        """Take the final name, for good if ``sync``; return what is to be synced above its directory."""
        name = self._final_name(sha256)
        self._flush()
        crash_point("upload.synced")
        self._check_wanted()
        # Opened before the rename: a failed write-back is told, once, to each who had the directory open by then.
        directory = self._files.open_destination(name)
        try:
            self._files.place(self._name, name, directory)
            self._blob = BlobName(sha256, self._generation)
            crash_point("upload.renamed")
            if sync:
                os.fsync(directory)
        finally:
            os.close(directory)
        return self._files.above(name)

    def _flush(self) -> None:
        """Make what was written durable. Of a long file nothing stays in the page cache: that is for what is read."""
        os.fdatasync(self._file)
        self._unflushed = 0
        if self.written > self._files.cached_bytes_max:
            self._advise_to_drop(0, 0)

    def _leave_cache(self) -> None:
        """Start to write back what is dirty, which lets the next call free its pages."""
        self._advise_to_drop(self._cached_from, self.written - self._cached_from)
        self._cached_from, self._leaving_to = self._leaving_to, self.written
        self._leave_cache_at = self.written + WINDOW_BYTES

    def _advise_to_drop(self, offset: int, length: int) -> None:
        with suppress(OSError):  # a hint: not every file system takes it
            os.posix_fadvise(self._file, offset, length, os.POSIX_FADV_DONTNEED)

    def _check_wanted(self) -> None:
        if self._abandoned:
            raise ShardUnavailable(self._files.shard, f"tmp/{self._name} was given up")

    def _remove(self) -> None:
        self.close()
        with suppress(OSError):
            os.unlink(self._name, dir_fd=self._files.tmp)
        if self._blob is not None:
            with suppress(Exception):
                self._files.remove(self._blob)
