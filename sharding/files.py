"""The files of one claimed shard: names, directories, reads and removals. Every method but those ``_cached`` blocks.

The shard's directories are opened once and everything is reached through them, so that a disk
unmounted under the node never leads to its empty mount point; no link is ever followed.
``staging`` writes the files.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from uuid import UUID

from sharding.cached_reads import CachedReads
from sharding.disk_errors import LOOKING, MEDIUM_ERRNOS, READING, WRITING, shard_error, translated
from sharding.epoch import EpochFile
from sharding.errors import ReplicaCorrupt, ReplicaMissing, ShardError, ShardFull, ShardRefused, ShardUnavailable
from sharding.identity import OPEN_DIRECTORY, ShardClaim, make_layout
from sharding.model import BLOCK_BYTES, BlobName, ShardId
from sharding.shard import ShardSpace

GENERATION_AT = 65
"""Where the generation begins in a file's name, behind the sha256 and a dot."""

BLOBS = "."
"""How ``blobs/`` itself is called among the directories to be synced."""

SPACE_SAMPLE_SECONDS = 1.0
SHA256_BYTES = 32
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
OPEN_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


@contextmanager
def passing_read_only() -> Iterator[None]:
    """Leave the body where its file system is mounted read-only: what is there can still be read."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EROFS:
            raise


class ShardFiles:
    """What can be done in the directories of one shard.

    ``shard`` only signs the errors. An absent fan-out directory means that none of its blobs is
    there, unless ``blobs/`` itself was taken away. What is longer than ``cached_bytes_max`` leaves the
    page cache once it is written. Several processes may have one shard open, if each stages in a
    directory of its own: ``tmp/``, or one in it named ``stage``.
    """

    def __init__(
        self, shard: ShardId, claim: ShardClaim, reserve_bytes: int, cached_bytes_max: int, stage: str = ""
    ) -> None:
        self.shard = shard
        self.path = claim.path
        self.cached_bytes_max = cached_bytes_max
        self.claim = claim
        self.epochs = EpochFile(shard, claim)
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()
        self._undurable: dict[str, object] = {}
        self._durable: set[str] = set()
        """Fan-out directories known to be durable: any other may have been made just now, by another process too."""
        self._space = ShardSpace(0, 0)
        self._space_until = float("-inf")
        with passing_read_only():
            make_layout(claim.directory)
        self.tmp = open_stage(claim.directory, stage)
        try:
            self.blobs = os.open("blobs", OPEN_DIRECTORY, dir_fd=claim.directory)
        except OSError:
            os.close(self.tmp)
            raise
        self.cached_reads = CachedReads(self.blobs)

    def close(self) -> None:
        """Close the directories and give up the claim; no call may be under way. May be called twice."""
        if self.tmp >= 0:
            os.close(self.tmp)
            os.close(self.blobs)
            self.tmp = self.blobs = -1
        self.claim.close()

    def recover(self) -> None:
        """Empty ``tmp/``, and make durable the fan-out directories a killed owner may have left unsynced."""
        with passing_read_only():
            for name in os.listdir(self.tmp):
                self.discard_stage(name)
            self.settle()

    def settle(self) -> None:
        """Make the fan-out directories durable that are there."""
        found = os.listdir(self.blobs)
        os.fsync(self.blobs)
        with self._lock:
            self._durable.update(found)

    def discard_stage(self, name: str) -> None:
        """Remove what ``tmp/`` has of this name, with all that is in it; nobody may be staging there any more."""
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(os.lstat(name, dir_fd=self.tmp).st_mode):
                shutil.rmtree(name, dir_fd=self.tmp)
            else:
                os.unlink(name, dir_fd=self.tmp)

    def name(self, blob: BlobName) -> str:
        """Return the file name of ``blob``: 64 hex digits, a dot and a uuid, and nothing else."""
        if len(blob.sha256) != SHA256_BYTES or not isinstance(blob.generation, UUID):
            raise ShardRefused(self.shard, "a blob is named by 32 bytes of sha256 and a uuid")
        return str(blob)

    def path_of(self, blob: BlobName) -> str:
        """Return where in ``blobs/`` the file of ``blob`` is."""
        name = self.name(blob)
        return f"{fan_out_of(name)}/{name}"

    def read(self, blob: BlobName, size: int, offset: int, length: int) -> bytes:
        """See ``Shard.read``."""
        if offset < 0 or length < 0 or offset + length > size:
            raise ShardRefused(self.shard, f"{length} bytes from {offset} are not within {size}")
        name = self.name(blob)
        with self.fan_out(name, reading=True) as directory:
            if directory is None:
                raise ReplicaMissing(self.shard, f"reading {name}: its directory is not there")
            try:
                return self._read(name, directory, size, offset, length)
            except OSError as error:
                raise self.reading_failed(name, error) from error

    def read_cached(self, blob: BlobName, size: int, offset: int, length: int) -> memoryview | None:
        """Return what ``read`` would if memory has all of it; None says nothing about the file. Does not block."""
        if offset < 0 or not 0 < length <= BLOCK_BYTES or offset + length > size:
            return None
        return self.cached_reads.read(self.path_of(blob), size, offset, length)

    def size_cached(self, blob: BlobName) -> int | None:
        """Return what ``sizes`` would of a file that is there, if memory knows it; else None. Does not block."""
        return self.cached_reads.size(self.path_of(blob))

    def sizes(self, blobs: Sequence[BlobName]) -> list[int | None]:
        """See ``Shard.sizes``. Each file is opened: a dead file system still answers ``stat`` from memory."""
        return [self._size(self.name(blob)) for blob in blobs]

    def remove(self, blob: BlobName) -> tuple[str, ...]:
        """Unlink a blob and return the directories to sync.

        They are synced also when the file was gone: an earlier removal may not be durable yet.
        """
        name = self.name(blob)
        with self.fan_out(name) as directory:
            if directory is None:
                return ()
            with translated(self.shard, WRITING, f"removing {name}"), suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
        return (fan_out_of(name),)

    def open_destination(self, name: str) -> int:
        """Return the directory of the file ``name``, open, and made when it is not there; the caller closes it."""
        return self._open_or_make(fan_out_of(name))

    def place(self, staged: str, name: str, directory: int) -> None:
        """Rename ``tmp/<staged>`` to its final ``name`` in ``directory``, its open destination."""
        with suppress(FileNotFoundError):
            os.lstat(name, dir_fd=directory)
            raise ShardRefused(self.shard, f"{name} is there already, and no name is used twice")
        os.rename(staged, name, src_dir_fd=self.tmp, dst_dir_fd=directory)

    def above(self, name: str) -> tuple[str, ...]:
        """Return what is to be synced above the directory of ``name``: nothing, once that is known to be durable."""
        fan_out = fan_out_of(name)
        with self._lock:
            if fan_out in self._durable:
                return ()
            self._undurable.setdefault(fan_out, object())
            return (BLOBS,)

    def sync_all(self, directories: Sequence[str]) -> Mapping[str, OSError]:
        """Fsync each of ``directories`` and return the errors of those that failed."""
        failures = {}
        with self._lock:
            undurable = dict(self._undurable)
        for directory in directories:
            try:
                self._sync(directory)
            except OSError as error:
                failures[directory] = error
        if BLOBS in directories and BLOBS not in failures:
            self._note_durable(undurable)
        return failures

    def space(self) -> ShardSpace:
        """Return the space, sampled at most once a second."""
        now = time.monotonic()
        if now >= self._space_until:
            with translated(self.shard, LOOKING, f"asking for the free space of {self.path}"):
                found = os.fstatvfs(self.blobs)
                self._check_in_place()
            free = max(0, found.f_bavail * found.f_frsize - self._reserve_bytes)
            read_only = bool(found.f_flag & os.ST_RDONLY)
            self._space = ShardSpace(found.f_blocks * found.f_frsize, free, read_only)
            self._space_until = now + SPACE_SAMPLE_SECONDS
        return self._space

    def check_space(self) -> None:
        """Raise ``ShardFull`` when the free space is down to the reserve."""
        if self.space().free_bytes == 0:
            raise ShardFull(self.shard, f"no more than the reserve of {self._reserve_bytes} bytes is free")

    def _read(self, name: str, directory: int, size: int, offset: int, length: int) -> bytes:
        file = os.open(name, OPEN_FILE, dir_fd=directory)
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode) or found.st_size != size:
                raise ReplicaCorrupt(self.shard, f"{name} should be a file of {size} bytes and has {found.st_size}")
            data = read_up_to(file, offset, length)
        finally:
            os.close(file)
        if len(data) != length:
            raise ReplicaCorrupt(self.shard, f"{name} ended at {offset + len(data)} of {size} bytes")
        return data

    def reading_failed(self, name: str, error: OSError) -> ShardError:
        """Return what ``error`` means for the replica ``name``."""
        # A dead disk answers EIO to everything. That is no reason to suspect each of its replicas.
        dead = error.errno in MEDIUM_ERRNOS and not self._accepts_files()
        return shard_error(self.shard, LOOKING if dead else READING, f"reading {name}", error)

    def _accepts_files(self) -> bool:
        probe = f"probe-{threading.get_ident()}"
        try:
            os.close(os.open(probe, OPEN_NEW, 0o600, dir_fd=self.tmp))
            os.unlink(probe, dir_fd=self.tmp)
        except OSError as error:
            return error.errno in (errno.ENOSPC, errno.EDQUOT)
        return True

    def _size(self, name: str) -> int | None:
        with self.fan_out(name) as directory, translated(self.shard, LOOKING, f"looking for {name}"):
            if directory is None:
                return None
            try:
                file = os.open(name, OPEN_FILE, dir_fd=directory)
            except FileNotFoundError:
                return None
            try:
                found = os.fstat(file)
            finally:
                os.close(file)
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    @contextmanager
    def fan_out(self, name: str, *, reading: bool = False) -> Iterator[int | None]:
        """Open the directory of the file ``name``; None when it is not there, and ``blobs/`` is.

        For who is ``reading``, one that a living disk cannot give back is a bad part of it, like a file.
        """
        fan_out = fan_out_of(name)
        with translated(self.shard, LOOKING, f"opening blobs/{fan_out}"):
            try:
                directory = os.open(fan_out, OPEN_DIRECTORY, dir_fd=self.blobs)
            except FileNotFoundError:
                directory = -1
                self._check_present()
            except OSError as error:
                if reading and error.errno in MEDIUM_ERRNOS:
                    raise self.reading_failed(name, error) from error
                raise
        try:
            yield None if directory < 0 else directory
        finally:
            if directory >= 0:
                os.close(directory)

    def _check_present(self) -> None:
        if not os.fstat(self.blobs).st_nlink:
            raise ShardUnavailable(self.shard, f"{self.path}/blobs was removed")

    def _check_in_place(self) -> None:
        # Through its descriptors an unmounted disk goes on to answer, and would be missed at the next start.
        self._check_present()
        if not os.path.lexists(self.path):
            raise ShardUnavailable(self.shard, f"{self.path} is gone: is the disk mounted?")
        if not os.path.samestat(os.fstat(self.claim.directory), os.stat(self.path)):
            raise ShardUnavailable(self.shard, f"{self.path} is another directory now: is the disk mounted?")

    def _open_or_make(self, fan_out: str) -> int:
        with suppress(FileNotFoundError):
            return os.open(fan_out, OPEN_DIRECTORY, dir_fd=self.blobs)
        with self._lock, suppress(FileExistsError):  # whoever finds it, finds it noted as not yet durable
            os.mkdir(fan_out, 0o700, dir_fd=self.blobs)
            self._durable.discard(fan_out)
            self._undurable[fan_out] = object()
        return os.open(fan_out, OPEN_DIRECTORY, dir_fd=self.blobs)

    def _sync(self, directory: str) -> None:
        opened = os.open(directory, OPEN_DIRECTORY, dir_fd=self.blobs)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)

    def _note_durable(self, synced: Mapping[str, object]) -> None:
        with self._lock:
            for fan_out, token in synced.items():
                if self._undurable.get(fan_out) is token:
                    del self._undurable[fan_out]
                    self._durable.add(fan_out)


def open_stage(shard: int, name: str) -> int:
    """Open ``tmp/`` of the shard whose directory is open, or the directory ``name`` in it, which is made."""
    tmp = os.open("tmp", OPEN_DIRECTORY, dir_fd=shard)
    if not name:
        return tmp
    try:
        with passing_read_only(), suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=tmp)
        return os.open(name, OPEN_DIRECTORY, dir_fd=tmp)
    finally:
        os.close(tmp)


def read_up_to(file: int, offset: int, length: int) -> bytes:
    """Return ``length`` bytes from ``offset``, fewer only where the file ends."""
    data = os.pread(file, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    taken = len(data)
    while taken < length and (data := os.pread(file, length - taken, offset + taken)):
        parts.append(data)
        taken += len(data)
    return b"".join(parts)


def fan_out_of(name: str) -> str:
    """Return the directory under ``blobs/`` in which the file ``name`` belongs."""
    # The second (of 1,024 ms) in which the generation was minted, modulo 256: what is written at the
    # same time shares a directory, and so its fsync, while over time all 256 fill evenly.
    milliseconds = int(name[GENERATION_AT : GENERATION_AT + 8] + name[GENERATION_AT + 9 : GENERATION_AT + 13], 16)
    return f"{(milliseconds >> 10) & 0xFF:02x}"
