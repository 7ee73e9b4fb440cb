"""Does this disk keep what it is given? Asked once, before a shard takes part."""

from __future__ import annotations

import errno
import os

from sharding.errors import ShardUnavailable
from sharding.files import OPEN_NEW, ShardFiles

FILE = "self-test"
SIZE_BYTES = 4096


def check_disk(files: ShardFiles) -> None:
    """Create, write, sync, read back and remove a small file in ``tmp/``; blocks.

    Raises ``ShardUnavailable`` naming the step and the path. One that is full or read-only passes: it can still be
    read.
    """
    pattern = os.urandom(SIZE_BYTES)
    step = "create"
    try:
        file = os.open(FILE, OPEN_NEW, 0o600, dir_fd=files.tmp)
        try:
            step = "write"
            _write(file, pattern)
            step = "sync"
            os.fsync(file)
            step = "read back"
            _read_back(file, pattern)
        finally:
            os.close(file)
        step = "remove"
        os.unlink(FILE, dir_fd=files.tmp)
    except OSError as error:
        _undo(files)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            where = files.path / "tmp" / FILE
            raise ShardUnavailable(
                files.shard, f"self-test: cannot {step} {where}: {error.strerror or error}"
            ) from error


def _write(file: int, pattern: bytes) -> None:
    if os.write(file, pattern) < len(pattern):
        raise OSError(errno.ENOSPC, "only a part was taken")


def _read_back(file: int, pattern: bytes) -> None:
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk, not from memory
    if os.pread(file, len(pattern), 0) != pattern:
        raise OSError(errno.EIO, "the bytes are not those that were written")


def _undo(files: ShardFiles) -> None:
    try:
        os.unlink(FILE, dir_fd=files.tmp)
    except OSError:
        return  # the next start empties tmp/
