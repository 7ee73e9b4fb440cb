"""Another node's internal listener, as this node calls it: connections, credentials, and who is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

import aiohttp
from yarl import URL

from sharding import wire
from sharding.errors import ShardError, ShardUnavailable
from sharding.model import BLOCK_BYTES, Buffer, NodeId, ShardId

IDENTITY_BYTES_MAX = 4 << 10
IDLE_CONNECTION_SECONDS = 30.0
"""Shorter than the listener keeps an idle connection, so that none is taken up while it is being closed."""


class PeerError(Exception):
    """A peer was not reached, or did not answer as a node of this cluster."""


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who answers at an address; ``incarnation`` changes with every start."""

    node: NodeId
    incarnation: UUID


@dataclass(frozen=True, slots=True)
class Peer:
    """One other node and how to call it.

    ``headers`` gives headers for the call at hand, such as its request id. ``call_seconds`` bounds
    the answer to a small call, ``stall_seconds`` how long a staged upload may take no bytes,
    ``commit_seconds`` a commit.
    """

    url: str
    session: aiohttp.ClientSession
    token: str = field(repr=False)
    cluster: UUID
    headers: Callable[[], Mapping[str, str]] = dict
    call_seconds: float = 10.0
    stall_seconds: float = 15.0
    commit_seconds: float = 60.0
    _credentials: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        credentials = {
            wire.AUTHORIZATION: f"{wire.AUTHORIZATION_SCHEME} {self.token}",
            wire.CLUSTER_HEADER: str(self.cluster),
        }
        object.__setattr__(self, "_credentials", credentials)

    def all_headers(self) -> dict[str, str]:
        """Return the headers that every call carries."""
        return {**self._credentials, **self.headers()}

    async def identify(self) -> PeerIdentity:
        """Return who is there. Raises ``PeerError``."""
        url = URL(f"{self.url}{wire.PREFIX}/node")
        try:
            async with self.session.get(url, headers=self.all_headers(), allow_redirects=False) as response:
                body = await read_body(response, IDENTITY_BYTES_MAX)
        except (aiohttp.ClientError, OSError) as error:
            raise PeerError(f"{self.url} was not reached: {str(error) or type(error).__name__}") from error
        if response.status != 200:
            raise PeerError(f"{self.url} answered {response.status}")
        try:
            document = json.loads(body)
            return PeerIdentity(NodeId(str(document["node"])), wire.parse_uuid(document["incarnation"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise PeerError(f"{self.url} answered something else than a node does") from None


def open_peer_session(
    *, call_seconds: float = 10.0, connect_seconds: float = 5.0, connections_per_peer_max: int = 1024
) -> aiohttp.ClientSession:
    """Return the session for all calls to all peers; close it, or use it as a context manager.

    A staged upload holds one connection for as long as its client takes, so the limit on connections
    is only a last bound; what a shard may cost is bounded by its guard.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, limit_per_host=connections_per_peer_max, keepalive_timeout=IDLE_CONNECTION_SECONDS
        ),
        timeout=aiohttp.ClientTimeout(
            total=None, connect=call_seconds, sock_connect=connect_seconds, sock_read=call_seconds
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        read_bufsize=BLOCK_BYTES,
    )


class ShardCalls:
    """Calls that concern one shard of a peer: HTTP on the outside, ``ShardError`` on the inside."""

    __slots__ = ("id", "peer", "root")

    def __init__(self, id: ShardId, uid: UUID, peer: Peer) -> None:
        self.id = id
        self.peer = peer
        self.root = f"{peer.url}{wire.PREFIX}/shards/{uid}"

    def url(self, path: str) -> URL:
        """Return the URL of ``path``, which needs no quoting."""
        return URL(self.root + path, encoded=True)

    async def call(
        self,
        method: str,
        path: str,
        expected_status: int,
        *,
        data: Buffer | None = None,
        headers: Mapping[str, str] | None = None,
        answer_bytes_max: int = 0,
    ) -> bytes:
        """Return the body of the answer with ``expected_status``, at most ``answer_bytes_max``.

        Raises the ``ShardError`` that any other answer stands for.
        """
        try:
            async with self.peer.session.request(
                method,
                self.url(path),
                data=data,
                headers=headers or self.peer.all_headers(),
                allow_redirects=False,
            ) as response:
                if response.status == expected_status:
                    return await read_body(response, answer_bytes_max)
                raise await self.error_of(response)
        except (aiohttp.ClientError, OSError) as error:
            raise self.unreachable(error) from error

    async def read(self, path: str, query: str, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``offset`` of what ``path`` names, in as many calls as it takes."""
        if length <= wire.READ_BYTES_MAX:
            data = await self.call(
                "GET", f"{path}?{query}offset={offset}&length={length}", 200, answer_bytes_max=length
            )
            if len(data) != length:
                raise ShardUnavailable(self.id, f"its owner sent {len(data)} bytes of {length}")
            return data
        end = offset + length
        starts = range(offset, end, wire.READ_BYTES_MAX)
        return b"".join(
            [await self.read(path, query, start, min(wire.READ_BYTES_MAX, end - start)) for start in starts]
        )

    async def error_of(self, response: aiohttp.ClientResponse) -> ShardError:
        """Return the error that an answer stands for."""
        return wire.parse_error(self.id, await read_body(response, wire.ERROR_BODY_BYTES_MAX), response.status)

    def unreachable(self, error: Exception) -> ShardUnavailable:
        """Return what ``error`` of the network means for the shard."""
        return ShardUnavailable(self.id, f"its owner was not reached: {str(error) or type(error).__name__}")


async def read_body(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """Return the body of an answer. Raises ``aiohttp.ClientPayloadError`` for one longer than ``bytes_max``."""
    pieces: list[bytes] = []
    left = bytes_max
    while piece := (await response.content.readchunk())[0]:
        pieces.append(piece)
        left -= len(piece)
        if left < 0:
            raise aiohttp.ClientPayloadError(f"an answer of more than {bytes_max} bytes")
    return b"".join(pieces)
