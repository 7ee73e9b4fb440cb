"""Archives that are written as they are sent: tar, gzipped or not, and zip; no entry is ever held whole. Pure."""

from __future__ import annotations

import tarfile
import zlib
from datetime import datetime
from typing import Protocol
from zipfile import ZIP_STORED, ZipFile, ZipInfo

GZIP_WINDOW_BITS = 31
GZIP_LEVEL = 1
ZIP64_BYTES = 1 << 31
ZIP_YEAR_MIN = 1980


class ArchiveWriter(Protocol):
    """Turns entries into the bytes of an archive. Of an entry, exactly ``size`` bytes of data are to be given."""

    def begin(self, name: str, size: int, modified_at: datetime) -> bytes:
        """Return what comes before the data of an entry."""
        ...

    def data(self, piece: bytes | memoryview) -> bytes:
        """Return what becomes of a part of its data. May take its time: call it off the event loop."""
        ...

    def end(self) -> bytes:
        """Return what comes after it."""
        ...

    def close(self) -> bytes:
        """Return what ends the archive."""
        ...


class TarWriter:
    """A tar of regular files that anybody may read, with long names as POSIX has them (pax)."""

    def __init__(self) -> None:
        self._size = 0

    def begin(self, name: str, size: int, modified_at: datetime) -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.mtime = size, int(modified_at.timestamp())
        self._size = size
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")

    def data(self, piece: bytes | memoryview) -> bytes:
        return bytes(piece)

    def end(self) -> bytes:
        return bytes(-self._size % tarfile.BLOCKSIZE)

    def close(self) -> bytes:
        return bytes(2 * tarfile.BLOCKSIZE)


class GzipWriter:
    """Another archive, gzipped."""

    def __init__(self, archive: ArchiveWriter) -> None:
        self._archive = archive
        self._compress = zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WINDOW_BITS)

    def begin(self, name: str, size: int, modified_at: datetime) -> bytes:
        return self._compress.compress(self._archive.begin(name, size, modified_at))

    def data(self, piece: bytes | memoryview) -> bytes:
        return self._compress.compress(self._archive.data(piece))

    def end(self) -> bytes:
        return self._compress.compress(self._archive.end())

    def close(self) -> bytes:
        return self._compress.compress(self._archive.close()) + self._compress.flush()


class Outbox:
    """A file that cannot seek and keeps what is written until it is taken."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes, /) -> int:
        self._written += data
        return len(data)

    def flush(self) -> None:
        """Everything is written."""

    def close(self) -> None:
        """What is left may still be taken."""

    def take(self) -> bytes:
        taken, self._written = bytes(self._written), bytearray()
        return taken


class ZipWriter:
    """A zip whose entries are stored as they are: sums and sizes come after each, and all once more at the end."""

    def __init__(self) -> None:
        self._outbox = Outbox()
        self._zip = ZipFile(self._outbox, "w", ZIP_STORED)

    def begin(self, name: str, size: int, modified_at: datetime) -> bytes:
        moment = modified_at.timetuple()[:6]
        info = ZipInfo(name, (max(moment[0], ZIP_YEAR_MIN), *moment[1:]))
        self._entry = self._zip.open(info, "w", force_zip64=size >= ZIP64_BYTES)
        return self._outbox.take()

    def data(self, piece: bytes | memoryview) -> bytes:
        self._entry.write(piece)
        return self._outbox.take()

    def end(self) -> bytes:
        self._entry.close()
        return self._outbox.take()

    def close(self) -> bytes:
        self._zip.close()
        return self._outbox.take()


def archive_writer(kind: str) -> ArchiveWriter:
    """Return a writer of zip, tar, tar.gz or tgz. Raises ``ValueError``."""
    match kind:
        case "zip":
            return ZipWriter()
        case "tar":
            return TarWriter()
        case "tar.gz" | "tgz":
            return GzipWriter(TarWriter())
        case _:
            raise ValueError("an archive is one of zip, tar, tar.gz, tgz")
