"""Any shard, bounded: so many calls at once, so long each, and none while it is known to fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

from sharding.circuit import Circuit, Pass
from sharding.deadlines import Deadlines
from sharding.errors import (
    ReplicaCorrupt,
    ReplicaMissing,
    ShardError,
    ShardFull,
    ShardRefused,
    ShardUnavailable,
)
from sharding.model import BlobName, Buffer, Generation, ShardId
from sharding.shard import Shard, StagedBlob

T = TypeVar("T")

RECALLED_BYTES_MAX = 64 << 10
"""Up to here whoever reads has asked ``recall``; over more, others get their turn."""


class Operation(StrEnum):
    """What was asked of a shard; ``write`` to ``abort`` concern a staged blob."""

    PUT = "put"
    STAGE = "stage"
    READ = "read"
    SIZES = "sizes"
    DELETE = "delete"
    WRITE = "write"
    READ_STAGED = "read_staged"
    COMMIT = "commit"
    ABORT = "abort"


class Outcome(StrEnum):
    """How it ended."""

    OK = "ok"
    UNAVAILABLE = "unavailable"
    FULL = "full"
    REFUSED = "refused"
    MISSING = "missing"
    CORRUPT = "corrupt"
    CANCELLED = "cancelled"


OUTCOMES: dict[type[ShardError], Outcome] = {
    ShardFull: Outcome.FULL,
    ShardRefused: Outcome.REFUSED,
    ReplicaMissing: Outcome.MISSING,
    ReplicaCorrupt: Outcome.CORRUPT,
}

VERDICTS = tuple(OUTCOMES)
"""What a shard that is well says of one blob, or of its space."""


class ShardObserver(Protocol):
    """Whoever counts the calls."""

    def observe(self, shard: ShardId, operation: Operation, seconds: float, outcome: Outcome) -> None:
        """Note one call and how long it took, waiting included. Must not raise or block."""
        ...


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """What one shard may cost its callers.

    ``calls_max`` at once, others wait ``queue_seconds``; a call on a whole blob takes
    ``call_seconds``, one on a staged blob ``stall_seconds``, its commit ``commit_seconds``. After
    ``failures_to_open`` failures in a row nothing is asked for ``open_seconds``.
    """

    calls_max: int = 64
    queue_seconds: float = 5.0
    call_seconds: float = 10.0
    stall_seconds: float = 15.0
    commit_seconds: float = 60.0
    failures_to_open: int = 5
    open_seconds: float = 2.0


class Guarded:
    """A ``Shard`` that answers ``ShardUnavailable`` in bounded time whatever the shard inside does."""

    def __init__(
        self,
        shard: Shard,
        *,
        limits: GuardLimits,
        observer: ShardObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shard = shard
        self.id = shard.id
        self.limits = limits
        self._observer = observer
        self._clock = clock
        self._slots = asyncio.Semaphore(limits.calls_max)
        self._circuit = Circuit(limits.failures_to_open, limits.open_seconds, clock)
        self.for_blob = Deadlines(limits.call_seconds)
        self.for_staged = Deadlines(limits.stall_seconds)
        self.for_commit = Deadlines(limits.commit_seconds)

    @property
    def available(self) -> bool:
        """Whether a new upload should choose this shard: true also when a trial is due."""
        return self._circuit.admits

    async def put(self, name: BlobName, data: Buffer) -> None:
        await self.call(Operation.PUT, self.for_blob, lambda: self._shard.put(name, data))

    async def stage(self, generation: Generation, length: int | None = None) -> StagedBlob:
        staged = await self.call(Operation.STAGE, self.for_blob, lambda: self._shard.stage(generation, length))
        return GuardedStaged(self, staged)

    async def read(self, name: BlobName, *, size: int, offset: int, length: int) -> Buffer:
        # Here, and not behind the circuit: memory answers as well for a disk that hangs.
        if (
            length > RECALLED_BYTES_MAX
            and (data := self.recall(name, size=size, offset=offset, length=length)) is not None
        ):
            await asyncio.sleep(0)  # nothing else here gives others their turn
            return data
        return await self.call(
            Operation.READ, self.for_blob, lambda: self._shard.read(name, size=size, offset=offset, length=length)
        )

    def recall(self, name: BlobName, *, size: int, offset: int, length: int) -> Buffer | None:
        """See ``Shard.recall``. Takes no slot, and says nothing about the shard behind it, nor is it one's trial."""
        if not self._circuit.is_closed:
            return None
        began = self._clock()
        data = self._shard.recall(name, size=size, offset=offset, length=length)
        if data is not None:
            self.observe(Operation.READ, began, Outcome.OK)
        return data

    async def sizes(self, names: Sequence[BlobName]) -> list[int | None]:
        return await self.call(Operation.SIZES, self.for_blob, lambda: self._shard.sizes(names))

    async def delete(self, name: BlobName) -> None:
        await self.call(Operation.DELETE, self.for_blob, lambda: self._shard.delete(name))

    async def call(self, operation: Operation, deadlines: Deadlines, begin: Callable[[], Awaitable[T]]) -> T:
        """Return what ``begin`` returns, within every limit; ``deadlines`` are for the call itself."""
        began = self._clock()
        outcome = Outcome.UNAVAILABLE
        try:
            result = await self._admitted(operation, deadlines, begin)
            outcome = Outcome.OK
            return result
        except ShardError as error:
            outcome = OUTCOMES.get(type(error), Outcome.UNAVAILABLE)
            raise
        except asyncio.CancelledError:
            outcome = Outcome.CANCELLED
            raise
        finally:
            self.observe(operation, began, outcome)

    def observe(self, operation: Operation, began: float, outcome: Outcome) -> None:
        """Tell the observer of a call that began at ``began`` by this guard's clock."""
        if self._observer is not None:
            self._observer.observe(self.id, operation, self._clock() - began, outcome)

    def now(self) -> float:
        """Return the time by this guard's clock, in seconds."""
        return self._clock()

    async def _admitted(self, operation: Operation, deadlines: Deadlines, begin: Callable[[], Awaitable[T]]) -> T:
        """Make the call when there is a slot for it, within its time, and tell the circuit how it went."""
        if not self._circuit.admits:
            raise self._resting()
        if self._slots.locked():
            await self._wait_for_slot()
        else:
            await self._slots.acquire()
        leave = self._circuit.enter()
        try:
            if leave is None:  # it opened while this call waited for its slot
                raise self._resting()
            with deadlines.begin():
                result = await begin()
            self._circuit.succeed(leave)
            return result
        except BaseException as error:
            if leave is not None:
                self._judge(leave, error)
            if isinstance(error, TimeoutError):
                raise ShardUnavailable(self.id, f"{operation} did not end in {deadlines.seconds} s") from None
            raise
        finally:
            self._slots.release()

    async def _wait_for_slot(self) -> None:
        try:
            async with asyncio.timeout(self.limits.queue_seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise ShardUnavailable(
                self.id, f"{self.limits.calls_max} calls are under way, and none ended in {self.limits.queue_seconds} s"
            ) from None

    def _judge(self, leave: Pass, error: BaseException) -> None:
        """Tell the circuit what ``error`` says of the shard."""
        if isinstance(error, VERDICTS):
            self._circuit.succeed(leave)
        elif isinstance(error, Exception):
            self._circuit.fail(leave)
        else:
            self._circuit.forget(leave)

    def _resting(self) -> ShardUnavailable:
        return ShardUnavailable(self.id, "it failed repeatedly and is given a rest")


class GuardedStaged:
    """A ``StagedBlob`` whose every call obeys the limits of its shard's guard."""

    def __init__(self, guard: Guarded, staged: StagedBlob) -> None:
        self._guard = guard
        self._staged = staged

    @property
    def written(self) -> int:
        return self._staged.written

    async def write(self, data: Buffer) -> None:
        await self._guard.call(Operation.WRITE, self._guard.for_staged, lambda: self._staged.write(data))

    async def read(self, offset: int, length: int) -> Buffer:
        return await self._guard.call(
            Operation.READ_STAGED, self._guard.for_staged, lambda: self._staged.read(offset, length)
        )

    async def commit(self, sha256: bytes, blocks: bytes) -> None:
        await self._guard.call(Operation.COMMIT, self._guard.for_commit, lambda: self._staged.commit(sha256, blocks))

    async def abort(self) -> None:
        """See ``StagedBlob.abort``. Needs no slot and no closed circuit, and waits no longer than a small call."""
        began = self._guard.now()
        outcome = Outcome.UNAVAILABLE
        try:
            with self._guard.for_blob.begin():
                await self._staged.abort()
            outcome = Outcome.OK
        except TimeoutError:
            return
        except asyncio.CancelledError:
            outcome = Outcome.CANCELLED
            raise
        finally:
            self._guard.observe(Operation.ABORT, began, outcome)
