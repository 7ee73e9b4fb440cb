"""Reads: the right bytes or an error, from whichever replica can give them, and nothing left running."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharding.digests import block_digests
from sharding.errors import (
    BlobUnavailable,
    ReplicaCorrupt,
    ReplicaMissing,
    ShardUnavailable,
)
from sharding.guarded import Operation
from sharding.model import BLOCK_BYTES, BLOCK_DIGEST_BYTES, BlobName, Buffer, Generation, Replica, ShardId
from sharding.reader import BlobReader, BlobToRead
from tests.sharding.faulty import Fault
from tests.sharding.memory import HEDGE_SECONDS, Cluster, instant, mint, run, small_blocks

BLOCK = 64
THREE_ZONES = "a1 a1 b2 b2 c3 c3"


class Catalogue:
    """The rows of one blob."""

    def __init__(self, body: bytes, rows: tuple[Replica, ...]) -> None:
        self.rows = rows
        self.looks = 0
        self.reports: list[tuple[ShardId, type[Exception]]] = []
        self._digests = block_digests(body)

    async def block_digests(self, first: int, count: int) -> bytes:
        await asyncio.sleep(0)
        return self._digests[first * BLOCK_DIGEST_BYTES : (first + count) * BLOCK_DIGEST_BYTES]

    async def replicas(self) -> tuple[Replica, ...]:
        await asyncio.sleep(0)
        self.looks += 1
        return self.rows

    def report(self, replica: Replica, error: ReplicaMissing | ReplicaCorrupt) -> None:
        self.reports.append((replica.shard, type(error)))


class Scene:
    """One blob with replicas on the given shards of a cluster."""

    def __init__(self, body: bytes, shards: tuple[int, ...], layout: str = THREE_ZONES) -> None:
        self.cluster = Cluster(layout)
        self.body = body
        self.sha256 = hashlib.sha256(body).digest()
        self.catalogue = Catalogue(body, tuple(self.add(shard) for shard in shards))

    def add(self, shard: int, *, suspect: bool = False) -> Replica:
        """Put one more copy on a shard."""
        generation = Generation(mint())
        self.cluster.memory[ShardId(shard)].files[BlobName(self.sha256, generation)] = self.body
        return Replica(ShardId(shard), generation, suspect)

    def damage(self, shard: int, change: bytes) -> None:
        """Replace the bytes of a shard's copies."""
        files = self.cluster.memory[ShardId(shard)].files
        for name in files:
            files[name] = change

    def reader(self) -> BlobReader:
        blob = BlobToRead(self.sha256, len(self.body), self.catalogue.rows)
        return BlobReader(lambda: self.cluster.view, blob, self.catalogue, hedge_seconds=HEDGE_SECONDS)

    async def read(self, first: int = 0, last: int | None = None) -> bytes:
        """Read a range, the whole by default."""
        last = len(self.body) - 1 if last is None else last
        async with aclosing(self.reader().stream(first, last)) as pieces:
            return b"".join([bytes(piece) async for piece in pieces])

    def count_reads(self) -> dict[ShardId, int]:
        """Return how many reads each shard gets from now on; it counts itself up."""
        counts = dict.fromkeys(self.cluster.shards, 0)
        for shard, memory in self.cluster.memory.items():
            memory.read = counting(memory.read, counts, shard)  # type: ignore[method-assign]
        return counts


def counting(read, counts: dict[ShardId, int], shard: ShardId):  # type: ignore[no-untyped-def]
    async def counted(*args, **kwargs):  # type: ignore[no-untyped-def]
        counts[shard] += 1
        return await read(*args, **kwargs)

    return counted


def body_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# ------------------------------------------------------------------ ranges


@given(data=st.data(), size=st.integers(1, 6 * BLOCK))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_stream_yields_exactly_the_range_asked_for(data: st.DataObject, size: int) -> None:
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first, size - 1))

    async def read() -> None:
        scene = Scene(body_of(size), (0, 2))
        assert await scene.read(first, last) == scene.body[first : last + 1]
        scene.cluster.check()

    with small_blocks(BLOCK):
        run(read())


@pytest.mark.parametrize("size", [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES])
@instant
async def test_stream_yields_a_block_at_a_time(size: int) -> None:
    scene = Scene(body_of(size), (2, 4))
    pieces = [bytes(piece) async for piece in scene.reader().stream(0, size - 1)]
    assert [len(piece) for piece in pieces[:-1]] == [BLOCK_BYTES] * (len(pieces) - 1)
    assert b"".join(pieces) == scene.body
    if size <= BLOCK_BYTES:
        assert await scene.reader().read_small() == scene.body


