"""The digests of a blob: the sha256 that names it, up to two more of the whole, and one for every block.

Blocking work: a mebibyte costs a few milliseconds. What is small may be hashed in place, the rest
belongs on an executor; hashlib releases the GIL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator

from xxhash import xxh3_64, xxh3_64_digest

from sharding.model import BLOCK_BYTES, BLOCK_DIGEST_BYTES, EXTRA_DIGESTS, BlobDigests, Buffer, block_count


class BlobHasher:
    """Computes the digests of a blob from its bytes in order, in chunks of any size.

    Of ``EXTRA_DIGESTS`` only those in ``extra``. Belongs to one task at a time; ``update`` may run on a thread.
    """

    __slots__ = ("_block", "_blocks", "_extra", "_sha256", "_size")

    def __init__(self, extra: Collection[str] = EXTRA_DIGESTS) -> None:
        self._sha256 = hashlib.sha256()
        self._extra = {name: hashlib.new(name, usedforsecurity=False) for name in extra}
        self._blocks = bytearray()
        self._block = xxh3_64()
        self._size = 0

    def update(self, data: Buffer) -> None:
        """Take the next bytes; ``data`` is read in place and may be reused afterwards."""
        # One block at a time, so that it is still in the processor's cache for the second to fourth hash.
        for part in _parts(data, BLOCK_BYTES - self._size % BLOCK_BYTES):
            self._sha256.update(part)
            for extra in self._extra.values():
                extra.update(part)
            self._update_block(part)

    def _update_block(self, part: memoryview) -> None:
        """Take bytes that end at or before the end of the present block."""
        self._size += len(part)
        if len(part) == BLOCK_BYTES:
            self._blocks += xxh3_64_digest(part)
            return
        self._block.update(part)
        if self._size % BLOCK_BYTES == 0:
            self._blocks += self._block.digest()
            self._block.reset()

    def block_digest(self, index: int) -> bytes:
        """Return the digest of a block, all of whose bytes have been taken; the last one may be short."""
        start = index * BLOCK_DIGEST_BYTES
        return bytes(self._blocks[start : start + BLOCK_DIGEST_BYTES]) or self._block.digest()

    def finish(self) -> BlobDigests:
        """Return the digests of all bytes taken so far."""
        last = self._block.digest() if self._size % BLOCK_BYTES else b""
        return BlobDigests(
            size=self._size,
            sha256=self._sha256.digest(),
            sha1=self._extra_digest("sha1"),
            md5=self._extra_digest("md5"),
            blocks=bytes(self._blocks) + last,
        )

    def _extra_digest(self, name: str) -> bytes | None:
        return self._extra[name].digest() if name in self._extra else None


def digest_small(data: Buffer, extra: Collection[str] = EXTRA_DIGESTS) -> BlobDigests:
    """Return the digests of a blob of at most ``BLOCK_BYTES``. Raises ``ValueError`` for a longer one."""
    size = memoryview(data).nbytes
    if size > BLOCK_BYTES:
        raise ValueError(f"a small blob has at most {BLOCK_BYTES} bytes, not {size}")
    return BlobDigests(
        size=size,
        sha256=hashlib.sha256(data).digest(),
        sha1=hashlib.sha1(data, usedforsecurity=False).digest() if "sha1" in extra else None,
        md5=hashlib.md5(data, usedforsecurity=False).digest() if "md5" in extra else None,
        blocks=xxh3_64_digest(data) if size else b"",
    )


def block_digests(data: Buffer) -> bytes:
    """Return the digests of the blocks of ``data``, which starts at a block's start, 8 bytes each."""
    if 0 < memoryview(data).nbytes <= BLOCK_BYTES:
        return xxh3_64_digest(data)
    return b"".join(xxh3_64_digest(part) for part in _parts(data, BLOCK_BYTES))


def verify_blocks(data: Buffer, digests: bytes) -> int | None:
    """Return the index of the first block of ``data`` that differs from its digest, None if none does.

    ``data`` starts at a block's start. Raises ``ValueError`` when ``digests`` is not 8 bytes for every
    block of it; a last block that is cut short is a block that differs.
    """
    expected_bytes = block_count(memoryview(data).nbytes) * BLOCK_DIGEST_BYTES
    if len(digests) != expected_bytes:
        raise ValueError(f"the blocks need {expected_bytes} bytes of digests, not {len(digests)}")
    for index, part in enumerate(_parts(data, BLOCK_BYTES)):
        start = index * BLOCK_DIGEST_BYTES
        if xxh3_64_digest(part) != digests[start : start + BLOCK_DIGEST_BYTES]:
            return index
    return None


def _parts(data: Buffer, first_bytes: int) -> Iterator[memoryview]:
    """Yield ``data`` uncopied: its first ``first_bytes``, then a block at a time, the last one short."""
    view = memoryview(data).cast("B")
    start, end = 0, first_bytes
    while start < len(view):
        yield view[start:end]
        start, end = end, end + BLOCK_BYTES
