"""Scrub over a real shard: every replica is read, what is wrong is judged, the cursor survives."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sharding.local import LocalShard
from sharding.maintenance.audit_catalogue import REPLICA_COST_BYTES, ScrubKind, Volume
from sharding.maintenance.judgement import PORTION_BYTES, Judgement
from sharding.maintenance.scrub import Scrub
from sharding.maintenance.scrub_plan import ScrubLimits
from sharding.model import BLOCK_BYTES, BlobName
from tests.sharding import disks
from tests.sharding.local_shards import SHARD, open_at
from tests.sharding.maintenance.audit_rows import AuditRows, Observed
from tests.sharding.shard_contract import block_digests, replica_file, stage_all

LIMITS = ScrubLimits(1e6, 5e6, 1.0, 1e12)


@dataclass
class Bench:
    """A shard with its rows, and the scrub over both. ``limits`` may be replaced."""

    shard: LocalShard
    root: Path
    rows: AuditRows = field(default_factory=lambda: AuditRows(SHARD))
    seen: Observed = field(default_factory=Observed)
    limits: ScrubLimits = LIMITS

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Make the job anew, as a new process does: with the rows alone."""
        judgement = Judgement(self.rows, self.seen)
        self.scrub = Scrub({SHARD: self.shard}, self.rows, judgement, self.seen, lambda: self.limits)

    async def keep(self, data: bytes) -> BlobName:
        name, staged = await stage_all(self.shard, data)
        await staged.commit(name.sha256, block_digests(data))
        self.rows.add(name, data)
        return name

    def file(self, name: BlobName) -> Path:
        return replica_file(self.root, name)

    def flip(self, name: BlobName, at: int = -1) -> None:
        data = bytearray(self.file(name).read_bytes())
        data[at] ^= 1
        self.file(name).write_bytes(data)

    async def run(self) -> int:
        """Run until there is nothing to do; return the bytes counted."""
        moved = 0
        while not (step := await self.scrub.step()).idle:
            moved += step.moved_bytes
        return moved

    def is_covered(self, kind: ScrubKind) -> bool:
        return self.rows.cursors[kind][4]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_at(tmp_path / "shard") as shard:
        yield Bench(shard, tmp_path / "shard")


async def test_both_passes_read_every_replica(bench: Bench) -> None:
    sizes = [10, BLOCK_BYTES, 5 * BLOCK_BYTES + 3]
    for size in sizes:
        await bench.keep(os.urandom(size))
    moved = await bench.run()
    cost = sum(max(size, REPLICA_COST_BYTES) for size in sizes)
    assert moved == 2 * cost
    assert bench.seen.reread_bytes == 2 * sum(sizes)
    assert bench.seen.verdicts == []
    for kind in ScrubKind:
        assert bench.is_covered(kind)
        assert bench.rows.cursors[kind][2:4] == (Volume(3, cost), Volume(3, cost))
        assert bench.seen.scrub_ages[kind.value] < 60


async def test_flipped_bit_is_found_by_its_block_and_condemned(bench: Bench) -> None:
    names = [await bench.keep(os.urandom(3000 + number)) for number in range(5)]
    bench.flip(names[2])
    await bench.run()
    assert bench.seen.verdicts == ["condemned"]
    assert [bench.rows.state(name) for name in names] == ["live", "live", "condemned", "live", "live"]
    assert bench.rows.repairs == [names[2].sha256]


async def test_missing_and_truncated_replicas_are_found(bench: Bench) -> None:
    names = [await bench.keep(os.urandom(3000 + number)) for number in range(3)]
    bench.file(names[0]).unlink()
    os.truncate(bench.file(names[1]), 17)
    await bench.run()
    assert sorted(bench.seen.verdicts) == ["absent", "condemned"]
    assert [bench.rows.state(name) for name in names] == [None, "condemned", "live"]


async def test_proof_finds_what_the_block_digests_vouch_for(bench: Bench) -> None:
    name = await bench.keep(bytes(2 * BLOCK_BYTES))
    bench.flip(name)
    bench.rows.blocks[name.sha256] = block_digests(bench.file(name).read_bytes())
    await bench.run()
    assert bench.seen.verdicts == ["condemned"]


