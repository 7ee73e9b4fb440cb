"""Bytes kept on a local shard's disk for a while, in a file without a name: it is gone with whoever has it open.

A killed process leaves nothing: the kernel frees what has no name, and ``tmp/``, where a file has one for a moment,
is emptied when its shard opens.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sharding.digests import BlobHasher
from sharding.disk_errors import WRITING, translated
from sharding.files import OPEN_NEW, ShardFiles
from sharding.identifiers import mint_generation
from sharding.local import LocalShard
from sharding.model import BlobDigests, Buffer


class SpoolFile:
    """The file, and the digests of what is in it. Every method blocks."""

    def __init__(self, files: ShardFiles) -> None:
        self._files = files
        self._hasher = BlobHasher()
        self._lock = threading.Lock()
        self._closed = False
        self.descriptor = -1

    def create(self) -> None:
        self._files.check_space()
        name = str(mint_generation())
        with self._lock, translated(self._files.shard, WRITING, f"creating tmp/{name}"):
            if self._closed:  # whoever wanted it is gone
                return
            self.descriptor = os.open(name, OPEN_NEW, 0o600, dir_fd=self._files.tmp)
            os.unlink(name, dir_fd=self._files.tmp)

    def append(self, data: Buffer) -> None:
        self._files.check_space()
        self._hasher.update(data)
        view = memoryview(data).cast("B")
        # Its descriptor is not closed under a write.
        with self._lock, translated(self._files.shard, WRITING, "writing a file without a name"):
            while view and self.descriptor >= 0:
                view = view[os.write(self.descriptor, view) :]

    def digests(self) -> BlobDigests:
        return self._hasher.finish()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Spool:
    """Made by ``open_spool``. Belongs to one task."""

    def __init__(self, shard: LocalShard, file: SpoolFile) -> None:
        self._shard = shard
        self._file = file
        self.size = 0

    @property
    def descriptor(self) -> int:
        """The open file, to be read from its start by offset."""
        return self._file.descriptor

    async def append(self, data: Buffer) -> None:
        """Write ``data`` at the end. Raises ``ShardFull`` at the shard's reserve, ``ShardError``."""
        await self._shard.run(self._file.append, data)
        self.size += memoryview(data).nbytes

    async def digests(self) -> BlobDigests:
        """Return the digests of what was written."""
        return await self._shard.run(self._file.digests)


@asynccontextmanager
async def open_spool(shard: LocalShard) -> AsyncIterator[Spool]:
    """Have a spool on ``shard`` for a block. Raises ``ShardFull``, ``ShardError``."""
    file = SpoolFile(shard.files)
    try:
        await shard.run(file.create)
        yield Spool(shard, file)
    finally:
        shard.release(file.close)
