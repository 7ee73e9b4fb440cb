"""Reading replicas again: from the disk, in parts, with the digests of their blocks."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sharding import reread
from sharding.errors import ReplicaCorrupt, ReplicaMissing, ShardRefused, ShardUnavailable
from sharding.local import LocalShard
from sharding.model import BLOCK_BYTES, BlobName
from sharding.shard import Part
from tests.sharding import disks
from tests.sharding.local_shards import open_at
from tests.sharding.shard_contract import block_digests, replica_file, stage_all


@pytest.fixture
async def shard(tmp_path: Path) -> AsyncIterator[LocalShard]:
    async with open_at(tmp_path / "shard") as value:
        yield value


async def keep(shard: LocalShard, data: bytes) -> BlobName:
    name, staged = await stage_all(shard, data)
    await staged.commit(name.sha256, block_digests(data))
    return name


def whole(name: BlobName, size: int) -> Part:
    return Part(name, size, 0, size, hashlib.sha256())


def avoid_direct_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str, flags: int, *args: int, **more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct reads here")
        return real(path, flags, *args, **more)

    monkeypatch.setattr(reread.os, "open", refuse)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("size", [1, 4095, 4096, BLOCK_BYTES, BLOCK_BYTES + 1, 9 * BLOCK_BYTES + 77])
async def test_reread_gives_the_digests_of_every_block(
    shard: LocalShard, size: int, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(size)
    name = await keep(shard, data)
    if not direct:
        avoid_direct_reads(monkeypatch)
    part = whole(name, size)
    assert await shard.reread([part]) == [block_digests(data)]
    assert part.hasher is not None and part.hasher.digest() == name.sha256


async def test_reread_takes_a_part(shard: LocalShard) -> None:
    data = os.urandom(7 * BLOCK_BYTES + 5)
    name = await keep(shard, data)
    [found] = await shard.reread([Part(name, len(data), 2 * BLOCK_BYTES, 3 * BLOCK_BYTES)])
    assert found == block_digests(data)[16:40]


async def test_reread_tells_of_each_part_alone(shard: LocalShard, tmp_path: Path) -> None:
    names = [await keep(shard, bytes([number]) * 100) for number in range(4)]
    replica_file(tmp_path / "shard", names[1]).unlink()
    with replica_file(tmp_path / "shard", names[2]).open("ab") as file:
        file.write(b"x")
    outcomes = await shard.reread([whole(name, 100) for name in names])
    assert [type(outcome) for outcome in outcomes] == [bytes, ReplicaMissing, ReplicaCorrupt, bytes]


async def test_reread_follows_no_link(shard: LocalShard, tmp_path: Path) -> None:
    name = await keep(shard, b"data")
    file = replica_file(tmp_path / "shard", name)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    [outcome] = await shard.reread([whole(name, 4)])
    assert isinstance(outcome, ReplicaCorrupt)


async def test_reread_refuses_what_is_not_within_the_blob(shard: LocalShard) -> None:
    name = await keep(shard, b"data")
    for offset, length in ((1, 3), (0, 5), (BLOCK_BYTES, 1)):
        with pytest.raises(ShardRefused):
            await shard.reread([Part(name, 4, offset, length)])


async def test_reread_on_a_dead_disk_says_nothing_about_the_replica(tmp_path: Path) -> None:
    with disks.mounted_ext4(tmp_path / "disk") as disk:
        async with open_at(disk / "shard") as shard:
            name = await keep(shard, b"data")
            disks.kill_file_system(disk)
            with pytest.raises(ShardUnavailable):
                await shard.reread([whole(name, 4)])
            with pytest.raises(ShardUnavailable):
                await shard.check_intact()


async def test_reread_finds_what_a_part_of_the_disk_lost_though_memory_has_it(tmp_path: Path) -> None:
    """The backing file of a loop device ends early: reads of what lay behind fail, for those who ask the disk."""
    with disks.mounted_ext4(tmp_path / "disk", size_mib=64) as disk:
        async with open_at(disk / "shard") as shard:
            names = [await keep(shard, os.urandom(4 * BLOCK_BYTES)) for _ in range(11)]
            os.truncate(tmp_path / "disk.img", 40 << 20)
            outcomes = await shard.reread([whole(name, 4 * BLOCK_BYTES) for name in names])
            bad = [outcome for outcome in outcomes if isinstance(outcome, ReplicaCorrupt)]
            assert 0 < len(bad) < len(names), outcomes
