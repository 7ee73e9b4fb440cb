"""Uploads up to their commit: what is staged where, handoffs in mid-stream, memory, and giving up at any moment."""

from __future__ import annotations

import asyncio
import hashlib
import random
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharding import tee as tee_module
from sharding.digests import block_digests
from sharding.errors import ShardUnavailable, WriteQuorumNotMet
from sharding.guarded import Operation
from sharding.model import BLOCK_BYTES, BlobDigests, Buffer, ShardId
from sharding.tally import WritePolicy
from tests.sharding.faulty import Fault
from tests.sharding.memory import Cluster, instant, run, small_blocks

BLOCK = 64
"""Bytes of a block inside ``small_blocks``."""

THREE_ZONES = "a1 a1 b2 b2 c3 c3"
TWO = WritePolicy(redundancy=2)
THREE = WritePolicy(redundancy=3)


def body_of(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def check_digests(digests: BlobDigests, body: bytes) -> None:
    assert digests.size == len(body)
    assert digests.sha256 == hashlib.sha256(body).digest()
    assert digests.sha1 == hashlib.sha1(body).digest()
    assert digests.md5 == hashlib.md5(body).digest()
    assert digests.blocks == block_digests(body)


def staged_bodies(cluster: Cluster) -> list[bytes]:
    return [bytes(staged.bytes) for memory in cluster.memory.values() for staged in memory.staged.values()]


def shards_staged(cluster: Cluster) -> set[ShardId]:
    return {shard for shard, _ in cluster.staged()}


async def pause(steps: int = 20) -> None:
    """Let everything else run for a while."""
    for _ in range(steps):
        await asyncio.sleep(0)


def fail_everywhere(cluster: Cluster, operation: Operation, *faults: Fault | None, but: Sequence[int] = ()) -> None:
    for shard, faulty in cluster.faulty.items():
        if shard not in but:
            faulty.plan(operation, *faults)


# ------------------------------------------------------------------ sizes and pieces


@pytest.mark.parametrize(
    "size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES, 2 * BLOCK_BYTES + 1, 4 * BLOCK_BYTES]
)
@instant
async def test_upload_keeps_small_bodies_in_memory_and_stages_longer_ones(size: int) -> None:
    cluster, body = Cluster(THREE_ZONES), body_of(size)
    provider = cluster.provider()
    async with provider.open_upload(TWO) as upload:
        for start in range(0, size, 300_000):
            await upload.write(body[start : start + 300_000])
        check_digests(await upload.finish(), body)
        if size <= BLOCK_BYTES:
            assert upload.small == body
            assert cluster.staged() == []
        else:
            assert upload.small is None
            assert staged_bodies(cluster) == [body, body]
    await provider.close()
    assert cluster.staged() == []


@instant
async def test_upload_keeps_a_small_body_that_comes_whole_where_it_is() -> None:
    provider, body = Cluster(THREE_ZONES).provider(), bytearray(body_of(BLOCK_BYTES))
    async with provider.open_upload(TWO, length=len(body)) as upload:
        await upload.write(body)
        check_digests(await upload.finish(), bytes(body))
        assert isinstance(upload.small, memoryview) and upload.small.obj is body
    await provider.close()


@given(
    size=st.integers(0, 5 * BLOCK),
    cuts=st.lists(st.integers(0, 5 * BLOCK), max_size=12),
    kinds=st.lists(st.sampled_from(["bytes", "bytearray", "memoryview", "wide", "reused"]), min_size=1),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_upload_stores_the_same_bytes_however_they_come(size: int, cuts: list[int], kinds: list[str]) -> None:
    body = body_of(size)
    edges = sorted({0, size, *(cut for cut in cuts if cut < size)})
    pieces = [body[start:end] for start, end in pairwise(edges)]

    async def upload_all() -> None:
        cluster = Cluster(THREE_ZONES)
        provider = cluster.provider()
        async with provider.open_upload(TWO) as upload:
            for number, piece in enumerate(pieces):
                buffer, reused = as_kind(piece, kinds[number % len(kinds)])
                await upload.write(buffer)
                if reused is not None:
                    reused[:] = bytes(len(reused))
            assert upload.size == size
            check_digests(await upload.finish(), body)
            placement = await provider.commit(upload)
        assert [cluster.files()[replica] for replica in placement.replicas] == [body] * (2 if size else 0)
        await provider.close()
        cluster.check()

    with small_blocks(BLOCK):
        run(upload_all())


def as_kind(piece: bytes, kind: str) -> tuple[Buffer, bytearray | None]:
    """Return ``piece`` as some buffer, and what the caller may overwrite afterwards."""
    match kind:
        case "bytearray":
            return bytearray(piece), None
        case "memoryview":
            return memoryview(b"<" + piece + b">")[1:-1], None
        case "wide" if len(piece) % 4 == 0 and piece:
            return memoryview(piece).cast("I"), None
        case "reused":
            reused = bytearray(piece)
            return reused, reused
        case _:
            return piece, None


# ------------------------------------------------------------------ memory


@instant
async def test_write_holds_no_more_than_its_bytes_when_they_come_one_at_a_time() -> None:
    provider = Cluster(THREE_ZONES).provider()
    async with provider.open_upload(TWO) as upload:
        tracemalloc.start()
        try:
            for number in range(50_000):
                await upload.write(bytes([number % 251, number % 7])[:1])
            taken = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
    # What else runs in this process takes memory of its own.
    ours = taken.filter_traces([tracemalloc.Filter(True, "*/sharding/upload.py"), tracemalloc.Filter(True, __file__)])
    assert 50_000 <= sum(line.size for line in ours.statistics("lineno")) < 200_000
    await provider.close()


@instant
async def test_write_lets_go_of_the_buffer_it_was_given() -> None:
    provider = Cluster(THREE_ZONES).provider()
    async with provider.open_upload(TWO) as upload:
        for size in (100, BLOCK_BYTES, 3 * BLOCK_BYTES + 5):
            buffer = bytearray(size)
            await upload.write(buffer)
            buffer.clear()  # raises BufferError while anyone still looks into it
    await provider.close()


@instant
async def test_write_makes_the_client_wait_while_shards_stall() -> None:
    cluster = Cluster(THREE_ZONES)
    fail_everywhere(cluster, Operation.WRITE, Fault.STALL)
    provider = cluster.provider()
    taken = 0
    with pytest.raises(TimeoutError):
        async with provider.open_upload(TWO) as upload, asyncio.timeout(5):
            for _ in range(10):
                await upload.write(bytes(BLOCK_BYTES))
                taken += 1
    # One block is being stored and one waits; the third filled the buffer it left.
    assert taken <= 2
    await provider.close()
    assert cluster.staged() == []


# ------------------------------------------------------------------ refusals before and at the opening


@instant
async def test_open_upload_is_refused_at_once_when_too_few_shards_take_writes() -> None:
    cluster = Cluster(THREE_ZONES)
    cluster.unwritable = {member.shard for member in cluster.members[1:]}
    with pytest.raises(WriteQuorumNotMet) as caught:
        async with cluster.provider().open_upload(TWO):
            pytest.fail("it was opened")
    assert (caught.value.durable, caught.value.needed, caught.value.full) == (1, 2, False)


@pytest.mark.parametrize(
    ("full", "away", "for_space"),
    [("12345", "", True), ("1", "2345", True), ("", "12345", False), ("12", "0345", True)],
)
@instant
async def test_open_upload_refused_says_whether_space_alone_is_wanting(full: str, away: str, for_space: bool) -> None:
    cluster = Cluster(THREE_ZONES)
    cluster.full, cluster.unwritable = set(map(ShardId, map(int, full))), set(map(ShardId, map(int, away)))
    with pytest.raises(WriteQuorumNotMet) as caught:
        async with cluster.provider().open_upload(TWO):
            pytest.fail("it was opened")
    assert caught.value.full is for_space


@pytest.mark.parametrize(("full", "for_space"), [(False, False), (True, True)])
@instant
async def test_open_upload_is_refused_at_once_when_too_few_zones_take_writes(full: bool, for_space: bool) -> None:
    cluster = Cluster("a1 a1 b2")
    (cluster.full if full else cluster.unwritable).add(ShardId(2))
    with pytest.raises(WriteQuorumNotMet, match="but in 1 of the 2 zones") as caught:
        async with cluster.provider().open_upload(WritePolicy(redundancy=2, zones_min=2)):
            pytest.fail("it was opened")
    assert caught.value.full is for_space


@instant
async def test_opening_goes_on_with_other_shards_when_some_fail() -> None:
    with small_blocks(BLOCK):
        cluster, body = Cluster(THREE_ZONES), body_of(3 * BLOCK)
        for shard in (0, 1, 2, 3):
            cluster.faulty[ShardId(shard)].plan(Operation.STAGE, Fault.FAIL)
        provider = cluster.provider()
        async with provider.open_upload(TWO) as upload:
            await upload.write(body)
            await upload.finish()
            assert len(shards_staged(cluster)) == 2
            placement = await provider.commit(upload)
        assert [cluster.files()[replica] for replica in placement.replicas] == [body, body]
        await provider.close()


@pytest.mark.parametrize(("fault", "full"), [(Fault.FAIL, False), (Fault.FULL, True)])
@instant
async def test_opening_is_refused_when_fewer_copies_than_the_quorum_can_begin(fault: Fault, full: bool) -> None:
    with small_blocks(BLOCK):
        cluster = Cluster(THREE_ZONES)
        fail_everywhere(cluster, Operation.STAGE, fault, but=(3,))
        provider = cluster.provider()
        with pytest.raises(WriteQuorumNotMet) as caught:
            async with provider.open_upload(TWO) as upload:
                await upload.write(bytes(BLOCK + 1))
        assert (caught.value.durable, caught.value.full, len(caught.value.reasons)) == (1, full, 5)
        await provider.close()
        assert cluster.staged() == []


@instant
async def test_opening_is_refused_when_the_copies_begun_lie_in_too_few_zones() -> None:
    with small_blocks(BLOCK):
        cluster = Cluster("a1 a1 b2 c3")
        for shard in (2, 3):
            cluster.faulty[ShardId(shard)].down = True
        provider = cluster.provider()
        with pytest.raises(WriteQuorumNotMet, match=r"2 durable copies of the 2 .*, but in 1 of the 2 zones"):
            async with provider.open_upload(WritePolicy(redundancy=2, zones_min=2)) as upload:
                await upload.write(bytes(BLOCK + 1))
        await provider.close()
        assert cluster.staged() == []


@instant
async def test_opening_given_up_aborts_the_copy_that_was_quicker() -> None:
    with small_blocks(BLOCK):
        cluster = Cluster("a1 b2")
        cluster.faulty[ShardId(1)].plan(Operation.STAGE, Fault.STALL)
        provider = cluster.provider()
        with pytest.raises(TimeoutError):
            async with provider.open_upload(TWO) as upload, asyncio.timeout(1):
                await upload.write(bytes(BLOCK + 1))
        await provider.close()
        assert cluster.staged() == []


class Mistake(Exception):
    """What no shard may raise."""


@instant
async def test_opening_that_meets_a_foreign_error_raises_it_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with small_blocks(BLOCK):
        cluster = Cluster("a1 b2")

        async def stage(generation: object, length: object) -> None:
            raise Mistake

        monkeypatch.setattr(cluster.memory[ShardId(0)], "stage", stage)
        cluster.faulty[ShardId(1)].plan(Operation.STAGE, Fault.STALL)
        asyncio.get_running_loop().call_later(1, cluster.faulty[ShardId(1)].release)
        provider = cluster.provider()
        with pytest.raises(Mistake):
            async with provider.open_upload(TWO) as upload:
                await upload.write(bytes(BLOCK + 1))
        await provider.close()
        assert cluster.staged() == []


# ------------------------------------------------------------------ shards that fail in mid-stream


async def send(cluster: Cluster, body: bytes, policy: WritePolicy, *, pieces: int = BLOCK) -> list[set[ShardId]]:
    """Upload ``body``, check what comes of it, and return the shards staged after each piece."""
    provider, seen = cluster.provider(), []
    async with provider.open_upload(policy) as upload:
        for start in range(0, len(body), pieces):
            await upload.write(body[start : start + pieces])
            await pause()
            seen.append(shards_staged(cluster))
        check_digests(await upload.finish(), body)
        placement = await provider.commit(upload)
    await provider.close()
    files = cluster.files()
    assert {replica: files.pop(replica) for replica in placement.replicas} == dict.fromkeys(placement.replicas, body)
    assert files == {}
    assert len({replica.shard for replica in placement.replicas}) == len(placement.replicas) >= policy.quorum
    assert cluster.staged() == []
    cluster.check()
    return seen


@pytest.mark.parametrize("block", range(8))
@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.FAIL_AFTER, Fault.FULL])
@instant
async def test_handoff_takes_the_place_of_a_shard_that_fails_at_any_block(block: int, fault: Fault) -> None:
    with small_blocks(BLOCK):
        for doomed in range(6):
            cluster = Cluster(THREE_ZONES)
            cluster.faulty[ShardId(doomed)].plan(Operation.WRITE, *[None] * block, fault)
            await send(cluster, body_of(8 * BLOCK - 5), TWO)


