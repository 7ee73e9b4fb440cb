"""The local shard: its contract, what it makes of odd files and odd errors, and calls given up half-way."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sharding import self_test
from sharding.errors import ReplicaCorrupt, ReplicaMissing, ShardFull, ShardRefused, ShardUnavailable
from sharding.files import fan_out_of
from sharding.identity import ShardIdentityError
from sharding.local import LocalShard
from sharding.model import BLOCK_BYTES, BlobName
from sharding.shard import Measurable, Part, Shard
from tests.sharding.local_shards import SHARD, forget_cached, open_at
from tests.sharding.shard_contract import (
    ShardContract,
    block_digests,
    make_generation,
    make_name,
    replica_file,
    replica_files,
    stage_all,
)
from tests.tools import open_below


@pytest.fixture
def shard_root(tmp_path: Path) -> Path:
    return tmp_path / "shard"


@pytest.fixture
async def shard(shard_root: Path) -> AsyncIterator[LocalShard]:
    async with open_at(shard_root) as opened:
        yield opened


class TestContract(ShardContract):
    pass


async def read_all(shard: Shard, name: BlobName, size: int) -> bytes:
    return bytes(await shard.read(name, size=size, offset=0, length=size))


def fail_with(number: int) -> Any:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


class Gate:
    """Holds the thread that comes to ``function`` until it is opened."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._opened = threading.Event()
        self.reached = threading.Event()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.reached.set()
        self._opened.wait(10)
        return self._function(*args, **kwargs)

    async def wait_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 10)

    def open(self) -> None:
        self._opened.set()


