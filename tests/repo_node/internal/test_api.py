"""The internal listener: the contract of a shard over a real connection, who is let in, and what may be asked."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from xxhash import xxh3_64_hexdigest
from yarl import URL

from repo_node import keys
from repo_node.logs import request_id
from sharding import calls, wire
from sharding.errors import ReplicaCorrupt, ShardUnavailable
from sharding.guarded import Operation
from sharding.model import BLOCK_BYTES, BlobName, Buffer, NodeId
from sharding.peer import PeerError, PeerIdentity
from sharding.shard import Shard
from tests.repo_node.internal.listener import (
    CLUSTER,
    INCARNATION,
    KEY,
    TOKEN,
    Listener,
    credentials,
    run_listener,
)
from tests.sharding.faulty import Fault, FaultyShard
from tests.sharding.shard_contract import ShardContract, make_generation, make_name, replica_files, stage_all

Call = Callable[[Shard, BlobName], Awaitable[object]]
CALLS: dict[str, Call] = {
    "put": lambda shard, name: shard.put(name, b"data"),
    "stage": lambda shard, name: shard.stage(name.generation),
    "read": lambda shard, name: shard.read(name, size=4, offset=0, length=4),
    "sizes": lambda shard, name: shard.sizes([name]),
    "delete": lambda shard, name: shard.delete(name),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@pytest.fixture
def shard(listener: Listener) -> Shard:
    return listener.remote()


class TestRemoteShard(ShardContract):
    """A shard behind the listener keeps the contract of every shard."""


@each_call
async def test_call_is_unavailable_when_nobody_listens(listener: Listener, call: Call) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ShardUnavailable, match="not reached"):
            await call(listener.remote(url=f"http://127.0.0.1:{unused.getsockname()[1]}"), make_name(b"data"))


@each_call
async def test_call_is_unavailable_when_the_owner_never_answers(listener: Listener, call: Call) -> None:
    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    timeout = aiohttp.ClientTimeout(total=None, sock_read=0.1)
    async with (
        await asyncio.start_server(keep_silent, "127.0.0.1", 0) as server,
        aiohttp.ClientSession(timeout=timeout) as session,
    ):
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(ShardUnavailable):
            await call(listener.remote(url=url, session=session), make_name(b"data"))


@each_call
async def test_call_is_unavailable_not_missing_when_the_shard_is_not_owned_here(listener: Listener, call: Call) -> None:
    with pytest.raises(ShardUnavailable, match="not owned here"):
        await call(listener.remote(uuid.uuid4()), make_name(b"data"))


@each_call
async def test_call_is_unavailable_not_missing_at_a_wrong_url(listener: Listener, call: Call) -> None:
    with pytest.raises(ShardUnavailable, match="404"):
        await call(listener.remote(url=f"{listener.url}/elsewhere"), make_name(b"data"))


@each_call
async def test_call_raises_what_the_shard_behind_it_raises(listener: Listener, owned: FaultyShard, call: Call) -> None:
    owned.down = True
    with pytest.raises(ShardUnavailable, match="shard 7: made to fail"):
        await call(listener.remote(), make_name(b"data"))


REFUSED_CREDENTIALS = {
    "none": {"Authorization": ""},
    "no scheme": {"Authorization": TOKEN},
    "another scheme": {"Authorization": f"Bearer {TOKEN}"},
    "wrong token": {"Authorization": f"Holdfast {TOKEN[:-1]}x"},
    "longer token": {"Authorization": f"Holdfast {TOKEN}0"},
    "another purpose": {"Authorization": f"Holdfast {keys.derive(KEY, 'something-else')}"},
    "the key itself": {"Authorization": f"Holdfast {KEY.hex()}"},
    "a user's token": {"Authorization": "Bearer hf_user_" + "a" * 49},
    "a user's password": {"Authorization": "Basic YWRtaW46cGFzc3dvcmQ="},
    "odd bytes": {"Authorization": "Holdfast \u00e9\u20ac"},
}
ROUTES = {
    "calls": ("PUT", "/calls"),
    "stage": ("PUT", "/shards/{uid}/staged/{generation}"),
    "node": ("GET", "/node"),
    "no route": ("GET", "/nothing"),
}


async def ask(listener: Listener, route: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """Make one request to ``route`` and return status and body."""
    method, path = ROUTES[route]
    url = listener.url + "/internal/v1" + path.format(uid=uuid.uuid4(), generation=make_generation())
    async with listener.session.request(method, url, headers=headers) as answer:
        return answer.status, await answer.read()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("changes", REFUSED_CREDENTIALS.values(), ids=REFUSED_CREDENTIALS.keys())
async def test_s10_request_is_refused_without_a_word_when_its_token_is_wrong(
    listener: Listener, route: str, changes: dict[str, str]
) -> None:
    assert await ask(listener, route, {**credentials(**changes)}) == (401, b"")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("cluster", ["", "x", str(uuid.UUID(int=1)), str(CLUSTER).upper()])
async def test_s10_request_is_refused_when_it_is_meant_for_another_cluster(
    listener: Listener, route: str, cluster: str
) -> None:
    assert await ask(listener, route, {**credentials(**{"X-Holdfast-Cluster": cluster})}) == (403, b"")


@each_call
async def test_call_is_unavailable_when_the_owner_does_not_let_us_in(listener: Listener, call: Call) -> None:
    for changes in ({"token": "0" * 64}, {"cluster": uuid.uuid4()}):
        with pytest.raises(ShardUnavailable, match=r"status 40[13]"):
            await call(listener.remote(**changes), make_name(b"data"))


async def test_s12_request_is_let_in_by_each_key_that_is_accepted_and_by_no_other(owned: FaultyShard) -> None:
    new, gone = bytes(range(100, 132)), bytes(range(200, 232))
    async with run_listener(owned, accepted=[new, KEY]) as listener:
        for key, status in ((KEY, 200), (new, 200), (gone, 401), (b"", 401)):
            token = f"Holdfast {keys.derive(key, wire.TOKEN_PURPOSE)}"
            assert (await ask(listener, "node", {**credentials(Authorization=token)}))[0] == status


async def test_request_is_unavailable_while_the_node_has_not_joined(listener: Listener) -> None:
    listener.cluster = None
    with pytest.raises(ShardUnavailable, match="not joined"):
        await listener.remote().sizes([make_name(b"x")])


async def test_token_is_checked_before_the_body_is_sent(listener: Listener) -> None:
    host, port = listener.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PUT /internal/v1/calls HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n")
    async with asyncio.timeout(2):
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
        assert b"Connection: close\r\n" in await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def test_node_tells_who_it_is(listener: Listener) -> None:
    assert await listener.peer.identify() == PeerIdentity(NodeId("node-1"), INCARNATION)


async def test_peer_is_not_identified_when_it_does_not_let_us_in(listener: Listener) -> None:
    with pytest.raises(PeerError, match="401"):
        await listener.remote(token="0" * 64)._calls.peer.identify()


async def test_s10_only_internal_routes_are_served(listener: Listener) -> None:
    paths = {resource.canonical for resource in listener.app.router.resources()}
    assert paths == {
        "/internal/v1/node",
        "/internal/v1/calls",
        "/internal/v1/shards/{uid}/staged/{generation}",
    }
    for public in ("/artifactory/api/system/ping", "/metrics", "/ui/", "/"):
        async with listener.session.get(listener.url + public, headers=credentials()) as answer:
            assert answer.status == 404


@pytest.mark.parametrize("path", ["/staged/..%2fx", "/staged/{gen}", "/staged/*", "/staged/{gen}%00"])
async def test_s11_request_is_bad_when_an_id_is_not_strictly_one(listener: Listener, path: str) -> None:
    url = listener.path(path.format(gen=str(make_generation()).upper()))
    async with listener.session.put(URL(url, encoded=True), headers=credentials()) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"] == "bad_request"


@pytest.mark.parametrize(
    "upgrade", [{}, {"Connection": "Upgrade", "Upgrade": "holdfast-calls-9"}], ids=["none", "other"]
)
async def test_connection_that_is_not_upgraded_to_calls_is_refused(listener: Listener, upgrade: dict[str, str]) -> None:
    async with listener.session.put(
        f"{listener.url}/internal/v1/calls", headers={**credentials(), **upgrade}
    ) as answer:
        assert answer.status == 400
        assert "must be upgraded to holdfast-calls-1" in (await answer.json())["message"]


async def test_sizes_of_more_names_than_one_request_takes_are_asked_in_several(shard: Shard) -> None:
    names = [make_name(n.to_bytes(2)) for n in range(2 * calls.SIZES_NAMES_MAX + 1)]
    await shard.put(names[-1], b"abc")
    assert await shard.sizes(names) == [None] * (len(names) - 1) + [3]


async def test_put_is_refused_when_bytes_changed_on_the_way(listener: Listener, shard_root: Path) -> None:
    data = os.urandom(1000)
    put = calls.put_request(make_name(data), data)
    with pytest.raises(ReplicaCorrupt):
        await listener.shard_calls().call(put._replace(data=data[:-1] + b"x"))
    assert replica_files(shard_root) == []
    await listener.shard_calls().call(put)
    assert [path.read_bytes() for path in replica_files(shard_root)] == [data]


async def test_put_raises_corrupt_when_the_owner_computes_another_digest(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharding.calls.xxh3_64_digest", lambda data: os.urandom(8))
    with pytest.raises(ReplicaCorrupt):
        await listener.remote().put(make_name(b"data"), b"data")


async def test_put_given_up_by_the_peer_is_given_up_by_the_owner(
    listener: Listener, owned: FaultyShard, shard_root: Path
) -> None:
    owned.plan(Operation.PUT, Fault.STALL)
    name = make_name(b"data")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await listener.remote().put(name, b"data")
    await asyncio.sleep(0.05)
    owned.release()
    await asyncio.sleep(0.2)  # as long as a put takes that goes on all the same
    assert await listener.remote().sizes([name]) == [None]
    assert replica_files(shard_root) == []


async def test_long_read_is_made_of_several(shard: Shard) -> None:
    data = os.urandom(2 * calls.READ_BYTES_MAX + 12_345)
    name, staged = await stage_all(shard, data)
    await staged.commit(name.sha256, b"".join(digests(data)))
    assert await shard.read(name, size=len(data), offset=0, length=len(data)) == data
    assert await shard.read(name, size=len(data), offset=5, length=len(data) - 9) == data[5:-4]


def digests(data: bytes) -> list[bytes]:
    return [
        bytes.fromhex(xxh3_64_hexdigest(data[start : start + BLOCK_BYTES]))
        for start in range(0, len(data), BLOCK_BYTES)
    ]


async def test_read_is_not_believed_when_it_is_shorter_or_longer_than_asked(
    listener: Listener, owned: FaultyShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for answer in (b"abc", b"abcde"):

        async def read(*_: object, answer: bytes = answer, **__: object) -> Buffer:
            return answer

        monkeypatch.setattr(owned, "read", read)
        with pytest.raises(ShardUnavailable):
            await listener.remote().read(make_name(b"data"), size=4, offset=0, length=4)


async def test_request_id_travels_to_the_shard_and_back(listener: Listener, owned: FaultyShard) -> None:
    seen: list[str] = []

    async def sizes(names: object) -> list[int | None]:
        seen.append(request_id.get())
        return [None]

    owned.sizes = sizes  # type: ignore[method-assign]
    for given in ("from-the-edge.1", "not fit\tfor a log", ""):
        await listener.remote(headers=lambda given=given: {"X-Request-Id": given}).sizes([make_name(b"x")])
    await listener.remote().sizes([make_name(b"x")])
    assert seen == ["from-the-edge.1", "-", "-", "-"]
    async with listener.session.get(
        f"{listener.url}/internal/v1/node", headers={**credentials(), "X-Request-Id": "abc"}
    ) as answer:
        assert answer.headers["X-Request-Id"] == "abc"
