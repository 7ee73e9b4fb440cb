"""A shard that several processes of one node have open: one claim, a stage for each, one truth about what is durable."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest

from sharding.errors import ShardRefused
from sharding.files import BLOBS
from sharding.identity import ShardClaim, ShardIdentityError
from sharding.listing import Oddity, ShardListing
from sharding.local import LocalShard, join_local_shard
from sharding.model import BlobName, Generation
from tests.sharding.local_shards import SHARD, open_at
from tests.sharding.shard_contract import make_generation, make_name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "shard"


@pytest.fixture
async def owner(root: Path) -> AsyncIterator[LocalShard]:
    async with open_at(root) as opened:
        yield opened


def lent(shard: LocalShard) -> ShardClaim:
    claim = shard.files.claim
    return ShardClaim(claim.path, os.dup(claim.directory), claim.identity)


@asynccontextmanager
async def joined(shard: LocalShard, stage: str = "worker-1-1") -> AsyncIterator[LocalShard]:
    async with join_local_shard(SHARD, lent(shard), stage=stage, reserve_bytes=0) as opened:
        yield opened


async def test_what_one_process_writes_the_others_read(owner: LocalShard) -> None:
    async with joined(owner) as other:
        mine, theirs = make_name(b"mine"), make_name(b"theirs")
        await owner.put(mine, b"mine")
        await other.put(theirs, b"theirs")
        assert await other.read(mine, size=4, offset=0, length=4) == b"mine"
        assert await owner.read(theirs, size=6, offset=0, length=6) == b"theirs"
        await owner.delete(theirs)
        assert await other.sizes([mine, theirs]) == [4, None]


async def test_each_process_stages_apart_and_what_an_ended_one_left_goes_alone(owner: LocalShard, root: Path) -> None:
    async with joined(owner, "worker-1-1") as ended, joined(owner, "worker-2-1") as living:
        lost = await ended.stage(make_generation())
        await lost.write(b"lost")
        name = make_name(b"kept")
        kept = [await shard.stage(name.generation) for shard in (owner, living)]
        for staged in kept:
            await staged.write(b"kept")
        await owner.discard_stage("worker-1-1")
        assert not (root / "tmp/worker-1-1").exists()
        await kept[1].commit(name.sha256, bytes(8))
        await kept[0].abort()
    assert [path.name for path in root.glob("blobs/*/*")] == [str(name)]
    await owner.discard_stage("worker-1-1")  # again, as after a second end


async def test_a_living_process_stage_is_in_its_place_and_what_lies_in_it_is_set_aside(
    owner: LocalShard, root: Path
) -> None:
    async with joined(owner) as other:
        assert await odd(owner) == {}
        left_over = str(make_generation())
        (root / "tmp/worker-1-1" / left_over).write_bytes(b"left over")
        found = await odd(owner)
        assert found == {f"tmp/worker-1-1/{left_over}": Oddity.TEMP}
        [entry] = (await listed(owner)).oddities
        assert await owner.set_aside_entry(entry.path, entry.inode)
        assert await odd(owner) == {}
        [aside] = await owner.aside_entries()
        assert await owner.discard_aside_entry(aside)
        await other.put(make_name(b"it stores"), b"it stores")
    # What only looks like a stage is none.
    (root / "tmp/worker-2-1").write_bytes(b"")
    (root / "tmp/worker-1-1/worker-1-1").mkdir()
    assert await odd(owner) == {"tmp/worker-2-1": Oddity.TEMP, "tmp/worker-1-1/worker-1-1": Oddity.TEMP}


async def odd(shard: LocalShard) -> dict[str, Oddity]:
    return {os.fsdecode(entry.path): entry.oddity for entry in (await listed(shard)).oddities}


async def listed(shard: LocalShard) -> ShardListing:
    listing = shard.listing()
    try:
        while await shard.list_next(listing):
            pass
    finally:
        listing.close()
    return listing


async def test_a_process_takes_up_its_stage_again_after_it_was_discarded(owner: LocalShard) -> None:
    for _ in range(2):
        async with joined(owner) as other:
            await other.put(make_name(b"x"), b"x")
        await owner.discard_stage("worker-1-1")


async def test_a_joining_process_touches_nothing_that_is_staged(owner: LocalShard, root: Path) -> None:
    name = make_name(b"staged")
    staged = await owner.stage(name.generation)
    await staged.write(b"staged")
    async with joined(owner):
        assert (root / "tmp" / str(name.generation)).exists()
    await staged.commit(name.sha256, bytes(8))


async def test_a_fan_out_directory_that_another_process_made_is_synced_before_it_counts(owner: LocalShard) -> None:
    names = [name_in_one_fan_out() for _ in range(3)]
    async with joined(owner) as other:
        # Made by the other process, which has not synced it: it may be paused, or dead by now.
        assert place_by_hand(other, names[0]) == (BLOBS,)
        assert place_by_hand(owner, names[1]) == (BLOBS,)
        assert owner.files.sync_all((BLOBS,)) == {}
        assert place_by_hand(owner, names[2]) == ()


def name_in_one_fan_out() -> str:
    """Return the name of a new file; all are of one second, and so of one directory."""
    same_second = UUID(int=1 << 120 | make_generation().int & (1 << 80) - 1)
    return str(BlobName(bytes(32), Generation(same_second)))


def place_by_hand(shard: LocalShard, name: str) -> tuple[str, ...]:
    staged = str(make_generation())
    os.close(os.open(staged, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=shard.files.tmp))
    directory = shard.files.open_destination(name)
    try:
        shard.files.place(staged, name, directory)
    finally:
        os.close(directory)
    return shard.files.above(name)


async def test_the_claim_lasts_until_the_last_process_has_given_it_up(root: Path) -> None:
    async with open_at(root) as owner:
        claim = lent(owner)
    # The process that had claimed the shard is gone, another one of its node may still write.
    with pytest.raises(ShardIdentityError, match="in use by another process"):
        async with open_at(root):
            raise AssertionError
    claim.close()
    async with open_at(root):
        pass


async def test_an_epoch_that_one_process_hears_of_binds_all(owner: LocalShard) -> None:
    async with joined(owner) as other:
        assert await other.epoch() == 0
        await owner.see_epoch(5)
        assert await other.epoch() == 5
        await other.see_epoch(9)
        with pytest.raises(ShardRefused, match="epoch 8 is over"):
            await owner.see_epoch(8)
        assert await owner.epoch() == 9
