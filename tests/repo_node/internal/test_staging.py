"""Staged uploads between two nodes when something goes wrong: at once, and on the right side, it is noticed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from pathlib import Path

import aiohttp
import pytest

from repo_node.api.staged import StagedUploads
from sharding import remote_staging, wire
from sharding.calls import Call, ReadStaged
from sharding.errors import ReplicaCorrupt, ShardError, ShardFull, ShardRefused, ShardUnavailable
from sharding.frames import ABORT_FRAME, ALIVE_FRAME, UPGRADE, commit_frame, data_head
from sharding.guarded import Operation
from sharding.model import BLOCK_BYTES, Buffer, Generation
from sharding.shard import StagedBlob
from tests.repo_node.internal.listener import (
    CLUSTER,
    TOKEN,
    UID,
    Listener,
    credentials,
    eventually,
    run_listener,
    staged_files,
)
from tests.sharding.faulty import Fault, FaultyShard
from tests.sharding.shard_contract import block_digests, make_generation, make_name, replica_files, stage_all

BLOCK = bytes(BLOCK_BYTES)


async def write_until_refused(staged: StagedBlob, blocks_max: int = 64) -> None:
    """Write until the owner's answer is raised; fail when it never is."""
    for _ in range(blocks_max):
        await staged.write(BLOCK)
        await asyncio.sleep(0.005)
    pytest.fail("the owner's answer did not reach the writer")


@pytest.mark.parametrize("sent", [0, 3, 1000, BLOCK_BYTES + 7], ids=lambda sent: f"{sent} bytes sent")
async def test_staged_file_vanishes_when_the_connection_is_cut(listener: Listener, shard_root: Path, sent: int) -> None:
    stream_of_two = data_head(BLOCK_BYTES) + BLOCK + data_head(BLOCK_BYTES) + BLOCK
    async with listener.stream() as stream:
        await stream.send(stream_of_two[:sent])
        await eventually(lambda: len(staged_files(shard_root)) == 1)
        stream.writer.transport.abort()
        await eventually(lambda: staged_files(shard_root) == [], 1.0)
        await eventually(lambda: listener.connections == 0, 1.0)
    assert replica_files(shard_root) == []


async def test_staged_file_vanishes_when_the_peer_ends_the_stream_without_a_last_frame(
    listener: Listener, shard_root: Path
) -> None:
    async with listener.stream() as stream:
        await stream.send(data_head(10) + bytes(10))
        await eventually(lambda: len(staged_files(shard_root)) == 1)
        stream.writer.write_eof()
        await eventually(lambda: staged_files(shard_root) == [], 1.0)


