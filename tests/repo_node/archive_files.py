"""Archives for tests: ordinary ones, and the ones that people send who mean no good."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Mapping

KINDS = ("zip", "tar", "tar.gz", "tgz")


def packed(kind: str, files: Mapping[str, bytes]) -> bytes:
    """Return an archive of ``files``, as the usual tools make it."""
    made = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return made.getvalue()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in files.items():
            add(tar, tarfile.TarInfo(name), data)
    return made.getvalue() if kind == "tar" else gzip.compress(made.getvalue())


def add(tar: tarfile.TarFile, info: tarfile.TarInfo, data: bytes = b"") -> None:
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def tar_of(*infos: tarfile.TarInfo) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for info in infos:
            add(tar, info)
    return made.getvalue()


def tar_info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_with_link() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return made.getvalue()


def encrypted_zip() -> bytes:
    data = bytearray(packed("zip", {"a": b"content"}))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    return bytes(data)


def overlapping_zip(copies: int, size: int) -> bytes:
    """Return a zip whose many entries share one compressed stream."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("000000", bytes(size))
        for number in range(1, copies):
            info = zipfile.ZipInfo(f"{number:06}")
            first = archive.filelist[0]
            for name in ("CRC", "compress_size", "file_size", "header_offset", "compress_type"):
                setattr(info, name, getattr(first, name))
            archive.filelist.append(info)
        archive._didModify = True  # type: ignore[attr-defined]
    return made.getvalue()


def quoted_overlap_zip() -> bytes:
    """Return a zip in which a stored block of the first entry's stream holds the second one's header and data."""
    kernel = deflated(bytes(4096))
    inner = local_header("b", kernel, 4096)
    crc = zlib.crc32(inner + bytes(4096))
    quote = b"\x00" + len(inner).to_bytes(2, "little") + (len(inner) ^ 0xFFFF).to_bytes(2, "little")
    outer = quote + inner + kernel
    head = local_header("a", outer, len(inner) + 4096, crc)
    body = head + outer
    inner_at = len(head) + len(quote)
    central = central_header("a", outer, len(inner) + 4096, 0, crc)
    central += central_header("b", kernel, 4096, inner_at, zlib.crc32(bytes(4096)))
    end = b"PK\x05\x06" + bytes(4) + (2).to_bytes(2, "little") * 2
    return body + central + end + len(central).to_bytes(4, "little") + len(body).to_bytes(4, "little") + bytes(2)


def deflated(data: bytes) -> bytes:
    compress = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compress.compress(data) + compress.flush()


def sums(data: bytes, size: int, crc: int) -> bytes:
    return crc.to_bytes(4, "little") + len(data).to_bytes(4, "little") + size.to_bytes(4, "little")


def local_header(name: str, data: bytes, size: int, crc: int | None = None) -> bytes:
    crc = zlib.crc32(bytes(size)) if crc is None else crc
    fixed = b"PK\x03\x04\x14\x00\x00\x00\x08\x00\x00\x00\x21\x00" + sums(data, size, crc)
    return fixed + len(name).to_bytes(2, "little") + bytes(2) + name.encode()


def central_header(name: str, data: bytes, size: int, offset: int, crc: int) -> bytes:
    fixed = b"PK\x01\x02\x14\x00\x14\x00\x00\x00\x08\x00\x00\x00\x21\x00" + sums(data, size, crc)
    return fixed + len(name).to_bytes(2, "little") + bytes(12) + offset.to_bytes(4, "little") + name.encode()


def negative_size_tar() -> bytes:
    """Return a tar whose header has a size below zero, over which readers have gone in circles."""
    data = bytearray(tar_of(tar_info("a"), tar_info("b")))
    data[124:136] = b"\xff" * 4 + (-1024 & 0xFFFFFFFFFFFFFFFF).to_bytes(8)
    header = data[:148] + b" " * 8 + data[156:512]
    data[148:156] = b"%06o\0 " % sum(header)
    return bytes(data)
