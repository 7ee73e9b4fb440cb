"""A shard against its rows: everything that can differ, the dry run that says the same, the second run that finds nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sharding.digests import digest_small
from sharding.listing import FoundReplica
from sharding.local import LocalShard
from sharding.maintenance import comparison
from sharding.maintenance.reconcile import Reconcile, ReconcileLimits
from sharding.maintenance.reconcile_catalogue import CheckOrder, Finding
from sharding.model import BLOCK_BYTES, BlobDigests, BlobName, Generation, ShardId
from tests.sharding import disks
from tests.sharding.local_shards import SHARD, open_at
from tests.sharding.maintenance.audit_rows import AuditRows, Observed, Row
from tests.sharding.shard_contract import make_name, replica_file

SETTLE = 1000.0
QUARANTINE = 5000.0


@dataclass
class CheckRows(AuditRows):
    """Adds orders, reports and sightings, on a clock of the test's."""

    now: float = 0.0
    orders: list[CheckOrder] = field(default_factory=list)
    reports: list[tuple[Mapping[str, Any], str | None]] = field(default_factory=list)
    sightings: dict[bytes, tuple[int, float, float]] = field(default_factory=dict)
    progress: list[tuple[int, int | None]] = field(default_factory=list)
    began: float = 0.0
    strays_held: bool = False
    hopeless: bool = False
    adopted: list[BlobDigests] = field(default_factory=list)

    async def next_check(self, shards: Sequence[ShardId]) -> CheckOrder | None:
        self.began = self.now
        return self.orders[0] if self.orders else None

    async def order_due(self, shards: Sequence[ShardId], period_seconds: float, retry_seconds: float) -> None:
        pass

    async def note_progress(self, check: int, done: int, total: int | None) -> None:
        self.progress.append((done, total))

    async def finish_check(self, check: int, report: Mapping[str, Any], error: str | None) -> None:
        self.orders.pop(0)
        self.reports.append((report, error))

    async def sighting_ages(
        self, shard: ShardId, seen: Sequence[tuple[bytes, int]], *, note: bool
    ) -> dict[bytes, float]:
        ages = {}
        for path, inode in seen:
            before = self.sightings.get(path)
            first = before[1] if before is not None and before[0] == inode else self.now
            ages[path] = self.now - first
            if note:
                self.sightings[path] = (inode, first, self.now)
        return ages

    async def forget_unseen(self, shard: ShardId, check: int) -> None:
        self.sightings = {path: one for path, one in self.sightings.items() if one[2] >= self.began}

    async def adopt(self, shard: ShardId, file: FoundReplica, digests: BlobDigests) -> str:
        if file.name.generation in self.rows:
            return "refused"
        is_known = digests.sha256 in self.blocks
        self.rows[file.name.generation] = Row(file.name, digests.size)
        self.blocks[digests.sha256] = digests.blocks
        self.adopted.append(digests)
        return "adopted" if is_known else "found"

    async def strays_are_held(self) -> bool:
        return self.strays_held

    async def condemn_strays(self, shard: ShardId, strays: Sequence[tuple[FoundReplica, int]]) -> list[Generation]:
        condemned = [file.name for file, _ in strays if file.name.generation not in self.rows]
        for name in condemned:
            self.rows[name.generation] = Row(name, 0, "condemned")
            self.to_move[name.generation] = name
        return [name.generation for name in condemned]

    async def aside_known(self, shard: ShardId, generations: Sequence[Generation]) -> set[Generation]:
        return {one for one in generations if one in self.moved or one in self.to_move}

    async def leftovers_may_go(self) -> bool:
        return not self.strays_held and not self.hopeless

    async def aside_again(self, shard: ShardId, file: FoundReplica) -> None:
        self.to_move[file.name.generation] = file.name
        self.rows[file.name.generation].state = "condemned"


