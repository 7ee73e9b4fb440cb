"""Files and directories that only their owner can read: secrets, configurations and logs of a cluster.

Nothing here changes the mode of a directory that existed before.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import IO

LOG_BYTES_MAX = 32 << 20


def make_private_directory(path: Path) -> None:
    """Create ``path`` and whatever parents are missing with mode 0700; leave existing ones as they are."""
    if path.is_dir():
        return
    if path.parent != path:
        make_private_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


def write_private(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` with mode 0600 so that a reader sees the old file or the whole new one."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staged.rename(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in the directory at ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_log(path: Path) -> IO[bytes]:
    """Open the log at ``path`` for appending with mode 0600; one over ``LOG_BYTES_MAX`` becomes ``<name>.1``."""
    if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
        path.replace(path.with_name(f"{path.name}.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "ab", buffering=0)


def read_tail(path: Path, offset: int = 0, lines_max: int = 12) -> str:
    """Return the last lines of a log that were written after ``offset`` bytes, or an empty text."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(offset if offset <= size else 0, size - 64 * 1024))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines_max:])
