"""A shard that fails on purpose: by plan, or by chance from a seed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from typing import TypeVar

from sharding.errors import ShardFull, ShardUnavailable
from sharding.guarded import Operation
from sharding.model import BlobName, Buffer, Generation, ShardId
from sharding.shard import Shard, StagedBlob

T = TypeVar("T")


class Fault(StrEnum):
    """What goes wrong with one call."""

    FAIL = "fail"
    """``ShardUnavailable``, and nothing was done."""
    FAIL_AFTER = "fail_after"
    """``ShardUnavailable``, though everything was done."""
    STALL = "stall"
    """The call waits until ``release``, then goes on."""
    CORRUPT = "corrupt"
    """One bit flips on the way to the disk or from it."""
    FULL = "full"
    """``ShardFull``, and nothing was done."""
    LOSE = "lose"
    """The file vanishes: after it was stored, or before it is looked for."""


ANYWHERE = frozenset({Fault.FAIL, Fault.FAIL_AFTER, Fault.STALL})
POSSIBLE: Mapping[Operation, frozenset[Fault]] = {
    Operation.PUT: ANYWHERE | {Fault.CORRUPT, Fault.FULL, Fault.LOSE},
    Operation.STAGE: ANYWHERE | {Fault.FULL},
    Operation.READ: ANYWHERE | {Fault.CORRUPT, Fault.LOSE},
    Operation.SIZES: ANYWHERE | {Fault.LOSE},
    Operation.DELETE: ANYWHERE,
    Operation.WRITE: ANYWHERE | {Fault.CORRUPT, Fault.FULL},
    Operation.READ_STAGED: ANYWHERE | {Fault.CORRUPT},
    Operation.COMMIT: ANYWHERE | {Fault.FULL, Fault.LOSE},
    Operation.ABORT: frozenset({Fault.STALL}),
}


class FaultyShard:
    """A ``Shard`` around another.

    A fault planned for an operation comes first, then chance: ``rates[operation][fault]`` is a
    probability. Equal seeds and equal calls in equal order give equal faults. ``down`` makes every
    call fail, ``full`` every new byte. ``injected`` counts what was done.
    """

    def __init__(
        self, shard: Shard, seed: int = 0, rates: Mapping[Operation, Mapping[Fault, float]] | None = None
    ) -> None:
        self._shard = shard
        self._random = random.Random(seed)
        self._rates = rates or {}
        for operation, faults in self._rates.items():
            _check_possible(operation, faults)
        self._planned: defaultdict[Operation, deque[Fault | None]] = defaultdict(deque)
        self._released = asyncio.Event()
        self.down = False
        self.full = False
        self.injected: Counter[tuple[Operation, Fault]] = Counter()

    @property
    def id(self) -> ShardId:
        return self._shard.id

    def plan(self, operation: Operation, *faults: Fault | None) -> None:
        """Have the next calls of ``operation`` go wrong so, each one as its turn comes; None goes well."""
        _check_possible(operation, [fault for fault in faults if fault is not None])
        self._planned[operation].extend(faults)

    def heal(self) -> None:
        """Work again: nothing is planned any more, nothing stalls."""
        self.down = self.full = False
        self._planned.clear()
        self.release()

    def release(self) -> None:
        """Let every call go on that stalls now."""
        self._released.set()
        self._released = asyncio.Event()

    async def put(self, name: BlobName, data: Buffer) -> None:
        fault = self.next_fault(Operation.PUT)
        if fault is Fault.CORRUPT:
            data = self.flipped(data)
        await self.suffer(fault, lambda: self._shard.put(name, data))
        if fault is Fault.LOSE:
            await self._shard.delete(name)

    async def stage(self, generation: Generation, length: int | None = None) -> StagedBlob:
        staged = await self.suffer(self.next_fault(Operation.STAGE), lambda: self._shard.stage(generation, length))
        return FaultyStaged(self, staged, generation)

    async def read(self, name: BlobName, *, size: int, offset: int, length: int) -> Buffer:
        fault = self.next_fault(Operation.READ)
        if fault is Fault.LOSE:
            await self._shard.delete(name)
        data = await self.suffer(fault, lambda: self._shard.read(name, size=size, offset=offset, length=length))
        return self.flipped(data) if fault is Fault.CORRUPT else data

    def recall(self, name: BlobName, *, size: int, offset: int, length: int) -> Buffer | None:
        return None

    async def sizes(self, names: Sequence[BlobName]) -> list[int | None]:
        fault = self.next_fault(Operation.SIZES)
        if fault is Fault.LOSE and names:
            await self._shard.delete(names[self._random.randrange(len(names))])
        return await self.suffer(fault, lambda: self._shard.sizes(names))

    async def delete(self, name: BlobName) -> None:
        await self.suffer(self.next_fault(Operation.DELETE), lambda: self._shard.delete(name))

    async def lose(self, name: BlobName) -> None:
        """Remove a file behind everybody's back."""
        await self._shard.delete(name)

    def next_fault(self, operation: Operation) -> Fault | None:
        """Return what goes wrong with this call; one draw a call, whatever is planned."""
        drawn = self._draw(operation)
        planned = self._planned[operation]
        fault = planned.popleft() if planned else drawn
        if self.down and operation is not Operation.ABORT:
            fault = Fault.FAIL
        elif self.full and Fault.FULL in POSSIBLE[operation] and operation is not Operation.COMMIT:
            fault = Fault.FULL
        if fault is not None:
            self.injected[operation, fault] += 1
        return fault

    async def suffer(self, fault: Fault | None, begin: Callable[[], Awaitable[T]]) -> T:
        """Return what ``begin`` returns, unless ``fault`` prevents it."""
        match fault:
            case Fault.FAIL:
                raise ShardUnavailable(self.id, "made to fail")
            case Fault.FULL:
                raise ShardFull(self.id, "made to be full")
            case Fault.STALL:
                await self._released.wait()
        result = await begin()
        if fault is Fault.FAIL_AFTER:
            raise ShardUnavailable(self.id, "made to fail when all was done")
        return result

    def flipped(self, data: Buffer) -> Buffer:
        """Return ``data`` with one bit flipped."""
        damaged = bytearray(data)
        if damaged:
            damaged[self._random.randrange(len(damaged))] ^= 1 << self._random.randrange(8)
        return damaged

    def _draw(self, operation: Operation) -> Fault | None:
        left = self._random.random()
        for fault, rate in self._rates.get(operation, {}).items():
            if left < rate:
                return fault
            left -= rate
        return None


