"""Whose directory is this? ``shard.json``, and the lock that keeps a second owner out.

A disk mounted at the wrong place, an empty mount point, a cloned or doubly mounted disk must be
refused with a sentence that says what to do, and never be filled. Every function here blocks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from sharding.errors import StoreError

FORMAT = 1
"""The layout of a shard that this version reads and writes."""

IDENTITY_FILE = "shard.json"
IDENTITY_DRAFT = ".shard.json.new"
IDENTITY_BYTES_MAX = 64 * 1024
TOLERATED = frozenset({"lost+found", IDENTITY_DRAFT})
"""What may lie in a directory that still counts as empty: the file system's own, and a broken-off ``create``."""

STAGE = re.compile(rb"worker-[0-9]+-[0-9]+")
"""The name of a directory in ``tmp/`` that is one process' alone: see ``stage_of``."""

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class ShardIdentityError(StoreError):
    """The directory cannot be used as this shard; the message names the path and what to do."""


@dataclass(frozen=True, slots=True)
class ShardIdentity:
    """What ``shard.json`` says: the cluster a shard belongs to, and which shard it is."""

    cluster_id: UUID
    shard_uid: UUID


class ShardClaim:
    """The lock on a shard's directory, held until ``close`` or the end of the process."""

    def __init__(self, path: Path, directory: int, identity: ShardIdentity) -> None:
        self.path = path
        self.directory = directory
        self.identity = identity

    def close(self) -> None:
        """Give the shard up; may be called twice."""
        if self.directory >= 0:
            os.close(self.directory)
            self.directory = -1


def inspect(path: Path) -> ShardIdentity | None:
    """Return the identity of the shard at ``path``, None if a shard can be created there.

    Raises ``ShardIdentityError`` when it is neither.
    """
    if not os.path.lexists(path):
        _check_creatable(path)
        return None
    with _opened(path) as directory:
        return _read_identity(path, directory)


def create(path: Path, cluster_id: UUID, shard_uid: UUID) -> ShardIdentity:
    """Make an empty or absent directory a shard, durably, and return its identity.

    Raises ``ShardIdentityError``.
    """
    identity = ShardIdentity(cluster_id, shard_uid)
    try:
        _make_directories(path)
        with _opened(path) as directory:
            _lock(path, directory)
            if (found := _read_identity(path, directory)) is not None:
                raise ShardIdentityError(
                    f"{path} is shard {found.shard_uid} of cluster {found.cluster_id} already; "
                    "give the new shard an empty directory"
                )
            _write_identity(directory, identity)
            make_layout(directory)
    except OSError as error:
        raise ShardIdentityError(
            f"{path}: a shard cannot be created there: {error.strerror or error}; "
            "make the directory writable for the node's user, or choose another"
        ) from error
    return identity


def claim(path: Path, expected: ShardIdentity) -> ShardClaim:
    """Lock the shard at ``path`` and return the lock, with the directory held open.

    Raises ``ShardIdentityError`` when another owner holds it, or when it is not ``expected``.
    """
    if not os.path.lexists(path):
        raise ShardIdentityError(_absent(path, "does not exist", expected))
    with _opened(path) as directory:
        _lock(path, directory)
        _check_expected(path, _read_identity(path, directory), expected)
        return ShardClaim(path, os.dup(directory), expected)


def make_layout(directory: int) -> None:
    """Make ``blobs/`` and ``tmp/`` in the shard's open directory where they are missing, durably."""
    for name in ("blobs", "tmp"):
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=directory)
    os.fsync(directory)


def stage_of(process: int, start: int) -> str:
    """Return the name of the directory in ``tmp/`` where a process stages after its ``start``-th start."""
    return f"worker-{process}-{start}"


def _check_expected(path: Path, found: ShardIdentity | None, expected: ShardIdentity) -> None:
    if found is None:
        raise ShardIdentityError(_absent(path, "is empty", expected))
    if found.cluster_id != expected.cluster_id:
        raise ShardIdentityError(
            f"{path} belongs to cluster {found.cluster_id}, and this is cluster {expected.cluster_id}; "
            "mount this cluster's disk there, or give this node an empty directory"
        )
    if found.shard_uid != expected.shard_uid:
        raise ShardIdentityError(
            f"{path} is shard {found.shard_uid}, and shard {expected.shard_uid} was expected there; "
            "check which disk is mounted where"
        )


