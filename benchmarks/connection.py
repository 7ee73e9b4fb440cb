"""A keep-alive HTTP/1.1 client that costs little, so that the machine's time goes to the servers it measures.

It sends a body block by block, hands a received body on as it comes, and knows Content-Length and chunks.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

HEAD_BYTES_MAX = 16 << 10
BUFFER_BYTES = 1 << 20
JOINED_BYTES_MAX = 128 << 10
BODILESS = (204, 304)


class ConnectionBroken(Exception):
    """The server hung up, or said something this client does not understand."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer; the names in ``headers`` are in lower case."""

    status: int
    headers: dict[str, str]

    @property
    def length(self) -> int:
        """Raises ``ConnectionBroken`` where the body's length is not told."""
        try:
            return int(self.headers["content-length"])
        except (KeyError, ValueError):
            raise ConnectionBroken(f"an answer of {self.status} without a length") from None


def drop(_: memoryview) -> None:
    """Take a body and do nothing with it."""


class Connection:
    """One connection; after any error it is of no more use. Close it, or use it as a context manager."""

    def __init__(self, host: str, port: int, authorization: str) -> None:
        self._address = (host, port)
        proof = f"Authorization: {authorization}\r\n" if authorization else ""
        self._fixed = f"Host: {host}:{port}\r\n{proof}"
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

    async def send(self, method: str, path: str, size: int, blocks: Iterable[bytes], headers: str = "") -> Head:
        """Send a body of ``size`` bytes and return the head of the answer, whose body is dropped."""
        pending = self._head(method, path, f"Content-Length: {size}\r\n{headers}")
        for block in blocks:
            # A small body goes out with its head: two segments would be two wake-ups of the server.
            if len(pending) + len(block) > JOINED_BYTES_MAX:
                await self._loop.sock_sendall(self._socket, pending)
                pending = block
            else:
                pending += block
        await self._loop.sock_sendall(self._socket, pending)
        return await self._receive(drop)

    async def ask(self, method: str, path: str, take: Callable[[memoryview], object] = drop, headers: str = "") -> Head:
        """Ask for ``path`` without a body, give the bytes that come to ``take``, and return the head of the answer."""
        await self._loop.sock_sendall(self._socket, self._head(method, path, headers))
        return await self._receive(take, has_body=method != "HEAD")

    def _head(self, method: str, path: str, extra: str = "") -> bytes:
        return f"{method} {path} HTTP/1.1\r\n{self._fixed}{extra}\r\n".encode()

    async def _receive(self, take: Callable[[memoryview], object], *, has_body: bool = True) -> Head:
        filled, end = 0, -1
        while end < 0:
            if filled > HEAD_BYTES_MAX:
                raise ConnectionBroken("an endless head")
            filled += await self._receive_into(self._buffer[filled:])
            end = bytes(self._buffer[: min(filled, HEAD_BYTES_MAX)]).find(b"\r\n\r\n")
        head = parse_head(bytes(self._buffer[:end]))
        body = self._buffer[end + 4 : filled]
        if not has_body or head.status in BODILESS:
            if body:
                raise ConnectionBroken("a body where none belongs")
        elif head.headers.get("transfer-encoding", "").lower() == "chunked":
            await self._receive_chunks(bytes(body), take)
        else:
            await self._receive_rest(head.length, body, take)
        return head

    async def _receive_rest(self, length: int, body: memoryview, take: Callable[[memoryview], object]) -> None:
        left = length - len(body)
        if left < 0:
            raise ConnectionBroken("more bytes than announced")
        take(body)
        while left:
            count = await self._receive_into(self._buffer[: min(left, BUFFER_BYTES)])
            take(self._buffer[:count])
            left -= count

    async def _receive_chunks(self, pending: bytes, take: Callable[[memoryview], object]) -> None:
        while True:
            while (end := pending.find(b"\r\n")) < 0:
                pending += await self._receive_some()
            size = parse_chunk_size(pending[:end])
            while len(pending) < end + size + 4:
                pending += await self._receive_some()
            take(memoryview(pending)[end + 2 : end + 2 + size])
            pending = pending[end + size + 4 :]
            if not size:
                return

    async def _receive_some(self) -> bytes:
        return bytes(self._buffer[: await self._receive_into(self._buffer)])

    async def _receive_into(self, room: memoryview) -> int:
        count = await self._loop.sock_recv_into(self._socket, room)
        if not count:
            raise ConnectionBroken("the server closed the connection")
        return count


def parse_head(head: bytes) -> Head:
    """Return what the head of an answer says. Raises ``ConnectionBroken``."""
    first, *rest = head.decode("latin-1").split("\r\n")
    try:
        status = int(first[9:12])
    except ValueError:
        raise ConnectionBroken(f"no HTTP: {first!r}") from None
    pairs = (line.split(":", 1) for line in rest if ":" in line)
    return Head(status, {name.strip().lower(): value.strip() for name, value in pairs})


def parse_chunk_size(line: bytes) -> int:
    """Return the length of a chunk (RFC 9112, section 7.1). Raises ``ConnectionBroken``."""
    try:
        return int(line.split(b";", 1)[0], 16)
    except ValueError:
        raise ConnectionBroken(f"no length of a chunk: {line[:40]!r}") from None