@dataclass
class Bench:
    shard: LocalShard
    root: Path
    rows: CheckRows = field(default_factory=lambda: CheckRows(SHARD))
    seen: Observed = field(default_factory=Observed)
    quarantine_seconds: float | None = QUARANTINE

    def __post_init__(self) -> None:
        self.reconcile = Reconcile({SHARD: self.shard}, self.rows, self.seen, self.limits)

    def limits(self) -> ReconcileLimits:
        return ReconcileLimits(1e6, 1e3, SETTLE, 0.0, self.quarantine_seconds)

    async def keep(self, data: bytes, *, with_row: bool = True) -> BlobName:
        name = make_name(data)
        await self.shard.put(name, data)
        if with_row:
            self.rows.add(name, data)
        return name

    async def check(self, *, dry_run: bool = False, repair: bool = False, rebuild: bool = False) -> dict[str, Any]:
        """Check the shard and return the findings by kind."""
        self.rows.orders.append(CheckOrder(1, SHARD, dry_run, repair, rebuild))
        while not (await self.reconcile.step()).idle:
            pass
        report, error = self.rows.reports[-1]
        assert error is None
        findings: dict[str, Any] = report["findings"]
        return findings

    async def set_aside(self) -> None:
        """What the judge does about the condemned."""
        for name in list(self.rows.to_move.values()):
            assert await self.shard.set_aside(name)
            await self.rows.note_moved(SHARD, [name.generation])
            self.rows.rows[name.generation].state = "aside"

    def tree(self) -> dict[str, int]:
        """Return everything on the shard by path, with its inode."""
        return {str(path.relative_to(self.root)): path.lstat().st_ino for path in sorted(self.root.rglob("*"))}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_at(tmp_path / "shard") as shard:
        yield Bench(shard, tmp_path / "shard")


def found(count: int, acted: int | None = None, waiting: int = 0) -> dict[str, int]:
    return {"found": count, "acted": count if acted is None else acted, "waiting": waiting}


async def spoil(bench: Bench) -> dict[str, BlobName]:
    """Make every kind of difference; return the replicas by what was done to them."""
    names = {kind: await bench.keep(kind.encode()) for kind in ("right", "missing", "grown", "cut")}
    names["stray"] = await bench.keep(b"stray", with_row=False)
    replica_file(bench.root, names["missing"]).unlink()
    os.truncate(replica_file(bench.root, names["grown"]), 100)
    os.truncate(replica_file(bench.root, names["cut"]), 1)
    here = replica_file(bench.root, names["right"]).parent
    (bench.root / "tmp" / "left-over").write_bytes(b"x")
    (bench.root / "notes.txt").write_text("mine")
    (here / "README").write_text("mine")
    (here / "directory").mkdir()
    (here / "link").symlink_to("/etc/passwd")
    os.mkfifo(here / "pipe")
    with open(os.fsencode(here) + b"/\xff", "wb"):
        pass
    (here / f"{bytes(32).hex()}.{names['right'].generation}").write_bytes(b"another content")
    return names


YOUNG = {
    "missing": found(1),
    "wrong_size": found(2),
    "stray": found(0, waiting=1),
    "temp": found(0, waiting=1),
    "wrong_name": found(1, 0),
    "foreign": found(5, 0),
    "link": found(1, 0),
}


async def test_whole_shard_has_no_findings(bench: Bench) -> None:
    for number in range(20):
        await bench.keep(bytes([number]))
    before = bench.tree()
    assert await bench.check(repair=True) == {}
    assert (bench.rows.reports[-1][0]["rows"], bench.rows.reports[-1][0]["files"]) == (20, 20)
    assert bench.tree() == before


async def test_first_check_touches_nothing_young(bench: Bench) -> None:
    names = await spoil(bench)
    before = bench.tree()
    assert await bench.check() == YOUNG
    assert bench.tree() == before
    assert bench.rows.state(names["missing"]) is None
    assert [bench.rows.state(names[kind]) for kind in ("right", "grown", "cut")] == ["live", "suspect", "suspect"]
    examples = {(one["finding"], one["what"]) for one in bench.rows.reports[-1][0]["examples"]}
    assert ("missing", str(names["missing"])) in examples
    assert any(what.endswith("\\xff") for finding, what in examples if finding == "foreign")


async def test_dry_run_says_what_a_real_run_does_and_changes_nothing(bench: Bench) -> None:
    names = await spoil(bench)
    before = bench.tree()
    assert await bench.check(dry_run=True) == YOUNG
    dry = bench.rows.reports[-1][0]
    assert bench.rows.sightings == {} and bench.rows.repairs == []
    assert bench.rows.state(names["missing"]) == "live"
    assert await bench.check() == YOUNG
    assert bench.rows.reports[-1][0] == dry
    bench.rows.now += SETTLE
    later = await bench.check(dry_run=True)
    assert bench.tree() == before
    assert await bench.check() == later
    assert later["stray"] == found(1) and later["temp"] == found(1)


