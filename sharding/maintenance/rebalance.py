"""Rebalance and trim: each node goes over the copies on its own shards, moves what the ring wants elsewhere, and
drops what is too much. The database counts anew before anything goes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from xxhash import xxh3_64_hexdigest

from sharding.crash_points import crash_point
from sharding.errors import BlobUnavailable
from sharding.janitor import Janitor
from sharding.maintenance.catalogue import Held, MoveOutcome, WalkCatalogue
from sharding.maintenance.copier import Copier
from sharding.maintenance.job import Step
from sharding.maintenance.placement import dispensable, misplaced
from sharding.maintenance.throttle import Throttle
from sharding.model import BlobName, Generation, Member, Replica, ShardId
from sharding.ring import Ring
from sharding.tasks import run_all
from sharding.view import StoreView

log = logging.getLogger(__name__)

BATCH_COPIES = 200
BATCH_BYTES = 64 << 20
"""What a step moves at most, but always one blob."""

MOVES_AT_ONCE = 4

AGAIN_SECONDS = 10.0
"""After a pass that had to leave something, because its home took no writes or the copy failed."""

NO_RING = ""
"""What a pass is remembered with that does not count for any ring."""


class OwnWalk:
    """Goes over the copies on the shards of this node, one batch at each step."""

    def __init__(
        self,
        job: str,
        view: Callable[[], StoreView],
        catalogue: WalkCatalogue,
        period_seconds: Callable[[], float],
        again_seconds: Callable[[], float],
    ) -> None:
        self._again_seconds = again_seconds
        self._job = job
        self._view = view
        self._catalogue = catalogue
        self._period_seconds = period_seconds
        self._ring: tuple[Ring, str] | None = None
        self._incomplete: set[ShardId] = set()
        self._not_before: dict[ShardId, float] = {}
        self._prompted: set[ShardId] = set()

    def prompt(self) -> None:
        """Let a pass over every own shard be due now."""
        view = self._view()
        self._prompted = {member.shard for member in view.ring.members if member.node == view.node}

    async def next_batch(self) -> tuple[ShardId, str, list[Held]] | None:
        """Return a shard of this node, the ring, and its next copies; None when no pass is due."""
        view, now = self._view(), asyncio.get_running_loop().time()
        ring = self._name_of(view.ring)
        for member in view.ring.members:
            is_own = member.node == view.node and member.shard in view.readable
            is_prompted = member.shard in self._prompted
            if is_own and (is_prompted or self._not_before.get(member.shard, now) <= now):
                period = 0.0 if is_prompted else self._period_seconds()
                batch = await self._catalogue.next_batch(
                    self._job, member.shard, ring, count=BATCH_COPIES, period_seconds=period
                )
                if batch is not None:
                    return member.shard, ring, batch
        return None

    async def advance(self, shard: ShardId, ring: str, last: Held | None, *, is_complete: bool = True) -> None:
        """Remember that everything up to ``last`` was seen to; None: the pass has ended.

        A pass in which something had to be left is followed by another before long.
        """
        if not is_complete:
            self._incomplete.add(shard)
        if last is not None:
            await self._catalogue.advance(self._job, shard, ring, last.generation)
            return
        self._prompted.discard(shard)
        if shard in self._incomplete:
            ring = NO_RING
            self._incomplete.discard(shard)
            self._not_before[shard] = asyncio.get_running_loop().time() + self._again_seconds()
        await self._catalogue.advance(self._job, shard, ring, None)

    def _name_of(self, ring: Ring) -> str:
        """Return what two rings have in common only when they place alike."""
        if self._ring is None or self._ring[0] is not ring:
            members = "".join(f"{one.uid}{one.zone}/{one.node}/{one.weight};" for one in ring.members)
            self._ring = ring, xxh3_64_hexdigest(members.encode())
        return self._ring[1]


class MoveObserver(Protocol):
    """Told of each copy that was moved or trimmed."""

    def observe_move(self, outcome: MoveOutcome) -> None: ...

    def observe_trim(self, trimmed: bool) -> None: ...


class Rebalance:
    """The job ``rebalance``: copy, verify, flip the row under the blob's lock; the old file goes later."""

    name = "rebalance"

    def __init__(
        self,
        view: Callable[[], StoreView],
        catalogue: WalkCatalogue,
        janitor: Janitor,
        rate: Callable[[], float | None],
        period_seconds: Callable[[], float],
        observer: MoveObserver,
        mint: Callable[[], Generation],
        again_seconds: Callable[[], float] = lambda: AGAIN_SECONDS,
    ) -> None:
        self._view = view
        self._catalogue = catalogue
        self._janitor = janitor
        self._observer = observer
        self._walk = OwnWalk(self.name, view, catalogue, period_seconds, again_seconds)
        self._copier = Copier(view, catalogue, janitor, Throttle(rate), mint)
        self._turn = asyncio.Semaphore(MOVES_AT_ONCE)

    def prompt(self) -> None:
        self._walk.prompt()

    async def step(self) -> Step:
        found = await self._walk.next_batch()
        if found is None:
            return Step(idle=True)
        shard, ring, batch = found
        moves, last, left = self._plan(shard, batch)
        moved = await run_all(self._move(held, shard, home) for held, home in moves)
        await self._walk.advance(shard, ring, last, is_complete=not left and all(moved))
        return Step(done=sum(count > 0 for count in moved), moved_bytes=sum(moved))

    def _plan(self, shard: ShardId, batch: Sequence[Held]) -> tuple[list[tuple[Held, Member]], Held | None, bool]:
        """Return what of ``batch`` is to be moved where, within a step's bytes.

        Also the last copy looked at, and whether one has to stay, because its home takes no writes now.
        """
        view, count_bytes, left = self._view(), 0, False
        moves: list[tuple[Held, Member]] = []
        last: Held | None = None
        for held in batch:
            counting = {replica.shard for replica in held.replicas if replica.counts}
            home = misplaced(view, held.blob.uid, held.blob.redundancy, counting, shard)
            # Of a blob that lacks copies, repair makes one where it belongs first.
            if home is not None and not view.takes(home):
                left = True
            elif home is not None and len(counting) >= held.blob.redundancy:
                if moves and count_bytes + held.blob.size > BATCH_BYTES:
                    break
                moves.append((held, home))
                count_bytes += held.blob.size
            last = held
        return moves, last, left

    async def _move(self, held: Held, shard: ShardId, home: Member) -> int:
        """Move one copy; return the bytes written."""
        blob, old = held.blob, Replica(shard, held.generation)
        async with self._turn:
            try:
                copied = await self._copier.copy(blob, held.replicas, [home])
            except BlobUnavailable as error:
                log.warning("not moved: %s", error)
                return 0
            for new in copied.copies:
                crash_point("move.copied")
                outcome = await self._catalogue.move(blob, old, new)
                crash_point("move.flipped")
                self._observer.observe_move(outcome)
                if outcome is MoveOutcome.SURPLUS:
                    self._janitor.delete_replica(new.shard, BlobName(blob.sha256, new.generation))
            return copied.moved_bytes


