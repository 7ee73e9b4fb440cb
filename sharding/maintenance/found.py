"""All digests of a file found on a shard, of which nothing is known but its name."""

from __future__ import annotations

import hashlib

from sharding.errors import ReplicaCorrupt, ReplicaMissing, ShardError
from sharding.maintenance.judgement import PORTION_BYTES, reread_within
from sharding.model import BlobDigests, BlobName
from sharding.shard import Auditable, Part


class Hashes:
    """The hashes of a whole blob, fed together. A ``Hasher`` whose digest is the sha256."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self.sha1 = hashlib.sha1(usedforsecurity=False)
        self.md5 = hashlib.md5(usedforsecurity=False)

    def update(self, data: memoryview, /) -> None:
        self.sha256.update(data)
        self.sha1.update(data)
        self.md5.update(data)

    def digest(self) -> bytes:
        return self.sha256.digest()


async def digest_whole(shard: Auditable, name: BlobName, size: int) -> BlobDigests | None:
    """Return the digests of a file of ``size`` bytes; None when it cannot be read or has gone.

    Raises ``ShardUnavailable``.
    """
    hashes, blocks = Hashes(), b""
    for offset in range(0, size, PORTION_BYTES):
        part = Part(name, size, offset, min(PORTION_BYTES, size - offset), hashes)
        [outcome] = await reread_within(shard, [part])
        if isinstance(outcome, ReplicaMissing | ReplicaCorrupt):
            return None
        if isinstance(outcome, ShardError):
            raise outcome
        blocks += outcome
    return BlobDigests(size, hashes.digest(), hashes.sha1.digest(), hashes.md5.digest(), blocks)
