"""The owner's end of the connections over which peers call this node's shards (``sharding/calls.py``)."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from uuid import UUID

from repo_node.logs import request_id
from sharding import wire
from sharding.calls import (
    HEAD,
    Call,
    CallError,
    Kind,
    Message,
    MessageReceiver,
    parse_request,
    pieces,
)
from sharding.model import Buffer
from sharding.tasks import stop

log = logging.getLogger("holdfast.internal")

CALLS_PER_SHARD_MAX = 256
BYTES_PER_SHARD_MAX = 96 << 20
"""What the calls of one connection to one shard may be at once, in number and in bytes held: a last bound, above that
of the caller's guard. A disk that hangs then costs its own calls, and those of other shards go on."""

MESSAGES_MAX = 4096
"""Calls and refusals under way on one connection; a peer that goes beyond is none of ours."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

Perform = Callable[[Call], Awaitable[Buffer]]


class CallConnection(asyncio.BufferedProtocol):
    """Performs the calls of one peer, each in a task of its own, and answers in the order in which they end.

    It never rests from reading, so that a cancellation, a call to another shard and the peer's end are always heard.
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
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._calls: Counter[UUID] = Counter()
        self._bytes: Counter[UUID] = Counter()
        self._leaving = False
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
            await stop(list(self._tasks.values()))

    def leave(self) -> None:
        """Refuse new calls, finish those under way, and hang up."""
        self._leaving = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._leaving and not self._tasks:
            self._transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._receiver.room()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for message in self._receiver.advance(nbytes):
                self._take(message)
        except CallError as error:
            log.warning("a peer was not understood", extra={"facts": {"cause": str(error)}})
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()
        self._writable.set()
        self._http.connection_lost(exc)

    def eof_received(self) -> None:
        self._transport.abort()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _take(self, message: Message) -> None:
        if message.kind == Kind.CANCEL:
            if (task := self._tasks.get(message.number)) is not None:
                task.cancel()
            return
        if message.number in self._tasks or len(self._tasks) >= MESSAGES_MAX:
            raise CallError(f"call {message.number} is under way already, or one of too many")
        try:
            call = parse_request(message)
        except CallError as error:  # well framed: a later version's word, perhaps
            self._begin(message.number, self._refuse(message.number, wire.Refusal(wire.BAD_REQUEST, str(error))))
            return
        if why := self._reason_to_refuse(call):
            self._begin(message.number, self._refuse(message.number, wire.Refusal(wire.UNAVAILABLE, why)))
            return
        self._calls[call.shard] += 1
        self._bytes[call.shard] += call.bytes_held
        task = self._begin(message.number, self._answer(message.number, call))
        task.add_done_callback(lambda _: self._release(call))

    def _reason_to_refuse(self, call: Call) -> str | None:
        if self._leaving:
            return "its owner is leaving"
        if self._calls[call.shard] >= CALLS_PER_SHARD_MAX or self._bytes[call.shard] >= BYTES_PER_SHARD_MAX:
            return f"{self._calls[call.shard]} calls of this peer are under way on it already"
        return None

    def _begin(self, number: int, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._tasks[number] = self._loop.create_task(work)
        task.add_done_callback(lambda _: self._forget(number))
        return task

    def _forget(self, number: int) -> None:
        del self._tasks[number]
        self._close_if_done()

    def _release(self, call: Call) -> None:
        self._calls[call.shard] -= 1
        self._bytes[call.shard] -= call.bytes_held
        if not self._calls[call.shard]:
            del self._calls[call.shard], self._bytes[call.shard]

    async def _answer(self, number: int, call: Call) -> None:
        request_id.set(call.request_id if REQUEST_ID.fullmatch(call.request_id) else "-")
        kind, body = await self._outcome(call)
        await self._send(number, kind, body)

    async def _refuse(self, number: int, refusal: wire.Refusal) -> None:
        await self._send(number, Kind.REFUSED, refusal.body())

    async def _outcome(self, call: Call) -> tuple[Kind, Buffer]:
        try:
            return Kind.DONE, await self._perform(call)
        except wire.REFUSABLE as error:
            return Kind.REFUSED, wire.refusal_of(error).body()
        except Exception:
            log.exception("a call of a peer failed unexpectedly")
            return Kind.REFUSED, wire.Refusal(wire.UNAVAILABLE, "an unexpected failure; its log has it").body()

    async def _send(self, number: int, kind: Kind, body: Buffer) -> None:
        """Send an answer, and return when the peer has taken enough of it to be no burden."""
        await self._until_writable()
        if self._ended.is_set():
            return
        for piece in pieces(HEAD.pack(number, kind, len(body)), body):
            self._transport.write(piece)
        await self._until_writable()

    async def _until_writable(self) -> None:
        """Wait until the peer has taken what was written before; one that takes nothing is given up."""
        if not self._writable.is_set():
            try:
                async with asyncio.timeout(self._idle_seconds):
                    await self._writable.wait()
            except TimeoutError:
                self._transport.abort()
