"""Where a shard keeps aside what must no longer be read: ``<shard>/quarantine/``. Every method blocks.

Things get there by a rename within the shard, durably. Moving twice what was moved already is no error.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterable
from contextlib import suppress

from sharding.disk_errors import LOOKING, WRITING, translated
from sharding.errors import ShardUnavailable
from sharding.files import ShardFiles
from sharding.identifiers import uuid7
from sharding.identity import IDENTITY_FILE, OPEN_DIRECTORY, ShardIdentityError, inspect
from sharding.listing import open_below
from sharding.model import BlobName
from sharding.shard import Aside, AsideEntry

DIRECTORY = "quarantine"
NAME_BYTES_MAX = 200


class Quarantine:
    """The quarantine of one shard, made when first needed."""

    def __init__(self, files: ShardFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._directory = -1

    def close(self) -> None:
        with self._lock:
            if self._directory >= 0:
                os.close(self._directory)
                self._directory = -1

    def set_aside(self, blob: BlobName) -> bool:
        """See ``Auditable.set_aside``."""
        name = self._files.name(blob)
        with translated(self._files.shard, WRITING, f"moving {name} to {DIRECTORY}/"):
            target = self._open()
            with self._files.fan_out(name) as source:
                if source is not None:
                    with suppress(FileNotFoundError):
                        os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
                    # The new entry first: a crash between the two leaves the file under both names, never under none.
                    os.fsync(target)
                    os.fsync(source)
            return exists(name, target)

    def set_aside_entry(self, path: bytes, inode: int) -> bool:
        """See ``Auditable.set_aside_entry``."""
        parent, _, name = path.rpartition(b"/")
        with translated(self._files.shard, WRITING, f"moving {path!r} to {DIRECTORY}/"):
            try:
                source = open_below(self._files.claim.directory, parent)
            except (FileNotFoundError, NotADirectoryError):
                return False
            try:
                target = self._open()
                if os.lstat(name, dir_fd=source).st_ino != inode:
                    return False
                new_name = f"{uuid7()}.".encode() + name[:NAME_BYTES_MAX]
                os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
                os.fsync(target)
                os.fsync(source)
            except FileNotFoundError:
                return False
            finally:
                os.close(source)
        return True

    def contents(self) -> Aside:
        """See ``Auditable.aside``."""
        with translated(self._files.shard, LOOKING, f"reading {DIRECTORY}/"):
            sizes = [os.lstat(name, dir_fd=self._open()).st_size for name in os.listdir(self._open())]
        return Aside(len(sizes), sum(sizes))

    def entries(self) -> list[AsideEntry]:
        """See ``Auditable.aside_entries``."""
        with translated(self._files.shard, LOOKING, f"reading {DIRECTORY}/"):
            if not exists(DIRECTORY, self._files.claim.directory):
                return []
            with os.scandir(self._open()) as found:
                return [AsideEntry(os.fsencode(one.name), one.inode()) for one in found]

    def discard_entry(self, entry: AsideEntry) -> bool:
        """See ``Auditable.discard_aside_entry``."""
        with translated(self._files.shard, WRITING, f"removing {entry.name!r} from {DIRECTORY}/"):
            directory = self._open()
            try:
                found = os.lstat(entry.name, dir_fd=directory)
                if found.st_ino != entry.inode:
                    return False
                if stat.S_ISDIR(found.st_mode):
                    os.rmdir(entry.name, dir_fd=directory)
                else:
                    os.unlink(entry.name, dir_fd=directory)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                    return False
                raise
            os.fsync(directory)
        return True

    def discard(self, blobs: Iterable[BlobName]) -> None:
        """See ``Auditable.discard_aside``."""
        with translated(self._files.shard, WRITING, f"emptying {DIRECTORY}/"):
            directory = self._open()
            for blob in blobs:
                with suppress(FileNotFoundError):
                    os.unlink(self._files.name(blob), dir_fd=directory)
            os.fsync(directory)

    def check_intact(self) -> None:
        """See ``Auditable.check_intact``."""
        files = self._files
        with translated(files.shard, LOOKING, f"looking at {files.path}"):
            claimed, here = os.fstat(files.claim.directory), os.stat(files.path)
            blobs, inside = os.fstat(files.blobs), os.stat("blobs", dir_fd=files.claim.directory, follow_symlinks=False)
            os.stat(IDENTITY_FILE, dir_fd=files.claim.directory, follow_symlinks=False)
        if not os.path.samestat(claimed, here):
            raise ShardUnavailable(files.shard, f"{files.path} is another directory now: is the disk mounted?")
        if not os.path.samestat(blobs, inside) or not stat.S_ISDIR(inside.st_mode):
            raise ShardUnavailable(files.shard, f"{files.path}/blobs was replaced; restart the node")
        try:
            found = inspect(files.path)
        except ShardIdentityError as error:
            raise ShardUnavailable(files.shard, str(error)) from error
        if found != files.claim.identity:
            raise ShardUnavailable(files.shard, f"{files.path}/{IDENTITY_FILE} says that it is another shard")

    def _open(self) -> int:
        with self._lock:
            if self._directory < 0:
                shard = self._files.claim.directory
                with suppress(FileExistsError):
                    os.mkdir(DIRECTORY, 0o700, dir_fd=shard)
                    os.fsync(shard)
                self._directory = os.open(DIRECTORY, OPEN_DIRECTORY, dir_fd=shard)
            return self._directory


def exists(name: str, directory: int) -> bool:
    try:
        os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True
