"""The service that unpacks an archive into artifacts: spooled, proved as a whole, then each member an upload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from repo_node.artifacts import Artifacts, DeployRequest, Durable
from repo_node.atomic_deploy import AtomicDeploy
from repo_node.checksums import DeclaredDigests
from repo_node.errors import BodyTooLarge, Overloaded, PartlyStored, RequestError
from repo_node.paths import ArtifactPath, BadPath, artifact_path, check_segment
from repo_node.repositories import Repositories
from repo_node.settings import LiveSettings, Settings
from repo_node.unpacking.frames import Limits, Member
from repo_node.unpacking.process import Unpacking, unpacking
from sharding.crash_points import crash_point
from sharding.errors import ShardFull
from sharding.local import LocalShard
from sharding.model import BLOCK_BYTES, BlobDigests, Buffer, ShardId
from sharding.provider import ShardingProvider
from sharding.spool import Spool, open_spool
from sharding.tasks import stop
from sharding.transfer_memory import Lease, TransferMemory

T = TypeVar("T")

KINDS = {".zip": "zip", ".tar": "tar", ".tar.gz": "tar.gz", ".tgz": "tar.gz"}
MEMBERS_AT_ONCE = 8
"""Small members that are stored side by side, each held in memory."""

Place = tuple[ArtifactPath, Member]


@dataclass(frozen=True, slots=True)
class ArchiveRequest:
    """``upload`` is the archive's own, which is not stored; with ``atomic`` its members appear together or not at all.

    ``check`` refuses a path at which the client may not write, by raising; it says whether the client may overwrite.
    """

    upload: DeployRequest
    kind: str
    atomic: bool
    check: Callable[[ArtifactPath], bool]


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What became of an archive."""

    digests: BlobDigests
    artifacts: int
    bytes: int


def kind_of(name: str) -> str | None:
    """Return the kind of archive that a name says, None for a name that says none."""
    return next((kind for suffix, kind in KINDS.items() if name.lower().endswith(suffix)), None)


class ArchiveDeploy:
    """Unpacks archives. ``shards`` are this process' own: one of them keeps an archive while it is unpacked."""

    def __init__(
        self,
        artifacts: Artifacts,
        atomic: AtomicDeploy,
        repositories: Repositories,
        settings: LiveSettings,
        store: ShardingProvider,
        shards: Callable[[], Mapping[ShardId, LocalShard]],
    ) -> None:
        self._artifacts = artifacts
        self._atomic = atomic
        self._repositories = repositories
        self._settings = settings
        self._store = store
        self._shards = shards
        self._taken = 0
        self._under_way = 0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count one archive for the length of the block. Raises ``Overloaded``."""
        if self._under_way >= self._settings.now.explodes_in_flight_max:
            raise Overloaded("As many archives are being unpacked as may be at once; retry.")
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    async def deploy(
        self, request: ArchiveRequest, body: AsyncIterator[Buffer], *, length: int | None = None
    ) -> Unpacked:
        """Make the members of an archive artifacts beside where it would lie itself.

        Nothing is stored before the whole archive is proved, its checksums, each name and each size. Raises
        ``PartlyStored`` when a member could not be stored, ``RequestError``, ``BodyTooLarge``, ``NotFound``, and what
        ``check`` raises.
        """
        await self._repositories.recall(request.upload.at.repository)
        if (length or 0) > (limit := self._settings.now.explode_archive_bytes_max):
            raise too_large(limit)
        async with open_spool(self._shard()) as spool:
            await self._receive(spool, body)
            digests = await spool.digests()
            request.upload.declared.check(digests)
            crash_point("explode.spooled")
            async with unpacking(request.kind, spool.descriptor, limits_of(self._settings.now)) as archive:
                places = places_of(request.upload.at, await archive.members(), self._settings.now)
                overwrites = {at: request.check(at) for at, _ in places}
                await self._deploy(request, archive, places, overwrites)
        return Unpacked(digests, len(places), sum(member.size for _, member in places))

    def _shard(self) -> LocalShard:
        """Return one of this node's shards that takes writes, another each time. Raises ``RequestError``."""
        view, own = self._store.view, self._shards()
        if able := [shard for number, shard in own.items() if number in view.writable]:
            self._taken += 1
            return able[self._taken % len(able)]
        if view.full.intersection(own):
            raise no_room()
        raise Overloaded("No shard of this node takes writes now; retry.")

    async def _receive(self, spool: Spool, body: AsyncIterator[Buffer]) -> None:
        limit = self._settings.now.explode_archive_bytes_max
        try:
            async for piece in body:
                self._artifacts.heed_silence()
                if spool.size + len(piece) > limit:
                    raise too_large(limit)
                await spool.append(piece)
                # The next one is waited for without it.
                del piece
        except ShardFull:
            raise no_room() from None

    async def _deploy(
        self,
        request: ArchiveRequest,
        archive: Unpacking,
        places: Sequence[Place],
        overwrites: Mapping[ArtifactPath, bool],
    ) -> None:
        upload = replace(request.upload, declared=DeclaredDigests())

        async def deploy(at: ArtifactPath, data: AsyncIterator[Buffer], size: int) -> None:
            member = replace(upload, at=at, may_overwrite=overwrites[at])
            await self._artifacts.deploy(member, data, length=size)
            crash_point("explode.member")

        async def make_durable(at: ArtifactPath, data: AsyncIterator[Buffer], size: int) -> Durable:
            member = replace(upload, at=at, may_overwrite=overwrites[at])
            return await self._artifacts.make_durable(member, data, length=size)

        if not request.atomic:
            await Members(deploy, self._store.memory).store(archive, places)
            return
        if len(places) > (most := self._settings.now.explode_atomic_entries_max):
            raise BodyTooLarge(
                f"The archive has more than {most} files, which cannot appear at once (setting "
                "explode_atomic_entries_max). Nothing was stored."
            )
        durable = Members(make_durable, self._store.memory)
        try:
            await durable.store(archive, places)
        except BaseException as error:
            self._atomic.drop(durable.stored)
            if isinstance(error, PartlyStored):
                error.stored = 0
            raise
        crash_point("explode.durable")
        await self._atomic.commit(durable.stored)


