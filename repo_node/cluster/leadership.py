"""Which node is the primary: elections over a lease in Postgres, renewed on a task and a connection of its own.

The database's time decides who may hold the lease; this node's own monotonic clock decides how long it
believes that it does, which is always shorter. A node that was frozen wakes to find its term over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from uuid import uuid4

import asyncpg

from repo_node.cluster.epochs import ShardEpochs
from repo_node.db import lease as rows
from repo_node.db.errors import CatalogueUnavailable, OutcomeUnknown
from repo_node.db.lease import Lease, LeaseRow
from repo_node.db.servers import BROKEN, describe
from repo_node.metrics import Metrics
from repo_node.settings import LiveSettings
from sharding.maintenance.job import Job, Step
from sharding.model import NodeId
from sharding.peer_epoch import EpochOver
from sharding.tasks import wait

log = logging.getLogger("holdfast.cluster")

SAFETY_SHARE = 0.25
"""Of the lease: so much earlier than the database does this node consider it over."""

ASK_SECONDS_MAX = 1.0
RECONNECT_SECONDS = 0.5
HAND_OVER_SECONDS_MAX = 5.0

Connect = Callable[[], AbstractAsyncContextManager[asyncpg.Connection]]


class Leadership:
    """This node's part in the elections. ``run`` it in a task; ask ``epoch`` or ``lease`` before each step of a job."""

    def __init__(
        self,
        node: NodeId,
        connect: Connect,
        epochs: ShardEpochs,
        settings: LiveSettings,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._connect = connect
        self._epochs = epochs
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._lease = Lease(0, uuid4())
        self._valid_until = float("-inf")
        self._steady_since = float("inf")
        self._renewed_at = float("-inf")
        self._leaving = False
        self._turning = asyncio.Lock()
        self._wake = asyncio.Event()
        self.seen: LeaseRow | None = None
        """The lease as this node last read it, for those who look at it."""
        self.on_elected: Callable[[], None] = lambda: None
        """Called when this node has become the primary."""
        self.holds: tuple[str, ...] = ()
        """The reasons for which deletions were held then."""

    @property
    def lease(self) -> Lease | None:
        """What proves that this node is the primary, None while it is not or cannot be sure."""
        return self._lease if self._clock() < self._valid_until else None

    @property
    def epoch(self) -> int | None:
        """The term of office, None while this node is not the primary or cannot be sure."""
        held = self.lease
        return None if held is None else held.epoch

    @property
    def held_without_gap_seconds(self) -> float:
        """For how long this node has been the primary with every renewal in time; 0 while it is not."""
        return self._clock() - self._steady_since if self.lease else 0.0

    async def run(self) -> None:
        """Take part in elections until cancelled, reconnecting as often as it takes."""
        while True:
            try:
                async with self._connect() as connection:
                    while True:
                        self._wake.clear()
                        await self.turn(connection)
                        await wait(self._wake, self._settings.now.lease_renew_seconds)
            except (CatalogueUnavailable, OutcomeUnknown, *BROKEN, asyncpg.PostgresError) as error:
                log.warning("the primary's lease was not looked at", extra={"facts": {"cause": describe(error)}})
            except Exception:
                # Whatever it is, the cluster must not be left without elections.
                log.exception("a turn in the election failed")
            await asyncio.sleep(RECONNECT_SECONDS)

    def wake(self) -> None:
        """The lease may be free: look at it now, not at the next renewal."""
        self._wake.set()

    async def turn(self, connection: asyncpg.Connection) -> None:
        """Renew the lease, or take it when it is free; and let this node's shards know whose it is."""
        if connection.is_closed():
            raise CatalogueUnavailable("the connection was closed")
        async with asyncio.timeout(self._settings.now.lease_seconds), self._turning:
            if self._leaving and self._lease.epoch:
                # ``leave`` could not. Renewed for as long as the node drains, it would keep all others from the office.
                await self._give_back(connection)
                return
            self.holds = await rows.holds(connection)
            if self._lease.epoch and await self._renew(connection):
                return
            # First the shards, then the database: it can only know more, unless it forgot.
            known = await self._epochs.own_highest()
            self.seen = await rows.read(connection)
            if self.seen is not None and self.seen.epoch >= known:
                with suppress(EpochOver):  # told a later one just now: the next turn compares anew
                    await self._epochs.see(self.seen.epoch)
            elif known:
                await self._tell_lost_history(connection, known)
            if self._leaving or not (self.seen is None or self.seen.expired):
                return
            await self._stand(connection)

    async def _stand(self, connection: asyncpg.Connection) -> None:
        """Try to become the primary."""
        settings = self._settings.now
        known = await self._epochs.highest(min(ASK_SECONDS_MAX, settings.lease_seconds / 4))
        token, asked_at = uuid4(), self._clock()
        epoch = await rows.acquire(connection, self._node, token, known=known, seconds=settings.lease_seconds)
        if epoch is None:
            return
        self._lease = Lease(epoch, token)
        self._metrics.deletion.elections.inc()
        log.info("this node is the primary", extra={"facts": {"node": self._node, "epoch": epoch}})
        await self._hold_from(connection, asked_at)
        self._steady_since = asked_at
        if self.lease is not None:
            self.on_elected()

    async def _renew(self, connection: asyncpg.Connection) -> bool:
        """Stay the primary; False when this node is it no more."""
        asked_at = self._clock()
        epoch = await rows.renew(connection, self._lease.token, seconds=self._settings.now.lease_seconds)
        if epoch != self._lease.epoch:
            self._resign("another node took over, or the lease had run out")
            return False
        if asked_at - self._renewed_at > self._settings.now.lease_seconds / 2:
            self._steady_since = asked_at
        await self._hold_from(connection, asked_at)
        return self.lease is not None

    async def _hold_from(self, connection: asyncpg.Connection, asked_at: float) -> None:
        """Count as the primary from the moment at which the database was asked, once the shards that answer know."""
        settings = self._settings.now
        try:
            await self._epochs.announce(self._lease.epoch, min(ASK_SECONDS_MAX, settings.lease_seconds / 4))
        except EpochOver as error:
            await self._tell_lost_history(connection, error.known)
            await rows.release(connection, self._lease.token)
            self._resign(str(error))
            return
        if self._leaving:
            return
        self.seen = await rows.read(connection)
        self._renewed_at = asked_at
        self._valid_until = asked_at + settings.lease_seconds * (1 - SAFETY_SHARE)

    async def _tell_lost_history(self, connection: asyncpg.Connection, known: int) -> None:
        """Hold deletions: a shard knows more than the database, looked at after it."""
        found = await rows.read(connection)
        epoch = found.epoch if found else 0
        if epoch < known:
            detail = f"a shard knows the primary of epoch {known}, this database none after {epoch}"
            if await rows.hold_lost_history(connection, detail):
                log.critical("the database has lost history; deletions are held", extra={"facts": {"cause": detail}})

    def _resign(self, cause: str) -> None:
        if self._lease.epoch:
            log.warning("this node is the primary no more", extra={"facts": {"node": self._node, "cause": cause}})
        self._valid_until, self._steady_since = float("-inf"), float("inf")
        self._lease = Lease(0, uuid4())

    async def leave(self) -> None:
        """Hand over: stop counting as the primary at once, and let the next one begin. Bounded: turns try it again."""
        self._leaving = True
        self._valid_until = float("-inf")
        with suppress(CatalogueUnavailable, TimeoutError, *BROKEN, asyncpg.PostgresError):
            # An election won in a turn under way is given back too.
            async with asyncio.timeout(HAND_OVER_SECONDS_MAX), self._turning:
                if self._lease.epoch:
                    async with self._connect() as connection:
                        await self._give_back(connection)

    async def _give_back(self, connection: asyncpg.Connection) -> None:
        await rows.release(connection, self._lease.token)
        self._lease = Lease(0, uuid4())


class OnPrimary:
    """A job that only the primary runs: elsewhere there is nothing to do."""

    def __init__(self, job: Job, leadership: Leadership) -> None:
        self._job = job
        self._leadership = leadership

    @property
    def name(self) -> str:
        return self._job.name

    async def step(self) -> Step:
        if self._leadership.epoch is None:
            return Step(idle=True)
        return await self._job.step()
