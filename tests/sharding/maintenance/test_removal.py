"""The job that removes listed files: durable first, forgotten then; anything doubtful waits."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import pytest

from sharding.errors import ShardRefused, ShardUnavailable
from sharding.maintenance import removal
from sharding.maintenance.removal import LOOK_HOLDS_SECONDS, Backlog, DueRemovals, ListedFile, Removal
from sharding.model import BlobName, Generation, ShardId
from tests.sharding.shard_contract import make_name

ONE, TWO = ShardId(1), ShardId(2)


@dataclass
class Disk:
    """An owner's shard, which can be told to fail."""

    files: dict[BlobName, int] = field(default_factory=dict)
    known: int = 0
    dead: bool = False
    stuck: set[BlobName] = field(default_factory=set)
    hangs: bool = False

    async def epoch(self) -> int:
        if self.dead:
            raise ShardUnavailable(ONE, "dead")
        return self.known

    async def see_epoch(self, epoch: int) -> None:
        if epoch < self.known:
            raise ShardRefused(ONE, "over")
        self.known = epoch

    async def remove(self, names: Sequence[BlobName], *, epoch: int) -> list[int | None]:
        await self.see_epoch(epoch)
        if self.hangs:
            await asyncio.sleep(3600)
        if self.stuck & set(names):
            raise ShardUnavailable(ONE, "stuck")
        return [self.files.pop(name, None) for name in names]


@dataclass
class Rows:
    """A removal list in memory, and everything that was observed."""

    epoch: int = 5
    held: bool = False
    live: bool = False
    listed: dict[ShardId, list[ListedFile]] = field(default_factory=dict)
    failures: list[Generation] = field(default_factory=list)
    holds: list[str] = field(default_factory=list)
    removed: list[tuple[str, int, int]] = field(default_factory=list)
    backlogs: list[Backlog] = field(default_factory=list)

    async def due(self, shard: ShardId, files_max: int) -> DueRemovals:
        waiting = [file for file in self.listed.get(shard, []) if file.name.generation not in self.failures]
        return DueRemovals(self.epoch, self.held, self.live, tuple(waiting[:files_max]))

    async def done(self, shard: ShardId, generations: Sequence[Generation]) -> None:
        self.listed[shard] = [file for file in self.listed[shard] if file.name.generation not in generations]

    async def failed(self, shard: ShardId, generations: Sequence[Generation]) -> None:
        self.failures += generations

    async def backlog(self, shards: Collection[ShardId]) -> Backlog:
        files = [file for shard in shards for file in self.listed.get(shard, [])]
        return Backlog(len(files), sum(file.size for file in files))

    async def hold(self, reason: str, detail: str) -> None:
        self.holds.append(reason)

    def observe_removal(self, reason: str, files: int, freed_bytes: int) -> None:
        self.removed.append((reason, files, freed_bytes))

    def observe_backlog(self, backlog: Backlog) -> None:
        self.backlogs.append(backlog)


def listed(rows: Rows, disk: Disk, count: int, shard: ShardId = ONE, reason: str = "gc") -> list[BlobName]:
    names = [make_name(number.to_bytes(2)) for number in range(count)]
    rows.listed.setdefault(shard, []).extend(ListedFile(name, 10, reason) for name in names)
    disk.files.update(dict.fromkeys(names, 10))
    return names


async def run(job: Removal) -> int:
    done = 0
    while not (step := await job.step()).idle:
        done += step.done
    return done


def job_of(rows: Rows, disks: dict[ShardId, Disk], clock: object = None) -> Removal:
    more = {} if clock is None else {"clock": clock}
    return Removal(rows, lambda: disks, rows, **more)  # type: ignore[arg-type]


async def test_everything_due_goes_and_is_counted_by_reason() -> None:
    rows, one, two = Rows(), Disk(), Disk()
    listed(rows, one, 450)
    listed(rows, one, 3, reason="trim")
    listed(rows, two, 7, TWO)
    assert await run(job_of(rows, {ONE: one, TWO: two})) == 460
    assert not one.files and not two.files
    assert rows.listed == {ONE: [], TWO: []}
    assert sum(files for _, files, _ in rows.removed) == 460
    assert sum(freed for reason, _, freed in rows.removed if reason == "trim") == 30
    assert rows.backlogs == [Backlog(0, 0)]


async def test_file_that_was_gone_already_frees_nothing() -> None:
    rows, one = Rows(), Disk()
    names = listed(rows, one, 3)
    del one.files[names[1]]
    assert await run(job_of(rows, {ONE: one})) == 3
    assert rows.removed == [("gc", 2, 20)]


async def test_held_deletions_wait() -> None:
    rows, one = Rows(held=True), Disk()
    listed(rows, one, 3)
    assert await run(job_of(rows, {ONE: one})) == 0
    assert len(one.files) == 3 and len(rows.listed[ONE]) == 3


async def test_live_replica_on_the_list_holds_everything() -> None:
    rows, one = Rows(live=True), Disk()
    listed(rows, one, 3)
    assert await run(job_of(rows, {ONE: one})) == 0
    assert rows.holds == ["live_removal"] and len(one.files) == 3


async def test_shard_that_knows_a_later_primary_holds_everything() -> None:
    rows, one = Rows(epoch=5), Disk(known=6)
    listed(rows, one, 3)
    assert await run(job_of(rows, {ONE: one})) == 0
    assert rows.holds == ["lost_history"] and len(one.files) == 3


async def test_removal_tells_the_shard_the_epoch() -> None:
    rows, one = Rows(epoch=5), Disk(known=3)
    listed(rows, one, 1)
    await run(job_of(rows, {ONE: one}))
    assert one.known == 5


async def test_dead_shard_keeps_its_files_listed_and_the_others_go_on() -> None:
    rows, one, two = Rows(), Disk(dead=True), Disk()
    listed(rows, one, 3)
    listed(rows, two, 4, TWO)
    assert await run(job_of(rows, {ONE: one, TWO: two})) == 4
    assert len(rows.listed[ONE]) == 3 and rows.failures == []
    assert rows.backlogs == [Backlog(3, 30)]


async def test_disk_that_hangs_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "SHARD_SECONDS_MAX", 0.02)
    rows, one, two = Rows(), Disk(hangs=True), Disk()
    listed(rows, one, 3)
    listed(rows, two, 4, TWO)
    assert await run(job_of(rows, {ONE: one, TWO: two})) == 4
    assert len(rows.listed[ONE]) == 3 and rows.failures == []


async def test_one_bad_file_keeps_no_other_from_going() -> None:
    rows, one = Rows(), Disk()
    names = listed(rows, one, 5)
    one.stuck = {names[2]}
    await run(job_of(rows, {ONE: one}))
    assert list(one.files) == [names[2]]
    assert rows.failures == [names[2].generation]
    assert [file.name for file in rows.listed[ONE]] == [names[2]]


async def test_shard_that_is_not_open_here_waits() -> None:
    rows, one = Rows(), Disk()
    listed(rows, one, 3)
    assert await run(job_of(rows, {TWO: Disk()})) == 0
    assert len(rows.listed[ONE]) == 3


async def test_process_that_froze_after_its_look_does_nothing() -> None:
    rows, one, now = Rows(), Disk(), [0.0]

    class Freezing(Rows):
        async def due(self, shard: ShardId, files_max: int) -> DueRemovals:
            found = await super().due(shard, files_max)
            now[0] += LOOK_HOLDS_SECONDS + 1
            return found

    rows = Freezing()
    listed(rows, one, 3)
    assert await run(job_of(rows, {ONE: one}, lambda: now[0])) == 0
    assert len(one.files) == 3
