"""A node's own shards: opened at its start, given up when their disk fails, opened again when it is back.

A directory that cannot be used as a shard keeps none of the others from being used: it is said what
is wrong with it, reported as silent, and tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

import asyncpg

from repo_node.cluster.own_shard import (
    ANSWER_SECONDS_MAX,
    FileSystem,
    OwnShard,
    apart,
    file_system_of,
    identify,
    open_own_shard,
)
from repo_node.config import ConfigError, ShardSection
from repo_node.db import nodes
from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.nodes import KnownShards, NameTaken, SpaceReport
from repo_node.db.servers import BROKEN, describe
from repo_node.metrics import Metrics
from repo_node.settings import LiveSettings
from sharding.errors import ShardError
from sharding.identity import ShardIdentityError
from sharding.local import LocalShard
from sharding.model import NodeId, ShardId
from sharding.tasks import stop, wait

log = logging.getLogger("holdfast.shards")

OPEN_WAIT_SECONDS, OPEN_WAIT_SECONDS_MIN = 20.0, 2.0
"""How long all disks of a node are waited for, and each at least. One that takes longer joins when it has answered."""

PATIENCE_SECONDS = 0.1
"""How long a heartbeat waits for the disks to tell their space."""

Connect = Callable[[], AbstractAsyncContextManager[asyncpg.Connection]]
Reread = Callable[[], Sequence[ShardSection]]


class ShardTwice(ShardIdentityError):
    """Two directories of one node are the same shard: one is a copy, and nobody can tell which."""


class Borrowers(Protocol):
    """The other processes of this node, which have its shards open too."""

    def lend(self, own: OwnShard) -> None:
        """Let every one of them open a shard that has just been opened."""
        ...

    def call_back(self, uid: UUID) -> None:
        """Have every one of them give a shard up."""
        ...

    def have(self, uid: UUID) -> bool:
        """Say whether one of them may still have a shard open."""
        ...


class NoBorrowers:
    """Of a node that is one process."""

    def lend(self, own: OwnShard) -> None: ...

    def call_back(self, uid: UUID) -> None: ...

    def have(self, uid: UUID) -> bool:
        return False


TOLERATED = (ShardIdentityError, ShardError, NameTaken, OSError)
"""What keeps a directory from being used as a shard, and no other."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns the shards: one start of a node of a cluster."""

    cluster_id: UUID
    node: NodeId
    incarnation: UUID


class Slot:
    """A configured directory: its shard is open, is being opened, or cannot be used for a reason."""

    def __init__(self, section: ShardSection) -> None:
        self.section = section
        self.own: OwnShard | None = None
        self.uid: UUID | None = None
        self.removed: UUID | None = None
        """The shard that was open here when its row was removed: none is made here unasked."""
        self.attempt: asyncio.Task[None] | None = None
        self.error: Exception | None = None
        self.told = ""
        self.tried_at = float("-inf")
        self.file_system: FileSystem | None = None

    @property
    def path(self) -> Path:
        return self.section.path

    @property
    def is_busy(self) -> bool:
        return self.attempt is not None and not self.attempt.done()


