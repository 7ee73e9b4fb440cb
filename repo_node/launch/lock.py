"""The lock on a cluster's directory: at most one ``up`` or ``down`` works on it at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from repo_node.launch.errors import DirectoryBusy

LOCK_NAME = "lock"
CHANGING_HANDS_SECONDS = 2.0
RETRY_SECONDS = 0.01


@contextlib.contextmanager
def hold_directory(directory: Path) -> Iterator[None]:
    """Hold the lock on ``directory``, which ends with this process however it ends.

    Raises ``DirectoryBusy`` when another process holds it.
    """
    descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock(descriptor, directory)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def lock(descriptor: int, directory: Path) -> None:
    """Take the lock; wait only while nobody's pid stands in the file: it is being taken or given up right now."""
    deadline = time.monotonic() + CHANGING_HANDS_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pid = read_pid(descriptor)
            if pid is not None or time.monotonic() > deadline:
                raise DirectoryBusy(directory, pid) from None
        time.sleep(RETRY_SECONDS)


@contextlib.contextmanager
def take_turns(path: Path) -> Iterator[None]:
    """Wait for the lock file at ``path`` and hold it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else None