CLIENT = """
import asyncio, sys, uuid
from sharding.model import Generation, ShardId
from sharding.peer import Peer, open_peer_session
from sharding.remote import RemoteShard

async def main(url, token, cluster, uid):
    async with open_peer_session() as session:
        shard = RemoteShard(ShardId(1), uuid.UUID(uid), Peer(url, session, token, uuid.UUID(cluster)))
        staged = await shard.stage(Generation(uuid.uuid4()))
        await staged.write(bytes(3_000_000))
        print("written", flush=True)
        await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_staged_file_vanishes_when_the_peer_is_killed(listener: Listener, shard_root: Path) -> None:
    arguments = (listener.url, TOKEN, str(CLUSTER), str(UID))
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert client.stdout is not None
    try:
        assert await asyncio.wait_for(client.stdout.readline(), 20) == b"written\n"
        assert len(staged_files(shard_root)) == 1
    finally:
        client.send_signal(signal.SIGKILL)
        await client.wait()
    await eventually(lambda: staged_files(shard_root) == [], 1.0)


async def test_staged_file_vanishes_when_the_listener_stops(owned: FaultyShard, shard_root: Path) -> None:
    async with run_listener(owned) as listener:
        staged = await listener.remote().stage(make_generation())
        await staged.write(BLOCK)
        assert len(staged_files(shard_root)) == 1
    await eventually(lambda: staged_files(shard_root) == [], 1.0)
    with pytest.raises(ShardUnavailable):
        await staged.write(BLOCK)
    await staged.abort()


@pytest.mark.parametrize(
    ("fault", "error"), [(Fault.FULL, ShardFull), (Fault.FAIL, ShardUnavailable)], ids=["full", "failing"]
)
async def test_writer_hears_early_that_the_shard_fails(
    listener: Listener, owned: FaultyShard, shard_root: Path, fault: Fault, error: type[ShardError]
) -> None:
    owned.plan(Operation.WRITE, None, fault)
    staged = await listener.remote().stage(make_generation())
    with pytest.raises(error, match="made to"):
        await write_until_refused(staged)
    assert staged_files(shard_root) == []
    await staged.abort()


async def test_commit_hears_what_no_write_heard(listener: Listener, owned: FaultyShard, shard_root: Path) -> None:
    owned.plan(Operation.WRITE, Fault.FULL)
    data = b"less than a block is written only at the commit"
    name, staged = await stage_all(listener.remote(), data)
    with pytest.raises(ShardFull):
        await staged.commit(name.sha256, block_digests(data))
    assert staged_files(shard_root) == []


async def test_refusal_arrives_though_the_peer_goes_on_sending(listener: Listener, owned: FaultyShard) -> None:
    owned.plan(Operation.WRITE, Fault.FULL)
    async with listener.stream() as stream:
        for _ in range(32):
            await stream.send(data_head(BLOCK_BYTES) + BLOCK)
        assert b"shard_full" in await stream.answer()


@pytest.mark.parametrize("length", [None, 0, 70_000_000_000])
async def test_owner_is_told_how_long_the_blob_will_be(
    listener: Listener, owned: FaultyShard, monkeypatch: pytest.MonkeyPatch, length: int | None
) -> None:
    told: list[int | None] = []
    stage = owned.stage

    async def noting(generation: Generation, length: int | None = None) -> StagedBlob:
        told.append(length)
        return await stage(generation, length)

    monkeypatch.setattr(owned, "stage", noting)
    await (await listener.remote().stage(make_generation(), length)).abort()
    assert told == [length]


@pytest.mark.parametrize("length", ["", "-1", "1e9", "\u0662".encode().decode("latin-1"), "1" * 19])
async def test_length_that_is_no_number_is_refused(listener: Listener, shard_root: Path, length: str) -> None:
    asked = {"Connection": "Upgrade", "Upgrade": UPGRADE, wire.LENGTH_HEADER: length}
    url = f"{listener.url}{wire.PREFIX}/shards/{UID}/staged/{uuid.uuid4()}"
    async with aiohttp.ClientSession() as session, session.put(url, headers={**credentials(), **asked}) as response:
        assert response.status == 400
        assert (await response.json())["error"] == wire.BAD_REQUEST
    assert staged_files(shard_root) == []


@pytest.mark.parametrize(
    ("fault", "error"), [(Fault.FULL, ShardFull), (Fault.FAIL, ShardUnavailable)], ids=["full", "failing"]
)
async def test_stage_fails_at_once_when_the_shard_does(
    listener: Listener, owned: FaultyShard, fault: Fault, error: type[ShardError]
) -> None:
    owned.plan(Operation.STAGE, fault)
    with pytest.raises(error):
        await listener.remote().stage(make_generation())


async def test_commit_is_refused_when_bytes_changed_on_the_way(listener: Listener, shard_root: Path) -> None:
    data = os.urandom(BLOCK_BYTES + 1)
    name, staged = await stage_all(listener.remote(), data)
    with pytest.raises(ReplicaCorrupt):
        await staged.commit(name.sha256, block_digests(data[:-1] + b"x"))
    await eventually(lambda: staged_files(shard_root) == [])
    assert replica_files(shard_root) == []


async def test_abort_can_be_called_at_any_time_and_twice(listener: Listener, shard_root: Path) -> None:
    name, staged = await stage_all(listener.remote(), b"data")
    await asyncio.gather(staged.abort(), staged.abort())
    assert staged_files(shard_root) == []
    await staged.abort()
    name, staged = await stage_all(listener.remote(), b"data")
    await staged.commit(name.sha256, block_digests(b"data"))
    await staged.abort()
    assert await listener.remote().sizes([name]) == [4]


async def test_abort_ends_when_the_owner_does_not_answer(
    listener: Listener, owned: FaultyShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_staging, "ABORT_SECONDS", 0.1)
    owned.plan(Operation.WRITE, Fault.STALL)
    staged = await listener.remote().stage(make_generation())
    await staged.write(BLOCK)
    async with asyncio.timeout(2):
        await staged.abort()
    owned.release()


async def test_write_is_unavailable_when_the_owner_takes_no_more_bytes(
    listener: Listener, owned: FaultyShard, shard_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_staging, "ABORT_SECONDS", 0.1)
    owned.plan(Operation.WRITE, Fault.STALL)
    staged = await listener.remote(stall_seconds=0.2).stage(make_generation())
    with pytest.raises(ShardUnavailable, match="took no bytes"):
        await write_until_refused(staged)
    await staged.abort()
    owned.release()
    await eventually(lambda: staged_files(shard_root) == [])


async def test_commit_given_up_by_the_peer_is_given_up_by_the_owner(
    listener: Listener, owned: FaultyShard, shard_root: Path
) -> None:
    owned.plan(Operation.COMMIT, Fault.STALL)
    name, staged = await stage_all(listener.remote(commit_seconds=0.1), b"data")
    with pytest.raises(ShardUnavailable, match="did not answer"):
        await staged.commit(name.sha256, block_digests(b"data"))
    await asyncio.sleep(0.05)
    owned.release()
    await asyncio.sleep(0.2)  # as long as a commit takes that goes on all the same
    assert await listener.remote().sizes([name]) == [None]
    assert replica_files(shard_root) == []


async def test_silent_peer_is_given_up(owned: FaultyShard, shard_root: Path) -> None:
    async with run_listener(owned, idle_seconds=0.1) as listener, listener.stream() as stream:
        await stream.send(data_head(10) + b"half")
        async with asyncio.timeout(2):
            assert b"did not come in time" in await stream.answer()
        assert staged_files(shard_root) == []


async def test_writer_with_nothing_to_write_keeps_its_blob_alive(
    owned: FaultyShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_staging, "ALIVE_SECONDS", 0.05)
    async with run_listener(owned, idle_seconds=0.2) as listener:
        name, staged = await stage_all(listener.remote(), b"slow ")
        await asyncio.sleep(0.8)
        await staged.write(b"client")
        await staged.commit(name.sha256, block_digests(b"slow client"))
        assert await listener.remote().sizes([name]) == [11]


async def test_frames_by_hand_commit_a_blob(listener: Listener, shard_root: Path) -> None:
    data = os.urandom(BLOCK_BYTES + 100)
    name = make_name(data)
    first, second = data[:70_000], data[70_000:]
    frames = [data_head(len(first)), first, ALIVE_FRAME, data_head(len(second)), second]
    async with listener.stream(name.generation) as stream:
        await stream.send(b"".join(frames) + commit_frame(name.sha256, block_digests(data)))
        assert await stream.answer() == b""
    assert [path.read_bytes() for path in replica_files(shard_root)] == [data]


@pytest.mark.parametrize("garbage", [b"\0" * 5, b"GET / HTTP/1.1\r\n", data_head(BLOCK_BYTES + 1), b"C\0\0\0\1x"])
async def test_s11_garbage_is_answered_and_removes_the_staged_file(
    listener: Listener, shard_root: Path, garbage: bytes
) -> None:
    async with listener.stream() as stream:
        await stream.send(data_head(4) + b"data" + garbage + bytes(100_000))
        assert b"bad_request" in await stream.answer()
        assert staged_files(shard_root) == []


async def test_abort_by_hand_is_answered_when_the_file_is_gone(listener: Listener, shard_root: Path) -> None:
    async with listener.stream() as stream:
        await stream.send(data_head(4) + b"data" + ABORT_FRAME)
        assert await stream.answer() == b""
        assert staged_files(shard_root) == []


async def test_staged_bytes_can_be_read_while_more_are_written(listener: Listener) -> None:
    data = os.urandom(5 * BLOCK_BYTES + 1000)
    staged = await listener.remote().stage(make_generation())

    async def follow() -> bytes:
        taken = b""
        while len(taken) < len(data):
            if staged.written == len(taken):
                await asyncio.sleep(0)
                continue
            length = min(700_000, staged.written - len(taken))
            taken += bytes(await staged.read(len(taken), length))
        return taken

    async def write() -> None:
        for start in range(0, len(data), 300_000):
            await staged.write(data[start : start + 300_000])

    taken, _ = await asyncio.gather(follow(), write())
    assert taken == data
    await staged.abort()


def ask_staged(listener: Listener, generation: Generation, offset: int, length: int) -> asyncio.Future[Buffer]:
    return asyncio.ensure_future(listener.shard_calls().call(ReadStaged(generation, offset, length)))


async def test_staged_read_waits_for_bytes_on_their_way(listener: Listener) -> None:
    generation = make_generation()
    async with listener.stream(generation) as stream:
        await stream.send(data_head(5) + b"ab")
        asking = ask_staged(listener, generation, 1, 4)
        await asyncio.sleep(0.05)
        assert not asking.done()
        await stream.send(b"cde")
        assert await asking == b"bcde"


async def test_staged_read_is_unavailable_when_the_upload_ends_first(listener: Listener) -> None:
    generation = make_generation()
    async with listener.stream(generation) as stream:
        asking = ask_staged(listener, generation, 0, 4)
        await asyncio.sleep(0.05)
        await stream.send(ABORT_FRAME)
        with pytest.raises(ShardUnavailable, match="no such blob"):
            await asking
    with pytest.raises(ShardUnavailable, match="no such blob"):
        await ask_staged(listener, generation, 0, 4)


async def test_reader_that_gives_up_does_not_harm_the_upload(listener: Listener) -> None:
    data = os.urandom(BLOCK_BYTES + 10)
    name, staged = await stage_all(listener.remote(), data)
    for _ in range(20):
        reading = asyncio.ensure_future(staged.read(0, len(data)))
        await asyncio.sleep(0.001)
        reading.cancel()
    await staged.commit(name.sha256, block_digests(data))
    assert await listener.remote().sizes([name]) == [len(data)]


UPGRADED = f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n".encode()


@pytest.mark.parametrize(
    "answer",
    [
        UPGRADED + b"HTTP/1.1 200 OK\r\n\r\n",
        UPGRADED + b"R\xff\xff\xff\xff",
        UPGRADED.replace(UPGRADE.encode(), b"holdfast-frames-9"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\n<htm>",
        b"SSH-2.0-other\r\n",
        b"",
    ],
    ids=["garbage", "endless", "another version", "no upgrade", "a proxy", "no http", "nothing"],
)
async def test_writer_is_told_unavailable_when_the_owner_speaks_otherwise(listener: Listener, answer: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head, found, rest = answer.partition(b"\r\n\r\n")
        writer.write(head + found)
        if rest:
            await reader.readexactly(1)
            writer.write(rest)
        else:
            writer.close()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(ShardUnavailable):
            name, staged = await stage_all(listener.remote(url=url), b"data")
            await staged.commit(name.sha256, block_digests(b"data"))


async def test_no_more_uploads_are_staged_than_the_limit_says(owned: FaultyShard, shard_root: Path) -> None:
    async with run_listener(owned, uploads=StagedUploads(2)) as listener:
        first, second = [await listener.remote().stage(make_generation()) for _ in range(2)]
        with pytest.raises(ShardUnavailable, match="2 uploads"):
            await listener.remote().stage(make_generation())
        await first.abort()
        third = await listener.remote().stage(make_generation())
        for staged in (second, third):
            await staged.abort()
    assert staged_files(shard_root) == []


async def test_generation_is_not_staged_twice_at_once(listener: Listener, shard_root: Path) -> None:
    name, staged = await stage_all(listener.remote(), b"data")
    with pytest.raises(ShardRefused):
        await listener.remote().stage(name.generation)
    await staged.commit(name.sha256, block_digests(b"data"))
    assert await listener.remote().sizes([name]) == [4]


async def test_peer_that_does_not_upgrade_is_refused_and_stages_nothing(listener: Listener, shard_root: Path) -> None:
    url = listener.path(f"/staged/{make_generation()}")
    async with listener.session.put(url, data=b"bytes", headers=credentials()) as answer:
        assert answer.status == 400
    assert staged_files(shard_root) == []


async def test_connections_are_given_back_after_every_end(listener: Listener) -> None:
    shard = listener.remote()
    for _ in range(3):
        name, staged = await stage_all(shard, b"data")
        await staged.commit(name.sha256, block_digests(b"data"))
        _, staged = await stage_all(shard, b"data")
        await staged.abort()
    connector = listener.session.connector
    assert connector is not None
    assert not connector._acquired


async def test_bytes_that_a_sibling_is_staging_are_read_whichever_process_is_asked(
    listener: Listener, owned: FaultyShard
) -> None:
    """The calls of a peer may come to another process of the owner than the one that stages."""
    data, generation = os.urandom(1000), make_generation()

    async def ask_sibling(call: Call) -> Buffer:
        try:
            return await listener.shard_calls().call(call.request)
        except ShardError as error:
            raise wire.Refusal(wire.UNAVAILABLE, str(error)) from None

    staged = await listener.remote().stage(generation)
    await staged.write(data)
    async with run_listener(owned, elsewhere=ask_sibling) as other:
        # Its last, unfinished block is in that process' memory alone.
        assert await ask_staged(other, generation, 200, 800) == data[200:]
        with pytest.raises(ShardUnavailable):
            await ask_staged(other, make_generation(), 0, 1)
        await staged.abort()
        with pytest.raises(ShardUnavailable):
            await ask_staged(other, generation, 0, 1)
