"""Reads that wait for nothing: the very bytes, or no answer, and whatever is wrong is found behind them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharding import files as files_module
from sharding.cached_read import never_waits, read_cached
from sharding.errors import ReplicaCorrupt, ReplicaMissing
from sharding.files import CACHED_READ_BYTES_MAX
from sharding.local import LocalShard
from sharding.model import BlobName
from tests.sharding.local_shards import open_at
from tests.sharding.shard_contract import make_name, replica_file
from tests.tools import skip

DATA = os.urandom(10_000)


@pytest.fixture
def directory(tmp_path: Path) -> int:
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "file").write_bytes(DATA)
    opened = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    if not never_waits(opened) or read_cached(opened, "ab/file", size=len(DATA), offset=0, length=1) is None:
        os.close(opened)
        skip(f"nothing is read without waiting at {tmp_path}")
    return opened


@pytest.fixture
async def shard(tmp_path: Path) -> AsyncIterator[LocalShard]:
    async with open_at(tmp_path / "shard") as opened:
        yield opened


@given(st.integers(0, len(DATA)), st.integers(0, len(DATA)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_what_is_in_memory_is_read_as_it_is(directory: int, offset: int, length: int) -> None:
    found = read_cached(directory, "ab/file", size=len(DATA), offset=offset, length=length)
    assert found == (DATA[offset : offset + length] if offset + length <= len(DATA) else None)


def test_reading_leaves_the_time_of_access(directory: int, tmp_path: Path) -> None:
    os.utime(tmp_path / "ab" / "file", (1, 1))
    assert read_cached(directory, "ab/file", size=len(DATA), offset=0, length=9) == DATA[:9]
    assert (tmp_path / "ab" / "file").stat().st_atime == 1


def test_another_size_a_link_and_what_is_no_file_have_no_answer(directory: int, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("ab/file")
    (tmp_path / "dir").symlink_to("ab")
    os.mkfifo(tmp_path / "pipe")
    for path in ("link", "dir/file", "pipe", "ab", "none", "none/file", f"../{tmp_path.name}/ab/file"):
        assert read_cached(directory, path, size=len(DATA), offset=0, length=1) is None, path
    assert read_cached(directory, "ab/file", size=len(DATA) + 1, offset=0, length=1) is None
    assert read_cached(-1, "ab/file", size=len(DATA), offset=0, length=1) is None


def test_a_file_that_left_memory_has_no_answer(directory: int, tmp_path: Path) -> None:
    with (tmp_path / "ab" / "file").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    # In a file system in memory it never leaves.
    assert read_cached(directory, "ab/file", size=len(DATA), offset=0, length=len(DATA)) in (None, DATA)


def test_a_file_system_that_may_ask_somebody_is_not_trusted() -> None:
    opened = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    assert not never_waits(opened)
    os.close(opened)


async def read(shard: LocalShard, name: BlobName, size: int) -> bytes:
    return bytes(await shard.read(name, size=size, offset=0, length=size))


async def test_a_shard_reads_the_same_with_and_without_it(shard: LocalShard, monkeypatch: pytest.MonkeyPatch) -> None:
    name = make_name(DATA)
    await shard.put(name, DATA)
    assert await read(shard, name, len(DATA)) == DATA
    monkeypatch.setattr(files_module, "read_cached", lambda *_, **__: None)
    assert await read(shard, name, len(DATA)) == DATA


async def test_what_is_wrong_is_found_behind_it(shard: LocalShard, tmp_path: Path) -> None:
    name = make_name(DATA)
    await shard.put(name, DATA)
    assert await read(shard, name, len(DATA)) == DATA
    os.truncate(replica_file(tmp_path / "shard", name), 9)
    with pytest.raises(ReplicaCorrupt):
        await read(shard, name, len(DATA))
    await shard.delete(name)
    with pytest.raises(ReplicaMissing):
        await read(shard, name, len(DATA))


async def test_large_reads_go_to_the_threads(shard: LocalShard, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(CACHED_READ_BYTES_MAX + 1)
    name = make_name(data)
    await shard.put(name, data)
    monkeypatch.setattr(files_module, "read_cached", lambda *_, **__: pytest.fail("on the event loop"))
    assert await read(shard, name, len(data)) == data
