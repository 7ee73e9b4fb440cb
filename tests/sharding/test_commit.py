"""Commits: which copies count, handoffs for those that fail or lag, refusals, and that nothing else stays."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sharding.commit import Placement
from sharding.errors import ReplicaCorrupt, ReplicaMissing, ShardUnavailable, WriteQuorumNotMet
from sharding.guarded import GuardLimits, Operation
from sharding.model import BlobName, Buffer, ShardId
from sharding.provider import ShardingProvider
from sharding.shard import Shard
from sharding.tally import WritePolicy
from sharding.upload import Upload
from tests.sharding.faulty import Fault, FaultyShard
from tests.sharding.memory import COMMIT_WAIT_SECONDS, Cluster, instant, run, small_blocks

BLOCK = 64
SMALL, STAGED = BLOCK, 5 * BLOCK + 1
"""Sizes of a body that is put in one call, and of one that is staged."""

THREE_ZONES = "a1 a1 b2 b2 c3 c3"
TWO = WritePolicy(redundancy=2)
THREE = WritePolicy(redundancy=3)

both_sizes = pytest.mark.parametrize("size", [SMALL, STAGED])


def body_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def receive(provider: ShardingProvider, upload: Upload, size: int) -> None:
    """Take in the whole body, so that nothing remains but to commit it."""
    await upload.write(body_of(size))
    await upload.finish()


def last_step(size: int) -> Operation:
    """Return the operation that makes a copy of such a body durable."""
    return Operation.PUT if size <= BLOCK else Operation.COMMIT


async def store(cluster: Cluster, size: int, policy: WritePolicy) -> Placement:
    """Upload a body and commit it."""
    provider = cluster.provider()
    try:
        async with provider.open_upload(policy) as upload:
            await receive(provider, upload, size)
            return await provider.commit(upload)
    finally:
        await provider.close()


def check_stored(cluster: Cluster, placement: Placement, size: int) -> None:
    """Fail unless the files of the placement, and no others, are there and right."""
    assert cluster.files() == dict.fromkeys(placement.replicas, body_of(size))
    assert len({replica.shard for replica in placement.replicas}) == len(placement.replicas)
    assert cluster.staged() == []
    cluster.check()


async def check_refused(cluster: Cluster, size: int, policy: WritePolicy) -> WriteQuorumNotMet:
    """Fail unless the upload is refused and leaves nothing."""
    with pytest.raises(WriteQuorumNotMet) as caught:
        await store(cluster, size, policy)
    assert cluster.files() == {}
    assert cluster.staged() == []
    cluster.check()
    return caught.value


async def primaries(layout: str, size: int, policy: WritePolicy) -> list[ShardId]:
    """Return where the first upload on such a cluster goes when nothing is wrong."""
    return [replica.shard for replica in (await store(Cluster(layout), size, policy)).replicas]


# ------------------------------------------------------------------ what counts


@both_sizes
@instant
async def test_commit_makes_as_many_copies_as_wanted_in_zones_of_their_own(size: int) -> None:
    with small_blocks(BLOCK):
        for seed in range(10):
            cluster = Cluster(THREE_ZONES, seed=seed)
            placement = await store(cluster, size, THREE)
            check_stored(cluster, placement, size)
            assert (len(cluster.zones(placement.replicas)), placement.short) == (3, False)
            assert sum(memory.needless_aborts for memory in cluster.memory.values()) == 0


@instant
async def test_commit_of_an_empty_body_needs_no_copy() -> None:
    cluster = Cluster(THREE_ZONES)
    assert await store(cluster, 0, TWO) == Placement((), short=False)
    assert cluster.files() == {}


@both_sizes
@instant
async def test_one_node_left_with_two_shards_still_acknowledges_and_says_short(size: int) -> None:
    with small_blocks(BLOCK):
        cluster = Cluster(THREE_ZONES)
        cluster.unwritable = {ShardId(2), ShardId(3), ShardId(4), ShardId(5)}
        placement = await store(cluster, size, TWO)
        check_stored(cluster, placement, size)
        assert ({replica.shard for replica in placement.replicas}, placement.short) == ({0, 1}, True)


@both_sizes
@instant
async def test_one_node_left_acknowledges_also_when_nobody_has_noticed_yet(size: int) -> None:
    with small_blocks(BLOCK):
        for seed in range(10):
            cluster = Cluster(THREE_ZONES, seed=seed)
            for shard in (2, 3, 4, 5):
                cluster.faulty[ShardId(shard)].down = True
            placement = await store(cluster, size, TWO)
            check_stored(cluster, placement, size)
            assert ({replica.shard for replica in placement.replicas}, placement.short) == ({0, 1}, True)


@both_sizes
@instant
async def test_commit_is_complete_when_there_are_no_more_zones_than_copies_lie_in(size: int) -> None:
    with small_blocks(BLOCK):
        cluster = Cluster("a1 a1 a2")
        placement = await store(cluster, size, TWO)
        check_stored(cluster, placement, size)
        assert not placement.short


@both_sizes
@instant
async def test_commit_with_fewer_copies_than_wanted_is_short(size: int) -> None:
    with small_blocks(BLOCK):
        cluster = Cluster("a1 b2 c3")
        cluster.faulty[ShardId(1)].down = True
        placement = await store(cluster, size, THREE)
        check_stored(cluster, placement, size)
        assert (len(placement.replicas), placement.short) == (2, True)


# ------------------------------------------------------------------ shards that fail


@both_sizes
@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.FAIL_AFTER, Fault.FULL])
@instant
async def test_handoff_replaces_a_shard_that_fails_in_a_zone_without_a_copy(size: int, fault: Fault) -> None:
    with small_blocks(BLOCK):
        for seed, layout in product(range(8), ("a1 a1 b2 b2 c3 c3", "a1 a1 a1 b2 b2 b2")):
            for doomed in range(6):
                cluster = Cluster(layout, seed=seed)
                cluster.faulty[ShardId(doomed)].plan(last_step(size), fault)
                placement = await store(cluster, size, TWO)
                check_stored(cluster, placement, size)
                assert (len(cluster.zones(placement.replicas)), placement.short) == (2, False)


@both_sizes
@instant
async def test_handoff_keeps_apart_from_a_copy_that_is_still_on_its_way(size: int) -> None:
    with small_blocks(BLOCK):
        layout = "a1 a1 a1 b2 b2 b2 c3"
        for slow, doomed in [chosen := await primaries(layout, size, TWO), chosen[::-1]]:
            cluster = Cluster(layout)
            cluster.faulty[slow].plan(last_step(size), Fault.STALL)
            cluster.faulty[doomed].plan(last_step(size), Fault.FAIL)
            asyncio.get_running_loop().call_later(0.5, cluster.faulty[slow].release)
            placement = await store(cluster, size, TWO)
            check_stored(cluster, placement, size)
            assert slow in {replica.shard for replica in placement.replicas}
            assert not placement.short


@both_sizes
@pytest.mark.parametrize(("fault", "full"), [(Fault.FAIL, False), (Fault.FAIL_AFTER, False), (Fault.FULL, True)])
@instant
async def test_commit_is_refused_and_leaves_nothing_when_every_shard_fails(size: int, fault: Fault, full: bool) -> None:
    with small_blocks(BLOCK):
        cluster = Cluster(THREE_ZONES)
        for faulty in cluster.faulty.values():
            faulty.plan(last_step(size), fault, fault)
        error = await check_refused(cluster, size, TWO)
        assert (error.durable, error.needed, error.full) == (0, 2, full)
        assert len(error.reasons) == (6 if size == SMALL else 2)


@both_sizes
@instant
async def test_commit_refused_for_one_copy_too_few_removes_the_durable_ones(size: int) -> None:
    with small_blocks(BLOCK):
        for left in range(6):
            cluster = Cluster(THREE_ZONES)
            for shard, faulty in cluster.faulty.items():
                if shard != left:
                    faulty.plan(last_step(size), *[Fault.FAIL] * 3)
            error = await check_refused(cluster, size, TWO)
            assert error.durable == (1 if size == SMALL else error.durable)


@instant
async def test_refusal_is_not_for_want_of_space_when_one_of_the_shards_was_merely_late() -> None:
    with small_blocks(BLOCK):
        cluster = Cluster("a1 b2")
        cluster.faulty[ShardId(0)].plan(Operation.COMMIT, Fault.FULL)
        cluster.faulty[ShardId(1)].plan(Operation.COMMIT, Fault.STALL)
        error = await check_refused(cluster, STAGED, TWO)
        assert not error.full
        assert ShardUnavailable in map(type, error.reasons)


@both_sizes
@instant
async def test_shard_that_raised_though_it_had_committed_keeps_no_file(size: int) -> None:
    with small_blocks(BLOCK):
        for doomed in await primaries(THREE_ZONES, size, TWO):
            cluster = Cluster(THREE_ZONES)
            cluster.faulty[doomed].plan(last_step(size), Fault.FAIL_AFTER)
            placement = await store(cluster, size, TWO)
            assert cluster.faulty[doomed].injected[last_step(size), Fault.FAIL_AFTER] == 1
            assert doomed not in {replica.shard for replica in placement.replicas}
            check_stored(cluster, placement, size)


class Mistake(Exception):
    """What no shard may raise."""


@both_sizes
@instant
async def test_foreign_error_refuses_the_upload_and_leaves_nothing(size: int) -> None:
    with small_blocks(BLOCK):
        for doomed in await primaries(THREE_ZONES, size, TWO):
            cluster = Cluster(THREE_ZONES)
            raise_when(cluster, doomed, last_step(size))
            with pytest.raises(Mistake):
                await store(cluster, size, TWO)
            assert cluster.files() == {}
            assert cluster.staged() == []


def raise_when(cluster: Cluster, shard: ShardId, wrong: Operation) -> None:
    """Have a shard raise what it must not, at every call of one operation."""
    faulty = cluster.faulty[shard]
    ask = faulty.next_fault

    def next_fault(operation: Operation) -> Fault | None:
        if operation is wrong:
            raise Mistake
        return ask(operation)

    faulty.next_fault = next_fault  # type: ignore[method-assign]


@instant
async def test_staged_copy_is_aborted_when_its_guard_refuses_the_commit() -> None:
    with small_blocks(BLOCK):
        cluster = Cluster(THREE_ZONES, limits=GuardLimits(failures_to_open=1, open_seconds=3600))
        provider = cluster.provider()
        async with provider.open_upload(TWO) as upload:
            await receive(provider, upload, STAGED)
            rested = cluster.staged()[0][0]
            cluster.faulty[rested].plan(Operation.SIZES, Fault.FAIL)
            with pytest.raises(ShardUnavailable):
                await cluster.shards[rested].sizes([])
            placement = await provider.commit(upload)
            assert rested not in {replica.shard for replica in placement.replicas}
        await provider.close()
        check_stored(cluster, placement, STAGED)


@pytest.mark.parametrize("fault", [Fault.CORRUPT, Fault.LOSE])
@instant
async def test_copy_found_bad_while_another_is_made_from_it_does_not_count(fault: Fault) -> None:
    with small_blocks(BLOCK):
        first, second = await primaries("a1 b2 c3 d4", STAGED, TWO)
        cluster = Cluster("a1 b2 c3 d4")
        cluster.faulty[first].plan(Operation.COMMIT, Fault.FAIL)
        cluster.faulty[second].plan(Operation.READ, fault)
        error = await check_refused(cluster, STAGED, TWO)
        assert (ReplicaCorrupt if fault is Fault.CORRUPT else ReplicaMissing) in map(type, error.reasons)


@instant
async def test_copy_made_from_durable_ones_goes_on_with_another_when_one_cannot_be_read() -> None:
    with small_blocks(BLOCK):
        layout = "a1 b2 c3 d4"
        first, second, third = await primaries(layout, STAGED, THREE)
        for bad in (second, third):
            for fault in (Fault.FAIL, Fault.CORRUPT, Fault.LOSE):
                cluster = Cluster(layout)
                cluster.faulty[first].plan(Operation.COMMIT, Fault.FAIL)
                cluster.faulty[bad].plan(Operation.READ, None, fault)
                placement = await store(cluster, STAGED, THREE)
                check_stored(cluster, placement, STAGED)
                assert len(placement.replicas) >= 2


@both_sizes
@instant
async def test_commit_never_offers_one_shard_the_same_blob_twice(size: int) -> None:
    with small_blocks(BLOCK):
        cluster = Cluster(THREE_ZONES)
        for faulty in cluster.faulty.values():
            faulty.plan(last_step(size), *[Fault.FAIL] * 9)
        with pytest.raises(WriteQuorumNotMet):
            await store(cluster, size, THREE)
        for faulty in cluster.faulty.values():
            assert faulty.injected[last_step(size), Fault.FAIL] <= 1


# ------------------------------------------------------------------ shards that lag


@both_sizes
@pytest.mark.parametrize("layout", [THREE_ZONES, "a1 a1 b2 b2"])
@instant
async def test_handoff_starts_beside_a_shard_that_lags(size: int, layout: str) -> None:
    with small_blocks(BLOCK):
        for seed in range(8):
            cluster = Cluster(layout, seed=seed)
            lagging = (await store(Cluster(layout, seed=seed), size, TWO)).replicas[seed % 2].shard
            cluster.faulty[lagging].plan(last_step(size), Fault.STALL)
            provider = cluster.provider()
            began = asyncio.get_running_loop().time()
            async with provider.open_upload(TWO) as upload:
                await receive(provider, upload, size)
                placement = await provider.commit(upload)
            assert 1.0 <= asyncio.get_running_loop().time() - began < 1.1
            await provider.close()
            assert lagging not in {replica.shard for replica in placement.replicas}
            assert len(cluster.zones(placement.replicas)) == 2
            check_stored(cluster, placement, size)


@instant
async def test_shard_that_lagged_and_then_came_counts_when_further_handoffs_choose_their_zones() -> None:
    with small_blocks(BLOCK):
        for seed in range(12):
            cluster = Cluster("a1 a1 a1 b2 b2 b2", seed=seed)
            asked = stall_first_puts(cluster, 4)
            asyncio.get_running_loop().call_later(1.5, lambda: cluster.faulty[asked[0]].release())  # noqa: B023
            placement = await store(cluster, SMALL, TWO)
            check_stored(cluster, placement, SMALL)
            assert asked[0] in {replica.shard for replica in placement.replicas}
            assert not placement.short


def stall_first_puts(cluster: Cluster, count: int) -> list[ShardId]:
    """Have the first puts of all shards together stall; return the shards asked, which fill up as they are."""
    asked: list[ShardId] = []

    def watch(shard: ShardId, faulty: FaultyShard) -> None:
        ask = faulty.next_fault

        def next_fault(operation: Operation) -> Fault | None:
            if operation is Operation.PUT:
                asked.append(shard)
                if len(asked) <= count:
                    return Fault.STALL
            return ask(operation)

        faulty.next_fault = next_fault  # type: ignore[method-assign]

    for shard, faulty in cluster.faulty.items():
        watch(shard, faulty)
    return asked


@both_sizes
@instant
async def test_commit_waits_for_a_lagging_shard_when_there_is_no_other(size: int) -> None:
    with small_blocks(BLOCK):
        cluster = Cluster("a1 b2")
        cluster.faulty[ShardId(1)].plan(last_step(size), Fault.STALL)
        asyncio.get_running_loop().call_later(8, cluster.faulty[ShardId(1)].release)
        placement = await store(cluster, size, TWO)
        check_stored(cluster, placement, size)
        assert (len(placement.replicas), placement.short) == (2, False)


@instant
async def test_commit_waits_no_longer_than_its_bound() -> None:
    with small_blocks(BLOCK):
        cluster = Cluster("a1 b2 c3")
        cluster.faulty[ShardId(1)].plan(Operation.COMMIT, Fault.STALL)
        provider = cluster.provider()
        async with provider.open_upload(THREE) as upload:
            await receive(provider, upload, STAGED)
            began = asyncio.get_running_loop().time()
            placement = await provider.commit(upload)
            assert asyncio.get_running_loop().time() - began == pytest.approx(COMMIT_WAIT_SECONDS, abs=0.1)
        await provider.close()
        check_stored(cluster, placement, STAGED)
        assert (len(placement.replicas), placement.short) == (2, True)


@both_sizes
@instant
async def test_commit_gives_back_the_copies_beyond_those_wanted(size: int) -> None:
    with small_blocks(BLOCK):
        first, second = await primaries("a1 b2 c3", size, TWO)
        (third,) = {0, 1, 2} - {first, second}
        cluster = Cluster("a1 b2 c3")
        for shard in (second, third):
            cluster.faulty[ShardId(shard)].plan(last_step(size), Fault.STALL)

        def release() -> None:
            cluster.faulty[second].release()
            cluster.faulty[ShardId(third)].release()

        asyncio.get_running_loop().call_later(3, release)
        placement = await store(cluster, size, TWO)
        assert len(placement.replicas) == 2
        check_stored(cluster, placement, size)


class TardyShard:
    """A shard that goes on with a put for some seconds after its caller gave up."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    def __getattr__(self, name: str) -> object:
        return getattr(self._shard, name)

    async def put(self, name: BlobName, data: Buffer) -> None:
        landed = asyncio.get_running_loop().create_future()
        arrival = asyncio.create_task(self._land(name, bytes(data), landed))
        try:
            await landed
        finally:
            del arrival

    async def _land(self, name: BlobName, data: bytes, landed: asyncio.Future[None]) -> None:
        await asyncio.sleep(5)
        await self._shard.put(name, data)
        if not landed.done():
            landed.set_result(None)