class Trim:
    """The job ``trim``: drops copies beyond N, farthest from the ring first."""

    name = "trim"

    def __init__(
        self,
        view: Callable[[], StoreView],
        catalogue: WalkCatalogue,
        period_seconds: Callable[[], float],
        observer: MoveObserver,
    ) -> None:
        self._view = view
        self._catalogue = catalogue
        self._observer = observer
        self._walk = OwnWalk(self.name, view, catalogue, period_seconds, lambda: AGAIN_SECONDS)

    def prompt(self) -> None:
        self._walk.prompt()

    async def step(self) -> Step:
        found = await self._walk.next_batch()
        if found is None:
            return Step(idle=True)
        shard, ring, batch = found
        trimmed = 0
        for held in batch:
            if self._is_surplus(held, shard):
                done = await self._catalogue.trim(held.blob, Replica(shard, held.generation))
                self._observer.observe_trim(done)
                trimmed += done
        await self._walk.advance(shard, ring, batch[-1] if batch else None)
        return Step(done=trimmed)

    def _is_surplus(self, held: Held, shard: ShardId) -> bool:
        """Say whether this copy is one the blob can do without, by the ring and the rows as they were read."""
        counting = [replica for replica in held.replicas if replica.counts]
        here = [replica.generation for replica in counting if replica.shard == shard]
        if len(here) > 1 and held.generation != min(here):
            return True
        shards = {replica.shard for replica in counting}
        return len(shards) > held.blob.redundancy and shard in dispensable(
            self._view(), held.blob.uid, held.blob.redundancy, shards
        )