async def test_wrong_block_digests_of_a_right_replica_are_corrected(bench: Bench) -> None:
    data = os.urandom(BLOCK_BYTES + 1)
    name = await bench.keep(data)
    bench.rows.blocks[name.sha256] = bytes(16)
    await bench.run()
    assert bench.seen.verdicts == ["digests"]
    assert bench.rows.blocks[name.sha256] == block_digests(data)
    assert bench.rows.state(name) == "live"


@pytest.mark.parametrize("at", [0, PORTION_BYTES - 1, PORTION_BYTES, -1])
async def test_large_replica_is_read_in_portions(bench: Bench, at: int) -> None:
    before, large, after = (
        await bench.keep(b"before"),
        await bench.keep(os.urandom(PORTION_BYTES + 5)),
        await bench.keep(b"after"),
    )
    bench.flip(large, at)
    await bench.run()
    assert bench.seen.verdicts == ["condemned"]
    assert [bench.rows.state(one) for one in (before, large, after)] == ["live", "condemned", "live"]
    assert bench.is_covered(ScrubKind.PROOF) and bench.is_covered(ScrubKind.BLOCKS)


async def test_right_large_replica_accuses_nobody(bench: Bench) -> None:
    await bench.keep(os.urandom(2 * PORTION_BYTES))
    await bench.run()
    assert bench.seen.verdicts == []
    assert bench.seen.reread_bytes == 4 * PORTION_BYTES


async def test_pass_goes_on_after_a_restart(bench: Bench) -> None:
    # Two batches a pass: each of these fills a portion.
    for _ in range(2):
        await bench.keep(os.urandom(PORTION_BYTES))
    moved = 0
    while moved < PORTION_BYTES:
        moved += (await bench.scrub.step()).moved_bytes
    bench.restart()
    assert moved + await bench.run() == 4 * PORTION_BYTES


async def test_next_pass_begins_when_it_is_due_and_not_before(bench: Bench) -> None:
    await bench.keep(b"data")
    await bench.run()
    assert await bench.run() == 0
    bench.limits = ScrubLimits(1e-3, 1e9, 1.0, 1e12)
    assert (await bench.scrub.step()).progress is not None, "the pass by block digests begins anew"
    bench.limits = LIMITS
    assert await bench.run() == REPLICA_COST_BYTES


async def test_pass_an_operator_asks_for_begins_at_once_and_goes_as_fast_as_it_may(bench: Bench) -> None:
    await bench.keep(b"data")
    await bench.run()
    bench.rows.asked_at, bench.rows.in_haste = bench.rows.clock(), True
    await bench.scrub.step()
    assert bench.scrub.bytes_per_second() == LIMITS.bytes_per_second_max
    assert await bench.run() == 2 * REPLICA_COST_BYTES
    bench.rows.in_haste = False
    assert await bench.run() == 0


async def test_rate_follows_from_volume_and_period(bench: Bench) -> None:
    await bench.keep(os.urandom(4 * BLOCK_BYTES))
    while bench.scrub.bytes_per_second() <= LIMITS.bytes_per_second_min:
        await bench.scrub.step()
    expected = 4 * BLOCK_BYTES / (0.8 * 1e6)
    assert expected * 0.9 < bench.scrub.bytes_per_second() < expected * 2


async def test_dead_disk_rests_and_accuses_nobody(tmp_path: Path) -> None:
    with disks.mounted_ext4(tmp_path / "disk") as disk:
        async with open_at(disk / "shard") as shard:
            bench = Bench(shard, disk / "shard")
            name = await bench.keep(b"data")
            disks.kill_file_system(disk)
            await bench.run()
            assert bench.rows.state(name) == "live"
            assert bench.rows.repairs == []
            assert not bench.is_covered(ScrubKind.BLOCKS)


async def test_errors_on_a_part_of_the_disk_condemn_what_lies_there(tmp_path: Path) -> None:
    with disks.mounted_ext4(tmp_path / "disk", size_mib=64) as disk:
        async with open_at(disk / "shard") as shard:
            bench = Bench(shard, disk / "shard")
            names = [await bench.keep(os.urandom(4 * BLOCK_BYTES)) for _ in range(11)]
            os.truncate(tmp_path / "disk.img", 40 << 20)
            await bench.run()
            states = [bench.rows.state(name) for name in names]
            assert set(states) == {"live", "condemned"}
            assert bench.seen.verdicts == ["condemned"] * states.count("condemned")
