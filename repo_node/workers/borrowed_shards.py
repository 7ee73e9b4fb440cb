"""The shards of the node in a worker: opened with claims that the main process lends, closed when it wants them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import asyncpg

from repo_node.cluster.own_shard import OwnShard, join_own_shard
from repo_node.cluster.own_shards import Owner
from repo_node.db import nodes
from repo_node.db.errors import CatalogueUnavailable
from repo_node.settings import LiveSettings
from repo_node.workers.messages import OpenShard
from sharding.errors import ShardError
from sharding.identity import ShardClaim, ShardIdentity
from sharding.local import LocalShard
from sharding.model import ShardId
from sharding.tasks import stop, wait

log = logging.getLogger("holdfast.shards")

CLOSE_LOOK_SECONDS = 0.1
OPEN_WAIT_SECONDS = 20.0
"""How long a worker that starts waits for its disks. One that takes longer joins when it has answered."""


class BorrowedShards:
    """Satisfies ``OpenShards``. ``stage`` names the directories in which this process stages.

    ``on_closed`` is told each shard that is open here no more, and in which no thread hangs.
    """

    def __init__(self, owner: Owner, stage: str, settings: LiveSettings, on_closed: Callable[[UUID], None]) -> None:
        self._owner = owner
        self._stage = stage
        self._settings = settings
        self._on_closed = on_closed
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._called_back: dict[UUID, asyncio.Event] = {}
        self._tried: dict[UUID, asyncio.Event] = {}
        self._by_uid: dict[UUID, LocalShard] = {}
        self.opened: dict[ShardId, OwnShard] = {}
        self.shards: dict[ShardId, LocalShard] = {}
        self.on_change: Callable[[], None] = lambda: None

    def find(self, uid: UUID) -> LocalShard | None:
        return self._by_uid.get(uid)

    async def report(self, connection: asyncpg.Connection) -> None:
        """The main process beats for all. One that does not takes this process with it out of the cluster."""
        if not await nodes.is_up(connection, self._owner.node, self._owner.incarnation):
            raise CatalogueUnavailable("the node's main process does not beat")

    def look(self) -> None:
        """The main process looks."""

    def reload(self, path: Path | None = None) -> None:
        """The main process reads the node's file."""

    def open(self, order: OpenShard, directory: int) -> None:
        """Open a shard, as soon as its disk lets us, until it is called back; ``directory`` is this one's to close."""
        self._called_back[order.uid], self._tried[order.uid] = asyncio.Event(), asyncio.Event()
        self._tasks[order.uid] = asyncio.create_task(self._keep_open(order, directory))

    def call_back(self, uid: UUID) -> None:
        """Give a shard up."""
        self._called_back[uid].set()

    async def until_tried(self) -> None:
        """Return when each shard was opened or its disk refused, or has had time enough for that."""
        waiting = [asyncio.ensure_future(tried.wait()) for tried in self._tried.values()]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=OPEN_WAIT_SECONDS)
            await stop(tuple(late))

    async def _keep_open(self, order: OpenShard, directory: int) -> None:
        uid = order.uid
        try:
            own = await self._open(order, directory)
            if own is not None:
                await self._called_back[uid].wait()
                await self._give_up(own)
        finally:
            os.close(directory)
        del self._tasks[uid]
        self._on_closed(uid)

    async def _open(self, order: OpenShard, directory: int) -> OwnShard | None:
        """Return the shard once it is open, None when it is called back before that."""
        told = ""
        while True:
            try:
                identity = ShardIdentity(self._owner.cluster_id, order.uid)
                claim = ShardClaim(order.section.path, os.dup(directory), identity)
                own = await join_own_shard(order.shard, order.section, claim, self._stage)
                break
            except Exception as error:
                # Whatever it is, the main process waits to hear that the shard is closed here.
                if told != (told := str(error) or type(error).__name__):
                    facts = {"path": str(order.section.path), "cause": told}
                    unknown = None if isinstance(error, ShardError) else error
                    log.error(
                        "a worker cannot open a shard; its main process can", extra={"facts": facts}, exc_info=unknown
                    )
            self._tried[order.uid].set()
            if await wait(self._called_back[order.uid], self._settings.now.shard_retry_seconds):
                return None
        self.opened[order.shard] = own
        self.shards[order.shard] = self._by_uid[order.uid] = own.shard
        self._tried[order.uid].set()
        self.on_change()
        return own

    async def _give_up(self, own: OwnShard) -> None:
        """Close a shard; returns when no thread hangs in its disk any more."""
        shard = own.shard.id
        del self.opened[shard], self.shards[shard], self._by_uid[own.uid]
        self.on_change()
        try:
            await own.close()
        except Exception:
            log.exception("a shard was not closed in order")
        while not own.shard.is_given_up:
            await asyncio.sleep(CLOSE_LOOK_SECONDS)

    async def close(self) -> None:
        """Close all."""
        opened = list(self.opened.values())
        await stop(tuple(self._tasks.values()))
        await asyncio.gather(*(own.close() for own in opened), return_exceptions=True)
