"""Calls that share a connection between two nodes: each for itself, bounded, given up by both ends when one does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from repo_node.api import calls as owner
from sharding import call_link
from sharding.calls import HEAD, MESSAGE_BYTES_MAX, UPGRADE, Call, Delete, Kind, Read, Sizes, request_message
from sharding.errors import ShardUnavailable
from sharding.guarded import Operation
from sharding.model import BLOCK_BYTES, BlobName, Buffer
from sharding.shard import Shard
from tests.repo_node.listener import UID, Listener, eventually, run_listener
from tests.sharding.faulty import Fault, FaultyShard
from tests.sharding.local_shards import open_at
from tests.sharding.shard_contract import block_digests, make_name, replica_files, stage_all


@pytest.fixture
def shard_root(tmp_path: Path) -> Path:
    return tmp_path / "shard"


@pytest.fixture
async def owned(shard_root: Path) -> AsyncIterator[FaultyShard]:
    """The shard behind the listener."""
    async with open_at(shard_root) as shard:
        yield FaultyShard(shard)


@pytest.fixture
async def listener(owned: FaultyShard) -> AsyncIterator[Listener]:
    async with run_listener(owned) as running:
        yield running


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
    assert not hanging.done()
    owned.release()
    assert len(await hanging) == 100


async def test_call_given_up_before_it_began_leaves_nothing_behind(listener: Listener, owned: FaultyShard) -> None:
    async with listener.raw_calls() as stream:
        await stream.send(message(1, Delete(make_name(b"x"))) + HEAD.pack(1, Kind.CANCEL, 0))
        for number in range(2, 2 + 3 * owner.CALLS_MAX):
            await stream.send(message(number, Sizes(())))
        answered = {(await stream.message()).number for _ in range(3 * owner.CALLS_MAX)}
    assert answered == set(range(2, 2 + 3 * owner.CALLS_MAX))


async def test_owner_rests_from_reading_while_calls_hold_too_much(
    listener: Listener, owned: FaultyShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "CALLS_MAX", 3)
    under_way = 0
    most = 0

    async def sizes(names: object) -> list[int | None]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.005)
        under_way -= 1
        return []

    owned.sizes = sizes  # type: ignore[method-assign]
    async with listener.raw_calls() as stream:
        for number in range(30):
            await stream.send(message(number, Sizes(())))
            await asyncio.sleep(0.001)
        assert {(await stream.message()).number for _ in range(30)} == set(range(30))
    assert most == 3


async def test_calls_end_with_the_connection_of_their_peer(
    listener: Listener, owned: FaultyShard, shard_root: Path
) -> None:
    owned.plan(Operation.SIZES, Fault.STALL)
    async with listener.raw_calls() as stream:
        await stream.send(message(1, Sizes((make_name(b"x"),))))
        await eventually(lambda: owned.injected[Operation.SIZES, Fault.STALL] == 1)
    await eventually(lambda: listener.connections == 0)
    owned.release()


async def test_answers_that_nobody_takes_cost_the_connection(owned: FaultyShard) -> None:
    async with run_listener(owned, idle_seconds=0.2) as listener:
        data = os.urandom(8 * BLOCK_BYTES)
        name, staged = await stage_all(listener.remote(), data)
        await staged.commit(name.sha256, block_digests(data))
        before = listener.connections
        async with listener.raw_calls() as stream:
            stream.reader._transport.pause_reading()  # type: ignore[attr-defined]
            for number in range(8):
                await stream.send(message(number, Read(name, len(data), 0, len(data))))
            await eventually(lambda: listener.connections == before)


GARBAGE = {
    "too long": HEAD.pack(1, Kind.PUT, MESSAGE_BYTES_MAX + 1),
    "a number twice": message(1, Sizes((make_name(b"x"),))) * 2,
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_stream_that_is_none_of_calls_is_broken_off(
    listener: Listener, owned: FaultyShard, garbage: bytes
) -> None:
    owned.plan(Operation.SIZES, Fault.STALL)
    async with listener.raw_calls() as stream:
        await stream.send(garbage)
        async with asyncio.timeout(2):
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await stream.message()
    owned.release()


async def test_unknown_request_is_refused_and_the_connection_goes_on(listener: Listener) -> None:
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
        writers.append(writer)
        writer.write(f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n".encode())
        await reader.read()
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", writers
        for writer in writers:
            writer.transport.abort()


async def test_connection_on_which_nothing_comes_is_given_up_after_a_while(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_link, "SILENCE_SECONDS", 0.1)
    async with silent_owner() as (url, connections):
        shard = listener.remote(url=url, call_seconds=0.05)
        with pytest.raises(ShardUnavailable, match=r"within 0\.05 s"):
            await shard.sizes([make_name(b"x")])
        shard = listener.remote(url=url, call_seconds=0.2)
        for _ in range(2):
            with pytest.raises(ShardUnavailable):
                await shard.sizes([make_name(b"x")])
        assert len(connections) == 3, "the first peer's one, and one for each call of the second's"


async def test_garbage_from_the_owner_breaks_the_connection(listener: Listener) -> None:
    async with silent_owner() as (url, connections):
        asking = asyncio.ensure_future(listener.remote(url=url).sizes([make_name(b"x")]))
        await eventually(lambda: bool(connections))
        await asyncio.sleep(0.05)
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
