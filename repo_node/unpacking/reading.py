"""Reads archives that nobody trusts: zip and tar, gzipped or not, regular files alone, from their first to their last.

Whatever two readers could read differently is refused. Python's own readers do the work; what they let pass is
checked here: entries that overlap, sizes that go backwards, headers that are damaged in the middle.
"""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from typing import IO, Self, cast

from repo_node.unpacking.frames import DATA_BYTES_MAX, Limits, Member

NAME_CHARACTERS_MAX = 8_192
LOCAL_HEADER_BYTES = 30
RATIO_FREE_BYTES = 1 << 20
"""An archive of any size may hold this much."""

ENCRYPTED = 0x1
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
FILE_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE)

Entry = tuple[Member, IO[bytes]]


class BadArchive(Exception):
    """It is damaged, or holds what may not be unpacked."""


class ArchiveTooLarge(Exception):
    """It holds more than a limit allows; the message names the setting."""


class Toll:
    """Counts what comes out of an archive of ``archive_bytes``, against the limits."""

    def __init__(self, limits: Limits, archive_bytes: int) -> None:
        self._limits = limits
        self._bytes_max = min(limits.bytes_max, max(limits.ratio_max * archive_bytes, RATIO_FREE_BYTES))
        self._entries = 0
        self._bytes = 0

    def entry(self, size: int) -> None:
        """Count an entry that says that it has ``size`` bytes. Raises ``ArchiveTooLarge``."""
        self._entries += 1
        if self._entries > self._limits.entries_max:
            raise ArchiveTooLarge(f"It has more than {self._limits.entries_max} entries (setting explode_entries_max).")
        self.data(size)

    def data(self, size: int) -> None:
        self._bytes += size
        if self._bytes > self._limits.bytes_max:
            raise ArchiveTooLarge(f"It holds more than {self._limits.bytes_max} bytes (setting explode_bytes_max).")
        if self._bytes > self._bytes_max:
            raise ArchiveTooLarge(
                f"It holds more than {self._limits.ratio_max} times its own size (setting explode_ratio_max)."
            )


def entries(kind: str, file: IO[bytes], size: int, limits: Limits) -> Iterator[Entry]:
    """Yield the files of an archive of ``size`` bytes, in order; each is to be read before the next is asked for.

    ``kind`` is zip, tar, or tar.gz. Raises ``BadArchive``, ``ArchiveTooLarge``, and whatever a reader of archives
    raises over foreign bytes.
    """
    toll = Toll(limits, size)
    match kind:
        case "zip":
            return zip_entries(file, toll)
        case "tar":
            return tar_entries(file, toll)
        case _:
            return gzipped_entries(file, toll)


def data_of(entry: Entry) -> Iterator[bytes]:
    """Yield the data of a file in pieces. Raises ``BadArchive`` when there is not as much as it says."""
    member, content = entry
    left = member.size
    while left:
        piece = content.read(min(left, DATA_BYTES_MAX))
        if not piece:
            raise BadArchive(f"{member.name!r} is cut off.")
        left -= len(piece)
        yield piece
    if content.read(1):  # which is also what compares its checksum
        raise BadArchive(f"{member.name!r} is longer than it says.")


def check_name(name: str) -> str:
    if len(name) > NAME_CHARACTERS_MAX:
        raise BadArchive(f"It has a name of more than {NAME_CHARACTERS_MAX} characters.")
    return name


# ------------------------------------------------------------------ zip


def zip_entries(file: IO[bytes], toll: Toll) -> Iterator[Entry]:
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        for info in infos:
            toll.entry(info.file_size)
            check_entry(info)
        check_apart(infos, archive.start_dir)
        for info in infos:
            if not info.is_dir():
                with archive.open(info) as content:
                    yield Member(info.orig_filename, info.file_size), content


def check_entry(info: zipfile.ZipInfo) -> None:
    """Refuse what is no plain file or folder. Raises ``BadArchive``."""
    name = check_name(info.orig_filename)
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BadArchive(f"{name!r} is a link or a device; only files are unpacked.")
    if info.flag_bits & ENCRYPTED:
        raise BadArchive(f"{name!r} is encrypted.")
    if info.compress_type not in METHODS:
        raise BadArchive(f"{name!r} is compressed by a method other than deflate.")


def check_apart(infos: list[zipfile.ZipInfo], end: int) -> None:
    """Refuse entries that share bytes: a few kilobytes would be as many gigabytes. Raises ``BadArchive``."""
    by_place = sorted(infos, key=lambda info: info.header_offset)
    ends = [info.header_offset for info in by_place[1:]] + [end]
    for info, limit in zip(by_place, ends, strict=True) if by_place else ():
        if info.header_offset < 0 or info.header_offset + LOCAL_HEADER_BYTES + info.compress_size > limit:
            raise BadArchive(f"{info.orig_filename!r} shares its bytes with another entry.")


# ------------------------------------------------------------------ tar


class StrictInfo(tarfile.TarInfo):
    """A header that ends the archive only where it is one that does: others say why they cannot be read."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise BadArchive(f"It is damaged or cut off: {error}.") from None


def tar_entries(file: IO[bytes], toll: Toll) -> Iterator[Entry]:
    with tarfile.open(fileobj=file, mode="r:", tarinfo=StrictInfo, encoding="utf-8") as archive:
        before = -1
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]
            if info.size < 0 or archive.offset <= before:
                raise BadArchive(f"{check_name(info.name)!r} has a size that cannot be.")
            before = archive.offset
            toll.entry(info.size)
            check_name(info.name)
            if info.isdir():
                continue
            if info.type not in FILE_TYPES or info.sparse is not None:
                raise BadArchive(f"{info.name!r} is a link, a device or sparse; only files are unpacked.")
            content = archive.extractfile(info)
            assert content is not None, "it is a file"
            yield Member(info.name, info.size), content


def gzipped_entries(file: IO[bytes], toll: Toll) -> Iterator[Entry]:
    with gzip.GzipFile(fileobj=file) as raw:
        yield from tar_entries(cast(IO[bytes], raw), toll)
        # Its checksum stands at the very end.
        while piece := raw.read(DATA_BYTES_MAX):
            toll.data(len(piece))
