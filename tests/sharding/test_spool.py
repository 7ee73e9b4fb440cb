"""A spool: bytes on a shard's disk that leave nothing behind, however their owner ends."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from sharding.errors import ShardFull
from sharding.spool import open_spool
from tests.sharding.local_shards import open_at


async def test_what_was_appended_can_be_read_and_has_its_digests(tmp_path: Path) -> None:
    async with open_at(tmp_path / "shard") as shard, open_spool(shard) as spool:
        for piece in (b"a" * 100_000, b"", memoryview(b"b" * 5)):
            await spool.append(piece)
        digests = await spool.digests()
        assert (spool.size, digests.size) == (100_005, 100_005)
        content = os.pread(spool.descriptor, 200_000, 0)
        assert content == b"a" * 100_000 + b"b" * 5
        assert digests.sha256 == hashlib.sha256(content).digest()
        assert os.listdir(tmp_path / "shard" / "tmp") == [], "it has no name that a killed process could leave"


async def test_its_descriptor_is_closed_at_the_end_of_the_block_also_after_a_cancellation(tmp_path: Path) -> None:
    async with open_at(tmp_path / "shard") as shard:
        before = set(os.listdir("/proc/self/fd"))

        async def work() -> None:
            async with open_spool(shard) as spool:
                while True:
                    await spool.append(bytes(1 << 20))

        task = asyncio.create_task(work())
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        # What closes it was queued behind what was cancelled.
        for _ in range(4):
            await shard.run(os.getpid)
        await asyncio.sleep(0.05)
        opened = set(os.listdir("/proc/self/fd")) - before
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in opened if os.path.islink(f"/proc/self/fd/{fd}")]
        assert [link for link in links if str(tmp_path) in link] == []


async def test_a_shard_at_its_reserve_takes_none(tmp_path: Path) -> None:
    async with open_at(tmp_path / "shard", reserve_bytes=1 << 60) as shard:
        with pytest.raises(ShardFull):
            async with open_spool(shard):
                raise AssertionError("not reached")