@instant
async def test_handoff_joins_while_the_client_sends_as_fast_as_it_can() -> None:
    with small_blocks(BLOCK):
        cluster, body = Cluster("a1 b2 c3"), body_of(400 * BLOCK)
        provider = cluster.provider()
        async with provider.open_upload(TWO) as upload:
            await upload.write(body[: 200 * BLOCK])
            await pause()
            doomed = min(shards_staged(cluster))
            cluster.faulty[doomed].down = True
            await upload.write(body[200 * BLOCK : 300 * BLOCK])
            assert upload.tee is not None
            assert {copy.member.shard for copy in upload.tee.copies} == set(cluster.shards) - {doomed}
            await upload.write(body[300 * BLOCK :])
            check_digests(await upload.finish(), body)
            assert staged_bodies(cluster) == [body, body]
        await provider.close()


@instant
async def test_handoff_that_joined_carries_the_upload_when_the_copy_it_came_from_fails() -> None:
    with small_blocks(BLOCK):
        for seed in range(8):
            cluster, body = Cluster("a1 b2 c3 d4", seed=seed), body_of(40 * BLOCK)
            provider = cluster.provider()
            async with provider.open_upload(TWO) as upload:
                await upload.write(body[: 10 * BLOCK])
                first, second = upload.tee.copies  # type: ignore[union-attr]
                cluster.faulty[first.member.shard].down = True
                await upload.write(body[10 * BLOCK : 20 * BLOCK])
                cluster.faulty[second.member.shard].down = True
                await upload.write(body[20 * BLOCK :])
                check_digests(await upload.finish(), body)
                placement = await provider.commit(upload)
            assert [cluster.files()[replica] for replica in placement.replicas] == [body, body]
            assert not placement.short
            await provider.close()