async def test_second_check_finds_nothing_but_what_is_somebody_elses(bench: Bench) -> None:
    await spoil(bench)
    await bench.check()
    bench.rows.now += SETTLE
    third = await bench.check()
    assert set(third) == {"stray", "temp", "wrong_name", "foreign", "link"}
    for _ in range(2):
        assert set(await bench.check()) == {"wrong_name", "foreign", "link"}
        await bench.set_aside()


async def test_repair_sets_everything_aside_and_then_nothing_is_found(bench: Bench) -> None:
    names = await spoil(bench)
    assert (await bench.check(repair=True))["foreign"] == found(5, 0, waiting=5)
    bench.rows.now += SETTLE
    repaired = await bench.check(repair=True)
    assert {kind: one for kind, one in repaired.items() if one["found"] != one["acted"]} == {}
    await bench.set_aside()
    assert await bench.check(repair=True) == {}
    kept = {str(names[kind]) for kind in ("right", "grown", "cut")}
    assert {path.name for path in bench.root.glob("blobs/*/*")} == kept
    assert len(list((bench.root / "quarantine").iterdir())) == 9
    assert Path("/etc/passwd").exists()


async def test_stray_is_condemned_only_when_seen_twice_far_enough_apart(bench: Bench) -> None:
    name = await bench.keep(b"stray", with_row=False)
    assert await bench.check() == {"stray": found(0, waiting=1)}
    bench.rows.now += SETTLE - 1
    assert await bench.check() == {"stray": found(0, waiting=1)}
    bench.rows.now += 1
    assert await bench.check() == {"stray": found(1)}
    assert bench.rows.state(name) == "condemned"
    assert replica_file(bench.root, name).exists(), "the judge moves it"


async def test_stray_seen_long_ago_that_was_away_in_between_begins_anew(bench: Bench) -> None:
    name = await bench.keep(b"stray", with_row=False)
    await bench.check()
    file = replica_file(bench.root, name)
    file.rename(bench.root.with_name("away"))
    bench.rows.now += SETTLE
    assert await bench.check() == {}
    bench.root.with_name("away").rename(file)
    assert await bench.check() == {"stray": found(0, waiting=1)}


async def test_stray_that_gets_its_row_is_left_alone(bench: Bench) -> None:
    name = await bench.keep(b"stray", with_row=False)
    await bench.check()
    bench.rows.now += SETTLE
    bench.rows.add(name, b"stray")
    assert await bench.check() == {}
    assert bench.rows.state(name) == "live"


async def test_stray_waits_while_strays_are_held(bench: Bench) -> None:
    await bench.keep(b"stray", with_row=False)
    await bench.check()
    bench.rows.now += SETTLE
    bench.rows.strays_held = True
    assert await bench.check(dry_run=True) == {"stray": found(0, waiting=1)}
    assert await bench.check() == {"stray": found(0, waiting=1)}
    bench.rows.strays_held = False
    assert await bench.check() == {"stray": found(0, waiting=1)}, "what was not seen meanwhile begins anew"


async def test_foreign_file_that_was_replaced_is_young_again(bench: Bench) -> None:
    file = bench.root / "notes.txt"
    file.write_text("one")
    await bench.check(repair=True)
    bench.rows.now += SETTLE
    other = bench.root.with_name("other")
    other.write_text("two")
    other.rename(file)
    assert await bench.check(repair=True) == {"foreign": found(1, 0, waiting=1)}
    assert file.read_text() == "two"


async def test_file_that_was_set_aside_and_is_back_goes_again(bench: Bench) -> None:
    name = await bench.keep(b"data")
    file = replica_file(bench.root, name)
    bench.rows.rows[name.generation].state = "condemned"
    bench.rows.to_move[name.generation] = name
    await bench.set_aside()
    assert await bench.check() == {}
    (bench.root / "quarantine" / str(name)).rename(file)
    assert await bench.check() == {"returned": found(1)}
    await bench.set_aside()
    assert not file.exists()
    assert await bench.check() == {}


