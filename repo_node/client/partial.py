"""The file a download grows in, ``<name>.part``, and the note beside it that says of which version it is a part.

Every method but ``open_part`` blocks and belongs in a thread.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from repo_node.client.errors import LocalFailure

ETAG_BYTES_MAX = 1024


class Part:
    """An open, locked part file: ``size`` bytes are there, ``digest`` has seen those up to the append position."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.note_path = path.with_name(f"{path.name}.etag")
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        self.digest = hashlib.sha256()

    def read_etag(self) -> str | None:
        """Return the ETag of the version these bytes belong to, or None where nothing says."""
        try:
            with self.note_path.open("r", encoding="latin-1") as note:
                return note.read(ETAG_BYTES_MAX).strip() or None
        except OSError:
            return None

    def restart(self, etag: str | None) -> None:
        """Forget the bytes and note the version of those that will follow."""
        self._file.seek(0)
        self._file.truncate()
        self.size = 0
        self.digest = hashlib.sha256()
        if etag is None:
            self.note_path.unlink(missing_ok=True)
        else:
            self.note_path.write_text(etag, encoding="latin-1")

    def rewind(self) -> None:
        """Make ready to hash the bytes that are there, with ``hash_piece``."""
        self._file.seek(0)
        self.digest = hashlib.sha256()

    def hash_piece(self, bytes_max: int) -> int:
        """Hash the next bytes and return how many; 0 at the end, where ``append`` goes on."""
        piece = self._file.read(bytes_max)
        self.digest.update(piece)
        return len(piece)

    def append(self, piece: bytes) -> None:
        """Write and hash ``piece`` at the end."""
        self._file.write(piece)
        self.digest.update(piece)
        self.size += len(piece)

    def promote(self, destination: Path) -> None:
        """Give the complete file its final name."""
        self._file.flush()
        self.path.replace(destination)
        self.note_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the bytes and the note."""
        self.path.unlink(missing_ok=True)
        self.note_path.unlink(missing_ok=True)


@asynccontextmanager
async def open_part(path: Path) -> AsyncIterator[Part]:
    """Open the part file at ``path``, making it and its directory where needed.

    Raises ``LocalFailure``, also when another download has it open.
    """
    try:
        file = await asyncio.to_thread(open_locked, path)
    except OSError as error:
        raise LocalFailure.of(error, f"{path} cannot be written") from error
    try:
        yield Part(path, file)
    finally:
        # A complete file has been flushed already; of a broken one, a few bytes fewer are no loss.
        with suppress(OSError):
            await asyncio.to_thread(file.close)


def open_locked(path: Path) -> BinaryIO:
    """Open ``path`` for reading and writing, for this process alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.fdopen(os.open(path, flags, 0o666), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held the lock until now may have given this very file its final name.
        if path.stat().st_ino != os.fstat(file.fileno()).st_ino:
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):
        file.close()
        raise LocalFailure(f"another download is writing {path}; wait for it to end") from None
    except BaseException:
        file.close()
        raise
    return file