@instant
async def test_file_that_arrives_after_its_deletion_is_deleted_again() -> None:
    with small_blocks(BLOCK):
        first, _ = await primaries(THREE_ZONES, SMALL, TWO)
        cluster = Cluster(THREE_ZONES)
        shards = dict(cluster.shards)
        shards[first] = TardyShard(shards[first])  # type: ignore[assignment]
        cluster.shards = shards
        provider = cluster.provider()
        async with provider.open_upload(TWO) as upload:
            await receive(provider, upload, SMALL)
            placement = await provider.commit(upload)
        await asyncio.sleep(6)
        assert len(cluster.files()) == 3
        await asyncio.sleep(30)
        check_stored(cluster, placement, SMALL)
        await provider.close()


# ------------------------------------------------------------------ zones_min

STRICT = WritePolicy(redundancy=2, zones_min=2)


@both_sizes
@instant
async def test_commit_is_refused_when_its_copies_lie_in_too_few_zones(size: int) -> None:
    with small_blocks(BLOCK):
        cluster = Cluster("a1 a1 b2")
        cluster.faulty[ShardId(2)].plan(last_step(size), Fault.FAIL)
        error = await check_refused(cluster, size, STRICT)
        assert "in 1 of the 2 zones" in str(error) or error.durable < 2


