"""The caller's end of the connections over which a node calls the shards of a peer (``calls.py``)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

from sharding.calls import (
    GATHERED_BYTES,
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
from sharding.outbox import Outbox
from sharding.upgrade import LinkBroken, Upgraded

SILENCE_SECONDS = 5.0
"""A connection on which nothing has come for so long, though something was asked, takes no more calls."""

KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)

NUMBERS = 1 << 32

GATHERED_OF_LARGE_BYTES = 4 << 10
"""On the connection of long answers, which are received where they stay."""


class CallRefused(Exception):
    """The owner refused a call; ``body`` says why, in the words of ``wire.Refusal``."""

    def __init__(self, body: bytes) -> None:
        super().__init__("the owner refused")
        self.body = body


class CallLink(asyncio.BufferedProtocol):
    """One connection, shared by any number of calls at once.

    ``is_open`` says whether new calls may go over it. One on which the peer has long been silent is retired: it takes
    no more calls, and ends with those that are under way. Of a long answer at most ``gathered_bytes`` are copied once
    they have come.
    """

    def __init__(self, upgraded: Upgraded, gathered_bytes: int = GATHERED_BYTES) -> None:
        self.is_open = True
        self._upgraded = upgraded
        self._transport = upgraded.transport
        self._loop = asyncio.get_running_loop()
        self._receiver = MessageReceiver(gathered_bytes)
        self._numbers = count()
        self._answers: dict[int, asyncio.Future[Message]] = {}
        self._unheard_since: float | None = None
        self._ended = False
        self._outbox = Outbox(self._transport)
        keep_alive(self._transport)
        self._transport.set_protocol(self)

    async def call(self, call: Call) -> Buffer:
        """Return what the owner answers. Raises ``CallRefused``, ``LinkBroken``.

        A call that is cancelled is given up by the owner too.
        """
        number = next(self._numbers) % NUMBERS
        start, data = request_message(number, call)
        answer = self._answers[number] = self._loop.create_future()
        try:
            # While the peer takes nothing, callers wait here rather than fill the memory.
            while not self._outbox.is_writable:
                await self._outbox.until_writable()
            self._send(start, data)
            message: Message = await answer
        except asyncio.CancelledError:
            self._give_up(number)
            raise
        finally:
            del self._answers[number]
            if not self.is_open and not self._answers:
                self.close()
        if message.kind == Kind.REFUSED:
            raise CallRefused(bytes(message.body))
        if message.kind != Kind.DONE:
            # A word of a later version, perhaps: it must not be taken for "done".
            self.close(f"an answer of kind {message.kind}")
            raise LinkBroken(f"its owner gave an answer of kind {message.kind}")
        return message.body

    def _send(self, start: bytes, data: Buffer = b"") -> None:
        if self._ended:
            raise LinkBroken("the connection is closed")
        if self._unheard_since is None:
            self._unheard_since = self._loop.time()
        self._outbox.put(start, data, alone=len(self._answers) == 1)

    def _give_up(self, number: int) -> None:
        if self._ended:
            return
        self._outbox.put(HEAD.pack(number, Kind.CANCEL, 0), alone=True)
        if self._unheard_since is not None and self._loop.time() - self._unheard_since >= SILENCE_SECONDS:
            self.is_open = False

    def close(self, why: str = "closed") -> None:
        """Break the connection; calls under way raise ``LinkBroken``."""
        self._end(why)
        self._upgraded.abort()

    def _end(self, why: str) -> None:
        self.is_open, self._ended = False, True
        self._outbox.resume()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(LinkBroken(why))
                answer.exception()  # whoever waited for it may have been cancelled

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._receiver.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._unheard_since = None
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
        self._outbox.pause()

    def resume_writing(self) -> None:
        self._outbox.resume()


def keep_alive(transport: asyncio.Transport) -> None:
    """Let the kernel notice a peer that has vanished: while the connection is idle, and while it takes no bytes."""
    opened = transport.get_extra_info("socket")
    for level, option, value in KEEP_ALIVE:
        with suppress(OSError):
            opened.setsockopt(level, option, value)


class CallLinks:
    """The connections to one peer, opened when first needed: one for small calls, one for those with many bytes.

    Small calls then never wait behind a megabyte.
    """

    def __init__(self, open_link: Callable[[int], Coroutine[Any, Any, CallLink]]) -> None:
        """``open_link`` opens a connection that gathers so many bytes."""
        self._small = LazyLink(partial(open_link, GATHERED_BYTES))
        self._large = LazyLink(partial(open_link, GATHERED_OF_LARGE_BYTES))

    async def call(self, call: Call) -> Buffer:
        """Make one call. Raises as ``CallLink.call``, and what opening a connection raises."""
        lazy = self._large if call.bytes_held > SMALL_MESSAGE_BYTES else self._small
        link = lazy.link
        if link is None or not link.is_open:
            link = await lazy.open()
        return await link.call(call)


class LazyLink:
    """A connection that is opened by whoever comes first, for all who come meanwhile, and again when it has ended."""

    def __init__(self, open_link: Callable[[], Coroutine[Any, Any, CallLink]]) -> None:
        self.link: CallLink | None = None
        self._open_link = open_link
        self._opening: asyncio.Task[CallLink] | None = None

    async def open(self) -> CallLink:
        """Return an open connection, or raise what the one attempt to open it raised for all who waited."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open_link())
            self._opening.add_done_callback(self._take)
        # Who gives up waiting does not end it for the others.
        return await asyncio.shield(self._opening)

    def _take(self, opening: asyncio.Task[CallLink]) -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self.link = opening.result()
