"""The quarantine of a shard: moved there whole and durably, found again, emptied."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from sharding.errors import ShardRefused, ShardUnavailable
from sharding.local import LocalShard
from sharding.shard import Aside
from tests.sharding import disks
from tests.sharding.local_shards import open_at
from tests.sharding.shard_contract import make_name, replica_file, replica_files


@pytest.fixture
async def shard(tmp_path: Path) -> AsyncIterator[LocalShard]:
    async with open_at(tmp_path / "shard") as value:
        yield value


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "shard"


async def test_replica_moves_aside_with_its_bytes(shard: LocalShard, root: Path) -> None:
    name = make_name(b"data")
    await shard.put(name, b"data")
    assert await shard.set_aside(name)
    assert replica_files(root) == []
    assert (root / "quarantine" / str(name)).read_bytes() == b"data"
    assert await shard.sizes([name]) == [None]
    assert await shard.aside() == Aside(1, 4)


async def test_second_move_finds_it_there(shard: LocalShard) -> None:
    name = make_name(b"data")
    await shard.put(name, b"data")
    assert await shard.set_aside(name)
    assert await shard.set_aside(name)
    assert await shard.aside() == Aside(1, 4)


async def test_move_of_what_is_nowhere_says_so(shard: LocalShard) -> None:
    assert not await shard.set_aside(make_name(b"data"))


async def test_entry_is_discarded_unless_it_is_another_by_now_or_a_directory_with_something_in_it(
    shard: LocalShard, root: Path
) -> None:
    assert await shard.aside_entries() == [] and not (root / "quarantine").exists()
    for name, make in (("file", Path.touch), ("link", lambda path: path.symlink_to("/etc")), ("empty", Path.mkdir)):
        make(root / name)
        await shard.set_aside_entry(name.encode(), (root / name).lstat().st_ino)
    (root / "full").mkdir()
    (root / "full" / "file").touch()
    await shard.set_aside_entry(b"full", (root / "full").stat().st_ino)
    entries = {entry.name.rpartition(b".")[2]: entry for entry in await shard.aside_entries()}
    assert not await shard.discard_aside_entry(replace(entries[b"file"], inode=1))
    assert {name: await shard.discard_aside_entry(entry) for name, entry in entries.items()} == {
        b"file": True,
        b"link": True,
        b"empty": True,
        b"full": False,
    }
    assert await shard.aside_entries() == [entries[b"full"]]
    assert not await shard.discard_aside_entry(entries[b"file"]), "it is gone"


async def test_discarded_replicas_are_gone_for_good(shard: LocalShard) -> None:
    kept, gone = make_name(b"kept"), make_name(b"gone")
    for name in (kept, gone):
        await shard.put(name, b"data")
        await shard.set_aside(name)
    await shard.discard_aside([gone, make_name(b"never there")])
    assert await shard.aside() == Aside(1, 4)
    assert await shard.set_aside(kept)


@pytest.mark.parametrize("kind", ["file", "directory", "link", "pipe", "undecodable"])
async def test_entry_of_any_kind_moves_aside(shard: LocalShard, root: Path, kind: str) -> None:
    path = os.fsencode(root) + b"/blobs/" + (b"\xff\xfe" if kind == "undecodable" else b"odd")
    match kind:
        case "directory":
            os.mkdir(path)
            Path(os.fsdecode(path), "inner").write_bytes(b"x")
        case "link":
            os.symlink("/etc/passwd", path)
        case "pipe":
            os.mkfifo(path)
        case _:
            Path(os.fsdecode(path)).write_bytes(b"x")
    inode = os.lstat(path).st_ino
    entry = path.removeprefix(os.fsencode(root) + b"/")
    assert not await shard.set_aside_entry(entry, inode + 1), "it is another than was seen"
    assert await shard.set_aside_entry(entry, inode)
    assert not os.path.lexists(path)
    assert [os.lstat(one).st_ino for one in os.scandir(root / "quarantine")] == [inode]
    assert not await shard.set_aside_entry(entry, inode)
    assert Path("/etc/passwd").exists()


async def test_entry_below_a_link_is_out_of_reach(shard: LocalShard, root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"x")
    (root / "blobs" / "aa").symlink_to(tmp_path / "elsewhere")
    inode = (tmp_path / "elsewhere" / "file").stat().st_ino
    assert not await shard.set_aside_entry(b"blobs/aa/file", inode)
    assert (tmp_path / "elsewhere" / "file").exists()


async def test_read_only_disk_moves_nothing(tmp_path: Path) -> None:
    with disks.mounted_tmpfs(tmp_path / "disk", size_kib=4096) as disk:
        async with open_at(disk / "shard") as shard:
            name = make_name(b"data")
            await shard.put(name, b"data")
            disks.remount_read_only(disk)
            with pytest.raises(ShardRefused):
                await shard.set_aside(name)
            assert replica_file(disk / "shard", name).read_bytes() == b"data"


async def test_intact_shard_is_intact(shard: LocalShard) -> None:
    await shard.check_intact()


async def test_shard_that_was_taken_away_or_replaced_is_not_intact(shard: LocalShard, root: Path) -> None:
    identity = (root / "shard.json").read_bytes()

    async def refused() -> bool:
        with pytest.raises(ShardUnavailable):
            await shard.check_intact()
        return True

    (root / "shard.json").unlink()
    assert await refused()
    (root / "shard.json").write_bytes(identity.replace(b'"shard_uid": "', b'"shard_uid": "f'))
    assert await refused()
    (root / "shard.json").write_bytes(identity)
    await shard.check_intact()
    (root / "blobs").rename(root / "gone")
    assert await refused()
    (root / "blobs").mkdir()
    assert await refused()
    (root / "blobs").rmdir()
    (root / "gone").rename(root / "blobs")
    await shard.check_intact()
    root.rename(root.with_name("other"))
    assert await refused()
    root.mkdir()
    assert await refused()


async def test_unmounted_disk_is_not_intact(tmp_path: Path) -> None:
    with disks.mounted_tmpfs(tmp_path / "disk", size_kib=4096) as disk:
        async with open_at(disk) as shard:
            disks.detach(disk)
            with pytest.raises(ShardUnavailable):
                await shard.check_intact()