@instant
async def test_handoff_goes_to_a_zone_without_a_copy_while_there_is_one() -> None:
    with small_blocks(BLOCK):
        for seed in range(12):
            cluster, body = Cluster("a1 a1 a1 b2 b2 b2 c3 c3 c3", seed=seed), body_of(6 * BLOCK)
            provider = cluster.provider()
            async with provider.open_upload(TWO) as upload:
                await upload.write(body[: 3 * BLOCK])
                await pause()
                doomed = min(shards_staged(cluster))
                cluster.faulty[doomed].plan(Operation.WRITE, Fault.FAIL)
                await upload.write(body[3 * BLOCK :])
                await upload.finish()
                placement = await provider.commit(upload)
            assert len(cluster.zones(placement.replicas)) == 2
            assert not placement.short
            await provider.close()


@instant
async def test_two_handoffs_at_once_choose_different_zones() -> None:
    with small_blocks(BLOCK):
        for seed in range(12):
            cluster, body = Cluster("a1 a1 b2 b2 c3 c3 d4 d4 e5 e5", seed=seed), body_of(6 * BLOCK)
            provider = cluster.provider()
            async with provider.open_upload(THREE) as upload:
                await upload.write(body[: 3 * BLOCK])
                await pause()
                for doomed in sorted(shards_staged(cluster))[:2]:
                    cluster.faulty[doomed].down = True
                await upload.write(body[3 * BLOCK :])
                await upload.finish()
                placement = await provider.commit(upload)
            assert len(cluster.zones(placement.replicas)) == 3
            await provider.close()