@contextmanager
def gated(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[Gate]:
    """Hold every thread that calls ``os.<name>``."""
    gate = Gate(getattr(os, name))
    with monkeypatch.context() as patch:
        patch.setattr(os, name, gate)
        try:
            yield gate
        finally:
            gate.open()


async def settled(shard: LocalShard) -> None:
    """Return when the threads of the disk have done what they were given."""
    await shard.close()


# --- opening


async def test_open_makes_the_layout_and_survives_a_second_start(shard_root: Path) -> None:
    name = make_name(b"data")
    async with open_at(shard_root) as shard:
        await shard.put(name, b"data")
    async with open_at(shard_root) as shard:
        assert shard.id == SHARD
        assert await read_all(shard, name, 4) == b"data"
    assert sorted(os.listdir(shard_root)) == ["blobs", "shard.json", "tmp"]
    assert (shard_root / "blobs" / fan_out_of(str(name)) / str(name)).read_bytes() == b"data"


async def test_open_empties_tmp(shard_root: Path) -> None:
    async with open_at(shard_root):
        pass
    (shard_root / "tmp" / "left-over").write_bytes(b"x")
    (shard_root / "tmp" / "directory").mkdir()
    (shard_root / "tmp" / "directory" / "file").write_bytes(b"x")
    outside = shard_root.parent / "outside"
    outside.write_bytes(b"x")
    (shard_root / "tmp" / "link").symlink_to(outside)
    async with open_at(shard_root):
        assert os.listdir(shard_root / "tmp") == []
    assert outside.exists()


async def test_open_leaves_tmp_alone_when_another_owner_holds_the_shard(shard: LocalShard, shard_root: Path) -> None:
    _, staged = await stage_all(shard, b"in flight")
    with pytest.raises(ShardIdentityError, match=str(shard_root)):
        async with open_at(shard_root):
            pass
    assert len(os.listdir(shard_root / "tmp")) == 1
    await staged.abort()


async def test_open_gives_the_shard_up_when_closed(shard_root: Path) -> None:
    for _ in range(3):
        async with open_at(shard_root) as shard:
            await shard.put(make_name(b"data"), b"data")
    assert open_below(shard_root) == []
    with pytest.raises(ShardUnavailable):
        await shard.put(make_name(b"late"), b"late")


@pytest.mark.parametrize("name", ["tmp", "blobs"])
async def test_open_refuses_when_a_directory_of_the_layout_is_a_link(shard_root: Path, name: str) -> None:
    async with open_at(shard_root):
        pass
    elsewhere = shard_root.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_bytes(b"x")
    (shard_root / name).rmdir()
    (shard_root / name).symlink_to(elsewhere)
    with pytest.raises(ShardUnavailable, match=str(shard_root)):
        async with open_at(shard_root):
            pass
    assert (elsewhere / "precious").exists()


@pytest.mark.parametrize(("function", "step"), [("write", "write"), ("fsync", "sync"), ("pread", "read back")])
async def test_self_test_names_the_step_and_the_path_when_it_fails(
    shard_root: Path, monkeypatch: pytest.MonkeyPatch, function: str, step: str
) -> None:
    async with open_at(shard_root):
        pass
    real = self_test.check_disk

    def check_with_failing_step(*args: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail_with(errno.EIO))
            real(*args)

    monkeypatch.setattr("sharding.local.check_disk", check_with_failing_step)
    with pytest.raises(ShardUnavailable, match=f"cannot {step} {shard_root}/tmp/self-test"):
        async with open_at(shard_root):
            pass
    monkeypatch.undo()
    async with open_at(shard_root):  # the failed start has given the shard up
        assert os.listdir(shard_root / "tmp") == []


async def test_self_test_fails_when_other_bytes_come_back(shard_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_at(shard_root):
        pass
    real = self_test.check_disk

    def check_with_lying_disk(*args: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", lambda file, length, offset: bytes(length))
            real(*args)

    monkeypatch.setattr("sharding.local.check_disk", check_with_lying_disk)
    with pytest.raises(ShardUnavailable, match="cannot read back"):
        async with open_at(shard_root):
            pass


async def test_open_cancelled_half_way_gives_the_shard_up(shard_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_at(shard_root):
        pass
    with gated(monkeypatch, "fsync") as gate:
        opening = asyncio.create_task(open_at(shard_root).__aenter__())
        await gate.wait_reached()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        gate.open()
    async with asyncio.timeout(10):
        while True:
            try:
                async with open_at(shard_root) as shard:
                    assert shard.id == SHARD
                    return
            except ShardIdentityError:
                await asyncio.sleep(0.01)


# --- space


async def test_space_is_what_is_left_above_the_reserve(shard_root: Path) -> None:
    found = os.statvfs(shard_root.parent)
    free = found.f_bavail * found.f_frsize
    async with open_at(shard_root, reserve_bytes=free // 2) as shard:
        measurable: Measurable = shard
        space = await measurable.space()
    assert space.capacity_bytes == found.f_blocks * found.f_frsize
    assert abs(space.free_bytes - free // 2) < free // 4


async def test_no_new_blob_is_taken_under_the_reserve_and_the_rest_works(shard_root: Path) -> None:
    name = make_name(b"data")
    async with open_at(shard_root) as shard:
        await shard.put(name, b"data")
    async with open_at(shard_root, reserve_bytes=1 << 60) as shard:
        assert (await shard.space()).free_bytes == 0
        with pytest.raises(ShardFull):
            await shard.put(make_name(b"new"), b"new")
        with pytest.raises(ShardFull):
            await shard.stage(make_generation())
        assert os.listdir(shard_root / "tmp") == []
        assert await read_all(shard, name, 4) == b"data"
        await shard.delete(name)
        assert await shard.sizes([name]) == [None]


async def test_space_is_sampled_at_most_once_a_second(shard: LocalShard, monkeypatch: pytest.MonkeyPatch) -> None:
    samples: list[int] = []
    real = os.fstatvfs

    def sample(file: int) -> os.statvfs_result:
        samples.append(file)
        return real(file)

    monkeypatch.setattr(os, "fstatvfs", sample)
    clock = [1000.0]
    monkeypatch.setattr("sharding.files.time.monotonic", lambda: clock[0])
    await asyncio.gather(*(shard.put(make_name(bytes([n])), bytes([n])) for n in range(20)))
    before = len(samples)
    await shard.space()
    assert len(samples) == before <= 4  # at most one for each thread
    clock[0] += 1.0
    await shard.space()
    assert len(samples) == before + 1


# --- odd files


async def test_planted_link_is_not_followed_by_a_read(shard: LocalShard, shard_root: Path, tmp_path: Path) -> None:
    name = make_name(b"data")
    await shard.put(name, b"data")
    secret = tmp_path / "secret"
    secret.write_bytes(b"abcd")
    file = replica_file(shard_root, name)
    file.unlink()
    file.symlink_to(secret)
    with pytest.raises(ReplicaCorrupt):
        await shard.read(name, size=4, offset=0, length=4)
    with pytest.raises(ShardUnavailable):
        await shard.sizes([name])


async def test_planted_link_is_not_followed_by_a_write(shard: LocalShard, shard_root: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    name = make_name(b"data")
    (shard_root / "tmp" / str(name.generation)).symlink_to(target)
    with pytest.raises(ShardRefused):
        await shard.put(name, b"data")
    assert not target.exists()


async def test_planted_directory_link_is_not_followed(shard: LocalShard, shard_root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    name = make_name(b"data")
    (elsewhere / str(name)).write_bytes(b"data")
    (shard_root / "blobs" / fan_out_of(str(name))).symlink_to(elsewhere)
    with pytest.raises(ShardUnavailable):
        await shard.read(name, size=4, offset=0, length=4)
    with pytest.raises(ShardUnavailable):
        await shard.sizes([name])
    with pytest.raises(ShardUnavailable):
        await shard.put(BlobName(name.sha256, make_generation()), b"data")
    with pytest.raises(ShardUnavailable):
        await shard.delete(name)
    assert os.listdir(elsewhere) == [str(name)]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
async def test_planted_pipe_or_directory_is_corrupt_and_does_not_hang(
    shard: LocalShard, shard_root: Path, make: Any
) -> None:
    name = make_name(b"data")
    await shard.put(name, b"data")
    file = replica_file(shard_root, name)
    file.unlink()
    make(file)
    async with asyncio.timeout(5):
        with pytest.raises(ReplicaCorrupt):
            await shard.read(name, size=4, offset=0, length=4)
        assert await shard.sizes([name]) == [None]


async def test_generation_used_twice_is_refused_and_the_first_file_kept(shard: LocalShard) -> None:
    name = make_name(b"data")
    await shard.put(name, b"data")
    with pytest.raises(ShardRefused):
        await shard.put(name, b"other")
    assert await read_all(shard, name, 4) == b"data"


async def test_wiped_blobs_are_missing_and_new_ones_are_stored(shard: LocalShard, shard_root: Path) -> None:
    name = make_name(b"data")
    await shard.put(name, b"data")
    for directory in (shard_root / "blobs").iterdir():
        shutil.rmtree(directory)
    with pytest.raises(ReplicaMissing):
        await shard.read(name, size=4, offset=0, length=4)
    assert await shard.sizes([name]) == [None]
    await shard.delete(name)
    again = BlobName(name.sha256, make_generation())
    await shard.put(again, b"data")
    assert await read_all(shard, again, 4) == b"data"


async def test_nothing_is_said_missing_when_the_whole_directory_was_taken_away(
    shard: LocalShard, shard_root: Path
) -> None:
    name = make_name(b"data")
    await shard.put(name, b"data")
    shutil.rmtree(shard_root / "blobs")
    with pytest.raises(ShardUnavailable):
        await shard.read(name, size=4, offset=0, length=4)
    with pytest.raises(ShardUnavailable):
        await shard.sizes([name])
    with pytest.raises(ShardUnavailable):
        await shard.put(make_name(b"new"), b"new")


# --- odd errors


@pytest.mark.parametrize("number", [errno.EIO, errno.EUCLEAN, errno.ENODATA, errno.EBADMSG])
async def test_read_says_corrupt_when_the_disk_cannot_read_the_bytes(
    shard: LocalShard, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    forget_cached(monkeypatch)
    name = make_name(b"data")
    await shard.put(name, b"data")
    monkeypatch.setattr(os, "pread", fail_with(number))
    with pytest.raises(ReplicaCorrupt):
        await shard.read(name, size=4, offset=0, length=4)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES, errno.EMFILE, errno.ENOMEM])
async def test_read_says_unavailable_when_nobody_could_look(
    shard: LocalShard, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    forget_cached(monkeypatch)
    name = make_name(b"data")
    await shard.put(name, b"data")
    monkeypatch.setattr(os, "open", fail_with(number))
    with pytest.raises(ShardUnavailable):
        await shard.read(name, size=4, offset=0, length=4)
    with pytest.raises(ShardUnavailable):
        await shard.sizes([name])


async def test_read_says_corrupt_when_the_file_ends_early_under_it(
    shard: LocalShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_cached(monkeypatch)
    name = make_name(b"data")
    await shard.put(name, b"data")
    monkeypatch.setattr(os, "pread", lambda file, length, offset: b"da"[offset : offset + length])
    with pytest.raises(ReplicaCorrupt):
        await shard.read(name, size=4, offset=0, length=4)


async def test_short_reads_and_writes_are_continued(shard: LocalShard, monkeypatch: pytest.MonkeyPatch) -> None:
    write, pread = os.write, os.pread
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:999]))
    monkeypatch.setattr(os, "pread", lambda file, length, offset: pread(file, min(length, 777), offset))
    data = os.urandom(10_000)
    name = make_name(data)
    await shard.put(name, data)
    assert await read_all(shard, name, 10_000) == data
    staged_name, staged = await stage_all(shard, data)
    assert bytes(await staged.read(1, 5000)) == data[1:5001]
    await staged.commit(staged_name.sha256, block_digests(data))
    assert await read_all(shard, staged_name, 10_000) == data


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, ShardFull),
        (errno.EDQUOT, ShardFull),
        (errno.EROFS, ShardRefused),
        (errno.EFBIG, ShardRefused),
        (errno.EIO, ShardUnavailable),
    ],
)
async def test_failed_write_is_named_and_leaves_nothing(
    shard: LocalShard, shard_root: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    name = make_name(b"data")
    staged = await shard.stage(make_generation())
    monkeypatch.setattr(os, "write", fail_with(number))
    with pytest.raises(kind):
        await shard.put(name, b"data")
    with pytest.raises(kind):
        await staged.write(b"data")
    await staged.abort()
    await settled(shard)
    assert os.listdir(shard_root / "tmp") == []
    assert replica_files(shard_root) == []


async def test_staged_blob_takes_nothing_more_after_an_error(
    shard: LocalShard, shard_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, staged = await stage_all(shard, b"data")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail_with(errno.EIO))
        with pytest.raises(ShardUnavailable):
            await staged.write(b"more")
    with pytest.raises(ShardUnavailable):
        await staged.write(b"more")
    with pytest.raises(ShardUnavailable):
        await staged.commit(name.sha256, block_digests(b"data"))
    await staged.abort()
    assert await shard.sizes([name]) == [None]


async def test_staged_bytes_that_cannot_be_read_are_not_committed(
    shard: LocalShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, staged = await stage_all(shard, b"data")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail_with(errno.EIO))
        with pytest.raises(ReplicaCorrupt):
            await staged.read(0, 4)
    with pytest.raises(ShardUnavailable):
        await staged.commit(name.sha256, block_digests(b"data"))
    assert await shard.sizes([name]) == [None]


async def test_abort_after_a_commit_keeps_the_blob(shard: LocalShard) -> None:
    name, staged = await stage_all(shard, b"data")
    await staged.commit(name.sha256, block_digests(b"data"))
    await staged.abort()
    assert await read_all(shard, name, 4) == b"data"


# --- calls given up half-way


@pytest.mark.parametrize("function", ["open", "write", "fdatasync", "rename", "close"])
async def test_put_given_up_leaves_nothing_when_its_thread_goes_on(
    shard: LocalShard, shard_root: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    name = make_name(b"data")
    with gated(monkeypatch, function) as gate:
        putting = asyncio.create_task(shard.put(name, b"data"))
        await gate.wait_reached()
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        gate.open()
        await shard.delete(name)
    await settled(shard)
    assert replica_files(shard_root) == []
    assert os.listdir(shard_root / "tmp") == []


@pytest.mark.parametrize("function", ["write", "fdatasync", "rename"])
async def test_abort_never_closes_a_file_under_a_running_call(
    shard: LocalShard, shard_root: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    name, staged = await stage_all(shard, b"data")
    descriptors = open_below(shard_root)
    with gated(monkeypatch, function) as gate:
        call = staged.write(b"more") if function == "write" else staged.commit(name.sha256, block_digests(b"data"))
        running = asyncio.create_task(call)
        await gate.wait_reached()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await staged.abort()
        assert len(open_below(shard_root)) >= len(descriptors)
        gate.open()
    await settled(shard)
    assert os.listdir(shard_root / "tmp") == []
    assert replica_files(shard_root) == []


async def test_stage_given_up_leaves_neither_file_nor_descriptor(
    shard: LocalShard, shard_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptors = open_below(shard_root)
    with gated(monkeypatch, "open") as gate:
        staging = asyncio.create_task(shard.stage(make_generation()))
        await gate.wait_reached()
        staging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await staging
        gate.open()
    await shard.run(os.getpid)
    async with asyncio.timeout(10):
        while os.listdir(shard_root / "tmp") or open_below(shard_root) != descriptors:
            await asyncio.sleep(0.01)


async def test_abort_cancelled_while_it_waits_still_removes_the_staged_bytes(
    shard_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_at(shard_root, threads=1) as shard:
        _, staged = await stage_all(shard, b"data")
        with gated(monkeypatch, "fdatasync") as gate:
            putting = asyncio.create_task(shard.put(make_name(b"other"), b"other"))
            await gate.wait_reached()
            aborting = asyncio.create_task(staged.abort())
            await asyncio.sleep(0)
            aborting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await aborting
            assert len(os.listdir(shard_root / "tmp")) == 2
            gate.open()
            await putting
        await settled(shard)
        assert os.listdir(shard_root / "tmp") == []


async def test_put_given_up_before_its_rename_is_never_visible(
    shard_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[object] = []
    async with open_at(shard_root, threads=1) as shard:
        monkeypatch.setattr(os, "rename", lambda *names, **_: renamed.append(names))
        with gated(monkeypatch, "fdatasync") as gate:
            putting = asyncio.create_task(shard.put(make_name(b"data"), b"data"))
            await gate.wait_reached()
            putting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await putting
            gate.open()
            await settled(shard)
    assert renamed == []


async def test_staged_blob_takes_nothing_more_after_a_cancelled_write(
    shard: LocalShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, staged = await stage_all(shard, b"data")
    with gated(monkeypatch, "write") as gate:
        writing = asyncio.create_task(staged.write(b"more"))
        await gate.wait_reached()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        gate.open()
    with pytest.raises(ShardUnavailable):
        await staged.commit(name.sha256, block_digests(b"datamore"))
    assert await shard.sizes([name]) == [None]


async def test_close_waits_for_a_write_under_way(
    shard: LocalShard, shard_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = make_name(b"data")
    with gated(monkeypatch, "fdatasync") as gate:
        putting = asyncio.create_task(shard.put(name, b"data"))
        await gate.wait_reached()
        closing = asyncio.create_task(shard.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        gate.open()
        await closing
    with pytest.raises(ShardUnavailable):  # the directory could not be synced any more: no acknowledgement
        await putting


async def test_large_staged_blob_is_flushed_on_the_way(shard: LocalShard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharding.staging.FLUSH_BYTES", 2 * BLOCK_BYTES)
    synced: list[int] = []
    real = os.fdatasync

    def sync(file: int) -> None:
        synced.append(os.fstat(file).st_size)
        real(file)

    monkeypatch.setattr(os, "fdatasync", sync)
    data = os.urandom(5 * BLOCK_BYTES)
    name, staged = await stage_all(shard, data)
    assert synced == [2 * BLOCK_BYTES, 4 * BLOCK_BYTES]
    await staged.commit(name.sha256, block_digests(data))
    assert synced[-1] == 5 * BLOCK_BYTES
    assert await read_all(shard, name, len(data)) == data


def test_files_of_one_moment_share_a_directory_and_time_fills_all_of_them() -> None:
    start = 0x0192_0000_0000

    def directory(milliseconds: int) -> str:
        return fan_out_of(f"{'a' * 64}.{uuid.UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62)}")

    assert {directory(start + offset) for offset in range(1024)} == {directory(start)}
    assert len({directory(start + second * 1024) for second in range(256)}) == 256


@pytest.mark.parametrize("is_dead", [False, True])
async def test_unreadable_directory_is_a_bad_part_of_a_living_disk_alone(
    shard: LocalShard, monkeypatch: pytest.MonkeyPatch, is_dead: bool
) -> None:
    forget_cached(monkeypatch)
    name, real = make_name(b"data"), os.open
    await shard.put(name, b"data")

    def broken(path: Any, *arguments: Any, **more: Any) -> int:
        if is_dead or path == fan_out_of(str(name)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", broken)
        expected = ShardUnavailable if is_dead else ReplicaCorrupt
        with pytest.raises(expected):
            await read_all(shard, name, 4)
        if is_dead:
            with pytest.raises(ShardUnavailable):
                await shard.reread([Part(name, 4, 0, 4)])
        else:
            assert [type(one) for one in await shard.reread([Part(name, 4, 0, 4)])] == [ReplicaCorrupt]
        with pytest.raises(ShardUnavailable):  # whether a file is there, nobody can say
            await shard.sizes([name])
    assert await read_all(shard, name, 4) == b"data"


async def test_shard_that_is_not_in_its_place_does_not_answer(shard: LocalShard, shard_root: Path) -> None:
    assert (await shard.space()).capacity_bytes > 0
    aside = shard_root.rename(shard_root.with_name("aside"))
    shard.files._space_until = 0
    with pytest.raises(ShardUnavailable, match="is gone: is the disk mounted"):
        await shard.space()
    shard_root.mkdir()
    with pytest.raises(ShardUnavailable, match="is another directory now"):
        await shard.space()
    shard_root.rmdir()
    aside.rename(shard_root)
    assert not (await shard.space()).read_only
    shutil.rmtree(shard_root / "blobs")
    shard.files._space_until = 0
    with pytest.raises(ShardUnavailable, match="blobs was removed"):
        await shard.space()


async def test_shard_whose_thread_hangs_is_given_up_when_it_returns(shard_root: Path) -> None:
    held = threading.Event()
    async with open_at(shard_root) as opened:
        hanging = asyncio.ensure_future(opened.run(held.wait))
        await asyncio.sleep(0)
        await opened.close(timeout_seconds=0.05)
        assert not opened.is_given_up
        with pytest.raises(ShardIdentityError, match="is in use"):
            async with open_at(shard_root):
                pass
        held.set()
        await hanging
        while not opened.is_given_up:
            await asyncio.sleep(0.01)
        async with open_at(shard_root):
            pass
