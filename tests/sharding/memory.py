"""A store in memory for tests of what stands above the shards, on a clock that never makes anyone wait.

``MemoryShard`` holds its callers to the contract of ``Shard``: what they break is raised and kept in
``violations``. ``instant`` runs a test on a loop whose time jumps to the next timer whenever nothing
else is to do; where nothing ever will be, the test fails instead of hanging.
"""

from __future__ import annotations

import asyncio
import functools
import random
import selectors
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar
from unittest import mock
from uuid import UUID, uuid5

from sharding import model
from sharding.errors import ReplicaCorrupt, ReplicaMissing
from sharding.guarded import Guarded, GuardLimits
from sharding.model import BlobName, Buffer, Generation, Member, NodeId, Replica, ShardId, ZoneId
from sharding.provider import ShardingProvider, StoreLimits
from sharding.ring import Ring
from sharding.shard import Shard, StagedBlob
from sharding.view import StoreView
from tests.sharding.faulty import FaultyShard

P = ParamSpec("P")
T = TypeVar("T")

SPACE = UUID("5a0e8f6e-7f4c-4f0e-9d5c-0f2f1f6f0001")
COMMIT_WAIT_SECONDS = 20.0
HEDGE_SECONDS = 1.0
IDS = random.Random()
"""Where ``run`` has ids come from; each provider of a cluster begins with the same ones in every test."""


class MemoryShard:
    """A ``Shard`` in memory; ``write_seconds`` is what each write to a staged blob takes.

    ``needless_aborts`` counts those of committed blobs, which only a caller who was told of a failure may make.
    """

    def __init__(self, id: ShardId) -> None:
        self.id = id
        self.files: dict[BlobName, bytes] = {}
        self.staged: dict[Generation, MemoryStaged] = {}
        self.violations: list[str] = []
        self.write_seconds = 0.0
        self.needless_aborts = 0
        self._generations: set[Generation] = set()

    async def put(self, name: BlobName, data: Buffer) -> None:
        self.require(memoryview(data).nbytes <= model.BLOCK_BYTES, "a put of more than a block")
        self._begin(name.generation)
        await asyncio.sleep(0)
        self.files[name] = bytes(data)

    async def stage(self, generation: Generation, length: int | None = None) -> StagedBlob:
        self._begin(generation)
        await asyncio.sleep(0)
        self.staged[generation] = staged = MemoryStaged(self, generation)
        return staged

    async def read(self, name: BlobName, *, size: int, offset: int, length: int) -> Buffer:
        self.require(offset >= 0 and length > 0 and offset + length <= size, "a read outside the blob")
        await asyncio.sleep(0)
        if name not in self.files:
            raise ReplicaMissing(self.id, f"{name} is not there")
        if len(self.files[name]) != size:
            raise ReplicaCorrupt(self.id, f"{name} has the wrong size")
        return self.files[name][offset : offset + length]

    def recall(self, name: BlobName, *, size: int, offset: int, length: int) -> Buffer | None:
        return None

    async def sizes(self, names: Sequence[BlobName]) -> list[int | None]:
        await asyncio.sleep(0)
        return [len(self.files[name]) if name in self.files else None for name in names]

    async def delete(self, name: BlobName) -> None:
        await asyncio.sleep(0)
        self.files.pop(name, None)

    def require(self, kept: bool, broken: str) -> None:
        """Raise, and note, what breaks the contract."""
        if not kept:
            self.violations.append(broken)
            raise AssertionError(broken)

    def _begin(self, generation: Generation) -> None:
        self.require(generation not in self._generations, "a generation used twice")
        self._generations.add(generation)


class MemoryStaged:
    """A ``StagedBlob`` in memory; ``abort`` may follow anything but a call that is still under way."""

    def __init__(self, shard: MemoryShard, generation: Generation) -> None:
        self.bytes = bytearray()
        self._shard = shard
        self._generation = generation
        self._busy = False
        self._over = False
        self._committed = False

    @property
    def written(self) -> int:
        return len(self.bytes)

    async def write(self, data: Buffer) -> None:
        with self._in_use():
            await asyncio.sleep(self._shard.write_seconds)
            self.bytes += data

    async def read(self, offset: int, length: int) -> Buffer:
        with self._in_use():
            self._shard.require(length > 0 and offset + length <= len(self.bytes), "a read of what is not staged")
            await asyncio.sleep(0)
            return bytes(self.bytes[offset : offset + length])

    async def commit(self, sha256: bytes, blocks: bytes) -> None:
        with self._in_use():
            self._over = True
            await asyncio.sleep(0)
            self._shard.files[BlobName(sha256, self._generation)] = bytes(self.bytes)
            del self._shard.staged[self._generation]
            self._committed = True

    async def abort(self) -> None:
        self._shard.require(not self._busy, "an abort beside another call")
        self._shard.needless_aborts += self._committed
        self._over = True
        self._shard.staged.pop(self._generation, None)

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        self._shard.require(not self._busy, "two calls at once on a staged blob")
        self._shard.require(not self._over, "a call after commit or abort")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False


