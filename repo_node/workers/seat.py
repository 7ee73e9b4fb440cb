"""One worker as its node's main process sees it: started, talked to, watched, and started anew when it has ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from repo_node import __version__
from repo_node.cluster.own_shard import OwnShard
from repo_node.cluster.own_shards import Owner
from repo_node.config import NodeConfig
from repo_node.web.listeners import Listeners
from repo_node.workers.channel import Channel, ChannelBroken
from repo_node.workers.messages import (
    Alive,
    Begin,
    CloseShard,
    End,
    Leave,
    Look,
    OpenShard,
    Serving,
    ShardClosed,
    ToWorker,
)
from sharding.identity import stage_of
from sharding.model import ShardId

log = logging.getLogger("holdfast")


class Seat:
    """The place of one worker. ``run`` starts a process there, and returns when it has ended.

    ``on_closed`` is called when the worker has given a shard up.
    """

    def __init__(
        self,
        process: int,
        config: NodeConfig,
        owner: Owner,
        listeners: Listeners,
        shards: Mapping[ShardId, OwnShard],
        *,
        on_closed: Callable[[], None],
    ) -> None:
        self.process = process
        self.listeners = listeners
        self._config = config
        self._owner = owner
        self._shards = shards
        self._on_closed = on_closed
        self._worker: Process | None = None
        self._channel: Channel | None = None
        self._served_by_it = 0
        self._unanswered = 0
        self.serving, self.vacant = asyncio.Event(), asyncio.Event()
        """One of the two is set. A worker that was killed serves no more, though it may be long in ending."""
        self.vacant.set()
        self.has_started = asyncio.Event()
        """Set when its first worker serves, or has ended without that."""
        self.holds: set[UUID] = set()
        """The shards that the worker may have open."""
        self.stage = ""
        """Where the worker stages on each shard: of the last one, when there is none."""
        self.served = 0
        self.in_flight = 0
        self._starts = 0

    async def run(self, first_look: Look) -> int:
        """Start a worker and return its exit status once it has ended, and nothing of it is left."""
        self._starts += 1
        self.stage = stage_of(self.process, self._starts)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # -P: not the directory it was started in, whose Python files would come before the library's.
            self._worker = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "repo_node.workers", str(os.getpid()), stdin=theirs.fileno()
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = Channel(ours, self._hear, lambda: None)
        try:
            self._begin(first_look)
            return await self._worker.wait()
        finally:
            self.kill()
            await asyncio.shield(self._worker.wait())
            self._worker = None
            self._forget()

    def _begin(self, first_look: Look) -> None:
        begin = Begin(__version__, self.process, self.stage, self._config, self._owner)
        self._tell(begin, [one.fileno() for one in (self.listeners.guard, *self.listeners.all) if one is not None])
        for own in self._shards.values():
            self.lend(own)
        self._tell(first_look)

    def _forget(self) -> None:
        self._served_by_it = self._unanswered = 0
        self.holds.clear()
        self.has_started.set()
        self._on_closed()

    def lend(self, own: OwnShard) -> None:
        """Let the worker open a shard."""
        if self._worker is not None and own.uid not in self.holds:
            self.holds.add(own.uid)
            order = OpenShard(own.shard.id, own.uid, own.section)
            self._tell(order, [own.shard.files.claim.directory])

    def call_back(self, uid: UUID) -> None:
        """Have the worker give a shard up."""
        if uid in self.holds:
            self._tell(CloseShard(uid))

    def look(self, look: Look, unanswered_max: int) -> None:
        """Tell how the cluster looks; a worker that leaves too many such looks unanswered is ended.

        Looks are counted, not seconds: a main process that was held up itself must not take that for silence.
        """
        if not self.serving.is_set():
            return
        if self._unanswered >= unanswered_max:
            log.error("a worker does not answer; it is ended", extra={"facts": {"worker": self.process}})
            self.kill()
            return
        self._unanswered += 1
        self._tell(look)

    def leave(self) -> None:
        """Have the worker take nothing new on the front, and finish what it has.

        Until it has said what that is, it counts as one request.
        """
        self.in_flight = max(self.in_flight, 1)
        self._tell(Leave())

    def end(self) -> None:
        """Have the worker end in order, now."""
        self._tell(End())

    def kill(self) -> None:
        """End the worker, whatever it is doing, and hear no more of it.

        One of its threads may hang in the kernel, and with it the worker's end, for as long as a disk does.
        """
        self.serving.clear()
        self.vacant.set()
        self.in_flight = 0
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._worker is not None and self._worker.returncode is None:
            with suppress(ProcessLookupError):
                self._worker.send_signal(signal.SIGKILL)

    @property
    def is_empty(self) -> bool:
        """Whether there is no worker now."""
        return self._worker is None

    def _tell(self, message: ToWorker, descriptors: list[int] | None = None) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send(message, descriptors or [])
        except ChannelBroken:
            self.kill()

    def _hear(self, message: Any, descriptors: list[int]) -> None:
        match message:
            case Serving():
                self.vacant.clear()
                self.serving.set()
                self.has_started.set()
            case Alive(served, in_flight):
                self._unanswered = 0
                self.served += served - self._served_by_it
                self._served_by_it, self.in_flight = served, in_flight
            case ShardClosed(uid):
                self.holds.discard(uid)
                self._on_closed()