@instant
async def test_handoff_tries_other_shards_when_those_chosen_fail() -> None:
    with small_blocks(BLOCK):
        cluster, body = Cluster("a1 b2 c3 d4 e5"), body_of(9 * BLOCK)
        provider = cluster.provider()
        async with provider.open_upload(TWO) as upload:
            await upload.write(body[: 4 * BLOCK])
            await pause()
            staged = shards_staged(cluster)
            others = sorted(set(cluster.shards) - staged)
            cluster.faulty[min(staged)].down = True
            cluster.faulty[others[0]].plan(Operation.STAGE, Fault.FAIL)
            cluster.faulty[others[1]].plan(Operation.WRITE, None, Fault.FULL)
            await upload.write(body[4 * BLOCK :])
            await upload.finish()
            placement = await provider.commit(upload)
        assert {replica.shard for replica in placement.replicas} <= {max(staged), *others}
        assert [cluster.files()[replica] for replica in placement.replicas] == [body, body]
        await provider.close()
        assert cluster.staged() == []


@instant
async def test_handoff_never_joins_with_bytes_that_were_read_back_wrong() -> None:
    with small_blocks(BLOCK):
        for seed in range(10):
            cluster, body = Cluster("a1 b2 c3 d4", seed=seed), body_of(9 * BLOCK)
            cluster.faulty[ShardId(0)].plan(Operation.WRITE, *[None] * 4, Fault.FAIL)
            fail_everywhere(cluster, Operation.READ_STAGED, None, Fault.CORRUPT)
            provider = cluster.provider()
            try:
                async with provider.open_upload(THREE) as upload:
                    await upload.write(body)
                    await upload.finish()
                    placement = await provider.commit(upload)
            except WriteQuorumNotMet:
                assert cluster.files() == {}
            else:
                assert [cluster.files()[replica] for replica in placement.replicas] == [body] * len(placement.replicas)
            await provider.close()
            assert cluster.staged() == []
            cluster.check()