class Cluster:
    """Shards in memory behind faults and guards, and the view of one node, which is the first.

    ``layout`` gives each shard's zone and node, as in ``"a1 a1 b2"``.
    """

    def __init__(self, layout: str, *, seed: int = 0, limits: GuardLimits | None = None) -> None:
        self.members = tuple(
            Member(ShardId(number), uuid5(SPACE, f"{seed}/{number}"), ZoneId(place[0]), NodeId(place))
            for number, place in enumerate(layout.split())
        )
        self.memory = {member.shard: MemoryShard(member.shard) for member in self.members}
        self.faulty = {shard: FaultyShard(memory, seed) for shard, memory in self.memory.items()}
        self.shards: Mapping[ShardId, Shard] = {
            shard: Guarded(faulty, limits=limits or GuardLimits(), clock=lambda: asyncio.get_running_loop().time())
            for shard, faulty in self.faulty.items()
        }
        self._ring = Ring(self.members, virtual_nodes=64)
        self._providers = 0
        self.full: set[ShardId] = set()
        self.unwritable: set[ShardId] = set()

    @property
    def view(self) -> StoreView:
        ids = frozenset(self.shards)
        return StoreView(
            ring=self._ring,
            shards=self.shards,
            writable=ids - self.full - self.unwritable,
            full=frozenset(self.full),
            readable=ids,
            node=self.members[0].node,
            zone=self.members[0].zone,
        )

    def provider(self) -> ShardingProvider:
        """Return a provider on this cluster that hashes in place."""
        IDS.seed(self._providers)
        self._providers += 1
        with mock.patch("sharding.provider.ThreadPoolExecutor", lambda *_, **__: InlineExecutor()):
            return ShardingProvider(lambda: self.view, lambda: StoreLimits(COMMIT_WAIT_SECONDS, HEDGE_SECONDS))

    def at(self, replica: Replica) -> Member:
        return self.members[replica.shard]

    def zones(self, replicas: Sequence[Replica]) -> set[str]:
        return {self.at(replica).zone for replica in replicas}

    def files(self) -> dict[Replica, bytes]:
        """Return every committed file there is."""
        return {
            Replica(shard, name.generation): data
            for shard, memory in self.memory.items()
            for name, data in memory.files.items()
        }

    def staged(self) -> list[tuple[ShardId, Generation]]:
        """Return everything that is staged and neither committed nor aborted."""
        return [(shard, generation) for shard, memory in self.memory.items() for generation in memory.staged]

    def heal(self) -> None:
        """Make every shard work again, and forget the faults still planned."""
        self.full, self.unwritable = set(), set()
        for faulty in self.faulty.values():
            faulty.heal()

    def check(self) -> None:
        """Fail if anyone broke the contract of a shard."""
        assert [violation for memory in self.memory.values() for violation in memory.violations] == []


class InlineExecutor(Executor):
    """Runs everything in place."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class JumpingSelector(selectors.DefaultSelector):
    """Counts a wait as over at once."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("everything waits, and nothing will ever happen")
        if not events and timeout:
            self.now += timeout
        return events


class InstantLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only while everything waits, and then at once."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)
        self.problems: list[Mapping[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.problems.append(context))

    def time(self) -> float:
        return self._jumping.now


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` on a loop of its own, with the same ids each time.

    Fails when it leaves a task behind, or an error nobody asked for.
    """
    ids = mock.patch.multiple("sharding.provider", mint_uid=mint, mint_generation=mint)
    with ids, asyncio.Runner(loop_factory=InstantLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, InstantLoop)
        result = runner.run(leaving_nothing(work))
        assert loop.problems == []
        return result


def mint() -> UUID:
    return UUID(int=IDS.getrandbits(128))


async def leaving_nothing(work: Awaitable[T]) -> T:
    """Return what ``work`` returns; fail when it leaves a task behind."""
    before = asyncio.all_tasks()
    result = await work
    for _ in range(3):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() - before == set()
    return result


def instant(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a test function of a coroutine function: see ``run``."""

    @functools.wraps(test)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        run(test(*args, **kwargs))

    return wrapped


@contextmanager
def small_blocks(block_bytes: int = 64) -> Iterator[None]:
    """Make a block so small that a test can afford many, and hash all but the smallest bodies on the executor."""
    with mock.patch.multiple("sharding.upload", INLINE_HASH_BYTES=block_bytes // 2):
        patches = [
            mock.patch.object(module, "BLOCK_BYTES", block_bytes)
            for name, module in sys.modules.items()
            if name.startswith("sharding.") and hasattr(module, "BLOCK_BYTES")
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()
