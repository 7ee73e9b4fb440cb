"""Missing files are noticed by a sample, then all of them at once; what cannot be looked at is not missing."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sharding.errors import ShardUnavailable
from sharding.local import LocalShard
from sharding.maintenance.presence import Presence
from sharding.model import BlobName
from tests.sharding import disks
from tests.sharding.local_shards import SHARD, open_at
from tests.sharding.maintenance.audit_rows import AuditRows, Observed
from tests.sharding.shard_contract import make_name, replica_file


@dataclass
class Bench:
    shard: LocalShard
    root: Path
    rows: AuditRows = field(default_factory=lambda: AuditRows(SHARD))
    seen: Observed = field(default_factory=Observed)
    sample_max: int = 20

    def __post_init__(self) -> None:
        self.presence = Presence(
            {SHARD: self.shard}, self.rows, self.seen, sample_max=lambda: self.sample_max, chance=random.Random(1)
        )

    async def keep(self, count: int, **more: int) -> list[BlobName]:
        names = []
        for number in range(count):
            data = number.to_bytes(4, "big")
            name = make_name(data)
            await self.shard.put(name, data)
            self.rows.add(name, data, **more)
            names.append(name)
        return names

    async def run(self) -> int:
        steps = 1
        while not (await self.presence.step()).idle:
            steps += 1
        return steps

    def states(self, names: list[BlobName]) -> list[str | None]:
        return [self.rows.state(name) for name in names]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_at(tmp_path / "shard") as shard:
        yield Bench(shard, tmp_path / "shard")


async def test_whole_shard_costs_one_sample(bench: Bench) -> None:
    await bench.keep(100)
    assert await bench.run() == 1
    assert bench.seen.verdicts == []


async def test_empty_shard_is_whole(bench: Bench) -> None:
    assert await bench.run() == 1


async def test_wiped_shard_is_found_in_one_run(bench: Bench) -> None:
    names = await bench.keep(100)
    for directory in (bench.root / "blobs").iterdir():
        shutil.rmtree(directory)
    await bench.run()
    assert bench.states(names) == [None] * 100
    assert len(bench.rows.repairs) == 100
    assert bench.seen.verdicts == ["absent"] * 100


async def test_every_missing_file_is_found_in_time(bench: Bench) -> None:
    names = await bench.keep(100)
    replica_file(bench.root, names[37]).unlink()
    # The walking half of the sample comes by everywhere in ten runs.
    for _ in range(11):
        await bench.run()
    assert bench.states(names) == ["live"] * 37 + [None] + ["live"] * 62


async def test_first_miss_finds_the_others(bench: Bench) -> None:
    names = await bench.keep(200)
    for name in names[::2]:
        replica_file(bench.root, name).unlink()
    await bench.run()
    assert bench.states(names) == [None, "live"] * 100


async def test_absent_last_copies_stay_as_suspects(bench: Bench) -> None:
    names = await bench.keep(5, other_good_copies=0)
    for name in names:
        replica_file(bench.root, name).unlink()
    await bench.run()
    assert bench.states(names) == ["suspect"] * 5
    assert await bench.run() == 1


async def test_file_of_another_size_is_suspect(bench: Bench) -> None:
    names = await bench.keep(5)
    os.truncate(replica_file(bench.root, names[2]), 1)
    await bench.run()
    assert bench.states(names) == ["live", "live", "suspect", "live", "live"]


async def test_replica_removed_by_others_starts_no_sweep(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    names = await bench.keep(5)
    looked = bench.shard.sizes

    async def removed_meanwhile(asked: list[BlobName]) -> list[int | None]:
        if names[0].generation in bench.rows.rows:
            replica_file(bench.root, names[0]).unlink()
            del bench.rows.rows[names[0].generation]
        return await looked(asked)

    monkeypatch.setattr(bench.shard, "sizes", removed_meanwhile)
    assert await bench.run() == 1
    assert bench.rows.repairs == []


@pytest.mark.parametrize("away", ["shard.json", "blobs", "."])
async def test_nothing_is_missing_on_a_shard_that_is_not_intact(bench: Bench, away: str) -> None:
    names = await bench.keep(5)
    if away == "shard.json":
        for name in names:
            replica_file(bench.root, name).unlink()
    (bench.root / away).rename(bench.root.with_name("away"))
    await bench.run()
    assert bench.states(names) == ["live"] * 5


async def test_disk_that_goes_away_during_the_sweep_loses_nothing(bench: Bench) -> None:
    names = await bench.keep(5)
    for name in names:
        replica_file(bench.root, name).unlink()
    assert not (await bench.presence.step()).idle
    (bench.root / "blobs").rename(bench.root / "away")
    with pytest.raises(ShardUnavailable):
        await bench.run()
    assert bench.states(names) == ["live"] * 5
    (bench.root / "away").rename(bench.root / "blobs")
    await bench.run()
    assert bench.states(names) == [None] * 5


async def test_dead_disk_loses_nothing(tmp_path: Path) -> None:
    with disks.mounted_ext4(tmp_path / "disk") as disk:
        async with open_at(disk / "shard") as shard:
            bench = Bench(shard, disk / "shard")
            names = await bench.keep(5)
            disks.kill_file_system(disk)
            await bench.run()
            assert bench.states(names) == ["live"] * 5
