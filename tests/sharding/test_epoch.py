"""The epoch on a shard: it only grows, survives what kills a process, and refuses the deletions of older primaries."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sharding.epoch import EPOCH_DRAFT, EPOCH_FILE, EpochFile
from sharding.errors import ShardFull, ShardRefused, ShardUnavailable
from sharding.local import LocalShard
from tests.sharding.local_shards import open_at
from tests.sharding.shard_contract import make_name, replica_files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "shard"


@pytest.fixture
async def shard(root: Path) -> AsyncIterator[LocalShard]:
    async with open_at(root) as opened:
        yield opened


async def test_new_shard_knows_no_epoch(shard: LocalShard) -> None:
    assert await shard.epoch() == 0


async def test_epoch_grows_and_survives_the_process(root: Path) -> None:
    async with open_at(root) as shard:
        await shard.see_epoch(3)
        await shard.see_epoch(3)
        await shard.see_epoch(12)
    assert (root / EPOCH_FILE).read_bytes() == b"12\n"
    async with open_at(root) as shard:
        assert await shard.epoch() == 12


async def test_older_epoch_is_refused_and_changes_nothing(shard: LocalShard, root: Path) -> None:
    await shard.see_epoch(12)
    with pytest.raises(ShardRefused, match="epoch 11 is over"):
        await shard.see_epoch(11)
    assert (root / EPOCH_FILE).read_bytes() == b"12\n"


async def test_draft_that_a_killed_process_left_is_no_obstacle(shard: LocalShard, root: Path) -> None:
    (root / EPOCH_DRAFT).write_bytes(b"99")
    await shard.see_epoch(4)
    assert (root / EPOCH_FILE).read_bytes() == b"4\n"
    assert not (root / EPOCH_DRAFT).exists()


@pytest.mark.parametrize("text", [b"", b"x", b"-1\n", b"1 \n", b"9" * 30, b"\n", b"1\n\n"])
async def test_damaged_file_is_never_taken_for_a_low_epoch(root: Path, text: bytes) -> None:
    async with open_at(root) as shard:
        await shard.see_epoch(7)
    (root / EPOCH_FILE).write_bytes(text)
    name = make_name(b"data")
    async with open_at(root) as shard:
        await shard.put(name, b"data")
        with pytest.raises(ShardUnavailable, match="damaged"):
            await shard.epoch()
        with pytest.raises(ShardUnavailable, match="damaged"):
            await shard.remove([name], epoch=8)
        assert await shard.sizes([name]) == [4]


async def test_planted_link_is_not_followed(shard: LocalShard, root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"1\n")
    (root / EPOCH_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ShardUnavailable):
        await shard.see_epoch(5)
    assert (tmp_path / "elsewhere").read_bytes() == b"1\n"


async def test_remove_takes_exactly_the_named_generations_and_tells_their_sizes(shard: LocalShard, root: Path) -> None:
    there, gone, other = make_name(b"12345"), make_name(b"never stored"), make_name(b"12345")
    await shard.put(there, b"12345")
    await shard.put(other, b"12345")
    assert await shard.remove([there, gone], epoch=2) == [5, None]
    assert [path.name for path in replica_files(root)] == [str(other)]
    assert await shard.epoch() == 2, "what it acted on, it remembers"
    assert await shard.remove([there], epoch=2) == [None], "twice is once"


async def test_remove_counts_what_is_on_the_disk(shard: LocalShard, root: Path) -> None:
    name = make_name(b"12345")
    await shard.put(name, b"12345")
    os.truncate(replica_files(root)[0], 3)
    assert await shard.remove([name], epoch=1) == [3]


async def test_full_disk_is_emptied_before_it_notes_the_epoch(
    shard: LocalShard, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shard.see_epoch(4)
    names = [make_name(b"first"), make_name(b"second")]
    for name in names:
        await shard.put(name, b"12345")
    store = EpochFile._store

    def store_if_there_is_room(epochs: EpochFile, epoch: int) -> None:
        if len(replica_files(root)) == 2:
            raise OSError(errno.ENOSPC, "no space")
        store(epochs, epoch)

    monkeypatch.setattr(EpochFile, "_store", store_if_there_is_room)
    with pytest.raises(ShardFull):
        await shard.see_epoch(5)
    with pytest.raises(ShardRefused):
        await shard.remove(names, epoch=3)
    assert await shard.remove(names[:1], epoch=5) == [5]
    assert await shard.epoch() == 5
    assert (root / EPOCH_FILE).read_bytes() == b"5\n"


async def test_remove_in_the_name_of_an_older_primary_is_refused(shard: LocalShard) -> None:
    name = make_name(b"data")
    await shard.put(name, b"data")
    await shard.see_epoch(9)
    with pytest.raises(ShardRefused):
        await shard.remove([name], epoch=8)
    assert await shard.sizes([name]) == [4]
