"""How the processes of a node reach one another: over sockets in the kernel that have no path and leave nothing behind.

A peer's call may come to any process of a node. Nearly all that it asks for lies on disk, before all of them. What
does not is had from the sibling that has it, by the very calls that peers make. Anybody on the machine may take such
a name or connect to it: whom the kernel does not name as this process' own user is told nothing, and not answered.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.tracing import Trace
from yarl import URL

from repo_node import keys
from repo_node.cluster.own_shards import Owner
from repo_node.config import NodeConfig
from repo_node.logs import request_id
from sharding import wire
from sharding.calls import Call
from sharding.errors import ShardError
from sharding.model import Buffer, ShardId
from sharding.peer import Peer, ShardCalls, open_peer_session
from sharding.tasks import stop
from sharding.upgrade import read_body

MAIN = 0
"""The main process; workers count from 1."""

UNNAMED = ShardId(0)
"""Signs errors that nobody gets to see."""

ANSWER_BYTES_MAX = 32 << 20

CREDENTIALS = struct.Struct("3i")
"""Process, user and group at the other end: SO_PEERCRED of unix(7)."""


class SiblingSilent(Exception):
    """Another process of this node did not answer."""


class SiblingConnector(aiohttp.UnixConnector):
    """Connects by a name of the kernel's, which begins with a zero byte that uvloop takes for the name's end."""

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.setblocking(False)
        try:
            async with asyncio.timeout(timeout.sock_connect):
                await self._loop.sock_connect(end, self.path)
                check_user(end)
                _, protocol = await self._loop.create_unix_connection(self._factory, sock=end)
        except BaseException as error:
            end.close()
            if isinstance(error, OSError):
                raise aiohttp.ClientConnectionError(f"the process is not there: {error}") from error
            raise
        assert isinstance(protocol, ResponseHandler)
        return protocol


class Siblings:
    """The other processes of this node. Made by ``reaching_siblings``."""

    def __init__(self, peers: dict[int, Peer]) -> None:
        self._peers = peers

    async def read_staged(self, call: Call) -> Buffer:
        """Do a ``ReadStaged`` where the generation is being staged. Raises ``wire.Refusal``."""
        calls = (ShardCalls(UNNAMED, call.shard, peer).call(call.request) for peer in self._peers.values())
        asked = [asyncio.ensure_future(one) for one in calls]
        try:
            for answer in asyncio.as_completed(asked):
                with suppress(ShardError):
                    return await answer
        finally:
            await stop(asked)
        raise wire.Refusal(wire.UNAVAILABLE, wire.NOT_STAGED)

    async def get(self, process: int, path: str, seconds: float) -> bytes:
        """Return what a sibling answers. Raises ``SiblingSilent``."""
        peer = self._peers[process]
        url = URL(f"{peer.url}{wire.PREFIX}{path}")
        try:
            async with asyncio.timeout(seconds), peer.session.get(url, headers=peer.all_headers()) as response:
                body = await read_body(response, ANSWER_BYTES_MAX)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise SiblingSilent(f"{peer.url}: {str(error) or type(error).__name__}") from error
        if response.status != 200:
            raise SiblingSilent(f"{peer.url} answered {response.status}")
        return body


@asynccontextmanager
async def reaching_siblings(config: NodeConfig, owner: Owner, process: int) -> AsyncIterator[Siblings]:
    """Be able to reach every other process of the node; nothing is connected yet."""
    token = keys.derive(config.cluster_key, wire.TOKEN_PURPOSE)
    async with AsyncExitStack() as stack:
        peers = {}
        for other in others(config, process):
            connector = SiblingConnector(path=address_of(owner, other), limit=0)
            session = await stack.enter_async_context(open_peer_session(connector=connector))
            peers[other] = Peer(
                f"http://process-{other}",
                session,
                token,
                owner.cluster_id,
                headers=lambda: {wire.REQUEST_ID_HEADER: request_id.get()},
                call_seconds=config.internal.call_timeout_seconds,
            )
        yield Siblings(peers)


def others(config: NodeConfig, process: int) -> Iterable[int]:
    return (other for other in range(config.node.workers) if other != process)


def address_of(owner: Owner, process: int) -> str:
    """Return the name of a process' socket in the kernel's own namespace."""
    return f"\0holdfast-{owner.incarnation}-{process}"


def check_user(end: socket.socket) -> None:
    """Raise ``PermissionError`` unless the process at the other end is of this one's user."""
    _, user, _ = CREDENTIALS.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    if user != os.geteuid():
        raise PermissionError(f"it is of another user: {user}")


@contextmanager
def listening_to_siblings(owner: Owner, process: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        bound.bind(address_of(owner, process))
        bound.setblocking(False)
        yield bound
