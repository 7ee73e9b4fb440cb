"""What uploads leave in the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from sharding.staging import FLUSH_BYTES
from tests.sharding.local_shards import open_at
from tests.sharding.shard_contract import block_digests, replica_file, stage_all
from tests.tools import skip

KEPT_BYTES = 4 << 20
PAGE_BYTES = mmap.PAGESIZE


def cached_bytes(path: Path) -> int:
    """Return how much of a file is in the page cache."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-size // PAGE_BYTES))()
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        asked = ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), pages)
        assert asked == 0, os.strerror(ctypes.get_errno())
        return sum(page & 1 for page in pages) * PAGE_BYTES


@pytest.fixture
def shard_root(tmp_path: Path) -> Path:
    probe = tmp_path / "probe"
    probe.write_bytes(bytes(PAGE_BYTES))
    with probe.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_bytes(probe):
        skip(f"{tmp_path} lies in memory: nothing ever leaves it")
    return tmp_path / "shard"


async def test_short_blob_stays_in_the_page_cache(shard_root: Path) -> None:
    async with open_at(shard_root, cached_bytes_max=KEPT_BYTES) as shard:
        data = os.urandom(KEPT_BYTES)
        name, staged = await stage_all(shard, data)
        await staged.commit(name.sha256, block_digests(data))
        assert cached_bytes(replica_file(shard_root, name)) == len(data)


async def test_long_blob_leaves_the_page_cache_while_it_is_written_and_in_the_end(shard_root: Path) -> None:
    async with open_at(shard_root, cached_bytes_max=KEPT_BYTES) as shard:
        data = os.urandom(FLUSH_BYTES + KEPT_BYTES + 12_345)
        name, staged = await stage_all(shard, data)
        assert cached_bytes(shard_root / "tmp" / str(name.generation)) <= FLUSH_BYTES
        await staged.commit(name.sha256, block_digests(data))
        assert cached_bytes(replica_file(shard_root, name)) == 0
        assert bytes(await shard.read(name, size=len(data), offset=0, length=len(data))) == data
