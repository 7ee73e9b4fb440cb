"""The provider as the node uses it: upload, read, confirm, drop, and its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from uuid import UUID

import pytest

from sharding.guarded import Operation
from sharding.identifiers import mint_generation, mint_uid
from sharding.model import BlobName, Generation, Replica, ShardId
from sharding.provider import ShardingProvider, StoreLimits
from sharding.reader import BlobToRead
from sharding.tally import WritePolicy
from tests.sharding.faulty import Fault
from tests.sharding.memory import Cluster, instant, mint, small_blocks
from tests.sharding.test_reader import Catalogue

TWO = WritePolicy(redundancy=2)
THREE_ZONES = "a1 a1 b2 b2 c3 c3"
BODY = b"some bytes" * 20


async def upload(provider: ShardingProvider, body: bytes = BODY) -> tuple[bytes, tuple[Replica, ...]]:
    async with provider.open_upload(TWO) as uploading:
        await uploading.write(body)
        digests = await uploading.finish()
        return digests.sha256, (await provider.commit(uploading)).replicas


@pytest.mark.parametrize("blocks", [1, 1000])
@instant
async def test_bytes_uploaded_on_one_node_are_read_on_any_other(blocks: int) -> None:
    with small_blocks(64):
        cluster = Cluster(THREE_ZONES)
        provider = cluster.provider()
        body = BODY[:64] * blocks
        sha256, replicas = await upload(provider, body)
        for node in range(0, 6, 2):
            cluster.members = cluster.members[node:] + cluster.members[:node]
            reader = provider.read(BlobToRead(sha256, len(body), replicas), Catalogue(body, replicas))
            assert b"".join([bytes(piece) async for piece in reader.stream(0, len(body) - 1)]) == body
        await provider.close()


@instant
async def test_settings_and_view_hold_from_the_next_blob_on() -> None:
    cluster = Cluster(THREE_ZONES)
    limits = StoreLimits(commit_wait_seconds=20, read_hedge_seconds=100)
    provider = ShardingProvider(lambda: cluster.view, lambda: limits)
    sha256, replicas = await upload(provider)
    first = provider.view.in_reading_order(replicas)[0]
    catalogue = Catalogue(BODY, replicas)
    for hedge_seconds in (0.25, 4.0):
        limits = StoreLimits(commit_wait_seconds=20, read_hedge_seconds=hedge_seconds)
        cluster.faulty[first.shard].plan(Operation.READ, Fault.STALL)
        began = asyncio.get_running_loop().time()
        assert await provider.read(BlobToRead(sha256, len(BODY), replicas), catalogue).read_small() == BODY
        assert asyncio.get_running_loop().time() - began == pytest.approx(hedge_seconds, abs=0.01)
    cluster.unwritable = {replica.shard for replica in replicas}
    _, others = await upload(provider)
    assert {replica.shard for replica in others} & cluster.unwritable == set()
    await provider.close()


# ------------------------------------------------------------------ confirm and drop


@pytest.mark.parametrize("wrong", ["size", "generation", "digest", "missing", "down", "unknown"])
@instant
async def test_confirm_returns_only_what_a_shard_says_is_there_and_right(wrong: str) -> None:
    cluster = Cluster(THREE_ZONES)
    provider = cluster.provider()
    sha256, (good, bad) = await upload(provider)
    assert await provider.confirm(sha256, len(BODY), (good, bad)) == [good.generation, bad.generation]
    name = BlobName(sha256, bad.generation)
    match wrong:
        case "size":
            cluster.memory[bad.shard].files[name] += b"!"
        case "generation":
            bad = Replica(bad.shard, Generation(mint()))
        case "digest":
            cluster.memory[bad.shard].files[BlobName(bytes(32), bad.generation)] = cluster.memory[bad.shard].files.pop(
                name
            )
        case "missing":
            del cluster.memory[bad.shard].files[name]
        case "down":
            cluster.faulty[bad.shard].down = True
        case "unknown":
            cluster.shards = {shard: one for shard, one in cluster.shards.items() if shard != bad.shard}
    assert await provider.confirm(sha256, len(BODY), (good, bad)) == [good.generation]
    await provider.close()


@pytest.mark.parametrize("wrong", ["bit", "missing", "down", "stall"])
@instant
async def test_prove_returns_only_copies_whose_every_byte_is_right(wrong: str) -> None:
    cluster = Cluster(THREE_ZONES)
    provider = cluster.provider()
    async with provider.open_upload(TWO) as uploading:
        await uploading.write(BODY)
        digests = await uploading.finish()
        good, bad = (await provider.commit(uploading)).replicas
    assert await provider.prove(digests, (good, bad)) == [good.generation, bad.generation]
    name, files = BlobName(digests.sha256, bad.generation), cluster.memory[bad.shard].files
    match wrong:
        case "bit":
            files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
        case "missing":
            del files[name]
        case "down":
            cluster.faulty[bad.shard].down = True
        case "stall":
            cluster.faulty[bad.shard].plan(Operation.READ, Fault.STALL)
    assert await provider.prove(digests, (good, bad)) == [good.generation]
    await provider.close()


@instant
async def test_confirm_asks_each_shard_once_and_all_at_the_same_time() -> None:
    cluster = Cluster(THREE_ZONES)
    provider = cluster.provider()
    names = [(shard, Generation(mint())) for shard in (0, 2, 2, 4)]
    for shard, generation in names:
        cluster.memory[ShardId(shard)].files[BlobName(bytes(32), generation)] = BODY
    for shard in (0, 2, 4):
        cluster.faulty[ShardId(shard)].plan(Operation.SIZES, Fault.STALL, Fault.FAIL)
        asyncio.get_running_loop().call_later(3, cluster.faulty[ShardId(shard)].release)
    replicas = [Replica(ShardId(shard), generation) for shard, generation in names]
    assert await provider.confirm(bytes(32), len(BODY), replicas) == [generation for _, generation in names]
    assert asyncio.get_running_loop().time() == pytest.approx(3, abs=0.01)
    await provider.close()


@instant
async def test_confirm_that_meets_a_foreign_error_raises_it_and_leaves_no_task() -> None:
    cluster = Cluster(THREE_ZONES)
    provider = cluster.provider()

    async def sizes(names: Sequence[BlobName]) -> list[int | None]:
        raise ZeroDivisionError

    cluster.memory[ShardId(0)].sizes = sizes  # type: ignore[method-assign]
    cluster.faulty[ShardId(2)].plan(Operation.SIZES, Fault.STALL)
    replicas = [Replica(ShardId(shard), Generation(mint())) for shard in (0, 2)]
    with pytest.raises(ZeroDivisionError):
        await provider.confirm(bytes(32), 1, replicas)
    await provider.close()


@instant
async def test_drop_removes_exactly_the_generations_it_is_given() -> None:
    cluster = Cluster("a1 b2")
    provider = cluster.provider()
    sha256, first = await upload(provider)
    again, second = await upload(provider)
    assert again == sha256
    provider.drop(sha256, first)
    await asyncio.sleep(1)
    assert set(cluster.files()) == set(second)
    await provider.close()


# ------------------------------------------------------------------ its end


@instant
async def test_close_finishes_what_was_given_up_before() -> None:
    with small_blocks(64):
        cluster = Cluster(THREE_ZONES)
        provider = cluster.provider()
        async with provider.open_upload(TWO) as uploading:
            await uploading.write(BODY)
        await provider.close()
        assert cluster.staged() == []


# ------------------------------------------------------------------ ids


def test_minted_ids_are_uuids_of_version_7_that_carry_the_time() -> None:
    before = time.time_ns() // 1_000_000
    ids: list[UUID] = [mint_uid() if number % 2 else mint_generation() for number in range(2000)]
    after = time.time_ns() // 1_000_000
    assert len(set(ids)) == len(ids)
    for id in ids:
        assert (id.version, id.variant) == (7, "specified in RFC 4122")
        assert before <= id.int >> 80 <= after
    # Every bit that is neither time, version nor variant takes both values.
    free = ((1 << 12) - 1) << 64 | (1 << 62) - 1
    ones = zeros = 0
    for id in ids:
        ones |= id.int
        zeros |= ~id.int
    assert ones & free == free == zeros & free