@both_sizes
@instant
async def test_commit_waits_for_a_lagging_shard_whose_zone_it_needs(size: int) -> None:
    with small_blocks(BLOCK):
        cluster = Cluster("a1 a1 b2")
        cluster.faulty[ShardId(2)].plan(last_step(size), Fault.STALL)
        asyncio.get_running_loop().call_later(8, cluster.faulty[ShardId(2)].release)
        placement = await store(cluster, size, STRICT)
        check_stored(cluster, placement, size)
        assert cluster.zones(placement.replicas) == {"a", "b"}
        assert not placement.short


@both_sizes
@instant
async def test_commit_hands_off_to_another_zone_when_the_copies_suffice_and_the_zones_do_not(size: int) -> None:
    with small_blocks(BLOCK):
        for seed in range(10):
            cluster = Cluster("a1 a1 a1 b2 b2 c3", seed=seed)
            for shard in (3, 4):
                cluster.faulty[ShardId(shard)].plan(last_step(size), Fault.STALL)
            placement = await store(cluster, size, STRICT)
            check_stored(cluster, placement, size)
            assert len(cluster.zones(placement.replicas)) == 2


@given(
    layout=st.sampled_from(["a1 a1 a1 b2 b2 c3", "a1 a1 b2 b2 c3 c3", "a1 a1 a1 a1 b2 b2"]),
    seed=st.integers(0, 30),
    working=st.tuples(st.sampled_from([0, 1]), st.sampled_from([4, 5])),
    delays=st.lists(st.sampled_from([0.0, 0.5, 1.2, 2.5, 4.0, 60.0]), min_size=6, max_size=6),
    fails=st.sets(st.integers(0, 5)),
)
@example(layout="a1 a1 a1 b2 b2 c3", seed=10, working=(0, 4), delays=[0.0, 1.2, 0.0, 0.5, 0.0, 60.0], fails=set())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_commit_reaches_the_zones_it_needs_whenever_they_have_a_shard_that_works(
    layout: str, seed: int, working: tuple[int, int], delays: list[float], fails: set[int]
) -> None:
    async def check() -> None:
        cluster = Cluster(layout, seed=seed)
        for shard in cluster.shards.keys() - set(working):
            faulty = cluster.faulty[shard]
            if delays[shard]:
                faulty.plan(Operation.PUT, Fault.STALL)
                asyncio.get_running_loop().call_later(delays[shard], faulty.release)
            if shard in fails:
                refuse_puts(faulty)
        placement = await store(cluster, SMALL, STRICT)
        check_stored(cluster, placement, SMALL)
        assert len(cluster.zones(placement.replicas)) == 2

    with small_blocks(BLOCK):
        run(check())