@instant
async def test_copy_that_reads_back_wrong_is_replaced_too_and_never_committed() -> None:
    with small_blocks(BLOCK):
        cluster, body = Cluster("a1 b2 c3 d4 e5 f6"), body_of(9 * BLOCK)
        provider = cluster.provider()
        async with provider.open_upload(THREE) as upload:
            await upload.write(body[: 4 * BLOCK])
            await pause()
            bad, _, doomed = (copy.member.shard for copy in upload.tee.copies)  # type: ignore[union-attr]
            (blob,) = cluster.memory[bad].staged.values()
            blob.bytes[5] ^= 1
            cluster.faulty[doomed].down = True
            await upload.write(body[4 * BLOCK :])
            await upload.finish()
            placement = await provider.commit(upload)
        assert cluster.files() == dict.fromkeys(placement.replicas, body)
        assert len(placement.replicas) == 3
        assert {bad, doomed} & {replica.shard for replica in placement.replicas} == set()
        await provider.close()


@instant
async def test_handoff_that_cannot_read_back_ends_and_the_commit_makes_the_copy() -> None:
    with small_blocks(BLOCK):
        for seed in range(8):
            cluster, body = Cluster("a1 a1 a1 b2 b2 b2", seed=seed), body_of(9 * BLOCK)
            fail_everywhere(cluster, Operation.READ_STAGED, Fault.FAIL)
            provider = cluster.provider()
            async with provider.open_upload(TWO) as upload:
                await upload.write(body[: 3 * BLOCK])
                await pause()
                cluster.faulty[min(shards_staged(cluster))].down = True
                await upload.write(body[3 * BLOCK :])
                await pause(50)
                assert len(shards_staged(cluster)) == 1
                await upload.finish()
                placement = await provider.commit(upload)
            assert [cluster.files()[replica] for replica in placement.replicas] == [body, body]
            assert not placement.short
            await provider.close()
            assert cluster.staged() == []


