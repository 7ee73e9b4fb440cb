"""Reads from memory: what is in the page cache comes without a thread, and nothing else ever does."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharding.cached_reads import CachedReads, is_local
from sharding.errors import ShardUnavailable
from sharding.model import BLOCK_BYTES
from tests.sharding.local_shards import forget_cached, open_at
from tests.sharding.shard_contract import make_name, replica_file
from tests.tools import open_below, skip

DATA = os.urandom(3 * BLOCK_BYTES // 2)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_bytes(DATA)
    opened = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if CachedReads(opened).read("in/file", len(DATA), 0, 1) is None:
            skip("the kernel or the file system cannot read from memory alone")
        yield opened
    finally:
        os.close(opened)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, len(DATA)), st.integers(0, len(DATA)))
def test_any_part_of_a_cached_file_is_read_as_it_is(directory: int, one: int, other: int) -> None:
    start, end = sorted((one, other))
    assert CachedReads(directory).read("in/file", len(DATA), start, end - start) == DATA[start:end]


def test_the_time_of_access_is_left_as_it_is(directory: int, tmp_path: Path) -> None:
    os.utime(tmp_path / "in" / "file", (1, 1))
    assert CachedReads(directory).read("in/file", len(DATA), 0, 9) == DATA[:9]
    assert (tmp_path / "in" / "file").stat().st_atime == 1


@pytest.mark.parametrize(
    ("path", "size", "offset", "length"),
    [
        ("in/file", len(DATA) + 1, 0, 4),
        ("in/file", len(DATA) - 1, 0, 4),
        ("in/file", len(DATA), len(DATA) - 3, 4),
        ("in/other", len(DATA), 0, 4),
        ("other/file", len(DATA), 0, 4),
        ("in", 4096, 0, 4),
        ("in/link", len(DATA), 0, 4),
        ("link/file", len(DATA), 0, 4),
        ("in/../in/../../outside", 4, 0, 4),
        ("in/fifo", 0, 0, 0),
    ],
)
def test_what_is_not_such_a_file_is_left_to_who_may_wait(
    directory: int, tmp_path: Path, path: str, size: int, offset: int, length: int
) -> None:
    (tmp_path / "in" / "link").symlink_to("file")
    (tmp_path / "link").symlink_to("in")
    os.mkfifo(tmp_path / "in" / "fifo")
    reads, opened = CachedReads(directory), open_below(tmp_path)
    assert reads.read(path, size, offset, length) is None
    assert reads.read("in/file", len(DATA), 0, 4) == DATA[:4], "and later reads are not given up for it"
    assert open_below(tmp_path) == opened


def test_what_has_left_the_page_cache_is_left_to_who_may_wait(directory: int, tmp_path: Path) -> None:
    with (tmp_path / "in" / "file").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    reads = CachedReads(directory)
    if reads.read("in/file", len(DATA), 0, BLOCK_BYTES) is not None:
        skip(f"{tmp_path} lies in memory: nothing ever leaves it")
    (tmp_path / "in" / "file").read_bytes()
    assert reads.read("in/file", len(DATA), 0, BLOCK_BYTES) == DATA[:BLOCK_BYTES]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EAGAIN], ids=errno.errorcode.get)
def test_who_cannot_do_it_is_not_asked_again(directory: int, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    reads, asked = CachedReads(directory), 0

    def refuse(*_: Any) -> int:
        nonlocal asked
        asked += 1
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", refuse)
    for _ in range(3):
        assert reads.read("in/file", len(DATA), 0, 4) is None
    assert asked == (1 if number == errno.EOPNOTSUPP else 3)


def test_size_is_told_of_a_regular_file_alone(directory: int, tmp_path: Path) -> None:
    (tmp_path / "in" / "link").symlink_to("file")
    os.mkfifo(tmp_path / "in" / "fifo")
    reads = CachedReads(directory)
    assert reads.size("in/file") == len(DATA)
    for path in ("in", "in/link", "in/fifo", "in/other", "other/file", "in/../in/file/.."):
        assert reads.size(path) is None


def test_file_system_that_may_ask_somebody_else_is_never_asked() -> None:
    directory = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert CachedReads(directory).read("stat", 0, 0, 0) is None
        assert not is_local(ctypes.PyDLL(None), directory) and not is_local(ctypes.PyDLL(None), -1)
    finally:
        os.close(directory)


async def test_shard_answers_from_memory_without_its_threads_until_it_is_closed(
    directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = make_name(b"data")
    async with open_at(tmp_path / "shard") as shard:
        await shard.put(name, b"data")
        with monkeypatch.context() as patch:
            patch.setattr(shard, "run", None)
            assert shard.recall(name, size=4, offset=1, length=2) == b"at"
            assert await shard.sizes([name, name]) == [4, 4]
        with monkeypatch.context() as patch:
            forget_cached(patch)
            assert shard.recall(name, size=4, offset=1, length=2) is None
            assert await shard.read(name, size=4, offset=1, length=2) == b"at"
            assert await shard.sizes([name]) == [4]
        assert await shard.sizes([name, make_name(b"else")]) == [4, None]
        assert await shard.sizes([name] * 100) == [4] * 100
    assert shard.recall(name, size=4, offset=1, length=2) is None
    with pytest.raises(ShardUnavailable):
        await shard.read(name, size=4, offset=1, length=2)
    assert replica_file(tmp_path / "shard", name).read_bytes() == b"data"
