"""The contract of ``Shard``, as tests that every implementation runs.

A test class inherits ``ShardContract`` and provides two fixtures: ``shard``, ready for use and
empty, and ``shard_root``, the directory on this machine in which its replicas end up.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import uuid
from pathlib import Path

import pytest
import xxhash

from sharding.errors import ReplicaCorrupt, ReplicaMissing, ShardRefused
from sharding.model import BLOCK_BYTES, BlobName, Generation
from sharding.shard import Shard, StagedBlob


def make_name(data: bytes) -> BlobName:
    """Return a new name for ``data``: its digest, and a generation never used before."""
    return BlobName(hashlib.sha256(data).digest(), make_generation())


def make_generation() -> Generation:
    # All of one instant, so that files of one test share a directory.
    return Generation(
        uuid.UUID(int=0x0192_0000_0000 << 80 | 7 << 76 | secrets.randbits(12) << 64 | 2 << 62 | secrets.randbits(62))
    )


def block_digests(data: bytes) -> bytes:
    """Return the xxh3-64 of every block of ``data``."""
    starts = range(0, len(data), BLOCK_BYTES)
    return b"".join(xxhash.xxh3_64_digest(data[start : start + BLOCK_BYTES]) for start in starts)


def replica_file(shard_root: Path, name: BlobName) -> Path:
    """Return where the file of ``name`` is; fail when it is not there exactly once."""
    (found,) = shard_root.glob(f"blobs/*/{name}")
    return found


def replica_files(shard_root: Path) -> list[Path]:
    """Return every file under ``blobs/``."""
    return [path for path in shard_root.glob("blobs/**/*") if not path.is_dir()]


async def stage_all(shard: Shard, data: bytes, *, chunk_bytes: int = BLOCK_BYTES) -> tuple[BlobName, StagedBlob]:
    """Stage ``data`` in chunks and return its name and the staged blob, not committed."""
    name = make_name(data)
    staged = await shard.stage(name.generation)
    for start in range(0, len(data), chunk_bytes):
        await staged.write(data[start : start + chunk_bytes])
    return name, staged


class ShardContract:
    """Inherit, and provide the fixtures ``shard`` and ``shard_root``."""

    @pytest.mark.parametrize("size", [0, 1, 4096, BLOCK_BYTES])
    async def test_put_blob_reads_back(self, shard: Shard, shard_root: Path, size: int) -> None:
        data = os.urandom(size)
        name = make_name(data)
        await shard.put(name, data)
        assert bytes(await shard.read(name, size=size, offset=0, length=size)) == data
        assert replica_file(shard_root, name).read_bytes() == data
        assert os.listdir(shard_root / "tmp") == []

    async def test_put_takes_a_view_of_a_buffer(self, shard: Shard) -> None:
        data = bytearray(b"-- the blob --")
        name = make_name(b"the blob")
        await shard.put(name, memoryview(data)[3:11])
        data[:] = bytes(len(data))
        assert bytes(await shard.read(name, size=8, offset=0, length=8)) == b"the blob"

    async def test_put_is_refused_when_larger_than_a_block(self, shard: Shard, shard_root: Path) -> None:
        data = bytes(BLOCK_BYTES + 1)
        with pytest.raises(ShardRefused):
            await shard.put(make_name(data), data)
        assert replica_files(shard_root) == []

    async def test_put_is_refused_when_the_digest_has_a_wrong_length(self, shard: Shard, shard_root: Path) -> None:
        with pytest.raises(ShardRefused):
            await shard.put(BlobName(b"../../etc", make_generation()), b"data")
        assert replica_files(shard_root) == []

    async def test_concurrent_puts_all_read_back(self, shard: Shard) -> None:
        blobs = [os.urandom(1000) for _ in range(40)]
        names = [make_name(data) for data in blobs]
        await asyncio.gather(*(shard.put(name, data) for name, data in zip(names, blobs, strict=True)))
        reads = (shard.read(name, size=1000, offset=0, length=1000) for name in names)
        assert [bytes(data) for data in await asyncio.gather(*reads)] == blobs

    @pytest.mark.parametrize(("offset", "length"), [(0, 1), (17, 500), (999, 1), (1000, 0), (0, 0), (0, 1000)])
    async def test_read_returns_exactly_the_range(self, shard: Shard, offset: int, length: int) -> None:
        data = os.urandom(1000)
        name = make_name(data)
        await shard.put(name, data)
        read = await shard.read(name, size=1000, offset=offset, length=length)
        assert bytes(read) == data[offset : offset + length]

    @pytest.mark.parametrize(("offset", "length"), [(0, 1001), (1000, 1), (-1, 1), (0, -1)])
    async def test_read_is_refused_outside_the_blob(self, shard: Shard, offset: int, length: int) -> None:
        name = make_name(bytes(1000))
        await shard.put(name, bytes(1000))
        with pytest.raises(ShardRefused):
            await shard.read(name, size=1000, offset=offset, length=length)

    async def test_read_says_missing_when_the_blob_was_never_there(self, shard: Shard) -> None:
        with pytest.raises(ReplicaMissing):
            await shard.read(make_name(b"never stored"), size=12, offset=0, length=12)

    async def test_read_says_missing_when_the_file_was_removed(self, shard: Shard, shard_root: Path) -> None:
        name = make_name(b"data")
        await shard.put(name, b"data")
        replica_file(shard_root, name).unlink()
        with pytest.raises(ReplicaMissing):
            await shard.read(name, size=4, offset=0, length=4)

    async def test_read_says_missing_for_another_generation(self, shard: Shard) -> None:
        name = make_name(b"data")
        await shard.put(name, b"data")
        with pytest.raises(ReplicaMissing):
            await shard.read(BlobName(name.sha256, make_generation()), size=4, offset=0, length=4)

    @pytest.mark.parametrize("length", [0, 999, 1001])
    async def test_read_says_corrupt_when_the_file_has_another_length(
        self, shard: Shard, shard_root: Path, length: int
    ) -> None:
        name = make_name(bytes(1000))
        await shard.put(name, bytes(1000))
        os.truncate(replica_file(shard_root, name), length)
        with pytest.raises(ReplicaCorrupt):
            await shard.read(name, size=1000, offset=0, length=10)

    async def test_read_returns_the_bytes_on_disk_unverified(self, shard: Shard, shard_root: Path) -> None:
        name = make_name(b"right")
        await shard.put(name, b"right")
        replica_file(shard_root, name).write_bytes(b"wrong")
        assert bytes(await shard.read(name, size=5, offset=0, length=5)) == b"wrong"

    async def test_sizes_tells_what_is_on_disk_now(self, shard: Shard, shard_root: Path) -> None:
        kept, cut, removed, absent = (make_name(data) for data in (b"kept", b"cut", b"removed", b"absent"))
        for name, data in ((kept, b"kept"), (cut, b"cut"), (removed, b"removed")):
            await shard.put(name, data)
        assert await shard.sizes([absent, removed, cut, kept]) == [None, 7, 3, 4]
        os.truncate(replica_file(shard_root, cut), 1)
        replica_file(shard_root, removed).unlink()
        assert await shard.sizes([kept, removed, cut, absent]) == [4, None, 1, None]

    async def test_sizes_keeps_the_order_of_a_long_list(self, shard: Shard) -> None:
        names = [make_name(n.to_bytes(2)) for n in range(600)]
        await shard.put(names[3], b"abc")
        await shard.put(names[599], b"abcde")
        assert await shard.sizes(names) == [None] * 3 + [3] + [None] * 595 + [5]
        assert await shard.sizes([]) == []

    async def test_delete_removes_exactly_one_generation(self, shard: Shard, shard_root: Path) -> None:
        first = make_name(b"data")
        second = BlobName(first.sha256, make_generation())
        await shard.put(first, b"data")
        await shard.put(second, b"data")
        await shard.delete(first)
        assert await shard.sizes([first, second]) == [None, 4]
        assert [path.name for path in replica_files(shard_root)] == [str(second)]

    async def test_delete_succeeds_when_the_blob_is_not_there(self, shard: Shard) -> None:
        name = make_name(b"data")
        await shard.put(name, b"data")
        await shard.delete(name)
        await shard.delete(name)
        await shard.delete(make_name(b"never stored"))
        assert await shard.sizes([name]) == [None]

    @pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 5])
    async def test_committed_blob_reads_back(self, shard: Shard, shard_root: Path, size: int) -> None:
        data = os.urandom(size)
        name, staged = await stage_all(shard, data, chunk_bytes=700_000)
        assert staged.written == size
        await staged.commit(name.sha256, block_digests(data))
        assert bytes(await shard.read(name, size=size, offset=0, length=size)) == data
        assert replica_file(shard_root, name).read_bytes() == data
        assert os.listdir(shard_root / "tmp") == []

    async def test_staged_blob_is_invisible_until_committed(self, shard: Shard, shard_root: Path) -> None:
        data = os.urandom(1000)
        name, staged = await stage_all(shard, data)
        assert await shard.sizes([name]) == [None]
        assert replica_files(shard_root) == []
        await staged.commit(name.sha256, block_digests(data))
        assert await shard.sizes([name]) == [1000]

    async def test_staged_write_lets_the_buffer_be_reused(self, shard: Shard) -> None:
        data = b"".join(bytes([n]) * 5000 for n in range(5))
        name = make_name(data)
        staged = await shard.stage(name.generation)
        buffer = bytearray(5000)
        for n in range(5):
            buffer[:] = bytes([n]) * 5000
            await staged.write(memoryview(buffer))
        await staged.commit(name.sha256, block_digests(data))
        assert bytes(await shard.read(name, size=25_000, offset=0, length=25_000)) == data

    async def test_staged_bytes_can_be_read_and_written_on(self, shard: Shard) -> None:
        data = os.urandom(3000)
        name = make_name(data)
        staged = await shard.stage(name.generation)
        await staged.write(data[:2000])
        assert bytes(await staged.read(500, 1500)) == data[500:2000]
        await staged.write(data[2000:])
        assert bytes(await staged.read(0, 3000)) == data
        await staged.commit(name.sha256, block_digests(data))
        assert bytes(await shard.read(name, size=3000, offset=0, length=3000)) == data

    async def test_staged_read_is_refused_beyond_what_was_written(self, shard: Shard) -> None:
        _, staged = await stage_all(shard, b"data")
        with pytest.raises(ShardRefused):
            await staged.read(0, 5)
        await staged.abort()

    async def test_abort_removes_the_staged_bytes(self, shard: Shard, shard_root: Path) -> None:
        name, staged = await stage_all(shard, os.urandom(5000))
        assert len(os.listdir(shard_root / "tmp")) == 1
        await staged.abort()
        assert os.listdir(shard_root / "tmp") == []
        await staged.abort()
        assert await shard.sizes([name]) == [None]

    @pytest.mark.parametrize("digests", [b"", b"12345678", b"1234567", bytes(24)])
    async def test_commit_fails_when_the_block_digests_do_not_fit_the_size(
        self, shard: Shard, shard_root: Path, digests: bytes
    ) -> None:
        name, staged = await stage_all(shard, bytes(BLOCK_BYTES + 1))
        with pytest.raises((ShardRefused, ReplicaCorrupt)):
            await staged.commit(name.sha256, digests)
        await staged.abort()
        assert await shard.sizes([name]) == [None]
        assert os.listdir(shard_root / "tmp") == []

    async def test_blobs_staged_side_by_side_do_not_mix(self, shard: Shard) -> None:
        blobs = [os.urandom(50_000) for _ in range(5)]
        staged = await asyncio.gather(*(stage_all(shard, data, chunk_bytes=1000) for data in blobs))
        for (name, blob), data in zip(staged, blobs, strict=True):
            await blob.commit(name.sha256, block_digests(data))
        for (name, _), data in zip(staged, blobs, strict=True):
            assert bytes(await shard.read(name, size=50_000, offset=0, length=50_000)) == data