@instant
async def test_empty_blob_needs_no_replica() -> None:
    scene = Scene(b"", ())
    assert await scene.reader().read_small() == b""
    assert await scene.read() == b""


# ------------------------------------------------------------------ which replica


@pytest.mark.parametrize(
    ("shards", "suspect", "unreadable", "expected"),
    [
        ((4, 2, 0), (), (), 0),
        ((4, 2, 1), (), (), 1),
        ((5, 6), (), (), 6),
        ((0, 4), (0,), (), 4),
        ((0, 4), (), (0,), 4),
        ((0, 4), (4,), (0,), 0),
    ],
)
@instant
async def test_reader_asks_near_and_trusted_replicas_first(
    shards: tuple[int, ...], suspect: tuple[int, ...], unreadable: tuple[int, ...], expected: int
) -> None:
    scene = Scene(body_of(10), (), "a1 a1 b2 b2 c3 c3 a4")
    scene.catalogue.rows = tuple(scene.add(shard, suspect=shard in suspect) for shard in shards)
    view = replace(scene.cluster.view, readable=scene.cluster.view.readable - set(unreadable))
    counts = scene.count_reads()
    blob = BlobToRead(scene.sha256, 10, scene.catalogue.rows)
    await BlobReader(lambda: view, blob, scene.catalogue, hedge_seconds=1).read_small()
    assert {shard for shard, count in counts.items() if count} == {expected}


BAD = {
    "unavailable": ShardUnavailable,
    "missing": ReplicaMissing,
    "flipped": ReplicaCorrupt,
    "short": ReplicaCorrupt,
    "long": ReplicaCorrupt,
}


def spoil(scene: Scene, shard: int, how: str) -> None:
    body = scene.body
    match how:
        case "unavailable":
            scene.cluster.faulty[ShardId(shard)].down = True
        case "missing":
            scene.cluster.memory[ShardId(shard)].files.clear()
        case "flipped":
            scene.damage(shard, body[:-1] + bytes([body[-1] ^ 1]))
        case "short":
            scene.damage(shard, body[:-1])
        case "long":
            scene.damage(shard, body + b"\0")


@pytest.mark.parametrize("how", BAD)
@pytest.mark.parametrize("size", [10, 5 * BLOCK + 3])
@instant
async def test_reader_goes_on_with_another_replica_and_reports_only_what_a_shard_knows(how: str, size: int) -> None:
    with small_blocks(BLOCK):
        scene = Scene(body_of(size), (0, 2))
        spoil(scene, 0, how)
        assert await scene.read() == scene.body
        assert scene.catalogue.reports == ([] if how == "unavailable" else [(0, BAD[how])])
        assert scene.catalogue.looks == 0


@pytest.mark.parametrize("how", BAD)
@instant
async def test_reader_raises_when_no_replica_gives_the_block(how: str) -> None:
    with small_blocks(BLOCK):
        scene = Scene(body_of(5 * BLOCK), (0, 2))
        spoil(scene, 0, how)
        spoil(scene, 2, how)
        with pytest.raises(BlobUnavailable) as caught:
            await scene.read()
        assert {type(reason) for reason in caught.value.reasons} == {BAD[how]}
        # A shard in doubt may come back; one that looked will say the same again.
        assert scene.catalogue.looks == (4 if how == "unavailable" else 1)
        assert len(scene.catalogue.reports) == (0 if how == "unavailable" else 2)


TROUBLES = (Fault.FAIL, Fault.FAIL_AFTER, Fault.CORRUPT, Fault.LOSE, Fault.STALL)


@pytest.mark.parametrize("fault", TROUBLES)
@pytest.mark.parametrize("block", range(6))
@instant
async def test_stream_goes_on_at_the_same_offset_when_a_replica_fails_at_any_block(fault: Fault, block: int) -> None:
    with small_blocks(BLOCK):
        scene = Scene(body_of(5 * BLOCK + 7), (0, 2))
        scene.cluster.faulty[ShardId(0)].plan(Operation.READ, *[None] * block, fault)
        assert await scene.read() == scene.body


@instant
async def test_long_stream_survives_every_replica_failing_now_and_then() -> None:
    with small_blocks(BLOCK):
        scene = Scene(body_of(200 * BLOCK), (0, 2))
        for shard in (0, 2):
            scene.cluster.faulty[ShardId(shard)].plan(Operation.READ, *[*[None] * (3 + shard), Fault.FAIL] * 30)
        assert await scene.read() == scene.body
        assert scene.catalogue.looks > 1


