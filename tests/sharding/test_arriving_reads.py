"""Reads that wait for the page cache: what the disk brings comes without a thread, all else is left to one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sharding import arriving_reads
from sharding.arriving_reads import ASKED_MAX, FILE_BYTES_MAX, ArrivingReads
from sharding.cached_reads import CachedReads
from sharding.errors import ReplicaCorrupt, ReplicaMissing, ShardRefused
from tests.sharding.local_shards import open_at
from tests.sharding.shard_contract import make_name, replica_file
from tests.tools import open_below, skip

DATA = os.urandom(FILE_BYTES_MAX)


def forget(path: Path) -> None:
    """Take a file out of the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """A directory with one file, whose bytes are not in memory."""
    (tmp_path / "file").write_bytes(DATA)
    opened = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if CachedReads(opened).read("file", len(DATA), 0, 1) is None:
            skip("the kernel or the file system cannot read from memory alone")
        forget(tmp_path / "file")
        if CachedReads(opened).read("file", len(DATA), 0, len(DATA)) is not None:
            skip(f"{tmp_path} lies in memory: nothing ever leaves it")
        forget(tmp_path / "file")
        yield opened
    finally:
        os.close(opened)


def never_there(*_: Any) -> int:
    raise BlockingIOError


async def in_thread() -> bytes:
    """Stand for the read by a thread."""
    return b"thread"


async def unwanted() -> bytes:
    raise AssertionError("no thread is wanted")


async def test_what_the_disk_brings_is_read_as_it_is(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, opened = ArrivingReads(CachedReads(directory)), open_below(tmp_path)
    parts = [(offset, min(9_999, len(DATA) - offset)) for offset in range(0, len(DATA), 9_999)]
    monkeypatch.setattr(arriving_reads, "PAUSES_SECONDS", (0.001,) * 10_000)
    found = await asyncio.gather(*(reads.read("file", len(DATA), *part, otherwise=unwanted) for part in parts))
    assert b"".join(found) == DATA
    assert open_below(tmp_path) == opened


@pytest.mark.parametrize(
    ("path", "size", "offset", "length"),
    [
        ("file", len(DATA) + 1, 0, 4),
        ("file", len(DATA) - 1, 0, 4),
        ("file", len(DATA), len(DATA) - 3, 4),
        ("file", len(DATA), -1, 4),
        ("file", len(DATA), 0, -4),
        ("file", len(DATA), 1 << 63, 4),
        ("other", len(DATA), 0, 4),
    ],
)
async def test_what_is_not_such_a_part_is_not_waited_for(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, size: int, offset: int, length: int
) -> None:
    monkeypatch.setattr(asyncio, "sleep", None)
    opened = open_below(tmp_path)
    reads = ArrivingReads(CachedReads(directory))
    assert await reads.read(path, size, offset, length, otherwise=in_thread) == b"thread"
    assert open_below(tmp_path) == opened


async def test_long_file_is_not_waited_for(tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "sleep", None)
    (tmp_path / "long").write_bytes(DATA + b"!")
    reads = ArrivingReads(CachedReads(directory))
    assert await reads.read("long", len(DATA) + 1, 0, 4, otherwise=in_thread) == b"thread"


async def test_what_does_not_come_is_left_to_a_thread_in_the_end(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, opened = ArrivingReads(CachedReads(directory)), open_below(tmp_path)
    monkeypatch.setattr(os, "preadv", never_there)
    async with asyncio.timeout(10):
        assert await reads.read("file", len(DATA), 0, 4, otherwise=in_thread) == b"thread"
    assert open_below(tmp_path) == opened


@pytest.mark.parametrize("late", ["bytes", "thread"])
async def test_disk_is_asked_for_only_so_many_at_once_and_who_gives_up_makes_room(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    reads, opened = ArrivingReads(CachedReads(directory)), open_below(tmp_path)

    async def hang() -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        return await answer

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", never_there)
        patch.setattr(arriving_reads, "PAUSES_SECONDS", (60.0,) if late == "bytes" else ())
        asked = [reads.read("file", len(DATA), 0, 4, otherwise=hang) for _ in range(ASKED_MAX)]
        waiting = [asyncio.create_task(one) for one in asked]
        await asyncio.sleep(0)
        patch.setattr(os, "posix_fadvise", None)
        assert await reads.read("file", len(DATA), 0, 4, otherwise=in_thread) == b"thread"
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert open_below(tmp_path) == opened
    monkeypatch.setattr(arriving_reads, "PAUSES_SECONDS", (0.001,) * 10_000)
    assert await reads.read("file", len(DATA), 0, 4, otherwise=unwanted) == DATA[:4]


async def test_shard_reads_a_small_blob_that_left_memory_without_its_threads(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = make_name(DATA)
    async with open_at(tmp_path / "shard") as shard:
        await shard.put(name, DATA)
        forget(replica_file(tmp_path / "shard", name))
        with monkeypatch.context() as patch:
            patch.setattr(shard, "run", None)
            patch.setattr(arriving_reads, "PAUSES_SECONDS", (0.001,) * 10_000)
            assert await shard.read(name, size=len(DATA), offset=5, length=20) == DATA[5:25]
        forget(replica_file(tmp_path / "shard", name))
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", never_there)
            assert await shard.read(name, size=len(DATA), offset=5, length=20) == DATA[5:25]


async def test_shard_still_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    name = make_name(b"data")
    async with open_at(tmp_path / "shard") as shard:
        await shard.put(name, b"data")
        with pytest.raises(ReplicaCorrupt):
            await shard.read(name, size=5, offset=0, length=5)
        with pytest.raises(ShardRefused):
            await shard.read(name, size=4, offset=3, length=2)
        with pytest.raises(ReplicaMissing):
            await shard.read(make_name(b"else"), size=4, offset=0, length=4)
