"""The owner's end of the connections over which peers call this node's shards (``sharding/calls.py``)."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

from repo_node.logs import request_id
from sharding import wire
from sharding.calls import (
    HEAD,
    SMALL_MESSAGE_BYTES,
    Call,
    CallError,
    Kind,
    Message,
    MessageReceiver,
    parse_request,
)
from sharding.model import Buffer

log = logging.getLogger("holdfast.internal")

CALLS_MAX = 256
CALLS_BYTES_MAX = 32 << 20
"""What the calls of one connection may be at once, in number and in bytes held; the rest waits in the kernel."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

Perform = Callable[[Call], Awaitable[Buffer]]


class CallConnection(asyncio.BufferedProtocol):
    """Performs the calls of one peer, each in a task of its own, and answers in the order in which they end.

    ``http`` is the protocol that had the connection before, and hears of its end.
    """

    def __init__(
        self, transport: asyncio.Transport, http: asyncio.Protocol, perform: Perform, idle_seconds: float
    ) -> None:
        self._transport = transport
        self._http = http
        self._perform = perform
        self._idle_seconds = idle_seconds
        self._loop = asyncio.get_running_loop()
        self._receiver = MessageReceiver()
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._waiting: deque[Message] = deque()
        self._bytes_held = 0
        self._rests = self._leaving = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._ended = asyncio.Event()
        transport.set_protocol(self)

    async def serve(self) -> None:
        """Return when the connection has ended, and every call with it."""
        try:
            await self._ended.wait()
        finally:
            self._transport.abort()
            for task in list(self._calls.values()):
                task.cancel()
            await asyncio.gather(*self._calls.values(), return_exceptions=True)

    def leave(self) -> None:
        """Take no more calls, finish those under way, and hang up."""
        self._leaving = True
        self._waiting.clear()
        self._begin_waiting()
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._leaving and not self._calls:
            self._transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._receiver.room()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for message in self._receiver.advance(nbytes):
                if message.kind == Kind.CANCEL:
                    self._cancel(message.number)
                else:
                    self._waiting.append(message)
            self._begin_waiting()
        except CallError as error:
            self._break_off(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()
        self._writable.set()
        self._http.connection_lost(exc)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _begin_waiting(self) -> None:
        """Begin the calls that there is room for, and rest from reading while there is none."""
        while self._waiting and not self._is_busy:
            self._begin(self._waiting.popleft())
        rests = self._is_busy or bool(self._waiting) or self._leaving
        if rests != self._rests and not self._ended.is_set():
            self._rests = rests
            if rests:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    @property
    def _is_busy(self) -> bool:
        return self._bytes_held >= CALLS_BYTES_MAX or len(self._calls) >= CALLS_MAX

    def _begin(self, message: Message) -> None:
        if message.number in self._calls:
            self._break_off(f"call {message.number} is under way already")
            return
        try:
            call = parse_request(message)
        except CallError as error:
            # Well framed: a later version's word, perhaps.
            self._write(message.number, Kind.REFUSED, wire.Refusal(wire.BAD_REQUEST, str(error)).body())
            return
        task = self._calls[message.number] = self._loop.create_task(self._answer(message.number, call))
        self._bytes_held += call.bytes_held
        task.add_done_callback(partial(self._end, message.number, call.bytes_held))

    def _break_off(self, why: str) -> None:
        log.warning("a peer was not understood", extra={"facts": {"cause": why}})
        self._transport.abort()

    def _cancel(self, number: int) -> None:
        self._waiting = deque(message for message in self._waiting if message.number != number)
        if (task := self._calls.get(number)) is not None:
            task.cancel()

    def _end(self, number: int, bytes_held: int, task: asyncio.Task[None]) -> None:
        del self._calls[number]
        self._bytes_held -= bytes_held
        self._begin_waiting()
        self._close_if_done()

    async def _answer(self, number: int, call: Call) -> None:
        request_id.set(call.request_id if REQUEST_ID.fullmatch(call.request_id) else "-")
        kind, body = await self._outcome(call)
        await self._until_writable()
        self._write(number, kind, body)

    async def _outcome(self, call: Call) -> tuple[Kind, Buffer]:
        try:
            return Kind.DONE, await self._perform(call)
        except wire.REFUSABLE as error:
            return Kind.REFUSED, wire.refusal_of(error).body()
        except Exception:
            log.exception("a call of a peer failed unexpectedly")
            return Kind.REFUSED, wire.Refusal(wire.UNAVAILABLE, "an unexpected failure; its log has it").body()

    async def _until_writable(self) -> None:
        """Wait until the peer has taken what was written before; one that takes nothing is given up."""
        if not self._writable.is_set():
            try:
                async with asyncio.timeout(self._idle_seconds):
                    await self._writable.wait()
            except TimeoutError:
                self._transport.abort()

    def _write(self, number: int, kind: Kind, body: Buffer) -> None:
        if self._ended.is_set():
            return
        head = HEAD.pack(number, kind, len(body))
        if len(body) <= SMALL_MESSAGE_BYTES:
            self._transport.write(b"".join((head, body)))
        else:
            self._transport.write(head)
            self._transport.write(body)
