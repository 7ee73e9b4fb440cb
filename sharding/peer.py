"""Another node's internal listener, as this node calls it: connections, credentials, and who is there."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from uuid import UUID

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

from sharding import calls, wire
from sharding.call_link import CallLink, CallLinks, CallRefused
from sharding.deadlines import Deadlines
from sharding.errors import ShardError, ShardRefused, ShardUnavailable
from sharding.model import BLOCK_BYTES, Buffer, NodeId, ShardId
from sharding.upgrade import LinkBroken, Upgraded, UpgradeRefused, read_body, upgrade

IDENTITY_BYTES_MAX = 4 << 10
IDLE_CONNECTION_SECONDS = 30.0
"""Shorter than the listener keeps an idle connection, so that none is taken up while it is being closed."""

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


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

    With TLS, its certificate must name ``node``; ``caller``, this node, is to be named by the one that is shown there.
    ``headers`` gives headers for the call at hand, such as its request id. ``call_seconds`` bounds
    the answer to a small call, ``stall_seconds`` how long a staged upload may take no bytes,
    ``commit_seconds`` a commit.
    """

    url: str
    session: aiohttp.ClientSession
    token: str = field(repr=False)
    cluster: UUID
    node: NodeId | None = None
    caller: NodeId | None = None
    headers: Callable[[], Mapping[str, str]] = dict
    call_seconds: float = 10.0
    stall_seconds: float = 15.0
    commit_seconds: float = 60.0
    links: CallLinks = field(init=False, repr=False, compare=False)
    deadlines: Deadlines = field(init=False, repr=False, compare=False)
    _credentials: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "links", CallLinks(self._open_link))
        object.__setattr__(self, "deadlines", Deadlines(self.call_seconds))
        credentials = {
            wire.AUTHORIZATION: f"{wire.AUTHORIZATION_SCHEME} {self.token}",
            wire.CLUSTER_HEADER: str(self.cluster),
        }
        if self.caller is not None:
            credentials[wire.NODE_HEADER] = self.caller
        object.__setattr__(self, "_credentials", credentials)

    def all_headers(self) -> dict[str, str]:
        """Return the headers that every call carries."""
        return {**self._credentials, **self.headers()}

    @property
    def request_id(self) -> str:
        """The request id of the call at hand, empty where there is none."""
        return self.headers().get(wire.REQUEST_ID_HEADER, "")

    async def upgrade(self, path: str, protocol: str, headers: Mapping[str, str] = NO_HEADERS) -> Upgraded:
        """Upgrade a new connection at ``path``. Raises ``UpgradeRefused``, and what ``UNREACHABLE`` lists."""
        url = URL(f"{self.url}{wire.PREFIX}{path}", encoded=True)
        return await upgrade(self.session, url, {**self.all_headers(), **headers}, protocol, self.node)

    async def _open_link(self, gathered_bytes: int) -> CallLink:
        return CallLink(await self.upgrade("/calls", calls.UPGRADE), gathered_bytes)

    async def identify(self) -> PeerIdentity:
        """Return who is there. Raises ``PeerError``."""
        url = URL(f"{self.url}{wire.PREFIX}/node")
        try:
            async with self.session.get(
                url, headers=self.all_headers(), allow_redirects=False, server_hostname=self.node
            ) as response:
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


class TlsConnector(aiohttp.TCPConnector):
    """Connects with TLS, and not without: whoever wrote a peer's URL must not get to read what it is told."""

    async def connect(self, req: aiohttp.ClientRequest, *args: Any, **options: Any) -> Connection:
        """See ``BaseConnector.connect``."""
        if not req.is_ssl():
            raise aiohttp.ClientConnectionError(f"{req.url.origin()} has no TLS, which this node requires of its peers")
        return await super().connect(req, *args, **options)


def open_peer_session(
    *,
    call_seconds: float = 10.0,
    connect_seconds: float = 5.0,
    connections_per_peer_max: int = 1024,
    tls: ssl.SSLContext | None = None,
    tls_only: bool = False,
    connector: aiohttp.BaseConnector | None = None,
) -> aiohttp.ClientSession:
    """Return the session for all calls to all peers; close it, or use it as a context manager.

    A staged upload holds one connection for as long as its client takes, so the limit on connections
    is only a last bound; what a shard may cost is bounded by its guard. ``tls`` is for peers that have it,
    ``tls_only`` refuses others. ``connector`` reaches peers otherwise than by their address.
    """
    kind = TlsConnector if tls_only else aiohttp.TCPConnector
    return aiohttp.ClientSession(
        connector=connector
        or kind(
            limit=0,
            limit_per_host=connections_per_peer_max,
            keepalive_timeout=IDLE_CONNECTION_SECONDS,
            ssl=True if tls is None else tls,
        ),
        timeout=aiohttp.ClientTimeout(
            total=None, connect=call_seconds, sock_connect=connect_seconds, sock_read=call_seconds
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        read_bufsize=BLOCK_BYTES,
    )


UNREACHABLE = (LinkBroken, aiohttp.ClientError, OSError, UnicodeError)
"""What says that a peer was not reached, or broke off."""


class ShardCalls:
    """Calls that concern one shard of a peer: ``ShardError`` and nothing else comes out of them."""

    __slots__ = ("id", "peer", "uid")

    def __init__(self, id: ShardId, uid: UUID, peer: Peer) -> None:
        self.id = id
        self.uid = uid
        self.peer = peer

    async def call(self, request: calls.Request) -> Buffer:
        """Return the owner's answer. Raises the ``ShardError`` that any other end stands for."""
        peer = self.peer
        try:
            with peer.deadlines.begin():
                return await peer.links.call(calls.Call(self.uid, peer.request_id, request))
        except CallRefused as error:
            raise wire.parse_error(self.id, error.body) from None
        except UpgradeRefused as error:
            raise self.refused(error) from None
        except TimeoutError:
            raise ShardUnavailable(self.id, f"its owner did not answer within {peer.call_seconds} s") from None
        except UNREACHABLE as error:
            raise self.unreachable(error) from error
        except ValueError as error:
            raise ShardRefused(self.id, str(error)) from None

    async def order(self, request: calls.Request) -> None:
        """Return when the owner has done what it was told. Raises as ``call``."""
        if answer := await self.call(request):
            raise ShardUnavailable(self.id, f"its owner was not understood: {len(answer)} bytes where none belong")

    async def read(self, request: Callable[[int, int], calls.Request], offset: int, length: int) -> Buffer:
        """Return exactly ``length`` bytes from ``offset``, by as many ``request(offset, length)`` as it takes."""
        if length <= calls.READ_BYTES_MAX:
            data = await self.call(request(offset, length))
            if len(data) != length:
                raise ShardUnavailable(self.id, f"its owner sent {len(data)} bytes of {length}")
            return data
        end = offset + length
        starts = range(offset, end, calls.READ_BYTES_MAX)
        return b"".join([await self.read(request, start, min(calls.READ_BYTES_MAX, end - start)) for start in starts])

    def refused(self, error: UpgradeRefused) -> ShardError:
        """Return what the refusal of a connection means for the shard."""
        return wire.parse_error(self.id, error.body, error.status)

    def unreachable(self, error: Exception) -> ShardUnavailable:
        """Return what ``error`` of the network means for the shard."""
        return ShardUnavailable(self.id, f"its owner was not reached: {str(error) or type(error).__name__}")