class Members(Generic[T]):
    """Stores the members of one archive by ``put``, the small ones side by side, until one cannot be."""

    def __init__(
        self, put: Callable[[ArtifactPath, AsyncIterator[Buffer], int], Awaitable[T]], memory: TransferMemory
    ) -> None:
        self._put = put
        self._memory = memory
        self._running: set[asyncio.Task[None]] = set()
        self._failed: tuple[ArtifactPath, Exception] | None = None
        self.stored: list[T] = []
        """What ``put`` returned."""

    async def store(self, archive: Unpacking, places: Sequence[Place]) -> None:
        """Store all. Raises ``PartlyStored`` when what was begun has ended after a failure."""
        try:
            for at, member in places:
                if self._failed is not None:
                    break
                await self._begin(archive, at, member)
            if self._running:
                await asyncio.wait(self._running)
        finally:
            await stop(tuple(self._running))
        if self._failed is not None:
            at, error = self._failed
            raise PartlyStored(at.path, error, len(self.stored), len(places)) from error

    async def _begin(self, archive: Unpacking, at: ArtifactPath, member: Member) -> None:
        """Store a large member; hold a small one in memory, and store it in a task of its own."""
        data = archive.data(member)
        if member.size > BLOCK_BYTES:
            async with aclosing(data):
                await self._attempt(at, data, member.size)
            return
        lease = self._memory.lease()
        try:
            await lease.take()
            whole = b"".join([piece async for piece in data])
        except BaseException as error:
            lease.close()
            if not isinstance(error, RequestError):
                raise
            self._fail(at, error)
            return
        task = asyncio.create_task(self._attempt(at, once(whole), member.size, lease))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        if len(self._running) >= MEMBERS_AT_ONCE:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)

    async def _attempt(
        self, at: ArtifactPath, data: AsyncIterator[Buffer], size: int, lease: Lease | None = None
    ) -> None:
        try:
            self.stored.append(await self._put(at, data, size))
        except Exception as error:
            self._fail(at, error)
        finally:
            if lease is not None:
                lease.close()

    def _fail(self, at: ArtifactPath, error: Exception) -> None:
        self._failed = self._failed or (at, error)


async def once(data: bytes) -> AsyncGenerator[bytes, None]:
    """Yield ``data``."""
    yield data


def limits_of(now: Settings) -> Limits:
    return Limits(
        entries_max=now.explode_entries_max,
        bytes_max=now.explode_bytes_max,
        ratio_max=now.explode_ratio_max,
        memory_bytes_max=now.explode_memory_bytes_max,
        seconds_max=now.explode_seconds_max,
    )


def too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The archive is larger than {limit} bytes (setting explode_archive_bytes_max).")


def no_room() -> RequestError:
    return RequestError("No shard of this node has room for the archive. Nothing was stored.", status=507)


def places_of(archive: ArtifactPath, members: Sequence[Member], now: Settings) -> list[Place]:
    """Return where each member goes, beside the archive. Raises ``RequestError`` for a name that cannot be."""
    folder = tuple(archive.folder.split("/")) if archive.folder else ()
    places: dict[ArtifactPath, Member] = {}
    for member in members:
        try:
            segments = segments_of(member.name, now.explode_depth_max)
            at = artifact_path((archive.repository, *folder, *segments), path_bytes_max=now.path_bytes_max)
            if at in places:
                raise BadPath("the archive holds it twice")
        except BadPath as error:
            raise RequestError(f"The archive is refused. {member.name[:255]!r}: {error}. Nothing was stored.") from None
        places[at] = member
    refuse_nested({at.path for at in places})
    return list(places.items())


def segments_of(name: str, depth_max: int) -> tuple[str, ...]:
    """Return a member's path in an archive, which may be written with ./ before it. Raises ``BadPath``."""
    segments = name.removeprefix("./").split("/")
    if len(segments) > depth_max:
        raise BadPath(f"it lies in more than {depth_max - 1} folders (setting explode_depth_max)")
    return tuple(map(check_segment, segments))


def refuse_nested(paths: Collection[str]) -> None:
    """Raise ``RequestError`` when a path is a file and a folder."""
    for path in paths:
        while slash := path.rfind("/") + 1:
            path = path[: slash - 1]
            if path in paths:
                raise RequestError(
                    f"The archive is refused. {path[:255]!r} is a file and a folder. Nothing was stored."
                )
