"""Processes of one node among themselves: who is answered, who is told the node's secret, and who has what is asked."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web

from repo_node.cluster.own_shards import Owner
from repo_node.workers import siblings
from repo_node.workers.exchange import own_user_only
from repo_node.workers.siblings import Siblings, SiblingSilent, address_of, listening_to_siblings, reaching_siblings
from sharding import wire
from sharding.calls import Call, ReadStaged
from sharding.errors import ShardUnavailable
from sharding.model import Buffer, Generation, NodeId, ShardId
from tests.repo_node.test_listeners import config_of

STRANGER_UID = 65_534
OWNER = Owner(uuid4(), NodeId("node-1"), uuid4())

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@contextmanager
def another_user() -> Iterator[None]:
    os.seteuid(STRANGER_UID)
    try:
        yield
    finally:
        os.seteuid(0)


@asynccontextmanager
async def greeting(listener: socket.socket) -> AsyncIterator[None]:
    """Serve as a sibling does, with nothing but a greeting."""

    async def greet(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"hello")

    app = web.Application(middlewares=[own_user_only])
    app.router.add_get(f"{wire.PREFIX}/greeting", greet)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        yield
    finally:
        await runner.cleanup()


async def test_a_sibling_of_the_same_user_is_answered(tmp_path: Path) -> None:
    with listening_to_siblings(OWNER, 1) as listener:
        async with greeting(listener), reaching_siblings(config_of(tmp_path, 2), OWNER, 0) as reached:
            assert await reached.get(1, "/greeting", 5) == b"hello"


@as_root
async def test_a_stranger_with_a_sibling_s_name_is_told_nothing(tmp_path: Path) -> None:
    with listening_to_siblings(OWNER, 1) as stranger:
        with another_user():
            stranger.listen()
        async with reaching_siblings(config_of(tmp_path, 2), OWNER, 0) as reached:
            with pytest.raises(SiblingSilent, match="of another user: 65534"):
                await reached.get(1, "/greeting", 5)
        connection, _ = stranger.accept()
        with connection:
            assert connection.recv(1) == b""


@as_root
async def test_a_stranger_that_connects_is_not_answered() -> None:
    with listening_to_siblings(OWNER, 1) as listener, socket.socket(socket.AF_UNIX) as stranger:
        async with greeting(listener):
            with another_user():
                stranger.connect(address_of(OWNER, 1))
            stranger.setblocking(False)
            reader, writer = await asyncio.open_unix_connection(sock=stranger)
            writer.write(f"GET {wire.PREFIX}/greeting HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert await reader.readline() == b"HTTP/1.1 403 Forbidden\r\n"
            writer.close()


# ---------------------------------------------------------------- who stages it


class Sibling:
    """Answers a call with ``answer``, after so many siblings have been asked as ``after``, or never."""

    asked = 0

    def __init__(self, answer: bytes | None, *, after: int | None = 0) -> None:
        self.answer = answer
        self.after = after
        self.ended = asyncio.Event()

    async def call(self) -> Buffer:
        Sibling.asked += 1
        try:
            while self.after is None or Sibling.asked < self.after:
                await asyncio.sleep(0.001)
        finally:
            self.ended.set()
        if self.answer is None:
            raise ShardUnavailable(ShardId(0), wire.NOT_STAGED)
        return self.answer


@pytest.fixture
def read_staged(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Calls:
        def __init__(self, _id: ShardId, _uid: object, peer: Sibling) -> None:
            self._peer = peer

        async def call(self, _request: object) -> Buffer:
            return await self._peer.call()

    monkeypatch.setattr(siblings, "ShardCalls", Calls)
    monkeypatch.setattr(Sibling, "asked", 0)
    call = Call(uuid4(), "", ReadStaged(Generation(uuid4()), 0, 1))

    async def read(*peers: Sibling) -> Buffer:
        async with asyncio.timeout(10):
            return await Siblings(dict(enumerate(peers, 1))).read_staged(call)  # type: ignore[arg-type]

    return read


async def test_a_sibling_that_does_not_answer_holds_up_nobody(read_staged: Any) -> None:
    frozen = Sibling(None, after=None)
    assert await read_staged(frozen, Sibling(None), Sibling(b"x", after=3)) == b"x"
    assert frozen.ended.is_set()


async def test_what_no_sibling_stages_is_refused(read_staged: Any) -> None:
    with pytest.raises(wire.Refusal, match=wire.NOT_STAGED):
        await read_staged(Sibling(None), Sibling(None))