@pytest.mark.parametrize(("bytes_per_second_min", "waited_for"), [(5, True), (10, False)])
@instant
async def test_handoff_that_the_quorum_needs_may_take_as_long_at_the_end_as_a_large_body_does(
    monkeypatch: pytest.MonkeyPatch, bytes_per_second_min: int, waited_for: bool
) -> None:
    with small_blocks(BLOCK):
        monkeypatch.setattr(tee_module, "CATCH_UP_BYTES_PER_SECOND_MIN", bytes_per_second_min)
        cluster, body = Cluster("a1 b2 c3"), body_of(300 * BLOCK - 1)  # the last block goes out at the end
        provider = cluster.provider()
        async with provider.open_upload(TWO) as upload:
            await upload.write(body)
            await pause()
            staged = shards_staged(cluster)
            cluster.faulty[min(staged)].plan(Operation.WRITE, Fault.FAIL)
            (third,) = set(cluster.shards) - staged
            # Each block takes 9 of the 15 seconds it may: 45 minutes in all, at 7 bytes a second.
            cluster.memory[third].write_seconds = 9
            await upload.finish()
            if waited_for:
                placement = await provider.commit(upload)
                assert {replica.shard for replica in placement.replicas} == {max(staged), third}
                assert not placement.short
            else:
                with pytest.raises(WriteQuorumNotMet):
                    await provider.commit(upload)
        await provider.close()
        assert cluster.staged() == []


@instant
async def test_handoff_still_behind_at_the_end_is_given_up_when_the_quorum_does_without_it() -> None:
    with small_blocks(BLOCK):
        cluster, body = Cluster("a1 b2 c3"), body_of(300 * BLOCK - 1)  # the last block goes out at the end
        provider = cluster.provider()
        async with provider.open_upload(WritePolicy(redundancy=2, write_quorum=1)) as upload:
            await upload.write(body)
            await pause()
            staged = shards_staged(cluster)
            cluster.faulty[min(staged)].plan(Operation.WRITE, Fault.FAIL)
            (third,) = set(cluster.shards) - staged
            cluster.memory[third].write_seconds = 9
            await upload.finish()
            began = asyncio.get_running_loop().time()
            placement = await provider.commit(upload)
            assert asyncio.get_running_loop().time() - began < 41
        assert [replica.shard for replica in placement.replicas] == [max(staged)]
        assert placement.short
        await provider.close()
        assert cluster.staged() == []


