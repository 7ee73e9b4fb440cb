"""Files of a report packed into a zip archive, and archives of others put into one. Blocking: for a thread."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Mapping

UNPACKED_BYTES_MAX = 256 << 20
FILES_MAX = 1_000
NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/-]{0,200}")
METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


class BadReport(Exception):
    """What came is not the report of a node."""


def pack(files: Mapping[str, str]) -> bytes:
    """Return an archive of ``files``, texts by their names."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text.encode("utf-8", "backslashreplace"))
    return packed.getvalue()


def unpack(packed: bytes) -> dict[str, str]:
    """Return the files of an archive. Raises ``BadReport``."""
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            members = archive.infolist()
            too_much = len(members) > FILES_MAX or sum(one.file_size for one in members) > UNPACKED_BYTES_MAX
            if too_much or not all(NAME.fullmatch(one.filename) and one.compress_type in METHODS for one in members):
                raise BadReport("an archive that no node packs")
            return {one.filename: archive.read(one).decode("utf-8", "replace") for one in members}
    # RuntimeError: it says that it is encrypted, or is of a kind that is not read.
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError) as error:
        raise BadReport(str(error) or type(error).__name__) from error


class Packer:
    """An archive in memory that grows file by file up to ``bytes_max``."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._buffer = io.BytesIO()
        self._archive = zipfile.ZipFile(self._buffer, "w", zipfile.ZIP_DEFLATED)

    def add(self, name: str, text: str) -> None:
        """Add a file whatever the limit says: the caller knows it to be small."""
        self._archive.writestr(name, text.encode("utf-8", "backslashreplace"))

    def take(self, prefix: str, packed: bytes) -> str:
        """Add the files of another archive under ``prefix``; return why not, or an empty text. Raises ``BadReport``."""
        if self._buffer.tell() + len(packed) > self._bytes_max:
            return f"left out: the bundle would be larger than {self._bytes_max} bytes (support_bundle_bytes_max)"
        for name, text in unpack(packed).items():
            self.add(f"{prefix}/{name}", text)
        return ""

    def close(self) -> memoryview:
        """Return the whole archive."""
        self._archive.close()
        return self._buffer.getbuffer()
