"""A shard on a disk of this node.

The work is done by ``files`` and ``staging`` on the disk's own threads, one hop per call and none for
what memory answers. The fsyncs of directories are shared by concurrent commits and deletions; a small
blob brings its own. Cancelling a call gives its file up at once, though a thread may still hang in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from sharding.arriving_reads import ArrivingReads
from sharding.directory_sync import DirectorySync
from sharding.disk import DiskBusy, DiskExecutor
from sharding.disk_errors import LOOKING, WRITING, shard_error, translated
from sharding.errors import ShardError, ShardFull, ShardRefused, ShardUnavailable
from sharding.files import ShardFiles, passing_read_only
from sharding.identity import ShardClaim, ShardIdentity, claim
from sharding.listing import ShardListing
from sharding.model import BLOCK_BYTES, BLOCK_DIGEST_BYTES, BlobName, Buffer, Generation, ShardId, block_count
from sharding.quarantine import Quarantine
from sharding.reread import Rereader
from sharding.self_test import check_disk
from sharding.shard import Aside, AsideEntry, Part, ShardSpace, StagedBlob
from sharding.staging import StagedFile

P = ParamSpec("P")
T = TypeVar("T")

SIZES_PER_HOP = 256
RECALLED_NAMES_MAX = 8
"""The sizes of so many files are asked for without a thread: more could keep others waiting."""

CLOSE_SECONDS = 10.0
CACHED_BYTES_MAX = 16 << 20


class LocalShard:
    """A ``Shard``, ``Measurable``, ``Auditable``, ``Epochs`` over a claimed directory. Made by ``open_local_shard``."""

    def __init__(self, files: ShardFiles, executor: DiskExecutor) -> None:
        self.files = files
        self._executor = executor
        self._directories = DirectorySync(lambda directories: executor.begin(files.sync_all, directories))
        self._arriving = ArrivingReads(files.cached_reads)
        self._rereader = Rereader(files)
        self._quarantine = Quarantine(files)

    @property
    def id(self) -> ShardId:
        return self.files.shard

    async def put(self, name: BlobName, data: Buffer) -> None:
        if memoryview(data).nbytes > BLOCK_BYTES:
            raise ShardRefused(self.id, f"a blob of more than {BLOCK_BYTES} bytes must be staged")
        file = StagedFile(self.files, name.generation)
        try:  # not ``discarded_on_failure``, whose steps count on the way of a small blob
            if directories := await self.run(file.store, name.sha256, data):
                await self.sync(directories)
        except BaseException:
            self.discard(file)
            raise

    async def stage(self, generation: Generation, length: int | None = None) -> StagedBlob:
        file = StagedFile(self.files, generation, length)
        with self.discarded_on_failure(file):
            await self.run(file.create)
        return LocalStaged(self, file)

    async def read(self, name: BlobName, *, size: int, offset: int, length: int) -> Buffer:
        """See ``Shard.read``: small blobs by the page cache, as it gets them, others on a thread of the disk.

        Who has not asked ``recall`` yet may want to.
        """
        in_thread = partial(self.files.read, name, size, offset, length)
        if self._executor.is_closed:
            return await self.run(in_thread)  # which says so
        path = self.files.path_of(name)
        return await self._arriving.read(path, size, offset, length, otherwise=lambda: self.run(in_thread))

    def recall(self, name: BlobName, *, size: int, offset: int, length: int) -> Buffer | None:
        """See ``Shard.recall``: what the page cache has all of."""
        return None if self._executor.is_closed else self.files.read_cached(name, size, offset, length)

    async def sizes(self, names: Sequence[BlobName]) -> list[int | None]:
        if (known := self.recall_sizes(names)) is not None:
            return known
        found: list[int | None] = []
        for start in range(0, len(names), SIZES_PER_HOP):
            found += await self.run(self.files.sizes, names[start : start + SIZES_PER_HOP])
        return found

    def recall_sizes(self, names: Sequence[BlobName]) -> list[int | None] | None:
        """Return what ``sizes`` would of a few files that are all there, if memory knows them; else None."""
        if self._executor.is_closed or len(names) > RECALLED_NAMES_MAX:
            return None
        found: list[int | None] = [self.files.size_cached(name) for name in names]
        return None if None in found else found

    async def delete(self, name: BlobName) -> None:
        await self.sync(await self.run(self.files.remove, name))

    async def space(self) -> ShardSpace:
        return await self.run(self._space)

    def _space(self) -> ShardSpace:
        self._rereader.check_answers()
        return self.files.space()

    async def reread(self, parts: Sequence[Part]) -> list[bytes | ShardError]:
        return await self.run(self._rereader.reread, parts)

    async def check_intact(self) -> None:
        await self.run(self._quarantine.check_intact)

    async def set_aside(self, name: BlobName) -> bool:
        return await self.run(self._quarantine.set_aside, name)

    async def set_aside_entry(self, path: bytes, inode: int) -> bool:
        return await self.run(self._quarantine.set_aside_entry, path, inode)

    async def aside(self) -> Aside:
        return await self.run(self._quarantine.contents)

    async def aside_entries(self) -> list[AsideEntry]:
        return await self.run(self._quarantine.entries)

    async def discard_aside_entry(self, entry: AsideEntry) -> bool:
        return await self.run(self._quarantine.discard_entry, entry)

    async def discard_aside(self, names: Iterable[BlobName]) -> None:
        await self.run(self._quarantine.discard, names)

    def listing(self) -> ShardListing:
        return ShardListing(self.files.claim.directory)

    async def list_next(self, listing: ShardListing) -> bool:
        return await self.run(self._list_next, listing)

    def _list_next(self, listing: ShardListing) -> bool:
        with translated(self.id, LOOKING, f"listing {self.files.path}"):
            return listing.list_next()

    async def epoch(self) -> int:
        return await self.run(self.files.epochs.known)

    async def see_epoch(self, epoch: int) -> None:
        await self.run(self.files.epochs.see, epoch)

    async def discard_stage(self, name: str) -> None:
        """Remove what a process that has ended was staging in the directory ``name``."""
        with translated(self.id, WRITING, f"emptying tmp/{name}"):
            await self.run(self.files.discard_stage, name)

    async def remove(self, names: Sequence[BlobName], *, epoch: int) -> list[int | None]:
        # No room for the epoch is no reason to keep what takes the room: a full disk notes it afterwards.
        with suppress(ShardFull):
            await self.see_epoch(epoch)
        found = await self.sizes(names)
        changed = await self.run(lambda: {part for name in names for part in self.files.remove(name)})
        await self.sync(sorted(changed))
        if any(size is not None for size in await self.sizes(names)):
            raise ShardUnavailable(self.id, "a file is still there after its removal")
        with suppress(ShardFull):
            await self.see_epoch(epoch)
        return found

    @property
    def is_given_up(self) -> bool:
        """Whether it is closed, and its directory free for another owner."""
        return self.files.claim.directory < 0

    async def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Finish what is queued, then give the directory up.

        Where a thread still hangs after ``timeout_seconds``, its descriptors and the claim stay until
        it ends: closing a descriptor under it could make it write into another file.
        """
        if await self._executor.close(timeout_seconds):
            self._give_up()
        else:
            self._executor.when_ended(self._give_up)

    def _give_up(self) -> None:
        self._quarantine.close()
        self.files.close()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of one blocking call, made on the threads of this disk."""
        try:
            return await self._executor.run(function, *args, **kwargs)
        except DiskBusy as error:
            raise ShardUnavailable(self.id, str(error)) from None

    async def sync(self, directories: Sequence[str]) -> None:
        """Return when the changes made in ``directories`` are durable."""
        try:
            await self._directories.sync(directories)
        except OSError as error:
            raise shard_error(self.id, WRITING, "syncing a directory", error) from error

    @contextmanager
    def discarded_on_failure(self, file: StagedFile) -> Iterator[None]:
        """Give ``file`` up when the body fails or is cancelled."""
        try:
            yield
        except BaseException:
            self.discard(file)
            raise

    def discard(self, file: StagedFile) -> Future[None] | None:
        """Give ``file`` up now, and remove it as soon as a thread is free; None if the shard is closed."""
        file.abandon()
        with suppress(DiskBusy):
            return self._executor.submit(file.discard)
        return None

    def release(self, close: Callable[[], None]) -> None:
        """Have a thread of this disk ``close`` something, whatever waits for it; where there is none, do it here."""
        try:
            self._executor.submit(close)
        except DiskBusy:
            close()


class LocalStaged:
    """A ``StagedBlob`` in the ``tmp/`` of a local shard, written one hop per call."""

    def __init__(self, shard: LocalShard, file: StagedFile) -> None:
        self._shard = shard
        self._file = file
        self._committed = False

    @property
    def written(self) -> int:
        return self._file.written

    async def write(self, data: Buffer) -> None:
        with self._given_up_on_failure():
            await self._shard.run(self._file.append, data)

    async def read(self, offset: int, length: int) -> Buffer:
        return await self._shard.run(self._file.read, offset, length)

    async def commit(self, sha256: bytes, blocks: bytes) -> None:
        """See ``StagedBlob.commit``.

        ``blocks`` are not compared: the same process computed them from the very buffers it wrote, and
        there was no wire between. Their number must fit what was written.
        """
        with self._shard.discarded_on_failure(self._file):
            if len(blocks) != BLOCK_DIGEST_BYTES * block_count(self.written):
                raise ShardRefused(
                    self._shard.id, f"{len(blocks)} bytes of block digests do not fit a blob of {self.written} bytes"
                )
            await self._shard.sync(await self._shard.run(self._file.publish, sha256))
        self._committed = True

    async def abort(self) -> None:
        if self._committed:
            return
        removal = self._shard.discard(self._file)
        if removal is not None:
            await asyncio.shield(asyncio.wrap_future(removal))

    @contextmanager
    def _given_up_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._file.abandon()
            raise


@asynccontextmanager
async def open_local_shard(
    shard: ShardId,
    path: Path,
    identity: ShardIdentity,
    *,
    reserve_bytes: int,
    cached_bytes_max: int = CACHED_BYTES_MAX,
    threads: int = 4,
) -> AsyncIterator[LocalShard]:
    """Claim the shard at ``path``, empty its ``tmp/``, test the disk, and close it all at the end.

    Raises ``ShardIdentityError`` when it is not ``identity`` or has another owner, ``ShardUnavailable``
    when the disk fails; both name the path.
    """
    opening = partial(open_files, shard, path, identity, reserve_bytes, cached_bytes_max)
    async with _opened(shard, opening, threads) as opened:
        yield opened


@asynccontextmanager
async def join_local_shard(
    shard: ShardId,
    claim: ShardClaim,
    *,
    stage: str,
    reserve_bytes: int,
    cached_bytes_max: int = CACHED_BYTES_MAX,
    threads: int = 4,
) -> AsyncIterator[LocalShard]:
    """Open a shard that another process of the same owner has open and lent ``claim`` of; it is closed at the end.

    What is staged lies in the directory ``stage`` of ``tmp/``, which is this process' alone. Raises
    ``ShardUnavailable`` when the disk fails.
    """
    opening = partial(join_files, shard, claim, reserve_bytes, cached_bytes_max, stage)
    async with _opened(shard, opening, threads) as opened:
        yield opened


@asynccontextmanager
async def _opened(shard: ShardId, open_them: Callable[[], ShardFiles], threads: int) -> AsyncIterator[LocalShard]:
    executor = DiskExecutor(threads, name=f"shard-{shard}")
    opening = executor.submit(open_them)
    try:
        files = await asyncio.shield(asyncio.wrap_future(opening))
    except BaseException:
        opening.add_done_callback(_close_opened)
        executor.shutdown(wait=False)
        raise
    opened = LocalShard(files, executor)
    try:
        yield opened
    finally:
        await opened.close()


def open_files(
    shard: ShardId, path: Path, identity: ShardIdentity, reserve_bytes: int, cached_bytes_max: int
) -> ShardFiles:
    """Claim and open a shard's directory, empty its ``tmp/`` and test the disk; blocks."""
    files = _open_directories(shard, claim(path, identity), reserve_bytes, cached_bytes_max)
    try:
        files.recover()
        check_disk(files)
    except OSError as error:
        files.close()
        raise ShardUnavailable(shard, f"{path}: tmp/ cannot be emptied, or blobs/ not synced: {error}") from error
    except BaseException:
        files.close()
        raise
    return files


def join_files(shard: ShardId, held: ShardClaim, reserve_bytes: int, cached_bytes_max: int, stage: str) -> ShardFiles:
    """Open the directories of a shard whose owner has opened, emptied and tested it; blocks."""
    files = _open_directories(shard, held, reserve_bytes, cached_bytes_max, stage)
    try:
        with passing_read_only():
            files.settle()
    except OSError as error:
        files.close()
        raise ShardUnavailable(shard, f"{held.path}: blobs/ cannot be synced: {error}") from error
    except BaseException:
        files.close()
        raise
    return files


def _open_directories(
    shard: ShardId, held: ShardClaim, reserve_bytes: int, cached_bytes_max: int, stage: str = ""
) -> ShardFiles:
    try:
        return ShardFiles(shard, held, reserve_bytes, cached_bytes_max, stage)
    except OSError as error:
        held.close()
        raise ShardUnavailable(shard, f"{held.path}: its directories cannot be opened: {error}") from error


def _close_opened(opening: Future[ShardFiles]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