def _absent(path: Path, how: str, expected: ShardIdentity) -> str:
    return (
        f"{path} {how}, and shard {expected.shard_uid} was expected there: is the disk mounted? "
        "Nothing was written; mount it, or declare the shard lost and add a new one"
    )


def _check_creatable(path: Path) -> None:
    nearest = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not nearest.is_dir():
        raise ShardIdentityError(f"{path}: {nearest} is not a directory; choose another path")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ShardIdentityError(f"{path} does not exist, and this user may not create it in {nearest}")


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        directory = os.open(path, OPEN_DIRECTORY)
    except OSError as error:
        if path.is_symlink():
            reason = "is a symbolic link; write the path it leads to"
        elif error.errno == errno.ENOTDIR:
            reason = "is not a directory; a shard needs a directory of its own"
        else:
            reason = f"cannot be opened: {error.strerror}; check its owner, its mode and the disk"
        raise ShardIdentityError(f"{path} {reason}") from error
    try:
        yield directory
    finally:
        os.close(directory)


def _lock(path: Path, directory: int) -> None:
    # The directory itself is locked: it exists before shard.json does, and is never replaced.
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ShardIdentityError(
            f"{path} is in use by another process or another shard of this node; stop it, or correct the path"
        ) from None
    except OSError as error:
        raise ShardIdentityError(
            f"{path} cannot be locked: {error.strerror}; a shard must lie on a local file system"
        ) from error


def _read_identity(path: Path, directory: int) -> ShardIdentity | None:
    try:
        names = set(os.listdir(directory))
        if IDENTITY_FILE not in names:
            _check_empty(path, names)
            return None
        text = _read_small(directory, IDENTITY_FILE)
    except OSError as error:
        raise ShardIdentityError(
            f"{path / IDENTITY_FILE} cannot be read: {error.strerror}; check its owner, its mode and the disk"
        ) from error
    return _parse_identity(path / IDENTITY_FILE, text)


def _check_empty(path: Path, names: set[str]) -> None:
    others = sorted(names - TOLERATED)
    if others:
        raise ShardIdentityError(
            f"{path} has no {IDENTITY_FILE} and is not empty ({', '.join(others[:3])}): it is not a shard; "
            "give the shard an empty directory, or restore its shard.json"
        )


def _read_small(directory: int, name: str) -> bytes:
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return os.pread(file, IDENTITY_BYTES_MAX, 0)
    finally:
        os.close(file)


def _parse_identity(file: Path, text: bytes) -> ShardIdentity:
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise ShardIdentityError(
                f"{file} has format {document['format']!r}, and this version reads format {FORMAT}; "
                "run the version that wrote it"
            )
        return ShardIdentity(UUID(document["cluster_id"]), UUID(document["shard_uid"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShardIdentityError(
            f'{file} is damaged: it must be {{"cluster_id": uuid, "shard_uid": uuid, "format": {FORMAT}}}; '
            "restore it from a backup or from the database's row of this shard"
        ) from error


def _make_directories(path: Path) -> None:
    missing = [part for part in (path, *path.absolute().parents) if not os.path.lexists(part)]
    for part in reversed(missing):
        part.mkdir(mode=0o700, exist_ok=True)  # another shard's may be made at the same time
        _sync_directory(part.absolute().parent)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _write_identity(directory: int, identity: ShardIdentity) -> None:
    text = json.dumps(
        {"cluster_id": str(identity.cluster_id), "shard_uid": str(identity.shard_uid), "format": FORMAT}, indent=2
    )
    with suppress(FileNotFoundError):
        os.unlink(IDENTITY_DRAFT, dir_fd=directory)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
    with open(
        IDENTITY_DRAFT, "w", encoding="ascii", opener=lambda n, _: os.open(n, flags, 0o600, dir_fd=directory)
    ) as f:
        f.write(text + "\n")
        f.flush()
        os.fsync(f.fileno())
    os.rename(IDENTITY_DRAFT, IDENTITY_FILE, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)
