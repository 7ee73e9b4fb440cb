"""Copies one blob from whichever replica can give it to other shards: every block verified, every copy durable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sharding.errors import ShardError
from sharding.janitor import Janitor
from sharding.maintenance.catalogue import CopyCatalogue, StoredBlob, StoredReplica
from sharding.maintenance.throttle import Throttle
from sharding.model import BLOCK_BYTES, BLOCK_DIGEST_BYTES, BlobName, Buffer, Generation, Member, Replica, block_count
from sharding.reader import BlobReader, BlobToRead
from sharding.shard import StagedBlob
from sharding.tasks import run_all
from sharding.view import StoreView

HEDGE_SECONDS = 5.0
"""A source this slow is read from another copy beside it; nobody waits for a repair as for a download."""

DIGEST_WINDOW = 1024
"""Block digests fetched at once."""


@dataclass(slots=True)
class Target:
    """One copy in the making."""

    member: Member
    generation: Generation
    staged: StagedBlob | None = None

    @property
    def replica(self) -> Replica:
        return Replica(self.member.shard, self.generation)


@dataclass(frozen=True, slots=True)
class Copied:
    """What came of one copying: the durable copies, the shards that failed, and the bytes written."""

    copies: tuple[Replica, ...]
    failures: tuple[ShardError, ...]
    moved_bytes: int

    def __add__(self, other: Copied) -> Copied:
        return Copied(self.copies + other.copies, self.failures + other.failures, self.moved_bytes + other.moved_bytes)


class Copier:
    """Makes copies for one job, under its throttle. ``view`` is asked anew for every blob."""

    def __init__(
        self,
        view: Callable[[], StoreView],
        catalogue: CopyCatalogue,
        janitor: Janitor,
        throttle: Throttle,
        mint: Callable[[], Generation],
    ) -> None:
        self._view = view
        self._catalogue = catalogue
        self._janitor = janitor
        self._throttle = throttle
        self._mint = mint

    async def copy(self, blob: StoredBlob, sources: Sequence[StoredReplica], targets: Sequence[Member]) -> Copied:
        """Put a durable copy of ``blob`` on each of ``targets``, as far as they work.

        Each gets a generation of its own; what is not returned is removed. Raises ``BlobUnavailable`` when no
        replica gives the next block.
        """
        work = Copying(self._view(), blob, [Target(member, self._mint()) for member in targets], self._janitor)
        reader = BlobReader(
            self._view,
            BlobToRead(blob.sha256, blob.size, tuple(source.replica for source in sources)),
            self._catalogue.of_blob(blob),
            hedge_seconds=HEDGE_SECONDS,
        )
        try:
            if blob.size <= BLOCK_BYTES:
                await self._throttle.take(blob.size * len(targets))
                await work.put(await reader.read_small())
            else:
                await self._stream(work, reader)
        except BaseException:
            work.give_up()
            raise
        return work.result()

    async def _stream(self, work: Copying, reader: BlobReader) -> None:
        await work.stage()
        digests = self._catalogue.of_blob(work.blob)
        async for block in reader.stream(0, work.blob.size - 1):
            if not work.targets:
                return
            await self._throttle.take(len(block) * len(work.targets))
            await work.write(block)
        blocks = block_count(work.blob.size)
        whole = bytearray()
        while len(whole) < blocks * BLOCK_DIGEST_BYTES:
            first = len(whole) // BLOCK_DIGEST_BYTES
            found = await digests.block_digests(first, min(DIGEST_WINDOW, blocks - first))
            if not found:
                break
            whole += found
        await work.commit(bytes(whole))


class Copying:
    """The targets of one copying; those that fail are struck off and tidied up."""

    def __init__(self, view: StoreView, blob: StoredBlob, targets: list[Target], janitor: Janitor) -> None:
        self.blob = blob
        self.targets = targets
        self._view = view
        self._janitor = janitor
        self._failures: list[ShardError] = []
        self._moved_bytes = 0
        self._durable: list[Target] = []

    async def put(self, data: Buffer) -> None:
        """Store a small blob whole."""

        async def put(target: Target) -> None:
            name = BlobName(self.blob.sha256, target.generation)
            await self._view.shards[target.member.shard].put(name, data)
            self._end(target)

        await self._each(put, len(data))

    async def stage(self) -> None:
        async def stage(target: Target) -> None:
            target.staged = await self._view.shards[target.member.shard].stage(target.generation, self.blob.size)

        await self._each(stage, 0)

    async def write(self, block: Buffer) -> None:
        async def write(target: Target) -> None:
            assert target.staged is not None
            await target.staged.write(block)

        await self._each(write, len(block))

    async def commit(self, blocks: bytes) -> None:
        async def commit(target: Target) -> None:
            assert target.staged is not None
            await target.staged.commit(self.blob.sha256, blocks)
            self._end(target)

        await self._each(commit, 0)

    def give_up(self) -> None:
        """Remove everything made so far."""
        for target in (*self.targets, *self._durable):
            self._discard(target)
        self.targets, self._durable = [], []

    def result(self) -> Copied:
        return Copied(tuple(target.replica for target in self._durable), tuple(self._failures), self._moved_bytes)

    def _end(self, target: Target) -> None:
        self.targets.remove(target)
        self._durable.append(target)

    async def _each(self, work: Callable[[Target], object], count_bytes: int) -> None:
        async def guarded(target: Target) -> None:
            try:
                await work(target)  # type: ignore[misc]
                self._moved_bytes += count_bytes
            except ShardError as error:
                self._failures.append(error)
                self.targets.remove(target)
                self._discard(target)

        await run_all(guarded(target) for target in list(self.targets))

    def _discard(self, target: Target) -> None:
        if target.staged is not None:
            self._janitor.abort_later(target.staged)
        self._janitor.delete_later(target.member, BlobName(self.blob.sha256, target.generation))
