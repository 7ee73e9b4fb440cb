"""Rebalance and trim over shards in memory."""

from __future__ import annotations

import asyncio

from sharding.guarded import Operation
from sharding.janitor import Janitor
from sharding.maintenance.catalogue import MoveOutcome
from sharding.maintenance.placement import homes
from sharding.maintenance.rebalance import AGAIN_SECONDS, Rebalance, Trim
from sharding.model import Generation, ShardId
from tests.sharding.faulty import Fault
from tests.sharding.maintenance.catalogue import MemoryCatalogue, Rows
from tests.sharding.maintenance.test_repair import check_files
from tests.sharding.memory import Cluster, instant, mint


def rebalance_of(catalogue: MemoryCatalogue) -> tuple[Rebalance, Janitor]:
    cluster = catalogue.cluster
    janitor = Janitor(cluster.shards.get)
    job = Rebalance(
        lambda: cluster.view, catalogue, janitor, lambda: None, lambda: 1e9, catalogue, lambda: Generation(mint())
    )
    return job, janitor


def trim_of(catalogue: MemoryCatalogue) -> Trim:
    return Trim(lambda: catalogue.cluster.view, catalogue, lambda: 1e9, catalogue)


async def run_out(job: Rebalance | Trim) -> int:
    """Take steps until there is nothing to do; return what was done."""
    done = 0
    for _ in range(1_000):
        step = await job.step()
        done += step.done
        if step.idle:
            return done
    raise AssertionError("it never ends")


def single_node() -> Cluster:
    """Return a cluster whose shards are all on the node of the view, so that one job sees them all."""
    return Cluster("a1 a1 a1 a1")


def at_home(catalogue: MemoryCatalogue, rows: Rows) -> list[int]:
    return sorted(member.shard for member in homes(catalogue.cluster.view, rows.blob.uid, rows.blob.redundancy))


@instant
async def test_misplaced_copies_move_home_and_their_files_go_later() -> None:
    catalogue = MemoryCatalogue(single_node())
    blobs = [catalogue.add(bytes([number]) * 9, (0, 1)) for number in range(60)]
    strays = sum(len(set(catalogue.shards(rows)) - set(at_home(catalogue, rows))) for rows in blobs)
    job, janitor = rebalance_of(catalogue)
    assert await run_out(job) == strays > 20
    assert all(catalogue.shards(rows) == at_home(catalogue, rows) for rows in blobs)
    assert catalogue.moves == [MoveOutcome.MOVED] * strays
    assert len(catalogue.removals) == strays
    check_files(catalogue)
    assert await run_out(job) == 0
    await janitor.close()


@instant
async def test_blob_that_lacks_copies_and_homes_that_take_none_are_left_alone() -> None:
    cluster = single_node()
    catalogue = MemoryCatalogue(cluster)
    for number in range(30):
        catalogue.add(bytes([number]), (number % 4,))
    cluster.unwritable = set(cluster.shards)
    for number in range(30):
        catalogue.add(bytes([100 + number]), (0, 1))
    job, janitor = rebalance_of(catalogue)
    assert await run_out(job) == 0 and catalogue.moves == []
    # A pass that had to leave copies where they are is soon followed by another.
    cluster.unwritable = set()
    assert await run_out(job) == 0
    await asyncio.sleep(AGAIN_SECONDS)
    assert await run_out(job) > 0
    await janitor.close()


@instant
async def test_copy_that_fails_moves_nothing_and_leaves_nothing() -> None:
    cluster = single_node()
    catalogue = MemoryCatalogue(cluster)
    rows = next(
        rows for rows in (catalogue.add(bytes([n]), (0, 1)) for n in range(60)) if 0 not in at_home(catalogue, rows)
    )
    for other in [one for one in catalogue.rows.values() if one is not rows]:
        other.live.clear()
        del catalogue.rows[other.blob.id]
    for faulty in cluster.faulty.values():
        faulty.plan(Operation.PUT, Fault.FAIL_AFTER)
    before = catalogue.shards(rows)
    job, janitor = rebalance_of(catalogue)
    await run_out(job)
    await janitor.close()
    assert catalogue.shards(rows) == before and catalogue.moves == []
    assert not catalogue.removals


@instant
async def test_surplus_copies_are_trimmed_farthest_from_the_ring_first() -> None:
    catalogue = MemoryCatalogue(single_node())
    blobs = [catalogue.add(bytes([number]), (0, 1, 2, 3)) for number in range(30)]
    assert await run_out(trim_of(catalogue)) == 60
    assert all(catalogue.shards(rows) == at_home(catalogue, rows) for rows in blobs)


@instant
async def test_second_copy_on_one_shard_is_trimmed() -> None:
    catalogue = MemoryCatalogue(single_node())
    rows = catalogue.add(b"x", (0, 0, 1))
    assert await run_out(trim_of(catalogue)) == 1
    assert catalogue.shards(rows) == [0, 1]


@instant
async def test_exactly_n_copies_are_never_trimmed_wherever_they_are() -> None:
    catalogue = MemoryCatalogue(single_node())
    for number in range(30):
        catalogue.add(bytes([number]), (number % 4, (number + 1) % 4))
    assert await run_out(trim_of(catalogue)) == 0 and catalogue.trims == []


@instant
async def test_only_shards_of_this_node_are_walked() -> None:
    catalogue = MemoryCatalogue(Cluster("a1 b2 c3"))
    rows = catalogue.add(b"x", (0, 1, 2))
    before = set(catalogue.shards(rows))
    await run_out(trim_of(catalogue))
    assert before - set(catalogue.shards(rows)) <= {ShardId(0)}


@instant
async def test_prompted_pass_does_not_wait_for_its_period_and_is_one_pass() -> None:
    catalogue = MemoryCatalogue(single_node())
    trim = trim_of(catalogue)
    assert await run_out(trim) == 0
    for number in range(20):
        catalogue.add(bytes([number]) * 9, (0, 1, 2))
    assert await run_out(trim) == 0, "the last pass was a moment ago"
    trim.prompt()
    assert await run_out(trim) == 20
    assert await run_out(trim) == 0
