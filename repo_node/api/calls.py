"""The owner's end of the connections over which peers call this node's shards (``sharding/calls.py``)."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
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
)
from sharding.model import Buffer
from sharding.outbox import Outbox
from sharding.tasks import stop

log = logging.getLogger("holdfast.internal")

CALLS_PER_SHARD_MAX = 256
BYTES_PER_SHARD_MAX = 96 << 20
"""What the calls of one connection to one shard may be at once, in number and in bytes held: a last bound, above that
of the caller's guard. A disk that hangs then costs its own calls, and those of other shards go on."""

MESSAGES_MAX = 4096
"""Calls and refusals under way on one connection; a peer that goes beyond is none of ours."""

WATCHING = -1
"""Instead of a call's number: the task that waits until the peer takes what it was sent."""

RECALLED = frozenset((Kind.READ, Kind.SIZES))
"""What memory may know the answer to."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(slots=True)
class Load:
    """What one shard does for a connection at this moment."""

    calls: int = 0
    bytes: int = 0


Perform = Callable[[Call], Awaitable[Buffer]]
Recall = Callable[[Call], Buffer | None]


class CallConnection(asyncio.BufferedProtocol):
    """Performs the calls of one peer, each in a task of its own, and answers in the order in which they end.

    What ``recall`` knows at once, without waiting, is answered without a task while the peer takes answers.
    It never rests from reading, so that a cancellation, a call to another shard and the peer's end are always heard.
    ``http`` is the protocol that had the connection before, and hears of its end.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        http: asyncio.Protocol,
        *,
        perform: Perform,
        recall: Recall,
        idle_seconds: float,
    ) -> None:
        self._transport = transport
        self._http = http
        self._perform = perform
        self._recall = recall
        self._idle_seconds = idle_seconds
        self._loop = asyncio.get_running_loop()
        self._receiver = MessageReceiver()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._loads: dict[UUID, Load] = {}
        self._leaving = False
        self._outbox = Outbox(transport)
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
            self._outbox.flush()
            self._transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._receiver.room()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for message in self._receiver.advance(nbytes):
                self._take(message)
            self._outbox.flush()
            if not self._outbox.is_writable and not self._tasks:  # else whoever has an answer looks after it
                self._start(WATCHING, self._until_writable())
        except CallError as error:
            log.warning("a peer was not understood", extra={"facts": {"cause": str(error)}})
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()
        self._outbox.resume()
        self._http.connection_lost(exc)

    def eof_received(self) -> None:
        self._transport.abort()

    def pause_writing(self) -> None:
        self._outbox.pause()

    def resume_writing(self) -> None:
        self._outbox.resume()

    def _take(self, message: Message) -> None:
        number = message.number
        if message.kind == Kind.CANCEL:
            if (task := self._tasks.get(number)) is not None:
                task.cancel()
            return
        if number in self._tasks or len(self._tasks) >= MESSAGES_MAX:
            raise CallError(f"call {number} is under way already, or one of too many")
        if message.kind in RECALLED and (data := self._recalled(message)) is not None:
            self._outbox.put(HEAD.pack(number, Kind.DONE, len(data)), data)
            return
        self._start(number, self._answer(message))

    def _start(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[number] = self._loop.create_task(work)
        task.add_done_callback(partial(self._forget, number))

    def _recalled(self, message: Message) -> Buffer | None:
        if self._leaving or not self._outbox.is_writable:
            return None
        try:
            return self._recall(parse_request(message))
        except CallError:
            return None

    def _forget(self, number: int, task: asyncio.Task[None]) -> None:
        del self._tasks[number]
        self._close_if_done()

    async def _answer(self, message: Message) -> None:
        try:
            call = parse_request(message)
            load = self._admit(call)
        except CallError as error:  # well framed: a later version's word, perhaps
            await self._send(message.number, Kind.REFUSED, wire.Refusal(wire.BAD_REQUEST, str(error)).body())
        except wire.Refusal as refusal:
            await self._send(message.number, Kind.REFUSED, refusal.body())
        else:
            try:
                await self._send(message.number, *await self._outcome(call))
            finally:
                self._release(call, load)

    def _admit(self, call: Call) -> Load:
        """Count a call that begins. Raises ``Refusal`` when it may not."""
        if self._leaving:
            raise wire.Refusal(wire.UNAVAILABLE, "its owner is leaving")
        load = self._loads.get(call.shard)
        if load is None:
            load = self._loads[call.shard] = Load()
        elif load.calls >= CALLS_PER_SHARD_MAX or load.bytes >= BYTES_PER_SHARD_MAX:
            raise wire.Refusal(wire.UNAVAILABLE, f"{load.calls} calls of this peer are under way on it already")
        load.calls += 1
        load.bytes += call.bytes_held
        return load

    def _release(self, call: Call, load: Load) -> None:
        load.calls -= 1
        load.bytes -= call.bytes_held
        if not load.calls:
            del self._loads[call.shard]

    async def _outcome(self, call: Call) -> tuple[Kind, Buffer]:
        request_id.set(call.request_id if REQUEST_ID.fullmatch(call.request_id) else "-")
        try:
            return Kind.DONE, await self._perform(call)
        except wire.REFUSABLE as error:
            return Kind.REFUSED, wire.refusal_of(error).body()
        except Exception:
            log.exception("a call of a peer failed unexpectedly")
            return Kind.REFUSED, wire.Refusal(wire.UNAVAILABLE, "an unexpected failure; its log has it").body()

    async def _send(self, number: int, kind: Kind, body: Buffer) -> None:
        """Send an answer, and return when the peer has taken enough of it to be no burden."""
        if not self._outbox.is_writable:
            await self._until_writable()
        if self._ended.is_set():
            return
        self._outbox.put(HEAD.pack(number, kind, len(body)), body, alone=len(self._tasks) == 1)
        if not self._outbox.is_writable:
            await self._until_writable()

    async def _until_writable(self) -> None:
        """Wait until the peer has taken what was written before; one that takes nothing is given up."""
        try:
            async with asyncio.timeout(self._idle_seconds):
                await self._outbox.until_writable()
        except TimeoutError:
            self._transport.abort()
