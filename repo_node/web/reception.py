"""Long bodies straight from the socket into blocks: what aiohttp would cut in pieces, and copy three times.

aiohttp reads the head, and whatever of the body came with it. Then the connection belongs to a ``Reception``, until the
body has come or its reader gives up, and goes back to aiohttp.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from aiohttp import web


class Lender(Protocol):
    """A connection's own protocol, which lends it for the length of a body."""

    @property
    def is_held_up(self) -> bool:
        """Whether something has come that it keeps for later."""
        ...

    def take_over(self, borrower: asyncio.BaseProtocol) -> None:
        """Let ``borrower`` have what comes on the connection."""
        ...

    def take_back(self, *, body_is_read: bool) -> None:
        """Go on reading the connection: behind the body, or in the middle of it, to drop the rest."""
        ...


class Reception(asyncio.BufferedProtocol):
    """The rest of a body of known length. Belongs to one task: ``fill`` any number of times, then ``close``."""

    def __init__(self, request: web.Request, left: int) -> None:
        assert request.transport is not None
        self.left = left
        """Bytes of the body that have not come yet."""
        self.filled = 0
        """Bytes that have come since ``fill`` was called."""
        self._transport = request.transport
        self._http = request.protocol
        self._content = request.content
        self._lender = cast(Lender, request.protocol)
        self._room = memoryview(b"")
        self._full: asyncio.Future[None] | None = None
        self._is_lost = False
        self._transport.pause_reading()
        self._lender.take_over(self)

    def fill(self, room: memoryview) -> asyncio.Future[None]:
        """Receive ``room``, at most ``left`` bytes, and return what is done when it is full.

        The future raises ``ConnectionResetError`` when the client goes before that.
        """
        self._room, self.filled = room, 0
        self._full = asyncio.get_running_loop().create_future()
        if self._is_lost:
            self._end(ConnectionResetError("the client is gone"))
        else:
            self._transport.resume_reading()
        return self._full

    def close(self) -> None:
        """Give the connection back."""
        if self._full is not None:
            self._full.cancel()
        self._room = memoryview(b"")
        if not self._is_lost:
            if not self.left:
                self._content.feed_eof()
            self._lender.take_back(body_is_read=not self.left)
            self._transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room[self.filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self.filled += nbytes
        self.left -= nbytes
        if self.filled == len(self._room):
            # Nothing may come while there is no room for it. Who asked for it lets it go when it likes.
            self._transport.pause_reading()
            self._room = memoryview(b"")
            self._end(None)

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._end(ConnectionResetError("the client is gone"))
        self._http.connection_lost(exc)

    def _end(self, error: Exception | None) -> None:
        if self._full is None or self._full.done():
            return
        if error is None:
            self._full.set_result(None)
        else:
            self._full.set_exception(error)
