"""A proxy between a node and Postgres that loses the answers to chosen statements."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

PIECE_BYTES = 65_536


class CuttingProxy:
    """Forwards everything, until a request carries the chosen statement: then the connection is cut.

    The statement reaches the server and is executed there; its answer never comes back.
    """

    def __init__(self, dsn: str) -> None:
        self._target = urlsplit(dsn)
        self._statement = b""
        self._left = 0
        self.lost = 0
        self.dsn = ""

    def lose_answers_to(self, statement: bytes, count: int) -> None:
        """Lose the next ``count`` answers to executions of ``statement``, told by its text or by its name."""
        self._statement, self._left = statement, count

    @classmethod
    @asynccontextmanager
    async def before(cls, dsn: str) -> AsyncIterator[CuttingProxy]:
        proxy = cls(dsn)
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        credentials = proxy._target.netloc.rpartition("@")[0]
        proxy.dsn = urlunsplit(proxy._target._replace(netloc=f"{credentials}@127.0.0.1:{port}"))
        try:
            yield proxy
        finally:
            server.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        link = Link(self, writer)
        await asyncio.gather(
            link.forward_requests(reader, upstream_writer),
            link.forward_answers(upstream_reader),
            return_exceptions=True,
        )
        for end in (writer, upstream_writer):
            end.close()

    def takes(self, request: bytes, prepared: set[bytes]) -> bool:
        """Say whether the answer to ``request`` is to be lost."""
        if self._left <= 0 or not is_execution_of(request, self._statement, prepared):
            return False
        self._left -= 1
        self.lost += 1
        return True


def is_execution_of(request: bytes, statement: bytes, prepared: set[bytes]) -> bool:
    """Say whether ``request`` runs ``statement``: it binds ('B') a name that was parsed ('P') with that text."""
    return any(message[:1] == b"B" and name in message for message in messages(request) for name in prepared)


def messages(data: bytes) -> list[bytes]:
    """Split a piece of the frontend protocol into its messages, as far as they are whole."""
    found = []
    while len(data) >= 5:
        length = 1 + int.from_bytes(data[1:5])
        found.append(data[:length])
        data = data[length:]
    return found


class Link:
    """One connection through the proxy."""

    def __init__(self, proxy: CuttingProxy, client: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = client
        self._prepared: set[bytes] = set()
        self._deaf = False

    async def forward_requests(self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(PIECE_BYTES):
                for message in messages(data):
                    if message[:1] == b"P" and b"commit_upload" in message:
                        self._prepared.add(message[5:].partition(b"\0")[0] + b"\0")
                if self._proxy.takes(data, self._prepared):
                    self._deaf = True
                upstream.write(data)
                await upstream.drain()
        upstream.close()

    async def forward_answers(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(PIECE_BYTES):
                if self._deaf:
                    break
                self._client.write(data)
                await self._client.drain()
        self._client.close()
