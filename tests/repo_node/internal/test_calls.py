"""Calls that share a connection between two nodes: each for itself, bounded, given up by both ends when one does."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from repo_node.api import calls as owner
from sharding import call_link
from sharding.call_link import CallLink, LazyLink
from sharding.calls import (
    HEAD,
    MESSAGE_BYTES_MAX,
    UPGRADE,
    Call,
    Delete,
    Kind,
    Read,
    Sizes,
    put_request,
    request_message,
)
from sharding.errors import ReplicaCorrupt, ReplicaMissing, ShardUnavailable
from sharding.guarded import Operation
from sharding.local import LocalShard
from sharding.model import BLOCK_BYTES, BlobName, Buffer
from sharding.shard import Shard
from tests.repo_node.internal.listener import UID, Listener, eventually, run_listener
from tests.sharding.faulty import Fault, FaultyShard
from tests.sharding.local_shards import forget_cached, open_at
from tests.sharding.shard_contract import block_digests, make_name, replica_files, stage_all

OTHER_UID = uuid.UUID("01890000-0000-7000-8000-0000000000bb")


def message(number: int, request: Delete | Sizes | Read) -> bytes:
    start, data = request_message(number, Call(UID, "", request))
    return start + bytes(data)


async def put(shard: Shard, count: int, size: int) -> dict[BlobName, bytes]:
    stored = {make_name(data): data for data in (os.urandom(size) for _ in range(count))}
    await asyncio.gather(*(shard.put(name, data) for name, data in stored.items()))
    return stored


async def test_many_calls_at_once_share_two_connections_and_each_gets_its_own_answer(listener: Listener) -> None:
    shard = listener.remote()
    stored = await put(shard, 40, 1000) | await put(shard, 10, BLOCK_BYTES)

    async def read(name: BlobName, data: bytes) -> bool:
        return bytes(await shard.read(name, size=len(data), offset=0, length=len(data))) == data

    assert all(await asyncio.gather(*(read(name, data) for name, data in stored.items() for _ in range(3))))
    assert await shard.sizes(list(stored)) == [len(data) for data in stored.values()]
    assert listener.connections == 2


async def test_small_call_does_not_wait_for_one_that_hangs(listener: Listener, owned: FaultyShard) -> None:
    shard = listener.remote()
    [name] = await put(shard, 1, 100)
    owned.plan(Operation.READ, Fault.STALL)
    hanging = asyncio.ensure_future(shard.read(name, size=100, offset=0, length=100))
    async with asyncio.timeout(2):
        assert await shard.sizes([name]) == [100]
    await eventually(lambda: bool(owned.injected[Operation.READ, Fault.STALL]))
    assert not hanging.done()
    owned.release()
    assert len(await hanging) == 100


async def test_call_given_up_before_it_began_leaves_nothing_behind(listener: Listener) -> None:
    async with listener.raw_calls() as stream:
        await stream.send(message(1, Delete(make_name(b"x"))) + HEAD.pack(1, Kind.CANCEL, 0))
        for number in range(2, 1000):
            await stream.send(message(number, Sizes(())))
        answered = {(await stream.message()).number for _ in range(998)}
    assert answered == set(range(2, 1000))


async def test_hung_disk_costs_only_the_calls_to_it(listener: Listener, owned: FaultyShard, tmp_path: Path) -> None:
    async with open_at(tmp_path / "healthy") as healthy:
        listener.shards[OTHER_UID] = healthy
        hung, well = listener.remote(), listener.remote(OTHER_UID)
        [name], [other] = await put(hung, 1, BLOCK_BYTES), await put(well, 1, BLOCK_BYTES)
        owned.plan(Operation.READ, *[Fault.STALL] * 100)

        async def hedged() -> None:
            with suppress(TimeoutError, ShardUnavailable):
                async with asyncio.timeout(0.3):
                    await hung.read(name, size=BLOCK_BYTES, offset=0, length=BLOCK_BYTES)

        hedges = [asyncio.ensure_future(hedged()) for _ in range(100)]
        await asyncio.sleep(0.1)
        for _ in range(3):
            async with asyncio.timeout(2):
                await well.read(other, size=BLOCK_BYTES, offset=0, length=BLOCK_BYTES)
        await asyncio.gather(*hedges)
        owned.release()
    assert listener.connections <= 2


async def test_calls_to_one_shard_beyond_the_bound_are_refused_at_once(
    listener: Listener, owned: FaultyShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "CALLS_PER_SHARD_MAX", 3)
    owned.plan(Operation.SIZES, *[Fault.STALL] * 3)
    shard = listener.remote()
    hanging = [asyncio.ensure_future(shard.sizes([make_name(b"x")])) for _ in range(3)]
    await eventually(lambda: owned.injected[Operation.SIZES, Fault.STALL] == 3)
    with pytest.raises(ShardUnavailable, match="3 calls of this peer"):
        await shard.sizes([make_name(b"x")])
    owned.release()
    assert await asyncio.gather(*hanging) == [[None]] * 3
    assert await shard.sizes([make_name(b"x")]) == [None]


async def test_calls_end_with_the_connection_of_their_peer_and_none_begins_later(
    listener: Listener, owned: FaultyShard, shard_root: Path
) -> None:
    stuck, names = 100, [make_name(os.urandom(8)) for _ in range(50)]
    owned.plan(Operation.PUT, *[Fault.STALL] * len(names))
    owned.plan(Operation.SIZES, *[Fault.STALL] * stuck)
    async with listener.raw_calls() as stream:
        for number in range(stuck):
            await stream.send(message(number, Sizes((make_name(b"x"),))))
        for number, name in enumerate(names, stuck):
            start, data = request_message(number, Call(UID, "", put_request(name, b"late")))
            await stream.send(start + bytes(data))
        await eventually(lambda: owned.injected[Operation.PUT, Fault.STALL] > 0)
    await eventually(lambda: listener.connections == 0)
    owned.release()
    await asyncio.sleep(0.2)
    assert replica_files(shard_root) == []


async def test_leaving_owner_ends_what_is_under_way_and_refuses_the_rest(
    listener: Listener, owned: FaultyShard
) -> None:
    shard = listener.remote()
    [name] = await put(shard, 1, 100)
    owned.plan(Operation.READ, Fault.STALL)
    reading = asyncio.ensure_future(shard.read(name, size=100, offset=0, length=100))
    await eventually(lambda: owned.injected[Operation.READ, Fault.STALL] == 1)
    await listener.app.shutdown()
    with pytest.raises(ShardUnavailable, match="leaving"):
        await shard.sizes([name])
    owned.release()
    assert len(await reading) == 100
    await eventually(lambda: listener.connections == 0)


@pytest.mark.parametrize("count", [1, 8])
async def test_answers_that_nobody_takes_cost_the_connection(owned: FaultyShard, count: int) -> None:
    async with run_listener(owned, idle_seconds=0.2) as listener:
        data = os.urandom(8 * BLOCK_BYTES)
        name, staged = await stage_all(listener.remote(), data)
        await staged.commit(name.sha256, block_digests(data))
        before = listener.connections
        async with listener.raw_calls() as stream:
            stream.pause_reading()
            for number in range(count):
                await stream.send(message(number, Read(name, len(data), 0, len(data))))
            await eventually(lambda: listener.connections == before)


@pytest.fixture
async def unwrapped(shard_root: Path) -> AsyncIterator[LocalShard]:
    """A shard whose reads the page cache may answer."""
    async with open_at(shard_root) as shard:
        yield shard


async def test_read_that_memory_answers_is_answered_alike_until_the_file_is_gone(
    unwrapped: LocalShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_listener(unwrapped) as listener:
        shard = listener.remote()
        stored = await put(shard, 20, 1000) | await put(shard, 4, BLOCK_BYTES) | await put(shard, 1, 1)
        for forgotten in (False, True):
            if forgotten:
                forget_cached(monkeypatch)
            reads = (shard.read(name, size=len(data), offset=0, length=len(data)) for name, data in stored.items())
            assert [bytes(data) for data in await asyncio.gather(*reads)] == list(stored.values())
            assert await shard.sizes(list(stored)) == [len(data) for data in stored.values()]
            assert await shard.sizes(list(stored)[-3:]) == [BLOCK_BYTES, BLOCK_BYTES, 1]
            name = next(iter(stored))
            assert bytes(await shard.read(name, size=1000, offset=10, length=7)) == stored[name][10:17]
        monkeypatch.undo()
        await shard.delete(name)
        assert await shard.sizes([name]) == [None]
        with pytest.raises(ReplicaMissing):
            await shard.read(name, size=1000, offset=0, length=1000)
        with pytest.raises(ReplicaCorrupt):
            await shard.read(list(stored)[1], size=999, offset=0, length=999)


@pytest.mark.parametrize("size", [1000, BLOCK_BYTES])
async def test_answers_from_memory_that_nobody_takes_cost_the_connection(unwrapped: LocalShard, size: int) -> None:
    async with run_listener(unwrapped, idle_seconds=0.2) as listener:
        [name] = await put(listener.remote(), 1, size)
        before = listener.connections
        async with listener.raw_calls() as stream:
            stream.pause_reading()
            with suppress(ConnectionError):
                for number in range(100_000 if size < BLOCK_BYTES else 64):
                    await stream.send(message(number, Read(name, size, 0, size)))
            await eventually(lambda: listener.connections == before)


async def test_answers_from_memory_wait_for_a_slow_peer(unwrapped: LocalShard) -> None:
    async with run_listener(unwrapped) as listener:
        [(name, data)] = (await put(listener.remote(), 1, BLOCK_BYTES)).items()
        async with listener.raw_calls() as stream:
            stream.pause_reading()
            for number in range(64):
                await stream.send(message(number, Read(name, len(data), 0, len(data))))
            await asyncio.sleep(0.1)
            stream.resume_reading()
            answers = [await stream.message() for _ in range(64)]
    assert sorted(answer.number for answer in answers) == list(range(64))
    assert all(answer.kind == Kind.DONE and answer.body == data for answer in answers)


async def test_refusals_that_nobody_takes_cost_the_connection(owned: FaultyShard) -> None:
    async with run_listener(owned, idle_seconds=0.2) as listener, listener.raw_calls() as stream:
        stream.pause_reading()
        with suppress(ConnectionError):
            async with asyncio.timeout(20):
                for number in range(1_000_000):
                    await stream.send(HEAD.pack(number, 99, 0))
            pytest.fail("a million refusals were taken down")
        await eventually(lambda: listener.connections == 0)


GARBAGE = {
    "too long": HEAD.pack(1, Kind.PUT, MESSAGE_BYTES_MAX + 1),
    "a number twice": message(1, Sizes((make_name(b"x"),))) * 2,
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_s11_stream_that_is_none_of_calls_is_broken_off(
    listener: Listener, owned: FaultyShard, garbage: bytes
) -> None:
    owned.plan(Operation.SIZES, Fault.STALL)
    async with listener.raw_calls() as stream:
        await stream.send(garbage)
        async with asyncio.timeout(2):
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await stream.message()
    owned.release()


async def test_s11_unknown_request_is_refused_and_the_connection_goes_on(listener: Listener) -> None:
    async with listener.raw_calls() as stream:
        await stream.send(HEAD.pack(5, 9, 20) + bytes(20))
        refused = await stream.message()
        assert (refused.number, refused.kind) == (5, Kind.REFUSED)
        assert b"bad_request" in bytes(refused.body)
        await stream.send(message(6, Sizes(())))
        assert (await stream.message()).kind == Kind.DONE


async def test_unexpected_failure_of_the_owner_is_unavailable_and_logged(
    listener: Listener, owned: FaultyShard, caplog: pytest.LogCaptureFixture
) -> None:
    async def sizes(names: object) -> list[int | None]:
        raise RuntimeError("a fault of ours")

    owned.sizes = sizes  # type: ignore[method-assign]
    with pytest.raises(ShardUnavailable, match="unexpected failure"):
        await listener.remote().sizes([make_name(b"x")])
    assert "a fault of ours" in caplog.text


async def test_call_fails_and_the_next_one_connects_anew_when_the_connection_breaks(
    listener: Listener, owned: FaultyShard
) -> None:
    shard = listener.remote()
    [name] = await put(shard, 1, 100)
    owned.plan(Operation.READ, Fault.STALL)
    hanging = asyncio.ensure_future(shard.read(name, size=100, offset=0, length=100))
    await asyncio.sleep(0.05)
    link = listener.peer.links._small.link
    assert link is not None
    link._transport.abort()
    with pytest.raises(ShardUnavailable, match="not reached"):
        await hanging
    owned.release()
    assert await shard.sizes([name]) == [100]


@asynccontextmanager
async def silent_owner() -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """A listener that upgrades to calls and then never says a word."""
    writers: list[asyncio.StreamWriter] = []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n".encode())
        await reader.readexactly(HEAD.size)  # an answer before the first call would be lost with the upgrade
        writers.append(writer)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", writers
        for writer in writers:
            writer.transport.abort()


async def test_connection_on_which_nothing_comes_takes_no_more_calls(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_link, "SILENCE_SECONDS", 0.25)
    async with silent_owner() as (url, connections):
        shard = listener.remote(url=url, call_seconds=0.1)
        for _ in range(6):
            with pytest.raises(ShardUnavailable, match=r"within 0\.1 s"):
                await shard.sizes([make_name(b"x")])
        assert len(connections) == 2


async def test_silence_towards_one_call_does_not_fail_another(
    listener: Listener, owned: FaultyShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_link, "SILENCE_SECONDS", 0.3)
    shard = listener.remote(call_seconds=0.5)
    [name] = await put(shard, 1, 100)
    owned.plan(Operation.READ, Fault.STALL, Fault.STALL)
    hanging = asyncio.ensure_future(shard.read(name, size=100, offset=0, length=100))
    await asyncio.sleep(0.4)
    late = asyncio.ensure_future(shard.read(name, size=100, offset=0, length=100))
    with pytest.raises(ShardUnavailable):
        await hanging
    owned.release()
    assert len(await late) == 100
    assert await shard.sizes([name]) == [100], "over another connection"


async def test_attempt_to_connect_that_fails_fails_for_all_who_wait() -> None:
    attempts = 0

    async def fail() -> CallLink:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(0.05)
        raise OSError("nobody there")

    lazy = LazyLink(fail)
    outcomes = await asyncio.gather(*(lazy.open() for _ in range(8)), return_exceptions=True)
    assert {str(outcome) for outcome in outcomes} == {"nobody there"}
    assert attempts == 1
    with pytest.raises(OSError, match="nobody there"):
        await lazy.open()
    assert attempts == 2


async def test_caller_who_gives_up_connecting_does_not_end_it_for_others(listener: Listener) -> None:
    links = listener.peer.links
    first, second = (asyncio.ensure_future(links.call(Call(UID, "", Sizes(())))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == b""
    assert listener.connections == 1


async def test_idle_connection_is_kept_alive(listener: Listener) -> None:
    await listener.remote().sizes([make_name(b"x")])
    link = listener.peer.links._small.link
    assert link is not None
    opened = link._transport.get_extra_info("socket")
    assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


@pytest.mark.parametrize(
    "answer", [HEAD.pack(0, 42, 0), HEAD.pack(0, Kind.CANCEL, 0), HEAD.pack(0, Kind.DONE, 3) + b"abc"]
)
async def test_only_an_empty_done_says_that_bytes_are_stored(listener: Listener, answer: bytes) -> None:
    async with silent_owner() as (url, connections):
        putting = asyncio.ensure_future(listener.remote(url=url).put(make_name(b"x"), b"x"))
        await eventually(lambda: bool(connections))
        connections[0].write(answer)
        with pytest.raises(ShardUnavailable):
            await putting


async def test_garbage_from_the_owner_breaks_the_connection(listener: Listener) -> None:
    async with silent_owner() as (url, connections):
        asking = asyncio.ensure_future(listener.remote(url=url).sizes([make_name(b"x")]))
        await eventually(lambda: bool(connections))
        connections[0].write(HEAD.pack(0, Kind.DONE, MESSAGE_BYTES_MAX + 1))
        with pytest.raises(ShardUnavailable, match="not reached"):
            await asking


@pytest.mark.parametrize("answer", [b"", b"1234567", bytes(16)], ids=["nothing", "a part", "two"])
async def test_sizes_that_do_not_fit_are_not_believed(listener: Listener, answer: Buffer) -> None:
    async with silent_owner() as (url, connections):
        asking = asyncio.ensure_future(listener.remote(url=url).sizes([make_name(b"x")]))
        await eventually(lambda: bool(connections))
        connections[0].write(HEAD.pack(0, Kind.DONE, len(answer)) + bytes(answer))
        with pytest.raises(ShardUnavailable, match="not understood"):
            await asking


async def test_put_by_many_callers_leaves_every_file_and_no_other(listener: Listener, shard_root: Path) -> None:
    stored = await put(listener.remote(), 60, 500)
    assert sorted(path.read_bytes() for path in replica_files(shard_root)) == sorted(stored.values())