@pytest.mark.parametrize("length", [0, 1, BLOCK - 1, BLOCK + 1, 3 * BLOCK])
@instant
async def test_reader_takes_a_wrong_number_of_bytes_for_a_bad_block(length: int) -> None:
    with small_blocks(BLOCK):
        scene = Scene(body_of(4 * BLOCK), (0, 2))

        async def read(name: BlobName, *, size: int, offset: int, **_: int) -> Buffer:
            return (scene.body * 2)[offset : offset + length]

        scene.cluster.memory[ShardId(0)].read = read  # type: ignore[method-assign]
        assert await scene.read() == scene.body
        assert scene.catalogue.reports == [(0, ReplicaCorrupt)]


# ------------------------------------------------------------------ rows that have changed


@instant
async def test_reader_finds_a_replica_that_was_moved_since_the_look_up() -> None:
    scene = Scene(body_of(10), (0,))
    reader = scene.reader()
    spoil(scene, 0, "missing")
    scene.catalogue.rows = (scene.add(4),)
    assert await reader.read_small() == scene.body
    assert scene.catalogue.looks == 1


@instant
async def test_replica_on_a_shard_this_node_does_not_know_is_in_doubt_and_not_missing() -> None:
    scene = Scene(body_of(10), ())
    scene.catalogue.rows = (Replica(ShardId(99), Generation(mint())),)
    with pytest.raises(BlobUnavailable) as caught:
        await scene.reader().read_small()
    assert [(type(reason), reason.shard) for reason in caught.value.reasons] == [(ShardUnavailable, 99)]  # type: ignore[attr-defined]
    assert scene.catalogue.reports == []


@instant
async def test_reader_asks_a_shard_that_this_node_came_to_know_meanwhile() -> None:
    scene = Scene(body_of(10), (4,))
    known, scene.cluster.shards = scene.cluster.shards, {}
    reader = scene.reader()
    scene.cluster.shards = known
    assert await reader.read_small() == scene.body


@instant
async def test_reader_raises_when_the_rows_of_the_blob_are_gone() -> None:
    scene = Scene(body_of(10), (0,))
    scene.catalogue = Catalogue(b"", scene.catalogue.rows)
    with pytest.raises(BlobUnavailable):
        await scene.reader().read_small()


class Away(Exception):
    """The catalogue cannot be reached."""


@instant
async def test_reader_lets_an_error_of_the_catalogue_through_and_leaves_nothing_running() -> None:
    with small_blocks(BLOCK):
        scene = Scene(body_of(3 * BLOCK), (0,))

        async def replicas() -> tuple[Replica, ...]:
            raise Away

        scene.catalogue.replicas = replicas  # type: ignore[method-assign]
        scene.cluster.faulty[ShardId(0)].plan(Operation.READ, None, Fault.FAIL)
        received = []
        with pytest.raises(Away):
            async for piece in scene.reader().stream(0, 3 * BLOCK - 1):
                received.append(bytes(piece))
        assert received == [scene.body[:BLOCK]]


# ------------------------------------------------------------------ slow replicas


@instant
async def test_hedge_asks_another_replica_when_the_first_takes_long() -> None:
    scene = Scene(body_of(10), (0, 2, 4))
    scene.cluster.faulty[ShardId(0)].plan(Operation.READ, Fault.STALL)
    counts = scene.count_reads()
    assert await scene.reader().read_small() == scene.body
    assert asyncio.get_running_loop().time() == pytest.approx(HEDGE_SECONDS, abs=0.01)
    assert counts == {0: 0, 1: 0, 2: 1, 3: 0, 4: 0, 5: 0}
    assert scene.catalogue.reports == []


@pytest.mark.parametrize(("answer", "reads"), [(None, 1), (b"right", 0), (b"wrong", 1)])
@instant
async def test_what_memory_gives_is_served_without_a_read_only_where_it_is_right(
    answer: bytes | None, reads: int
) -> None:
    scene = Scene(b"right", (0, 2))
    counts = scene.count_reads()
    for shard in scene.cluster.faulty.values():
        shard.recall = lambda *_, **__: answer  # type: ignore[method-assign]
    assert await scene.read() == b"right"
    assert sum(counts.values()) == reads
    assert not scene.catalogue.reports


@instant
async def test_quick_read_asks_one_replica_alone() -> None:
    scene = Scene(body_of(10), (0, 2, 4))
    counts = scene.count_reads()
    await scene.reader().read_small()
    assert sum(counts.values()) == 1


@instant
async def test_hedge_asks_a_third_replica_when_the_second_fails_or_stalls_too() -> None:
    for fault, seconds in ((Fault.FAIL, 1), (Fault.STALL, 2)):
        scene = Scene(body_of(10), (0, 2, 4))
        scene.cluster.faulty[ShardId(0)].plan(Operation.READ, Fault.STALL)
        scene.cluster.faulty[ShardId(2)].plan(Operation.READ, fault)
        began = asyncio.get_running_loop().time()
        assert await scene.reader().read_small() == scene.body
        assert asyncio.get_running_loop().time() - began == pytest.approx(seconds * HEDGE_SECONDS, abs=0.01)


