"""Listing a shard: every replica by generation, everything odd by its path, nothing followed."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sharding import listing
from sharding.identifiers import uuid7
from sharding.listing import FoundReplica, Oddity, ShardListing
from sharding.local import LocalShard
from sharding.model import BlobName, Generation
from tests.sharding.local_shards import open_at
from tests.sharding.shard_contract import make_name, replica_file


@pytest.fixture
async def shard(tmp_path: Path) -> AsyncIterator[LocalShard]:
    async with open_at(tmp_path / "shard") as value:
        yield value


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "shard"


async def list_all(shard: LocalShard) -> ShardListing:
    found = shard.listing()
    while await shard.list_next(found):
        pass
    return found


def odd(found: ShardListing) -> dict[str, Oddity]:
    return {os.fsdecode(entry.path): entry.oddity for entry in found.oddities}


async def test_fresh_shard_is_empty(shard: LocalShard) -> None:
    found = await list_all(shard)
    assert (list(found.replicas()), found.oddities, found.replicas_count) == ([], [], 0)
    found.close()


async def test_replicas_come_by_generation_across_directories(
    shard: LocalShard, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "RUN_RECORDS_READ", 3)
    names = []
    for number in range(100):
        # Seconds apart, so that they lie in many directories.
        generation = Generation(
            uuid.UUID(int=(0x0192_0000_0000 + number * 1500) << 80 | 7 << 76 | uuid7().int & 0xFFFF)
        )
        name = BlobName(os.urandom(32), generation)
        await shard.put(name, b"x")
        names.append(name)
    assert len(list((root / "blobs").iterdir())) > 50
    found = await list_all(shard)
    inodes = {name: replica_file(root, name).stat().st_ino for name in names}
    assert list(found.replicas()) == [FoundReplica(name, inodes[name]) for name in names]
    assert found.replicas_count == 100
    found.close()


async def test_everything_odd_is_told_by_its_path(shard: LocalShard, root: Path) -> None:
    name = make_name(b"data")
    await shard.put(name, b"data")
    fan_out = replica_file(root, name).parent
    misplaced = root / "blobs" / "ff" / str(name)
    misplaced.parent.mkdir()
    misplaced.write_bytes(b"data")
    (root / "tmp" / "left-over").write_bytes(b"")
    (root / "notes.txt").write_text("mine")
    (root / "blobs" / "zz").mkdir()
    (root / "blobs" / "aa").write_bytes(b"a file where a directory belongs")
    (fan_out / "README").write_text("x")
    (fan_out / str(name).upper()).write_bytes(b"x")
    (fan_out / f"{name}.bak").write_bytes(b"x")
    (fan_out / str(make_name(b"a directory"))).mkdir()
    (fan_out / str(make_name(b"a link"))).symlink_to("/etc/passwd")
    (root / "blobs" / "bb").symlink_to("/etc")
    os.mkfifo(fan_out / "pipe")
    raw = os.fsencode(fan_out) + b"/\xff\xfe"
    with open(raw, "wb"):
        pass
    found = await list_all(shard)
    here = f"blobs/{fan_out.name}"
    assert odd(found) == {
        f"blobs/ff/{name}": Oddity.WRONG_NAME,
        "tmp/left-over": Oddity.TEMP,
        "notes.txt": Oddity.FOREIGN,
        "blobs/zz": Oddity.FOREIGN,
        "blobs/aa": Oddity.FOREIGN,
        f"{here}/README": Oddity.FOREIGN,
        f"{here}/{str(name).upper()}": Oddity.FOREIGN,
        f"{here}/{name}.bak": Oddity.FOREIGN,
        **{f"{here}/{one.name}": Oddity.FOREIGN for one in fan_out.iterdir() if one.is_dir()},
        **{f"{here}/{one.name}": Oddity.LINK for one in fan_out.iterdir() if one.is_symlink()},
        "blobs/bb": Oddity.LINK,
        f"{here}/pipe": Oddity.FOREIGN,
        os.fsdecode(f"{here}/".encode() + b"\xff\xfe"): Oddity.FOREIGN,
    }
    assert [one.name for one in found.replicas()] == [name]
    found.close()


async def test_oddities_beyond_the_limit_are_counted(
    shard: LocalShard, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "ODDITIES_MAX", 3)
    for number in range(10):
        (root / "tmp" / str(number)).write_bytes(b"")
    found = await list_all(shard)
    assert (len(found.oddities), found.oddities_beyond) == (3, 7)
    found.close()


async def test_directory_that_goes_during_the_walk_is_no_error(shard: LocalShard, root: Path) -> None:
    name = make_name(b"data")
    await shard.put(name, b"data")
    found = shard.listing()
    assert await shard.list_next(found)
    replica_file(root, name).unlink()
    (root / "blobs" / replica_file_parent(root)).rmdir()
    assert await shard.list_next(found)
    assert not await shard.list_next(found)
    assert list(found.replicas()) == []
    found.close()


def replica_file_parent(root: Path) -> str:
    [directory] = (root / "blobs").iterdir()
    return directory.name
