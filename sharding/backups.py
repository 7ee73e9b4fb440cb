"""Backups of the catalogue that an owner keeps on its shard: ``<shard>/backups/``. Every method blocks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from sharding.disk_errors import LOOKING, WRITING, translated
from sharding.files import OPEN_NEW, ShardFiles
from sharding.identity import OPEN_DIRECTORY

DIRECTORY = "backups"
DRAFT = ".new"


class ShardBackups:
    """The backups on one shard, by their names, which sort by age."""

    def __init__(self, files: ShardFiles) -> None:
        self._files = files

    def create(self) -> IO[bytes]:
        """Begin a new backup, in place of one that was never finished. Raises ``ShardFull`` under the reserve."""
        self._files.check_space()
        with translated(self._files.shard, WRITING, f"creating {DIRECTORY}/{DRAFT}"), self._opened() as directory:
            with suppress(FileNotFoundError):
                os.unlink(DRAFT, dir_fd=directory)
            return os.fdopen(os.open(DRAFT, OPEN_NEW, 0o600, dir_fd=directory), "r+b")

    def publish(self, name: str) -> int:
        """Give the new backup, which is whole and synced, its name, durably; return its bytes."""
        with translated(self._files.shard, WRITING, f"naming {DIRECTORY}/{name}"), self._opened() as directory:
            os.rename(DRAFT, name, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
            return os.stat(name, dir_fd=directory).st_size

    def keep(self, count: int) -> list[str]:
        """Remove all but the last ``count`` backups, and return the names of those that are left."""
        with translated(self._files.shard, LOOKING, f"reading {DIRECTORY}/"), self._opened() as directory:
            names = sorted(name for name in os.listdir(directory) if name != DRAFT)
            kept = names[max(len(names) - count, 0) :]
            for name in names[: len(names) - len(kept)]:
                os.unlink(name, dir_fd=directory)
            os.fsync(directory)
        return kept

    @contextmanager
    def _opened(self) -> Iterator[int]:
        shard = self._files.claim.directory
        with suppress(FileExistsError):
            os.mkdir(DIRECTORY, 0o700, dir_fd=shard)
            os.fsync(shard)
        directory = os.open(DIRECTORY, OPEN_DIRECTORY, dir_fd=shard)
        try:
            yield directory
        finally:
            os.close(directory)
