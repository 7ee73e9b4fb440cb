"""A keep-alive HTTP/1.1 client that costs little, so that the machine's time goes to the servers it measures.

It sends a body block by block, hands a received body on as it comes, and knows Content-Length alone.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Self

HEAD_BYTES_MAX = 16 << 10
BUFFER_BYTES = 1 << 20
JOINED_BYTES_MAX = 128 << 10


class ConnectionBroken(Exception):
    """The server hung up, or said something this client does not understand."""


class Connection:
    """One connection; after any error it is of no more use. Close it, or use it as a context manager."""

    def __init__(self, host: str, port: int, authorization: str) -> None:
        self._address = (host, port)
        self._fixed = f"Host: {host}:{port}\r\nAuthorization: {authorization}\r\n"
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        await self._loop.sock_connect(self._socket, self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()

    async def put(self, path: str, size: int, blocks: Iterable[bytes]) -> int:
        """Send a body of ``size`` bytes and return the status; the body of the answer is dropped."""
        pending = self._head("PUT", path, f"Content-Length: {size}\r\n")
        for block in blocks:
            # A small body goes out with its head: two segments would be two wake-ups of the server.
            if len(pending) + len(block) > JOINED_BYTES_MAX:
                await self._loop.sock_sendall(self._socket, pending)
                pending = block
            else:
                pending += block
        await self._loop.sock_sendall(self._socket, pending)
        return await self._receive(lambda piece: None)

    async def get(self, path: str, take: Callable[[memoryview], None]) -> int:
        """Ask for ``path``, give its bytes to ``take`` as they come, and return the status."""
        await self._loop.sock_sendall(self._socket, self._head("GET", path))
        return await self._receive(take)

    def _head(self, method: str, path: str, extra: str = "") -> bytes:
        return f"{method} {path} HTTP/1.1\r\n{self._fixed}{extra}\r\n".encode()

    async def _receive(self, take: Callable[[memoryview], None]) -> int:
        filled, end = 0, -1
        while end < 0:
            if filled > HEAD_BYTES_MAX:
                raise ConnectionBroken("an endless head")
            filled += await self._receive_into(self._buffer[filled:])
            end = bytes(self._buffer[: min(filled, HEAD_BYTES_MAX)]).find(b"\r\n\r\n")
        status, length = parse_head(bytes(self._buffer[:end]))
        body = self._buffer[end + 4 : filled]
        left = length - len(body)
        if left < 0:
            raise ConnectionBroken("more bytes than announced")
        take(body)
        while left:
            count = await self._receive_into(self._buffer[: min(left, BUFFER_BYTES)])
            take(self._buffer[:count])
            left -= count
        return status

    async def _receive_into(self, room: memoryview) -> int:
        count = await self._loop.sock_recv_into(self._socket, room)
        if not count:
            raise ConnectionBroken("the server closed the connection")
        return count


def parse_head(head: bytes) -> tuple[int, int]:
    """Return status and Content-Length of an answer. Raises ``ConnectionBroken``."""
    first, *rest = head.split(b"\r\n")
    lengths = [line[15:] for line in rest if line[:15].lower() == b"content-length:"]
    try:
        return int(first[9:12]), int(lengths[0])
    except (ValueError, IndexError):
        raise ConnectionBroken(f"an answer without a length: {first!r}") from None
