"""Suspects are judged by their owner on real files: right, wrong in every way, absent, or out of sight."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sharding.errors import ShardUnavailable
from sharding.local import LocalShard
from sharding.maintenance.audit_catalogue import Fault
from sharding.maintenance.judge import Judge
from sharding.maintenance.judgement import Judgement
from sharding.model import BLOCK_BYTES, BlobName, ShardId
from sharding.shard import Aside
from tests.sharding import disks
from tests.sharding.local_shards import SHARD, open_at
from tests.sharding.maintenance.audit_rows import AuditRows, Observed
from tests.sharding.shard_contract import block_digests, replica_file, stage_all


@dataclass
class Bench:
    """A shard with its rows, and the judge over both."""

    shard: LocalShard
    root: Path
    rows: AuditRows = field(default_factory=lambda: AuditRows(SHARD))
    seen: Observed = field(default_factory=Observed)
    quarantine_seconds: float | None = 1000.0
    again_seconds: float = 3600.0

    def __post_init__(self) -> None:
        self.judge = Judge(
            {SHARD: self.shard},
            self.rows,
            Judgement(self.rows, self.seen),
            self.seen,
            quarantine_seconds=lambda: self.quarantine_seconds,
            again_seconds=lambda: self.again_seconds,
        )

    async def suspect(self, data: bytes = b"some bytes", **more: int) -> BlobName:
        """Keep ``data`` as a replica that somebody suspects."""
        name, staged = await stage_all(self.shard, data)
        await staged.commit(name.sha256, block_digests(data))
        self.rows.add(name, data, state="suspect", **more)
        return name

    def file(self, name: BlobName) -> Path:
        return replica_file(self.root, name)

    async def run(self) -> None:
        while not (await self.judge.step()).idle:
            pass


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_at(tmp_path / "shard") as shard:
        yield Bench(shard, tmp_path / "shard")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def grow(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"x")


def link(file: Path) -> None:
    target = file.with_name("target")
    file.rename(target)
    file.symlink_to(target)


BAD: dict[str, tuple[Callable[[Path], None], Fault]] = {
    "flipped": (flip, Fault.BYTES),
    "truncated": (cut, Fault.SIZE),
    "grown": (grow, Fault.SIZE),
    "link": (link, Fault.UNREADABLE),
}


@pytest.mark.parametrize("size", [10, BLOCK_BYTES, 40 * BLOCK_BYTES + 3])
async def test_right_replica_counts_again(bench: Bench, size: int) -> None:
    name = await bench.suspect(os.urandom(size))
    await bench.run()
    assert bench.rows.state(name) == "live"
    assert bench.seen.verdicts == ["right"]
    assert bench.seen.reread_bytes == size
    assert bench.file(name).exists()


async def test_right_replica_corrects_wrong_block_digests(bench: Bench) -> None:
    data = os.urandom(2 * BLOCK_BYTES + 1)
    name = await bench.suspect(data)
    bench.rows.blocks[name.sha256] = bytes(24)
    await bench.run()
    assert bench.rows.blocks[name.sha256] == block_digests(data)
    assert bench.rows.state(name) == "live"
    assert bench.seen.verdicts == ["digests"]


@pytest.mark.parametrize("fault", BAD)
async def test_bad_replica_goes_to_quarantine_where_another_is_good(bench: Bench, fault: str) -> None:
    name = await bench.suspect()
    damage, reason = BAD[fault]
    damage(bench.file(name))
    await bench.run()
    assert bench.rows.state(name) == "condemned"
    assert bench.rows.repairs == [name.sha256]
    assert bench.rows.faults == [reason]
    assert not list(bench.root.glob(f"blobs/*/{name}"))
    assert os.path.lexists(bench.root / "quarantine" / str(name))
    assert bench.rows.moved == {name.generation: name}
    assert bench.seen.aside[0] == 1


@pytest.mark.parametrize("fault", BAD)
async def test_last_copy_stays_where_it_is_and_is_not_read_again_and_again(bench: Bench, fault: str) -> None:
    name = await bench.suspect(other_good_copies=0)
    BAD[fault][0](bench.file(name))
    for _ in range(3):
        await bench.run()
    assert bench.rows.state(name) == "suspect"
    assert os.path.lexists(bench.file(name))
    assert bench.seen.verdicts == ["last"]
    bench.again_seconds = 0.0
    bench.rows.rows[name.generation].other_good_copies = 1
    await bench.run()
    assert bench.rows.state(name) == "condemned"


async def test_absent_replica_loses_its_row(bench: Bench) -> None:
    name = await bench.suspect()
    bench.file(name).unlink()
    await bench.run()
    assert bench.rows.state(name) is None
    assert bench.rows.repairs == [name.sha256]


async def test_absent_last_copy_keeps_its_row_until_it_is_found_again(bench: Bench) -> None:
    bench.again_seconds = 0.0
    name = await bench.suspect(other_good_copies=0)
    hidden = bench.root / "hidden"
    here = bench.file(name)
    here.rename(hidden)
    await bench.run()
    assert bench.rows.state(name) == "suspect"
    hidden.rename(here)
    await bench.run()
    assert bench.rows.state(name) == "live"


@pytest.mark.parametrize("gone", ["shard.json", "blobs", "."])
async def test_absence_on_a_shard_that_is_not_intact_is_not_absence(bench: Bench, gone: str) -> None:
    name = await bench.suspect()
    hidden = bench.root.with_name("hidden")
    if gone == "shard.json":
        bench.file(name).unlink()
    (bench.root / gone).rename(hidden)
    for _ in range(2):
        await bench.run()
    assert bench.rows.state(name) in ("suspect", "live")
    assert bench.rows.repairs == []


async def test_dead_disk_condemns_nothing(tmp_path: Path) -> None:
    with disks.mounted_ext4(tmp_path / "disk") as disk:
        async with open_at(disk / "shard") as shard:
            bench = Bench(shard, disk / "shard")
            names = [await bench.suspect(bytes([number]) * 5000) for number in range(3)]
            disks.kill_file_system(disk)
            await bench.run()
            assert [bench.rows.state(name) for name in names] == ["suspect"] * 3
            assert bench.rows.repairs == []


async def test_read_only_disk_keeps_its_bad_replica_until_it_can_be_moved(tmp_path: Path) -> None:
    with disks.mounted_tmpfs(tmp_path / "disk", size_kib=4096) as disk:
        async with open_at(disk / "shard") as shard:
            bench = Bench(shard, disk / "shard")
            name = await bench.suspect()
            flip(bench.file(name))
            disks.remount_read_only(disk)
            await bench.run()
            assert bench.rows.state(name) == "condemned"
            assert bench.rows.moved == {} and bench.file(name).exists()
            disks.remount_writable(disk)
            await bench.run()
            assert list(bench.rows.moved) == [name.generation]


async def test_death_between_the_sentence_and_the_move_is_made_up_for(bench: Bench) -> None:
    name = await bench.suspect()
    flip(bench.file(name))
    await bench.rows.condemn(SHARD, name.generation, Fault.BYTES)
    await bench.run()
    assert list(bench.rows.moved) == [name.generation]


async def test_death_between_the_move_and_its_note_is_made_up_for(bench: Bench) -> None:
    name = await bench.suspect()
    flip(bench.file(name))
    await bench.rows.condemn(SHARD, name.generation, Fault.BYTES)
    await bench.shard.set_aside(name)
    await bench.run()
    assert list(bench.rows.moved) == [name.generation]
    assert (bench.root / "quarantine" / str(name)).exists()


async def test_quarantine_is_emptied_of_what_is_old(bench: Bench) -> None:
    name = await bench.suspect()
    flip(bench.file(name))
    await bench.run()
    bench.quarantine_seconds = None
    await bench.run()
    assert bench.seen.discarded == 0, "it is kept for ever"
    bench.quarantine_seconds = 0.0
    await bench.run()
    assert bench.seen.discarded == 1
    assert list((bench.root / "quarantine").iterdir()) == []
    assert bench.rows.rows == {} and bench.rows.moved == {}
    assert bench.seen.aside == (0, 0)


async def test_file_that_cannot_be_moved_keeps_no_other_waiting(bench: Bench) -> None:
    class Stuck(LocalShard):
        async def set_aside(self, name: BlobName) -> bool:
            if name == first:
                raise ShardUnavailable(self.id, "its directory is damaged")
            return await super().set_aside(name)

    first, second = await bench.suspect(b"first"), await bench.suspect(b"second")
    for name in (first, second):
        flip(bench.file(name))
    bench.judge._shards = {SHARD: Stuck(bench.shard.files, bench.shard._executor)}
    await bench.run()
    assert list(bench.rows.moved) == [second.generation]
    assert bench.file(first).exists()


async def test_unavailable_shard_keeps_no_other_waiting(bench: Bench) -> None:
    class Away(LocalShard):
        id = ShardId(1)  # type: ignore[assignment]

        async def aside(self) -> Aside:
            raise ShardUnavailable(self.id, "away")

    name = await bench.suspect()
    away = Away(bench.shard.files, bench.shard._executor)
    bench.judge._shards = {away.id: away, SHARD: bench.shard}
    await bench.run()
    assert bench.rows.state(name) == "live"
