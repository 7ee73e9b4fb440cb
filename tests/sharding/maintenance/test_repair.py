"""Repair over shards in memory: what is copied where, what fails, what is tidied, how fast."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from sharding.guarded import Operation
from sharding.janitor import Janitor
from sharding.maintenance.catalogue import NotSettled, RepairOutcome, Settled, StoredBlob
from sharding.maintenance.job import Progress
from sharding.maintenance.placement import homes, missing_homes
from sharding.maintenance.repair import Repair, RepairLimits
from sharding.model import BlobName, Generation, ShardId
from tests.sharding.faulty import Fault
from tests.sharding.maintenance.catalogue import MemoryCatalogue
from tests.sharding.memory import Cluster, instant, mint, small_blocks

LIMITS = RepairLimits(None, 60, 5, 300)
BODIES = (b"x", bytes(range(64)), bytes(range(256)) * 3)
"""Of one byte, of a whole block, and of several."""


def repair_of(
    catalogue: MemoryCatalogue,
    limits: Callable[[], RepairLimits] = lambda: LIMITS,
) -> tuple[Repair, Janitor]:
    cluster = catalogue.cluster
    janitor = Janitor(cluster.shards.get)
    mint_generation = lambda: Generation(mint())  # noqa: E731
    return Repair(lambda: cluster.view, catalogue, janitor, limits, catalogue, mint_generation), janitor


def check_files(catalogue: MemoryCatalogue) -> None:
    """Every live row has its file, and every file a row or a place on the list of removals."""
    files = {(replica.shard, replica.generation) for replica in catalogue.cluster.files()}
    live = {(at, one) for rows in catalogue.rows.values() for one, at in rows.live.items()}
    known = live | {(at, one) for rows in catalogue.rows.values() for one, at in rows.suspect.items()}
    known |= {(shard, name.generation) for shard, name in catalogue.removals}
    assert live <= files <= known
    assert catalogue.cluster.staged() == []
    catalogue.cluster.check()


async def repair_all(catalogue: MemoryCatalogue, steps: int = 1) -> None:
    repair, janitor = repair_of(catalogue)
    for _ in range(steps):
        await repair.step()
    await janitor.close()


@instant
@pytest.mark.parametrize("body", BODIES, ids=len)
async def test_lost_copy_is_made_again_on_its_place_on_the_ring(body: bytes) -> None:
    with small_blocks():
        catalogue = MemoryCatalogue(Cluster("a1 a1 b2 b2 c3 c3"))
        rows = catalogue.add(body, ())
        home = [member.shard for member in homes(catalogue.cluster.view, rows.blob.uid, 2)]
        for shard in home:
            generation = Generation(mint())
            catalogue.cluster.memory[shard].files[BlobName(rows.blob.sha256, generation)] = body
            rows.live[generation] = shard
        catalogue.lose(rows, home[0])
        repair, janitor = repair_of(catalogue)
        step = await repair.step()
        assert (step.done, step.moved_bytes, step.idle) == (1, len(body), False)
        assert (await repair.step()).idle
        await janitor.close()
        assert catalogue.shards(rows) == sorted(home)
        assert catalogue.outcomes == [(RepairOutcome.WHOLE, None)]
        check_files(catalogue)


@instant
@pytest.mark.parametrize("body", BODIES, ids=len)
async def test_copies_go_to_zones_of_their_own_and_not_where_nobody_takes_them(body: bytes) -> None:
    with small_blocks():
        cluster = Cluster("a1 a1 b2 b2 c3 c3")
        catalogue = MemoryCatalogue(cluster)
        rows = catalogue.add(body, (0,), redundancy=3)
        catalogue.enqueue(rows)
        cluster.full, cluster.unwritable = {ShardId(2)}, {ShardId(4)}
        await repair_all(catalogue)
        assert catalogue.shards(rows) == [0, 3, 5]
        check_files(catalogue)


@instant
async def test_copies_in_one_zone_get_another_in_a_second_one() -> None:
    catalogue = MemoryCatalogue(Cluster("a1 a2 b3"))
    rows = catalogue.add(b"x", (0, 1))
    catalogue.enqueue(rows)
    await repair_all(catalogue)
    assert catalogue.shards(rows) == [0, 1, 2]  # trim takes one of the first two


@instant
@pytest.mark.parametrize("body", BODIES, ids=len)
async def test_bad_source_is_reported_and_another_one_used(body: bytes) -> None:
    with small_blocks():
        catalogue = MemoryCatalogue(Cluster("a1 b2 c3 d4"))
        rows = catalogue.add(body, (0, 1), redundancy=3)
        files = catalogue.cluster.memory[ShardId(0)].files
        files.update({name: bytes(len(body)) for name in files if body != bytes(len(body))})
        catalogue.enqueue(rows)
        await repair_all(catalogue)
        good = {at for at in rows.live.values()}
        assert ShardId(0) not in good or body == bytes(len(body))
        copies = [catalogue.cluster.memory[at].files[BlobName(rows.blob.sha256, one)] for one, at in rows.live.items()]
        assert copies and all(copy == body for copy in copies)
        assert rows.blob.id in catalogue.queue  # one more is missing now


@instant
async def test_suspect_copy_that_is_right_is_a_source_when_there_is_no_other() -> None:
    catalogue = MemoryCatalogue(Cluster("a1 b2 c3"))
    rows = catalogue.add(b"right after all", (0,), redundancy=2)
    catalogue.mark(rows, next(iter(rows.live)))
    await repair_all(catalogue)
    assert len(rows.live) == 2
    check_files(catalogue)


@instant
async def test_blob_without_a_readable_copy_stays_queued() -> None:
    catalogue = MemoryCatalogue(Cluster("a1 b2 c3"))
    rows = catalogue.add(b"gone", (0, 1))
    catalogue.lose(rows, 0)
    catalogue.lose(rows, 1)
    repair, janitor = repair_of(catalogue)
    assert (await repair.step()).idle
    await janitor.close()
    assert catalogue.outcomes == [(RepairOutcome.SHORT, "no_source")]
    assert catalogue.queue[rows.blob.id] > asyncio.get_running_loop().time()


@instant
@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        (operation, fault)
        for operation in (Operation.PUT, Operation.STAGE, Operation.WRITE, Operation.COMMIT)
        for fault in (Fault.FAIL, Fault.FAIL_AFTER, Fault.FULL)
        # What is staged on a peer ends with its connection; the one in memory does not.
        if (operation, fault) != (Operation.STAGE, Fault.FAIL_AFTER)
    ],
)
async def test_failed_target_leaves_no_file_and_the_blob_queued(operation: Operation, fault: Fault) -> None:
    with small_blocks():
        catalogue = MemoryCatalogue(Cluster("a1 b2"))
        rows = catalogue.add(b"x" if operation is Operation.PUT else bytes(300), (0,))
        catalogue.enqueue(rows)
        catalogue.cluster.faulty[ShardId(1)].plan(operation, fault)
        repair, janitor = repair_of(catalogue)
        await repair.step()
        await asyncio.sleep(30)
        assert catalogue.outcomes == [(RepairOutcome.SHORT, "failed")]
        check_files(catalogue)
        await repair.step()
        await janitor.close()
        assert catalogue.shards(rows) == [0, 1]
        check_files(catalogue)


@instant
@pytest.mark.parametrize("size", [1, 300])
async def test_two_nodes_that_repair_one_blob_leave_one_copy(size: int) -> None:
    with small_blocks():
        catalogue = MemoryCatalogue(Cluster("a1 b2 c3"))
        rows = catalogue.add(bytes(size), (0,))
        repairs = []
        for _ in range(2):
            catalogue.enqueue(rows)  # the claim of the first has expired
            repairs.append(repair_of(catalogue))
        one, other = repairs
        first = asyncio.create_task(one[0].step())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        catalogue.enqueue(rows)
        await asyncio.gather(first, other[0].step())
        for _, janitor in repairs:
            await janitor.close()
        assert len(rows.live) == 2
        check_files(catalogue)


@instant
async def test_repair_cut_off_in_the_middle_leaves_nothing_behind() -> None:
    with small_blocks():
        catalogue = MemoryCatalogue(Cluster("a1 b2"))
        rows = catalogue.add(bytes(range(200)), (0,))
        catalogue.enqueue(rows)
        catalogue.cluster.faulty[ShardId(1)].plan(Operation.WRITE, None, Fault.STALL)
        repair, janitor = repair_of(catalogue)
        task = asyncio.create_task(repair.step())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        catalogue.cluster.heal()
        await asyncio.sleep(60)
        check_files(catalogue)
        await repair.step()
        await janitor.close()
        assert catalogue.shards(rows) == [0, 1]


@instant
async def test_file_is_kept_when_nobody_knows_whether_its_row_is_there() -> None:
    catalogue = MemoryCatalogue(Cluster("a1 b2"))
    rows = catalogue.add(b"x", (0,))
    catalogue.enqueue(rows)
    settle = catalogue.settle

    async def settle_unheard(*args: object, **kwargs: object) -> None:
        await settle(*args, **kwargs)  # type: ignore[arg-type]
        raise ConnectionError("no answer")

    catalogue.settle = settle_unheard  # type: ignore[method-assign,assignment]
    repair, janitor = repair_of(catalogue)
    with pytest.raises(ConnectionError):
        await repair.step()
    await janitor.close()
    assert catalogue.shards(rows) == [0, 1]
    check_files(catalogue)


@instant
async def test_rate_is_kept_and_opens_up_as_copies_fall() -> None:
    catalogue = MemoryCatalogue(Cluster("a1 b2 c3 d4"))
    loop = asyncio.get_running_loop()

    async def seconds(redundancy: int) -> float:
        for _ in range(20):
            catalogue.enqueue(catalogue.add(bytes(1000), (0,), redundancy))
        repair, janitor = repair_of(catalogue, lambda: replace(LIMITS, bytes_per_second_max=1000))
        began = loop.time()
        await repair.step()
        took = loop.time() - began
        await janitor.close()
        return took

    assert await seconds(2) == pytest.approx(19, abs=0.5)  # 1,000 bytes each
    assert await seconds(3) == pytest.approx(2 * 19 / 4, abs=2)  # twice the bytes at four times the rate


@instant
@pytest.mark.parametrize(("redundancy", "rests"), [(2, [0, 3, 3]), (3, [])])
async def test_copy_is_followed_by_a_rest_unless_two_are_missing(
    monkeypatch: pytest.MonkeyPatch, redundancy: int, rests: list[float]
) -> None:
    catalogue = MemoryCatalogue(Cluster("a1 b2 c3 d4"))
    for _ in range(3):
        catalogue.enqueue(catalogue.add(bytes(1000), (0,), redundancy))
    limits = replace(LIMITS, bytes_per_second_max=1000, copies_at_once=1, rest_share=3)
    repair, janitor = repair_of(catalogue, lambda: limits)
    asked: list[float] = []

    async def rest(seconds: float) -> None:
        asked.append(seconds)

    monkeypatch.setattr(repair._courtesy, "rest", rest)
    await repair.step()
    await janitor.close()
    assert asked == pytest.approx(rests, abs=0.1)


@instant
async def test_what_was_put_off_for_want_of_a_place_is_tried_as_soon_as_there_is_one() -> None:
    cluster = Cluster("a1 b2")
    catalogue = MemoryCatalogue(cluster)
    cluster.unwritable = {ShardId(1)}
    rows = catalogue.add(b"x", (0,))
    catalogue.enqueue(rows)
    repair, janitor = repair_of(catalogue)
    assert (await repair.step()).idle
    assert catalogue.outcomes == [(RepairOutcome.SHORT, "no_place")]
    assert (await repair.step()).idle and len(catalogue.outcomes) == 1
    cluster.unwritable = set()
    await repair.step()
    await janitor.close()
    assert catalogue.shards(rows) == [0, 1]


@instant
async def test_draining_copy_is_replaced_before_it_goes() -> None:
    catalogue = MemoryCatalogue(Cluster("a1 b2 c3"))
    rows = catalogue.add(b"x", (0, 1))
    catalogue.draining = {ShardId(0)}
    catalogue.cluster.unwritable = {ShardId(0), ShardId(2)}
    catalogue.enqueue(rows)
    repair, janitor = repair_of(catalogue)
    await repair.step()
    assert catalogue.shards(rows) == [0, 1] and not catalogue.removals
    catalogue.cluster.unwritable = {ShardId(0)}
    await repair.step()
    await janitor.close()
    assert catalogue.shards(rows) == [1, 2]
    assert [shard for shard, _ in catalogue.removals] == [0]


@instant
async def test_claims_of_a_long_repair_are_renewed() -> None:
    catalogue = MemoryCatalogue(Cluster("a1 b2"))
    with small_blocks():
        rows = catalogue.add(bytes(640), (0,))
        catalogue.cluster.memory[ShardId(1)].write_seconds = 10
        catalogue.enqueue(rows)
        repair, janitor = repair_of(catalogue)
        task = asyncio.create_task(repair.step())
        await asyncio.sleep(75)
        assert catalogue.queue[rows.blob.id] > asyncio.get_running_loop().time()
        await task
        await janitor.close()
        assert rows.blob.id not in catalogue.queue


@instant
async def test_progress_tells_the_backlog() -> None:
    catalogue = MemoryCatalogue(Cluster("a1 b2"))
    for number in range(100):
        catalogue.enqueue(catalogue.add(bytes([number]), (0,)))
    repair, janitor = repair_of(catalogue)
    step = await repair.step()
    assert step.done == 64 and step.progress is not None
    assert (step.progress.done, step.progress.total) == (64, 100)
    for number in list(catalogue.queue)[:6]:
        del catalogue.queue[number]  # another node has repaired it
    assert (await repair.step()).done == 30
    step = await repair.step()
    assert step.idle and step.progress == Progress(94, 94), "a run that is over has nothing left of its total"
    assert (await repair.step()).progress is None
    await janitor.close()
    assert not catalogue.queue


@instant
async def test_run_that_gets_nowhere_ends_without_a_total() -> None:
    catalogue = MemoryCatalogue(Cluster("a1 b2"))
    for number in range(10):
        catalogue.enqueue(catalogue.add(bytes([number]), ()))
    repair, janitor = repair_of(catalogue)
    step = await repair.step()
    await janitor.close()
    assert step.idle and step.progress is None and len(catalogue.queue) == 10


@instant
async def test_copies_the_catalogue_never_heard_of_are_removed() -> None:
    catalogue = MemoryCatalogue(Cluster("a1 b2"))
    rows = catalogue.add(b"x", (0,))
    catalogue.enqueue(rows)

    async def refuse(repaired: object) -> dict[int, Settled]:
        raise NotSettled("no connection")

    settle, catalogue.settle = catalogue.settle, refuse  # type: ignore[method-assign]
    repair, janitor = repair_of(catalogue)
    with pytest.raises(NotSettled):
        await repair.step()
    await asyncio.sleep(30)
    check_files(catalogue)
    catalogue.settle = settle  # type: ignore[method-assign]
    catalogue.enqueue(rows)
    await repair.step()
    await janitor.close()
    assert catalogue.shards(rows) == [0, 1]


@instant
async def test_batch_cut_off_before_it_is_settled_leaves_none_of_its_copies() -> None:
    catalogue = MemoryCatalogue(Cluster("a1 b2"))
    blobs = [catalogue.add(bytes([number]), (0,)) for number in range(5)]
    for rows in blobs:
        catalogue.enqueue(rows)
    catalogue.cluster.faulty[ShardId(1)].plan(Operation.PUT, None, None, None, None, Fault.STALL)
    repair, janitor = repair_of(catalogue)
    task = asyncio.create_task(repair.step())
    await asyncio.sleep(1)
    assert len(catalogue.cluster.files()) == 9
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    catalogue.cluster.heal()
    await asyncio.sleep(60)
    assert len(catalogue.cluster.files()) == 5
    await janitor.close()


@instant
async def test_one_blob_that_cannot_be_repaired_does_not_keep_the_others_of_its_batch() -> None:
    catalogue = MemoryCatalogue(Cluster("a1 b2"))
    bad, good = catalogue.add(b"bad", (0,)), catalogue.add(b"good", (0,))
    for rows in (bad, good):
        catalogue.enqueue(rows)
    of_blob = catalogue.of_blob

    def broken(blob: StoredBlob) -> MemoryCatalogue.OfBlob:
        if blob.id == bad.blob.id:
            raise ValueError("a fault of ours")
        return of_blob(blob)

    catalogue.of_blob = broken  # type: ignore[method-assign]
    repair, janitor = repair_of(catalogue)
    await repair.step()
    await janitor.close()
    assert catalogue.shards(good) == [0, 1] and catalogue.shards(bad) == [0]
    assert sorted(outcome for outcome, _ in catalogue.outcomes) == ["short", "whole"]


@instant
@pytest.mark.parametrize("size", [1, 300])
async def test_shard_that_fails_is_replaced_by_another_in_the_same_repair(size: int) -> None:
    with small_blocks():
        catalogue = MemoryCatalogue(Cluster("a1 b2 c3 d4"))
        rows = catalogue.add(bytes(size), (0,), redundancy=3)
        catalogue.enqueue(rows)
        first, second, _ = missing_homes(catalogue.cluster.view, rows.blob.uid, 4, {ShardId(0)})
        for member in (first, second):
            catalogue.cluster.faulty[member.shard].down = True
        repair, janitor = repair_of(catalogue)
        await repair.step()
        catalogue.cluster.heal()
        await janitor.close()
        assert len(rows.live) == 2 and catalogue.outcomes == [(RepairOutcome.SHORT, "failed")]
        check_files(catalogue)
