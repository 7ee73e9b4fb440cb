"""The local shard on disks that fill up, die, turn read-only or are taken away. Needs root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharding.errors import ReplicaCorrupt, ShardFull, ShardRefused, ShardUnavailable
from sharding.model import BLOCK_BYTES
from tests.sharding import disks
from tests.sharding.local_shards import forget_cached, open_at
from tests.sharding.shard_contract import make_generation, make_name, replica_file, stage_all


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disks.mounted_tmpfs(tmp_path / "disk", size_kib=4096) as path:
        yield path


@pytest.fixture
def mortal_disk(tmp_path: Path) -> Iterator[Path]:
    with disks.mounted_ext4(tmp_path / "disk") as path:
        yield path


async def test_full_disk_takes_no_more_and_still_serves_and_deletes(small_disk: Path) -> None:
    async with open_at(small_disk / "shard") as shard:
        kept = make_name(b"kept")
        await shard.put(kept, b"kept")
        staged = await shard.stage(make_generation())
        await staged.write(bytes(BLOCK_BYTES))
        disks.fill_up(small_disk / "ballast")
        with pytest.raises(ShardFull):
            await shard.put(make_name(bytes(BLOCK_BYTES)), bytes(BLOCK_BYTES))
        with pytest.raises(ShardFull):
            await staged.write(bytes(BLOCK_BYTES))
        assert bytes(await shard.read(kept, size=4, offset=0, length=4)) == b"kept"
        await staged.abort()
        assert os.listdir(small_disk / "shard" / "tmp") == []
        await shard.delete(kept)
        (small_disk / "ballast").unlink()
        again = make_name(bytes(BLOCK_BYTES))
        await shard.put(again, bytes(BLOCK_BYTES))
        assert await shard.sizes([kept, again]) == [None, BLOCK_BYTES]


async def test_full_disk_can_be_opened_and_read(small_disk: Path) -> None:
    kept = make_name(b"kept")
    async with open_at(small_disk / "shard") as shard:
        await shard.put(kept, b"kept")
    disks.fill_up(small_disk / "ballast")
    async with open_at(small_disk / "shard") as shard:
        assert bytes(await shard.read(kept, size=4, offset=0, length=4)) == b"kept"
        with pytest.raises(ShardFull):
            await shard.put(make_name(b"more"), b"more")


async def test_read_only_disk_refuses_writes_and_still_serves(small_disk: Path) -> None:
    async with open_at(small_disk / "shard") as shard:
        name = make_name(b"data")
        await shard.put(name, b"data")
        disks.remount_read_only(small_disk)
        with pytest.raises(ShardRefused):
            await shard.put(make_name(b"more"), b"more")
        with pytest.raises(ShardRefused):
            await shard.stage(make_generation())
        with pytest.raises(ShardRefused):
            await shard.delete(name)
        assert bytes(await shard.read(name, size=4, offset=0, length=4)) == b"data"


async def test_disk_that_is_read_only_at_the_start_still_serves(small_disk: Path) -> None:
    name = make_name(b"data")
    async with open_at(small_disk / "shard") as shard:
        await shard.put(name, b"data")
    (small_disk / "shard/tmp/left").touch()
    disks.remount_read_only(small_disk)
    async with open_at(small_disk / "shard") as shard:
        assert bytes(await shard.read(name, size=4, offset=0, length=4)) == b"data"
        assert (await shard.space()).read_only
        with pytest.raises(ShardRefused):
            await shard.put(make_name(b"more"), b"more")


async def test_dead_disk_is_unavailable_and_accuses_no_replica(mortal_disk: Path) -> None:
    async with open_at(mortal_disk / "shard") as shard:
        name = make_name(b"data")
        await shard.put(name, b"data")
        staged_name, staged = await stage_all(shard, b"in flight")
        disks.kill_file_system(mortal_disk)
        with pytest.raises(ShardUnavailable):
            await shard.read(name, size=4, offset=0, length=4)
        with pytest.raises(ShardUnavailable):
            await shard.sizes([name])
        with pytest.raises(ShardUnavailable):
            await shard.space()
        with pytest.raises(ShardUnavailable):
            await shard.put(make_name(b"more"), b"more")
        with pytest.raises(ShardUnavailable):
            await shard.delete(name)
        with pytest.raises(ShardUnavailable):
            await staged.commit(staged_name.sha256, bytes(8))
        await staged.abort()


async def test_acknowledged_blobs_survive_the_death_of_the_file_system(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    blobs = {make_name(data): data for data in (os.urandom(5000) for _ in range(10))}
    with disks.mounted_ext4(tmp_path / "disk") as disk:
        async with open_at(disk / "shard") as shard:
            for name, data in blobs.items():
                await shard.put(name, data)
            disks.kill_file_system(disk)
    (tmp_path / "disk").rmdir()
    with disks.remounted_ext4(tmp_path / "disk", image) as disk:
        async with open_at(disk / "shard") as shard:
            for name, data in blobs.items():
                assert bytes(await shard.read(name, size=5000, offset=0, length=5000)) == data


async def test_single_unreadable_replica_on_a_living_disk_is_corrupt(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_at(small_disk / "shard") as shard:
        name = make_name(b"data")
        await shard.put(name, b"data")

        def unreadable(*_: int) -> bytes:
            raise OSError(5, "Input/output error")

        forget_cached(monkeypatch)
        monkeypatch.setattr(os, "pread", unreadable)
        with pytest.raises(ReplicaCorrupt):
            await shard.read(name, size=4, offset=0, length=4)
        assert os.listdir(small_disk / "shard" / "tmp") == []


async def test_disk_detached_under_the_shard_leaves_its_mount_point_empty(small_disk: Path) -> None:
    async with open_at(small_disk) as shard:
        before = make_name(b"before")
        await shard.put(before, b"before")
        file = replica_file(small_disk, before)
        disks.detach(small_disk)
        assert not file.exists()
        after = make_name(b"after")
        await shard.put(after, b"after")
        assert os.listdir(small_disk) == []
        assert await shard.sizes([before, after]) == [6, 5]
