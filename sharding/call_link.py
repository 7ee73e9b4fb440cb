"""The caller's end of the connections over which a node calls the shards of a peer (``calls.py``)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count

from sharding.calls import (
    HEAD,
    SMALL_MESSAGE_BYTES,
    Call,
    CallError,
    Kind,
    Message,
    MessageReceiver,
    request_message,
)
from sharding.model import Buffer
from sharding.upgrade import LinkBroken, Upgraded

SILENCE_SECONDS = 5.0
"""A connection on which a call was given up after so long, and nothing at all came meanwhile, is broken off."""

NUMBERS = 1 << 32


class CallRefused(Exception):
    """The owner refused a call; ``body`` says why, in the words of ``wire.Refusal``."""

    def __init__(self, body: bytes) -> None:
        super().__init__("the owner refused")
        self.body = body


class CallLink(asyncio.BufferedProtocol):
    """One connection, shared by any number of calls at once."""

    def __init__(self, upgraded: Upgraded) -> None:
        self._upgraded = upgraded
        self._transport = upgraded.transport
        self._loop = asyncio.get_running_loop()
        self._receiver = MessageReceiver()
        self._numbers = count()
        self._answers: dict[int, asyncio.Future[Message]] = {}
        self._heard_at = self._loop.time()
        self._writable = asyncio.Event()
        self._writable.set()
        self.is_open = True
        self._transport.set_protocol(self)

    async def call(self, call: Call) -> Buffer:
        """Return what the owner answers. Raises ``CallRefused``, ``LinkBroken``.

        A call that is cancelled is given up by the owner too.
        """
        number, began = next(self._numbers) % NUMBERS, self._loop.time()
        answer = self._answers[number] = self._loop.create_future()
        try:
            await self._send(*request_message(number, call))
            message: Message = await answer
        except asyncio.CancelledError:
            self._give_up(number, began)
            raise
        finally:
            del self._answers[number]
        if message.kind == Kind.REFUSED:
            raise CallRefused(bytes(message.body))
        return message.body

    async def _send(self, start: bytes, data: Buffer) -> None:
        # While the peer takes nothing, callers wait here rather than fill the memory.
        while self.is_open and not self._writable.is_set():
            await self._writable.wait()
        if not self.is_open:
            raise LinkBroken("the connection is closed")
        if len(start) + len(data) <= SMALL_MESSAGE_BYTES:
            self._transport.write(b"".join((start, data)))
        else:
            self._transport.write(start)
            self._transport.write(data)

    def _give_up(self, number: int, began: float) -> None:
        if not self.is_open:
            return
        if self._heard_at <= began and self._loop.time() - began >= SILENCE_SECONDS:
            self.close("nothing came from the peer any more")
        else:
            self._transport.write(HEAD.pack(number, Kind.CANCEL, 0))

    def close(self, why: str = "closed") -> None:
        """Break the connection; calls under way raise ``LinkBroken``."""
        self._end(why)
        self._upgraded.abort()

    def _end(self, why: str) -> None:
        self.is_open = False
        self._writable.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(LinkBroken(why))
                answer.exception()  # whoever waited for it may have been cancelled

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._receiver.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._heard_at = self._loop.time()
        try:
            messages = self._receiver.advance(nbytes)
        except CallError as error:
            self.close(str(error))
            return
        for message in messages:
            answer = self._answers.get(message.number)
            if answer is not None and not answer.done():  # else it was cancelled
                answer.set_result(message)

    def eof_received(self) -> None:
        self.close("the peer ended the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(str(exc or "the peer ended the connection"))
        self._upgraded.http.connection_lost(exc)
        self._upgraded.response.close()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()


class CallLinks:
    """The connections to one peer, opened when first needed: one for small calls, one for those with many bytes.

    Small calls then never wait behind a megabyte.
    """

    def __init__(self, open_link: Callable[[], Awaitable[CallLink]]) -> None:
        self._open_link = open_link
        self._small = LazyLink()
        self._large = LazyLink()

    async def call(self, call: Call) -> Buffer:
        """Make one call. Raises as ``CallLink.call``, and what opening a connection raises."""
        lazy = self._large if call.bytes_held > SMALL_MESSAGE_BYTES else self._small
        link = lazy.link
        if link is None or not link.is_open:
            link = await lazy.open(self._open_link)
        return await link.call(call)


class LazyLink:
    """A connection that is opened once, by whoever comes first, and again when it has ended."""

    def __init__(self) -> None:
        self.link: CallLink | None = None
        self._turn = asyncio.Lock()

    async def open(self, open_link: Callable[[], Awaitable[CallLink]]) -> CallLink:
        """Return an open connection."""
        async with self._turn:
            if self.link is None or not self.link.is_open:
                self.link = await open_link()
            return self.link