@instant
async def test_slow_replica_still_answers_when_the_hedge_fails() -> None:
    scene = Scene(body_of(10), (0, 2))
    scene.cluster.faulty[ShardId(0)].plan(Operation.READ, Fault.STALL)
    scene.cluster.faulty[ShardId(2)].down = True
    asyncio.get_running_loop().call_later(5, scene.cluster.faulty[ShardId(0)].release)
    assert await scene.reader().read_small() == scene.body
    assert asyncio.get_running_loop().time() == pytest.approx(5, abs=0.01)
    assert scene.catalogue.looks == 0


@instant
async def test_stream_waits_for_a_stalled_replica_once_and_not_at_every_block() -> None:
    with small_blocks(BLOCK):
        scene = Scene(body_of(50 * BLOCK), (0, 2))
        scene.cluster.faulty[ShardId(0)].plan(Operation.READ, *[Fault.STALL] * 50)
        assert await scene.read() == scene.body
        assert asyncio.get_running_loop().time() == pytest.approx(HEDGE_SECONDS, abs=0.01)


@instant
async def test_reader_gives_up_in_bounded_time_when_every_replica_stalls() -> None:
    scene = Scene(body_of(10), (0, 2))
    for shard in (0, 2):
        scene.cluster.faulty[ShardId(shard)].plan(Operation.READ, *[Fault.STALL] * 5)
    with pytest.raises(BlobUnavailable):
        await scene.reader().read_small()
    assert asyncio.get_running_loop().time() < 30


# ------------------------------------------------------------------ clients that leave


async def take(pieces: AsyncGenerator[memoryview, None], count: int) -> list[bytes]:
    return [bytes(await anext(pieces)) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 5])
@instant
async def test_stream_reads_one_block_ahead_and_stops_when_the_client_leaves(count: int) -> None:
    with small_blocks(BLOCK):
        scene = Scene(body_of(20 * BLOCK), (0, 2))
        counts = scene.count_reads()
        async with aclosing(scene.reader().stream(0, 20 * BLOCK - 1)) as pieces:
            await take(pieces, count)
            await asyncio.sleep(1)
            assert counts[ShardId(0)] == count + 1
        await asyncio.sleep(1)
        assert counts[ShardId(0)] == count + 1


@instant
async def test_stream_left_while_a_block_is_on_its_way_leaves_no_task() -> None:
    with small_blocks(BLOCK):
        for seconds in (0.5, 1.5, 2.5):
            scene = Scene(body_of(20 * BLOCK), (0, 2, 4))
            for shard in (0, 2, 4):
                scene.cluster.faulty[ShardId(shard)].plan(Operation.READ, *[None] * (shard == 0), *[Fault.STALL] * 9)
            async with aclosing(scene.reader().stream(0, 20 * BLOCK - 1)) as pieces:
                await take(pieces, 1)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await take(pieces, 1)


@instant
async def test_failure_ahead_of_a_client_that_leaves_is_nobodys_business() -> None:
    with small_blocks(BLOCK):
        scene = Scene(body_of(3 * BLOCK), (0,))
        scene.cluster.faulty[ShardId(0)].plan(Operation.READ, None, Fault.FAIL, Fault.FAIL)
        async with aclosing(scene.reader().stream(0, 3 * BLOCK - 1)) as pieces:
            await take(pieces, 1)
            await asyncio.sleep(1)


# ------------------------------------------------------------------ any faults at all


@given(
    size=st.sampled_from([1, BLOCK, BLOCK + 1, 6 * BLOCK]),
    shards=st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True),
    faults=st.lists(st.lists(st.sampled_from([None, None, *TROUBLES]), max_size=6), min_size=6, max_size=6),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_read_returns_exactly_the_bytes_or_raises(
    size: int, shards: list[int], faults: list[list[Fault | None]]
) -> None:
    async def read() -> None:
        scene = Scene(body_of(size), tuple(shards))
        for shard, planned in enumerate(faults):
            scene.cluster.faulty[ShardId(shard)].plan(Operation.READ, *planned)
        received = b""
        try:
            async for piece in scene.reader().stream(0, size - 1):
                received += piece
        except BlobUnavailable:
            assert scene.body.startswith(received)
            assert any(any(faults[shard]) for shard in shards)
        else:
            assert received == scene.body

    with small_blocks(BLOCK):
        run(read())
