"""Taking an HTTP connection over for another protocol (RFC 9110, section 7.8), and reading bounded answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from yarl import URL

from sharding import wire


class LinkBroken(Exception):
    """The connection ended, or cannot be used; whether what was under way was done is not known."""


class UpgradeRefused(Exception):
    """The peer answered something else than that it upgrades the connection."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body


@dataclass(frozen=True, slots=True)
class Upgraded:
    """A connection that was upgraded; ``http``, the protocol that had it before, is to hear of its end."""

    transport: asyncio.Transport
    http: asyncio.Protocol
    response: aiohttp.ClientResponse

    def abort(self) -> None:
        """Break the connection, whatever is still on its way."""
        self.transport.abort()
        self.response.close()


async def upgrade(
    session: aiohttp.ClientSession, url: URL, headers: Mapping[str, str], protocol: str, name: str | None = None
) -> Upgraded:
    """Upgrade a connection of ``session``, with TLS to whom a certificate gives ``name``.

    Raises ``UpgradeRefused``, ``LinkBroken``, and as the session does.
    """
    asked = {**headers, "Connection": "Upgrade", "Upgrade": protocol}
    response = await session.put(url, headers=asked, allow_redirects=False, server_hostname=name)
    try:
        if response.status != 101:
            raise UpgradeRefused(response.status, await read_body(response, wire.ERROR_BODY_BYTES_MAX))
        connection = response.connection
        if (
            response.headers.get("Upgrade") != protocol
            or connection is None
            or connection.transport is None
            or connection.protocol is None
        ):
            raise LinkBroken("its owner did not upgrade the connection as it was asked to")
        return Upgraded(connection.transport, connection.protocol, response)
    except BaseException:
        response.close()
        raise


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
