"""What one end of a connection has to send: gathered while the event loop turns once, and written in one go.

A transport hands every write to the kernel at once, which costs more than a small message does.
"""

from __future__ import annotations

import asyncio

from sharding.model import Buffer

JOINED_BYTES_MAX = 64 << 10
"""Up to here pieces are copied into one; beyond, the kernel gathers them from where they are."""


class Outbox:
    """The messages on their way to ``transport``, whose protocol passes on ``pause_writing`` and ``resume_writing``."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._pieces: list[Buffer] = []
        self._bytes = 0
        self._flushes = False
        self._writable = asyncio.Event()
        self._writable.set()
        self.is_writable = True
        """Whether the peer keeps up with what it is sent."""

    async def until_writable(self) -> None:
        """Return when the peer has taken enough, or nothing is sent any more."""
        await self._writable.wait()

    def put(self, start: bytes, data: Buffer = b"", *, alone: bool = False) -> None:
        """Send a message: at once if it is ``alone``, with nothing to follow it soon, or if many bytes are gathered."""
        self._pieces.append(start)
        if data:
            self._pieces.append(data)
        self._bytes += len(start) + len(data)
        if alone or self._bytes > JOINED_BYTES_MAX:
            self.flush()
        elif not self._flushes:
            self._flushes = True
            self._loop.call_soon(self._flush_soon)

    def flush(self) -> None:
        """Write what was gathered; a connection that ends takes it no more."""
        if not self._pieces:
            return
        pieces, self._pieces = self._pieces, []
        joined, self._bytes = self._bytes <= JOINED_BYTES_MAX, 0
        if self._transport.is_closing():
            return
        if joined:
            self._transport.write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)

    def _flush_soon(self) -> None:
        self._flushes = False
        self.flush()

    def pause(self) -> None:
        """The transport has more than it can pass on."""
        self.is_writable = False
        self._writable.clear()

    def resume(self) -> None:
        """The transport has room again, or will never have."""
        self.is_writable = True
        self._writable.set()