@pytest.mark.parametrize("away", ["shard.json", "blobs"])
async def test_shard_that_is_not_intact_is_told_and_nothing_is_missing(bench: Bench, away: str) -> None:
    names = [await bench.keep(bytes([number])) for number in range(5)]
    if away == "shard.json":
        for name in names:
            replica_file(bench.root, name).unlink()
    (bench.root / away).rename(bench.root / "away")
    bench.rows.orders.append(CheckOrder(1, SHARD, False, True))
    while not (await bench.reconcile.step()).idle:
        pass
    assert bench.rows.reports[-1][1] is not None
    assert [bench.rows.state(name) for name in names] == ["live"] * 5


async def test_dead_disk_is_told_and_nothing_is_missing(tmp_path: Path) -> None:
    with disks.mounted_ext4(tmp_path / "disk") as disk:
        async with open_at(disk / "shard") as shard:
            bench = Bench(shard, disk / "shard")
            name = await bench.keep(b"data")
            disks.kill_file_system(disk)
            bench.rows.orders.append(CheckOrder(1, SHARD, False, True))
            while not (await bench.reconcile.step()).idle:
                pass
            assert bench.rows.reports[-1][1] is not None
            assert bench.rows.state(name) == "live"


async def test_progress_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "DIRECTORIES_PER_STEP", 1)
    for number in range(10):
        await bench.keep(bytes([number]))
    await bench.check()
    assert bench.rows.progress[0][1] is None
    assert bench.rows.progress[-1] == (10, 10)


def test_every_finding_has_words_for_people() -> None:
    from repo_node.cli.fsck import DEEDS, MEANINGS

    assert set(MEANINGS) == set(DEEDS) == {finding.value for finding in Finding}


async def test_rebuild_enters_files_that_are_what_their_names_say(bench: Bench) -> None:
    known = await bench.keep(b"known")
    copy = BlobName(known.sha256, make_name(b"").generation)
    await bench.shard.put(copy, b"known")
    lost = await bench.keep(os.urandom(BLOCK_BYTES), with_row=False)
    rotten = await bench.keep(b"rotten", with_row=False)
    replica_file(bench.root, rotten).write_bytes(b"ROTTEN")
    assert await bench.check(rebuild=True) == {"adopted": found(1), "found": found(1), "stray": found(1, 0)}
    assert bench.rows.state(copy) == bench.rows.state(lost) == "live"
    assert bench.rows.state(rotten) is None
    data = replica_file(bench.root, lost).read_bytes()
    assert digest_small(data) in bench.rows.adopted
    assert await bench.check(rebuild=True) == {"stray": found(1, 0)}


# ---------------------------------------------------------------- what no row knows of a quarantine


async def test_leftovers_leave_the_quarantine_once_they_have_been_seen_there_long_enough(bench: Bench) -> None:
    names = await spoil(bench)
    await bench.check(repair=True)
    bench.rows.now += SETTLE
    await bench.check(repair=True)
    await bench.set_aside()
    await bench.check(repair=True)
    before = sorted((bench.root / "quarantine").iterdir())
    assert len(before) > 5
    bench.rows.now += QUARANTINE - 1
    await bench.check()
    await bench.check(dry_run=True)
    assert sorted((bench.root / "quarantine").iterdir()) == before and bench.seen.discarded == 0
    bench.rows.now += 1
    await bench.check()
    # The row of the stray says when that goes, which is the judge's affair.
    assert [path.name for path in (bench.root / "quarantine").iterdir()] == [str(names["stray"])]
    assert bench.seen.discarded == len(before) - 1
    assert await bench.check() == {}


@pytest.mark.parametrize("why", ["for ever", "held", "hopeless", "dry run"])
async def test_leftovers_stay(bench: Bench, why: str) -> None:
    """A replica that no row knows, as after a restore of the database."""
    name = await bench.keep(b"bytes", with_row=False)
    await bench.shard.set_aside(name)
    bench.quarantine_seconds = None if why == "for ever" else QUARANTINE
    bench.rows.strays_held, bench.rows.hopeless = why == "held", why == "hopeless"
    await bench.check()
    bench.rows.now += 2 * QUARANTINE
    await bench.check(dry_run=why == "dry run")
    assert (bench.root / "quarantine" / str(name)).exists() and bench.seen.discarded == 0
    bench.quarantine_seconds, bench.rows.strays_held, bench.rows.hopeless = QUARANTINE, False, False
    await bench.check()
    assert not (bench.root / "quarantine" / str(name)).exists() and bench.seen.discarded == 1