@pytest.mark.parametrize(("fault", "full"), [(Fault.FAIL, False), (Fault.FULL, True)])
@instant
async def test_upload_is_refused_in_mid_stream_when_every_shard_fails(fault: Fault, full: bool) -> None:
    with small_blocks(BLOCK):
        cluster = Cluster(THREE_ZONES)
        fail_everywhere(cluster, Operation.WRITE, None, None, *[fault] * 20)
        provider = cluster.provider()
        with pytest.raises(WriteQuorumNotMet) as caught:
            async with provider.open_upload(TWO) as upload:
                await upload.write(bytes(20 * BLOCK))
        assert caught.value.full is full
        assert caught.value.reasons
        await provider.close()
        assert cluster.staged() == []
        assert cluster.files() == {}


@instant
async def test_upload_is_refused_in_mid_stream_when_the_quorum_is_out_of_reach() -> None:
    with small_blocks(BLOCK):
        cluster = Cluster("a1 b2")
        cluster.faulty[ShardId(1)].plan(Operation.WRITE, None, Fault.FAIL)
        provider = cluster.provider()
        with pytest.raises(WriteQuorumNotMet) as caught:
            async with provider.open_upload(TWO) as upload:
                for _ in range(100):
                    await upload.write(bytes(BLOCK))
                pytest.fail("the client was made to send everything")
        assert (caught.value.durable, caught.value.full) == (1, False)
        assert [type(reason) for reason in caught.value.reasons] == [ShardUnavailable]
        await provider.close()
        assert cluster.staged() == []


# ------------------------------------------------------------------ giving up


@instant
async def test_shard_that_answers_being_given_up_with_a_failure_is_not_replaced_any_more() -> None:
    with small_blocks(BLOCK):
        cluster = Cluster("a1 b2 c3")
        provider = cluster.provider()
        async with provider.open_upload(TWO) as upload:
            await upload.write(bytes(BLOCK + 1))
            await pause()
            (blob,) = cluster.memory[min(shards_staged(cluster))].staged.values()
            blob.write = fail_when_cancelled  # type: ignore[method-assign]
            await upload.write(bytes(BLOCK))
            await pause()
        await pause()
        await provider.close()
        assert cluster.staged() == []


async def fail_when_cancelled(data: Buffer) -> None:
    try:
        await asyncio.sleep(10)
    except asyncio.CancelledError:
        raise ShardUnavailable(ShardId(0), "given up") from None


def plan_trouble(cluster: Cluster, plan: random.Random) -> None:
    """Plan one fault or none for each shard and operation."""
    faults = (None, None, Fault.FAIL, Fault.FAIL_AFTER, Fault.FULL)
    for faulty in cluster.faulty.values():
        for operation in (Operation.WRITE, Operation.COMMIT, Operation.PUT):
            faulty.plan(operation, *[None] * plan.randrange(4), plan.choice(faults))
        faulty.plan(Operation.STAGE, plan.choice((None, None, None, Fault.FAIL)))


@pytest.mark.parametrize("blocks", [0.5, 7])
@pytest.mark.parametrize("times", [1, 2])
def test_upload_given_up_at_any_moment_leaves_nothing(blocks: float, times: int) -> None:
    body = body_of(int(blocks * BLOCK))

    async def give_up_after(steps: int) -> bool:
        cluster = Cluster(THREE_ZONES, seed=steps)
        plan_trouble(cluster, random.Random(steps))
        provider = cluster.provider()

        async def upload_all() -> object:
            async with provider.open_upload(THREE) as upload:
                for start in range(0, len(body), 100):
                    await upload.write(body[start : start + 100])
                await upload.finish()
                return await provider.commit(upload)

        uploading = asyncio.create_task(upload_all())
        await pause(steps)
        for _ in range(times):
            uploading.cancel()
            await asyncio.sleep(0)
        (outcome,) = await asyncio.gather(uploading, return_exceptions=True)
        await provider.close()
        assert cluster.staged() == []
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, (asyncio.CancelledError, WriteQuorumNotMet))
            assert cluster.files() == {}
        cluster.check()
        return not isinstance(outcome, asyncio.CancelledError)

    with small_blocks(BLOCK):
        steps = 0
        while not run(give_up_after(steps)) or steps < 20:
            steps += 1
    assert steps > 15
