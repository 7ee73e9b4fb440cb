"""The highest epoch of a primary node that a shard was told of, in a small file of the shard. Every method blocks.

The database may forget: a failover or a restore can take it back in time. What a shard has seen then
proves it, and a primary of the forgotten time, or one that was replaced, finds its deletions refused.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sharding.disk_errors import LOOKING, WRITING, translated
from sharding.errors import ShardRefused, ShardUnavailable
from sharding.identity import OPEN_DIRECTORY, ShardClaim
from sharding.model import ShardId

EPOCH_FILE = "epoch"
EPOCH_DRAFT = ".epoch.new"
EPOCH_DIGITS_MAX = 18


class EpochFile:
    """``epoch`` beside ``shard.json``: one decimal number, which only grows.

    Safe to share between threads, and between the processes that have the shard open: what the file says is
    all that any of them knows.
    """

    def __init__(self, shard: ShardId, claim: ShardClaim) -> None:
        self._shard = shard
        self._claim = claim
        self._lock = threading.Lock()

    def known(self) -> int:
        """Return the highest epoch ever seen, 0 for none."""
        with translated(self._shard, LOOKING, f"reading {EPOCH_FILE}"):
            return self._parse(self._read())

    def see(self, epoch: int) -> None:
        """Remember ``epoch``, durably when it is new. Raises ``ShardRefused`` when a higher one is known."""
        if self._is_newer(epoch):
            with translated(self._shard, WRITING, f"writing {EPOCH_FILE}"), self._alone():
                # Another may have been seen meanwhile.
                if self._is_newer(epoch):
                    self._store(epoch)

    def _is_newer(self, epoch: int) -> bool:
        known = self.known()
        if epoch < known:
            raise ShardRefused(self._shard, f"epoch {epoch} is over: the shard knows the primary of epoch {known}")
        return epoch > known

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep every other thread and process from writing."""
        with self._lock:
            # The shard's own directory carries its claim, which all of its processes share.
            lock = os.open("blobs", OPEN_DIRECTORY, dir_fd=self._claim.directory)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)

    def _read(self) -> bytes | None:
        try:
            file = os.open(EPOCH_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._claim.directory)
        except FileNotFoundError:
            return None
        try:
            return os.pread(file, EPOCH_DIGITS_MAX + 2, 0)
        finally:
            os.close(file)

    def _parse(self, text: bytes | None) -> int:
        if text is None:
            return 0
        digits = text.removesuffix(b"\n")
        if not digits.isdigit() or len(digits) > EPOCH_DIGITS_MAX:
            # Anything could be the highest; nothing may be deleted on a guess.
            raise ShardUnavailable(self._shard, f"{self._claim.path}/{EPOCH_FILE} is damaged: it must be a number")
        return int(digits)

    def _store(self, epoch: int) -> None:
        directory = self._claim.directory
        with suppress(FileNotFoundError):
            os.unlink(EPOCH_DRAFT, dir_fd=directory)
        draft = os.open(EPOCH_DRAFT, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)
        try:
            os.write(draft, b"%d\n" % epoch)
            os.fsync(draft)
        finally:
            os.close(draft)
        os.rename(EPOCH_DRAFT, EPOCH_FILE, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)