def refuse_puts(faulty: FaultyShard) -> None:
    """Have a shard fail every put, after as long as it takes it anyway."""
    suffer = faulty.suffer

    async def fail(fault, begin):  # type: ignore[no-untyped-def]
        async def refuse() -> None:
            raise ShardUnavailable(faulty.id, "made to fail late")

        return await suffer(fault, refuse)

    faulty.suffer = fail  # type: ignore[method-assign]


# ------------------------------------------------------------------ any faults at all

plans = st.lists(
    st.sampled_from([None, None, Fault.FAIL, Fault.FAIL_AFTER, Fault.FULL, Fault.STALL]), min_size=1, max_size=4
)


@given(
    size=st.sampled_from([1, BLOCK, BLOCK + 1, 4 * BLOCK, 7 * BLOCK + 3]),
    policy=st.sampled_from([TWO, THREE, STRICT, WritePolicy(redundancy=3, write_quorum=1)]),
    layout=st.sampled_from(["a1 b2", "a1 a1 b2 b2 c3", THREE_ZONES, "a1 a2 a2 b3 b3"]),
    seed=st.integers(0, 9),
    faults=st.fixed_dictionaries(
        {
            operation: st.lists(plans, min_size=6, max_size=6)
            for operation in (Operation.PUT, Operation.STAGE, Operation.WRITE, Operation.COMMIT)
        }
    ),
    reading=st.lists(st.sampled_from([None, None, Fault.FAIL, Fault.CORRUPT]), min_size=6, max_size=6),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_commit_acknowledges_a_quorum_or_leaves_nothing(
    size: int,
    policy: WritePolicy,
    layout: str,
    seed: int,
    faults: dict[Operation, list[Sequence[Fault | None]]],
    reading: list[Fault | None],
) -> None:
    async def check() -> None:
        cluster = Cluster(layout, seed=seed)
        for shard, faulty in cluster.faulty.items():
            for operation, planned in faults.items():
                if operation is not Operation.STAGE:
                    faulty.plan(operation, *planned[shard])
                else:  # staged and yet failed: a real shard ends such a one with its connection
                    faulty.plan(operation, *(None if one is Fault.FAIL_AFTER else one for one in planned[shard]))
            faulty.plan(Operation.READ_STAGED, None, reading[shard])
            faulty.plan(Operation.READ, None, reading[shard])
        try:
            placement = await store(cluster, size, policy)
        except WriteQuorumNotMet as error:
            assert error.reasons
            assert cluster.files() == {}
            assert cluster.staged() == []
        else:
            check_stored(cluster, placement, size)
            assert policy.quorum <= len(placement.replicas) <= policy.redundancy
            assert len(cluster.zones(placement.replicas)) >= policy.zones_min
            if not placement.short:
                assert len(placement.replicas) == policy.redundancy

    with small_blocks(BLOCK):
        run(check())
