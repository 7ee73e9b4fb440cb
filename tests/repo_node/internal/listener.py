"""An internal listener on loopback, the peer that calls it, and a hand-made client that says anything."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
from aiohttp import web

from repo_node import keys
from repo_node.api.internal import internal_app
from sharding import calls, frames, wire
from sharding.calls import Message
from sharding.model import NodeId, ShardId
from sharding.peer import Peer, ShardCalls, open_peer_session
from sharding.remote import RemoteShard
from sharding.shard import Shard

KEY = bytes(range(32))
TOKEN = keys.derive(KEY, wire.TOKEN_PURPOSE)
CLUSTER = UUID("01890000-0000-7000-8000-00000000c105")
INCARNATION = UUID("01890000-0000-7000-8000-000000000001")
UID = UUID("01890000-0000-7000-8000-0000000000aa")
REMOTE_ID = ShardId(7)


@dataclass
class Listener:
    """A running listener and the one peer that calls it."""

    url: str
    peer: Peer
    shards: dict[UUID, Shard]
    cluster: UUID | None = CLUSTER
    app: web.Application = field(default_factory=web.Application)
    server: web.Server | None = None

    @property
    def connections(self) -> int:
        """How many connections the listener has."""
        return len(self.server.connections) if self.server is not None else 0

    @property
    def session(self) -> aiohttp.ClientSession:
        return self.peer.session

    def remote(self, uid: UUID = UID, **changes: Any) -> RemoteShard:
        """Return a shard of the listener as the peer sees it; ``changes`` are to the peer."""
        return RemoteShard(REMOTE_ID, uid, replace(self.peer, **changes) if changes else self.peer)

    def shard_calls(self, uid: UUID = UID) -> ShardCalls:
        """Return the calls to a shard, below the ``Shard`` that makes them."""
        return ShardCalls(REMOTE_ID, uid, self.peer)

    def path(self, rest: str, uid: UUID = UID) -> str:
        return f"{self.url}/internal/v1/shards/{uid}{rest}"

    @asynccontextmanager
    async def stream(self, generation: UUID | None = None) -> AsyncIterator[RawStream]:
        """Open an upgraded connection by hand."""
        host, port = self.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            stream = RawStream(reader, writer)
            await stream.upgrade(f"/shards/{UID}/staged/{generation or uuid.uuid4()}", frames.UPGRADE)
            yield stream
        finally:
            writer.transport.abort()

    @asynccontextmanager
    async def raw_calls(self) -> AsyncIterator[RawStream]:
        """Open a connection for calls by hand."""
        host, port = self.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            stream = RawStream(reader, writer)
            await stream.upgrade("/calls", calls.UPGRADE)
            yield stream
        finally:
            writer.transport.abort()


@dataclass
class RawStream:
    """One end of a connection, without the client of the product."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def upgrade(self, path: str, protocol: str) -> None:
        head = [
            f"PUT /internal/v1{path} HTTP/1.1",
            "Host: peer",
            "Content-Length: 0",
            "Connection: Upgrade",
            f"Upgrade: {protocol}",
            *(f"{name}: {value}" for name, value in credentials().items()),
        ]
        self.writer.write("\r\n".join([*head, "", ""]).encode())
        answer = await self.reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 "), answer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def pause_reading(self) -> None:
        """Take no more bytes from the other end."""
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]

    def resume_reading(self) -> None:
        """Take bytes again."""
        self.writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def answer(self) -> bytes:
        """Return the body of the answer frame."""
        _, length = frames.HEAD.unpack(await self.reader.readexactly(frames.HEAD.size))
        return await self.reader.readexactly(length)

    async def message(self) -> Message:
        """Return the next message on a connection for calls."""
        number, kind, length = calls.HEAD.unpack(await self.reader.readexactly(calls.HEAD.size))
        return Message(number, kind, await self.reader.readexactly(length))


def credentials(**changes: str) -> Mapping[str, str]:
    """Return the headers that let a peer in."""
    return {"Authorization": f"Holdfast {TOKEN}", "X-Holdfast-Cluster": str(CLUSTER)} | changes


@asynccontextmanager
async def run_listener(shard: Shard, **options: Any) -> AsyncIterator[Listener]:
    """Serve ``shard`` under ``UID`` as a node does, until the context ends."""
    async with open_peer_session() as session:
        peer = Peer("", session, TOKEN, CLUSTER)
        listener = Listener("", peer, {UID: shard})
        listener.app = internal_app(
            shards=lambda uid: listener.shards.get(uid),
            node_id=NodeId("node-1"),
            incarnation=INCARNATION,
            cluster_id=lambda: listener.cluster,
            **{"accepted": [KEY], **options},
        )
        runner = web.AppRunner(listener.app, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            listener.server = runner.server
            listener.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            listener.peer = replace(peer, url=listener.url)
            yield listener
        finally:
            await runner.cleanup()


async def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Return when ``condition`` holds; fail when it does not within ``seconds``."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def staged_files(shard_root: Path) -> list[str]:
    return os.listdir(shard_root / "tmp")