class OwnShards:
    """The shards of this node. ``open_all`` once, then ``run`` in a task, and ``close`` at the end."""

    def __init__(
        self,
        owner: Owner,
        sections: Sequence[ShardSection],
        connect: Connect,
        settings: LiveSettings,
        metrics: Metrics,
        *,
        reread: Reread | None = None,
    ) -> None:
        self._owner = owner
        self._connect = connect
        self._settings = settings
        self._metrics = metrics
        self._reread = reread or (lambda: sections)
        self._slots = [Slot(section) for section in sections]
        self._wake = asyncio.Event()
        self._orders: list[Path | None] = []
        self._by_uid: dict[UUID, LocalShard] = {}
        self._left: dict[UUID, OwnShard] = {}
        """Given up, and still claimed: a thread hangs in the disk, or Postgres did not hear of it yet."""
        self._known = KnownShards({}, {}, frozenset())
        self.opened: dict[ShardId, OwnShard] = {}
        self.shards: dict[ShardId, LocalShard] = {}
        """The same, as the jobs see them."""
        self._reported: frozenset[ShardId] = frozenset()
        self._reporting = asyncio.Lock()
        """Held while they are reported: whoever is reported to own a shard must own it until that is over."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when a shard has been opened or given up."""
        self.borrowers: Borrowers = NoBorrowers()

    def find(self, uid: UUID) -> LocalShard | None:
        """Return the open shard of this uid."""
        return self._by_uid.get(uid)

    async def report(self, connection: asyncpg.Connection) -> None:
        """Beat for this node: say that it lives, and how its shards are. Raises ``Fenced``."""
        owner = self._owner
        async with self._reporting:
            reports = await self._reports()
            await nodes.heartbeat(connection, owner.node, owner.incarnation, reports, self._absent())
        if reports.keys() != self._reported:
            # Uploads that come at once are to find the shards just opened, and not those given up.
            await nodes.announce(connection)
            self._reported = frozenset(reports)

    async def _reports(self) -> dict[ShardId, SpaceReport]:
        """Return how each open shard stands."""
        opened = dict(self.opened)
        told = await asyncio.gather(*(own.report(PATIENCE_SECONDS) for own in opened.values()))
        reports = dict(zip(opened, told, strict=True))
        return {shard: reports[shard] for shard in opened if self.opened.get(shard) is opened[shard]}

    def _absent(self) -> dict[str, str]:
        """Return why each directory that is not open is not, by path."""
        return {str(slot.path): str(slot.error or "it is being opened") for slot in self._slots if slot.own is None}

    def look(self) -> None:
        """Look at the shards now: a row of one has changed."""
        self._wake.set()

    def reload(self, path: Path | None = None) -> None:
        """Read the list of shards in the node's file again, and use what it says.

        At ``path`` a new shard is made even if one was replaced or removed there.
        """
        self._orders.append(path)
        self._wake.set()

    async def open_all(self) -> None:
        """Open every configured shard that can be opened.

        Raises what is wrong when none can, ``ShardTwice`` when two are the same, and what Postgres raises.
        """
        await self._read_known()
        await self._open_closed(may_create=True, named=(), at_once=True)
        errors = [slot.error for slot in self._slots if slot.error is not None]
        for error in errors:
            if isinstance(error, ShardTwice) or not isinstance(error, TOLERATED):
                raise error
        if not self.opened and errors:
            raise errors[0] if len(errors) == 1 else ShardIdentityError("; ".join(map(str, errors)))

    async def run(self) -> None:
        """Give up shards whose disks are silent, and open those that can be used again, until cancelled."""
        pause_seconds = self._pause_seconds()
        while True:
            await wait(self._wake, pause_seconds)
            self._wake.clear()
            pause_seconds = self._settings.now.shard_retry_seconds
            try:
                await self._turn()
                pause_seconds = self._pause_seconds()
            except (CatalogueUnavailable, *BROKEN, asyncpg.PostgresError) as error:
                log.warning("this node's shards were not looked at", extra={"facts": {"cause": describe(error)}})
            except Exception:
                # Whatever it is, a disk that is back must not wait for a restart.
                log.exception("looking at this node's shards failed")

    def _pause_seconds(self) -> float:
        """Return how long nothing is to be done, if nothing happens."""
        retry, now = self._settings.now.shard_retry_seconds, asyncio.get_running_loop().time()
        tried = [slot.tried_at for slot in self._slots if slot.own is None and not slot.is_busy]
        return min([retry, *(max(0.0, at + retry - now) for at in tried)])

    async def _turn(self) -> None:
        orders = list(self._orders)
        # A file that cannot be used is no order to make anything.
        may_create = bool(orders) and await self._take_sections()
        # What is open before the rows are read has one, unless it was removed.
        opened = [(slot, slot.own) for slot in self._slots if slot.own is not None]
        await self._read_known()
        for slot, own in opened:
            if own.uid not in self._known.ids:
                slot.removed = own.uid
            if cause := await self._why_given_up(own):
                await self._give_up(slot, ShardIdentityError(f"{slot.path} was given up: {cause}"))
        await self._release_left()
        await self._open_closed(may_create=may_create, named=orders if may_create else (), at_once=bool(orders))
        # Not before: one that Postgres' failure cut short is given again.
        del self._orders[: len(orders)]

    async def _why_given_up(self, own: OwnShard) -> str:
        if own.uid not in self._known.ids:
            return "it was removed from the cluster"
        if own.uid in self._known.replaced:
            return "another disk is to take its place"
        if own.silent_seconds < self._settings.now.shard_give_up_seconds:
            return ""
        # Nobody may have asked it for long: heartbeats wait for Postgres.
        await own.report(ANSWER_SECONDS_MAX)
        return own.trouble

    async def _take_sections(self) -> bool:
        """Take up the directories that the node's file names now, and give up those it names no more.

        False when the file cannot be used.
        """
        try:
            sections = {section.path: section for section in await asyncio.to_thread(self._reread)}
        except ConfigError as error:
            log.error("the node's file cannot be used; its shards stay", extra={"facts": {"cause": str(error)}})
            return False
        for slot in [slot for slot in self._slots if slot.path not in sections]:
            self._slots.remove(slot)
            await stop([slot.attempt] if slot.attempt else [])
            if slot.own is not None:
                await self._give_up(slot, ShardIdentityError(f"{slot.path} was taken out of the node's file"))
            self._metrics.forget_refused_shard(str(slot.path))
        known = {slot.path for slot in self._slots}
        self._slots += [Slot(section) for path, section in sections.items() if path not in known]
        log.info("the list of shards was read again", extra={"facts": {"shards": [*map(str, sections)]}})
        return True

    async def _read_known(self) -> None:
        async with self._connect() as connection:
            self._known = await nodes.shards_of_node(connection, self._owner.node)

    async def _open_closed(self, *, may_create: bool, named: Sequence[Path | None], at_once: bool) -> None:
        """Begin to open what is not open, and wait for it as long as a disk that works may take.

        Unless it is to be done ``at_once``, each has its time: nothing that happens elsewhere shortens it. Where a
        shard was replaced or removed, its empty mount point looks like the next disk: one is made there only when
        the path is ``named``.
        """
        clock = asyncio.get_running_loop().time
        last = float("inf") if at_once else clock() - self._settings.now.shard_retry_seconds
        closed = [slot for slot in self._slots if slot.own is None and not slot.is_busy and slot.tried_at <= last]
        await asyncio.gather(*map(self._measure, closed))
        deadline = clock() + OPEN_WAIT_SECONDS
        for slot in closed:
            slot.tried_at = clock()
            # One by one, so that a new node's shards are numbered as its file lists them.
            is_vacated = slot.removed is not None or str(slot.path) in self._known.vacated
            creates = slot.path in named if is_vacated else may_create
            slot.attempt = asyncio.create_task(self._attempt(slot, may_create=creates))
            await asyncio.wait((slot.attempt,), timeout=max(deadline - clock(), OPEN_WAIT_SECONDS_MIN))
            if slot.is_busy:
                slot.error = ShardIdentityError(f"{slot.path}: the disk does not answer")
                self._tell(slot)

    async def _measure(self, slot: Slot) -> None:
        """Find out what a directory lies on, before any of those that may share it is claimed."""
        try:
            async with asyncio.timeout(OPEN_WAIT_SECONDS_MIN):
                slot.file_system = await apart(file_system_of, slot.path)
        except (OSError, TimeoutError):
            slot.file_system = None

    def _share_bytes(self, slot: Slot) -> int | None:
        """Return a shard's part of its file system's capacity."""
        if slot.file_system is None:
            return None
        devices = [other.file_system.device for other in self._slots if other.file_system is not None]
        return slot.file_system.capacity_bytes // devices.count(slot.file_system.device)

    async def _attempt(self, slot: Slot, *, may_create: bool) -> None:
        """Open the shard at ``slot``, or keep why it cannot be."""
        try:
            await self._open(slot, may_create=may_create)
            slot.error = None
        except CatalogueUnavailable as error:
            slot.uid, slot.error = None, error
            log.warning("a shard was not opened", extra={"facts": {"path": str(slot.path), "cause": str(error)}})
            return
        except Exception as error:
            slot.uid, slot.error = None, error
        self._tell(slot)

    async def _open(self, slot: Slot, *, may_create: bool) -> None:
        # It stays claimed: who knows what that call does when it goes on.
        hung = ShardIdentityError(f"{slot.path}: a call still hangs in the disk")
        if any(own.shard.files.path == slot.path for own in self._left.values()):
            raise hung
        described = await apart(identify, slot.path, self._owner.cluster_id, self._known, may_create=may_create)
        uid = described.shard_uid
        if uid in self._left:
            raise hung
        if uid == slot.removed and not may_create:
            raise ShardIdentityError(f"{slot.path} is shard {uid}, which was removed from the cluster")
        twin = next((other for other in self._slots if other is not slot and other.uid == uid), None)
        if twin is not None:
            raise ShardTwice(f"{slot.path} and {twin.path} are the same shard {uid}: one is a copy")
        slot.uid = uid
        shard = await self._claim(slot, uid)
        try:
            slot.own = await open_own_shard(shard, slot.section, described)
        except BaseException:
            await self._release(shard)
            raise
        slot.removed = None
        self.opened[shard] = slot.own
        self.shards[shard] = self._by_uid[uid] = slot.own.shard
        self.borrowers.lend(slot.own)
        self.on_change()

    async def _claim(self, slot: Slot, uid: UUID) -> ShardId:
        """Become a shard's owner. Raises ``NameTaken``, ``Fenced``, ``CatalogueUnavailable``."""
        try:
            async with self._connect() as connection:
                return await nodes.claim_shard(
                    connection,
                    uid=uid,
                    node=self._owner.node,
                    path=str(slot.path),
                    weight=slot.section.weight,
                    incarnation=self._owner.incarnation,
                    share_bytes=self._share_bytes(slot),
                )
        except (*BROKEN, asyncpg.PostgresError) as error:
            # A timeout is an OSError too, and says nothing of the disk.
            raise CatalogueUnavailable(f"{slot.path} was not claimed: {describe(error)}") from error

    async def _give_up(self, slot: Slot, cause: Exception) -> None:
        """Close the shard at ``slot`` and be its owner no more."""
        own, slot.own, slot.uid, slot.error = slot.own, None, None, cause
        assert own is not None
        self._left[own.uid] = own
        del self.opened[own.shard.id], self.shards[own.shard.id], self._by_uid[own.uid]
        self._tell(slot)
        self.on_change()
        self.borrowers.call_back(own.uid)
        await own.close()
        await self._release_left()

    async def _release_left(self) -> None:
        """Be the owner no more of what was given up, no thread hangs in, and no other process has open."""
        for uid, own in list(self._left.items()):
            if own.shard.is_given_up and not self.borrowers.have(uid) and await self._release(own.shard.id):
                del self._left[uid]

    async def _release(self, shard: ShardId) -> bool:
        try:
            async with self._reporting, self._connect() as connection:
                await nodes.release_shard(connection, shard, self._owner.incarnation)
            return True
        except (CatalogueUnavailable, *BROKEN, asyncpg.PostgresError) as error:
            # It stays claimed by a node that does not have it open, until that one claims it again or ends.
            log.warning("a shard was not released", extra={"facts": {"shard": shard, "cause": describe(error)}})
            return False

    def _tell(self, slot: Slot) -> None:
        """Say once what is wrong with a directory, and once that it is well again."""
        self._metrics.shard_refused.labels(str(slot.path)).set(slot.own is None)
        cause = "" if slot.own is not None else str(slot.error)
        if cause == slot.told:
            return
        facts: dict[str, object] = {"path": str(slot.path)}
        if cause:
            facts |= {"cause": cause, "do": self._advice(slot)}
            log.critical("a shard cannot be used; the others are", extra={"facts": facts})
        elif slot.own is not None:
            log.warning("a shard can be used again", extra={"facts": {**facts, "shard": slot.own.shard.id}})
        slot.told = cause

    def _advice(self, slot: Slot) -> str:
        if slot.removed is not None:
            return (
                f"take it out of the node's file, then `holdfast node reload {self._owner.node}`; or let an empty disk "
                f"take its place: `holdfast node reload {self._owner.node} --shard {slot.path}`"
            )
        uid = self._known.at_path.get(str(slot.path))
        if uid is None:
            return "correct the path or the directory; it is tried again by itself"
        shard = self._known.ids[uid]
        return (
            f"repair or mount its disk, and it is opened by itself; or give it up: `holdfast shard replace {shard}` "
            f"when another disk takes its place, `holdfast shard remove {shard}` (once it is lost) when none does"
        )

    async def close(self) -> None:
        """Stop opening shards, and close all that are open."""
        await stop([slot.attempt for slot in self._slots if slot.attempt is not None])
        opened = list(self.opened.values())
        self.opened.clear()
        self.shards.clear()
        self._by_uid.clear()
        await asyncio.gather(*(own.close() for own in opened), return_exceptions=True)
