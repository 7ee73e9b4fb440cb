"""The workers of a node, all together: started with it, kept at their number, and gone before it is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from uuid import UUID

from repo_node.assembly import task
from repo_node.cluster.outlook import Outlook
from repo_node.cluster.own_shard import OwnShard
from repo_node.cluster.own_shards import Owner, OwnShards
from repo_node.config import NodeConfig
from repo_node.metrics import Metrics
from repo_node.settings import LiveSettings
from repo_node.web.listeners import Listeners
from repo_node.workers.added_up import NodeMetrics
from repo_node.workers.messages import Look
from repo_node.workers.seat import Seat
from sharding.background import Background
from sharding.errors import ShardError
from sharding.tasks import stop, wait

log = logging.getLogger("holdfast")

START_SECONDS = 30.0
"""How long a node waits for its workers before it takes requests without those that are late."""

PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.5, 30.0
STEADY_SECONDS = 60.0
"""A worker that ran so long ended for a new reason: its successor starts soon."""

END_SHARE = 1 / 2
"""Of the time that the node's end may take."""

END_LOOK_SECONDS = 0.02
TIDYINGS_MAX = 1_000

StandIn = Callable[[Listeners], AbstractAsyncContextManager[None]]


class Crew:
    """Satisfies ``Borrowers`` and ``Others``. Run it by ``running``; ``listeners`` are those of the workers."""

    def __init__(
        self,
        config: NodeConfig,
        owner: Owner,
        listeners: Sequence[Listeners],
        own: OwnShards,
        outlook: Callable[[], Outlook],
        settings: LiveSettings,
        metrics: Metrics,
        totals: NodeMetrics,
        stand_in: StandIn,
    ) -> None:
        self._config = config
        self._own = own
        self._outlook = outlook
        self._settings = settings
        self._metrics = metrics
        self._totals = totals
        self._stand_in = stand_in
        self._leaving, self._wake = asyncio.Event(), asyncio.Event()
        self._tidying = Background(TIDYINGS_MAX)
        self.has_started = False
        self._seats = [
            Seat(
                process,
                config.share_of(process),
                owner,
                theirs,
                own.opened,
                on_closed=own.look,
            )
            for process, theirs in enumerate(listeners, 1)
        ]

    # ------------------------------------------------------------------ what they share

    def lend(self, own: OwnShard) -> None:
        for seat in self._seats:
            seat.lend(own)

    def call_back(self, uid: UUID) -> None:
        for seat in self._seats:
            seat.call_back(uid)

    def have(self, uid: UUID) -> bool:
        return any(uid in seat.holds for seat in self._seats)

    def served(self) -> int:
        """Return how many uploads and readers all workers have begun."""
        return sum(seat.served for seat in self._seats)

    def in_flight(self) -> int:
        """Return how many requests the workers are answering."""
        return sum(seat.in_flight for seat in self._seats)

    # ------------------------------------------------------------------ how they are kept

    async def started(self) -> None:
        """Return when every worker serves; one that cannot, or takes long, is waited for no more."""
        waiting = [asyncio.ensure_future(seat.has_started.wait()) for seat in self._seats]
        _, late = await asyncio.wait(waiting, timeout=START_SECONDS)
        await stop(tuple(late))
        self.has_started = True
        self._wake.set()

    async def keep(self) -> None:
        """Keep every seat taken, until cancelled."""
        async with asyncio.TaskGroup() as group:  # whose end waits for all of them
            for work in (self._watch(), *map(self._keep, self._seats), *map(self._fill_in, self._seats)):
                group.create_task(work)

    async def _keep(self, seat: Seat) -> None:
        pause_seconds = 0.0
        while True:
            began_at, status = time.monotonic(), ""
            try:
                status = await self._run(seat, pause_seconds)
            except Exception:
                # Whatever it is, the seat must not stay empty.
                log.exception("a worker could not be had")
            if self._leaving.is_set():
                # Nobody takes any more what the kernel would lead here.
                seat.listeners.close()
                return
            if time.monotonic() - began_at > STEADY_SECONDS:
                pause_seconds = 0.0
            pause_seconds = min(max(2 * pause_seconds, PAUSE_SECONDS_MIN), PAUSE_SECONDS_MAX)
            facts = {"worker": seat.process, "status": status, "pause_seconds": pause_seconds}
            log.error("a worker ended; another takes its place", extra={"facts": facts})
            self._miss(seat)

    async def _run(self, seat: Seat, pause_seconds: float) -> str:
        """Have a worker in a seat after a pause; return its status when it has ended."""
        if await wait(self._leaving, pause_seconds):
            return "not started"
        return str(await seat.run(self._look()))

    async def _fill_in(self, seat: Seat) -> None:
        """Serve in a worker's stead whenever it does not, also while a killed one cannot end: it has its sockets."""
        while not self._leaving.is_set():
            try:
                async with self._stand_in(seat.listeners):
                    await self._until(seat.serving)
            except Exception:
                log.exception("nobody stands in for a worker")
                await wait(self._leaving, PAUSE_SECONDS_MIN)
            self._count()
            await self._until(seat.vacant)
            self._count()

    async def _until(self, event: asyncio.Event) -> None:
        """Return when ``event`` is set, or the workers leave."""
        async with task(event.wait()) as waiting, task(self._leaving.wait()) as leaving:
            await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)

    def _miss(self, seat: Seat) -> None:
        """Keep what an ended worker had counted, and have removed what it was staging."""
        self._metrics.worker_ends.inc()
        self._count()
        self._totals.keep(seat.process)
        for own in self._own.opened.values():
            self._tidying.start(discard(own, seat.stage))

    def _count(self) -> None:
        self._metrics.workers_up.set(sum(seat.serving.is_set() for seat in self._seats))

    async def _watch(self) -> None:
        while True:
            now = self._settings.now
            for seat in self._seats:
                seat.look(self._look(), max(2, round(now.node_down_seconds / now.heartbeat_seconds)))
            await wait(self._wake, now.heartbeat_seconds)
            self._wake.clear()

    def _look(self) -> Look:
        return Look(self._outlook(), self.has_started)

    # ------------------------------------------------------------------ how they leave

    async def leave(self) -> None:
        """Have every worker take nothing new on the front, and finish what it has. One that begins just now ends."""
        self._leaving.set()
        for seat in self._seats:
            if seat.listeners.front is not None:
                # As long as one process has it open, the kernel sends clients there.
                seat.listeners.front.close()
            if seat.serving.is_set():
                seat.leave()
            else:
                seat.kill()

    async def end(self) -> None:
        """End every worker: in order where the node leaves in order, else at once."""
        is_orderly = self._leaving.is_set()
        self._leaving.set()
        for seat in self._seats:
            seat.listeners.close()
            if is_orderly:
                seat.end()
            else:
                seat.kill()
        deadline = time.monotonic() + self._config.http.stop_timeout_seconds * END_SHARE
        while not all(seat.is_empty for seat in self._seats) and time.monotonic() < deadline:
            await asyncio.sleep(END_LOOK_SECONDS)
        await self._tidying.close(0)


async def discard(own: OwnShard, stage: str) -> None:
    """Remove a stage that nobody uses any more, nor ever will: a disk may take its time over it."""
    try:
        await own.shard.discard_stage(stage)
    except ShardError as error:
        facts = {"path": str(own.section.path), "cause": str(error)}
        log.warning("what an ended worker was staging stays until the next start", extra={"facts": facts})


@asynccontextmanager
async def running(crew: Crew) -> AsyncIterator[None]:
    """Have the workers until the block ends; it begins when they serve."""
    async with task(crew.keep()):
        try:
            await crew.started()
            yield
        finally:
            await crew.end()