class FaultyStaged:
    """A ``StagedBlob`` that suffers the faults of its shard."""

    def __init__(self, shard: FaultyShard, staged: StagedBlob, generation: Generation) -> None:
        self._shard = shard
        self._staged = staged
        self._generation = generation

    @property
    def written(self) -> int:
        return self._staged.written

    async def write(self, data: Buffer) -> None:
        fault = self._shard.next_fault(Operation.WRITE)
        if fault is Fault.CORRUPT:
            data = self._shard.flipped(data)
        await self._shard.suffer(fault, lambda: self._staged.write(data))

    async def read(self, offset: int, length: int) -> Buffer:
        fault = self._shard.next_fault(Operation.READ_STAGED)
        data = await self._shard.suffer(fault, lambda: self._staged.read(offset, length))
        return self._shard.flipped(data) if fault is Fault.CORRUPT else data

    async def commit(self, sha256: bytes, blocks: bytes) -> None:
        fault = self._shard.next_fault(Operation.COMMIT)
        await self._shard.suffer(fault, lambda: self._staged.commit(sha256, blocks))
        if fault is Fault.LOSE:
            await self._shard.lose(BlobName(sha256, self._generation))

    async def abort(self) -> None:
        await self._shard.suffer(self._shard.next_fault(Operation.ABORT), self._staged.abort)


def _check_possible(operation: Operation, faults: Mapping[Fault, float] | Sequence[Fault]) -> None:
    impossible = set(faults) - POSSIBLE[operation]
    if impossible:
        raise ValueError(f"{operation} cannot suffer {', '.join(sorted(impossible))}")
