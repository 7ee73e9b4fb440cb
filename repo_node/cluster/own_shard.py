"""One shard of this node: which directory it is, and how it stands while it is open.

A directory is made a shard once, when it is empty and no shard was known there before. An empty
mount point, a foreign or a cloned disk is refused, never filled.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import UUID

from repo_node.config import ShardSection
from repo_node.db.nodes import KnownShards, SpaceReport
from sharding import identity
from sharding.disk import DiskExecutor
from sharding.errors import ShardError
from sharding.identifiers import uuid7
from sharding.identity import ShardClaim, ShardIdentity, ShardIdentityError
from sharding.local import LocalShard, join_local_shard, open_local_shard
from sharding.model import ShardId
from sharding.shard import ShardSpace
from sharding.tasks import stop

MIN_FREE_BYTES = 1
"""Free above the reserve, below which a shard says that it takes no new blobs."""

ANSWER_SECONDS_MAX, ANSWER_HOLDS_SECONDS = 2.0, 10.0
"""How long a disk may take to tell its space, and how long its last answer holds when it does not."""

LOOK_SECONDS_MAX = 2.0
"""How long a disk may take to say whose it is."""

NO_SPACE = ShardSpace(0, 0)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileSystem:
    """What a directory lies on. Two directories of one ``device`` share its capacity."""

    device: int
    capacity_bytes: int


class OwnShard:
    """A shard this node owns and has open."""

    def __init__(
        self, uid: UUID, shard: LocalShard, section: ShardSection, opened: AsyncExitStack | None = None
    ) -> None:
        self.uid = uid
        self.shard = shard
        self.section = section
        self._opened = opened
        self._space = NO_SPACE
        self._answered_at = asyncio.get_running_loop().time()
        self._trouble = ""
        self._question: asyncio.Task[None] | None = None

    @property
    def silent_seconds(self) -> float:
        """For how long the disk has not answered; 0 while it does."""
        return asyncio.get_running_loop().time() - self._answered_at if self._trouble else 0.0

    @property
    def trouble(self) -> str:
        """Why the disk did not answer last time; empty when it did."""
        return self._trouble

    async def report(self, patience_seconds: float) -> SpaceReport:
        """Return the shard's space and whether it takes writes; a disk that does not answer takes none.

        A busy disk is not a dead one: for a while, its last answer still holds. Nor may it hold up its node's
        heartbeat: who loses patience gets the last answer, and the disk goes on being asked. The first is waited for.
        """
        if self._question is None or self._question.done():
            self._question = asyncio.create_task(self._ask())
        unknown = self._space is NO_SPACE and not self._trouble
        await asyncio.wait({self._question}, timeout=ANSWER_SECONDS_MAX if unknown else patience_seconds)
        reason = self._why_not_written()
        return SpaceReport(self._space, not reason, reason)

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                self._space = await self.shard.space()
            self._answered_at, self._trouble = asyncio.get_running_loop().time(), ""
        except (ShardError, TimeoutError) as error:
            self._trouble = str(error) or "the disk does not answer"
            if self.silent_seconds >= ANSWER_HOLDS_SECONDS:
                self._space = NO_SPACE

    def _why_not_written(self) -> str:
        if not self._space.capacity_bytes:
            return self._trouble or "the disk has not answered yet"
        if self._space.read_only:
            return "its file system is mounted read-only"
        return "" if self._space.free_bytes >= MIN_FREE_BYTES else "no room is left above its reserve"

    async def close(self) -> None:
        """Close the shard. Its directory is free once ``shard.is_given_up``: a thread may still hang in it."""
        if self._question is not None:
            await stop([self._question])
        if self._opened is not None:
            await self._opened.aclose()


async def open_own_shard(shard: ShardId, section: ShardSection, expected: ShardIdentity) -> OwnShard:
    """Open a claimed shard. Raises ``ShardIdentityError``, ``ShardUnavailable``, each with the path."""
    opened = AsyncExitStack()
    local = await opened.enter_async_context(
        open_local_shard(
            shard,
            section.path,
            expected,
            reserve_bytes=section.reserve_bytes,
            cached_bytes_max=section.cached_bytes_max,
            threads=section.threads,
        )
    )
    return OwnShard(expected.shard_uid, local, section, opened)


async def join_own_shard(shard: ShardId, section: ShardSection, claim: ShardClaim, stage: str) -> OwnShard:
    """Open a shard with the claim that the node's main process lent. Raises ``ShardUnavailable``."""
    opened = AsyncExitStack()
    local = await opened.enter_async_context(
        join_local_shard(
            shard,
            claim,
            stage=stage,
            reserve_bytes=section.reserve_bytes,
            cached_bytes_max=section.cached_bytes_max,
            threads=section.threads,
        )
    )
    return OwnShard(claim.identity.shard_uid, local, section, opened)


def file_system_of(path: Path) -> FileSystem:
    """Return what ``path`` lies on, or would if it were made; blocks. Raises ``OSError``."""
    nearest = next(part for part in (path, *path.absolute().parents) if os.path.lexists(part))
    found = os.statvfs(nearest)
    return FileSystem(os.stat(nearest).st_dev, found.f_blocks * found.f_frsize)


def identify(path: Path, cluster_id: UUID, known: KnownShards, *, may_create: bool) -> ShardIdentity:
    """Return which shard ``path`` is, making a new one only where none was known before; blocks.

    Raises ``ShardIdentityError``. Without ``may_create`` nothing is made: after a disk was given up, the
    directory that it leaves behind is empty too until the next one is mounted.
    """
    found = identity.inspect(path)
    expected = known.at_path.get(str(path))
    if found is None:
        if expected is not None:
            raise ShardIdentityError(
                f"{path} held shard {expected} and is empty or absent now: is its disk mounted? "
                "Nothing was written. Mount it, or take the shard out of the configuration"
            )
        if not may_create:
            raise ShardIdentityError(
                f"{path} is empty; once the right disk is mounted there, `holdfast node reload NODE --shard {path}` "
                "makes it a shard"
            )
        return identity.create(path, cluster_id, uuid7())
    if found.cluster_id != cluster_id:
        raise ShardIdentityError(
            f"{path} belongs to the cluster {found.cluster_id}, this one is {cluster_id}: is the right disk mounted?"
        )
    if expected not in (None, found.shard_uid):
        raise ShardIdentityError(
            f"{path} held shard {expected} and holds {found.shard_uid} now: is the right disk mounted?"
        )
    if found.shard_uid in known.replaced:
        raise ShardIdentityError(
            f"{path} is shard {known.ids[found.shard_uid]}, which was given up for another disk: mount an empty one "
            f"there, then `holdfast node reload NODE --shard {path}`"
        )
    return found


async def refuse_foreign(paths: Iterable[Path], cluster_id: UUID) -> None:
    """Raise ``ShardIdentityError`` when the shards at ``paths`` are another cluster's and none is of this one.

    Nothing is written; a disk that cannot be looked at says nothing.
    """
    found = dict(zip(paths, await asyncio.gather(*map(cluster_at, paths)), strict=True))
    if cluster_id in found.values():
        return
    for path, cluster in found.items():
        if cluster is not None:
            raise ShardIdentityError(
                f"{path} belongs to the cluster {cluster}, this one is {cluster_id}: is it the right disk, and the "
                "right database? A lost database is brought back by holdfast restore, not by init-db"
            )


async def cluster_at(path: Path) -> UUID | None:
    """Return to which cluster the shard at ``path`` belongs, None where that cannot be told."""
    try:
        async with asyncio.timeout(LOOK_SECONDS_MAX):
            found = await apart(identity.inspect, path)
    except (ShardIdentityError, OSError, TimeoutError):
        return None
    return None if found is None else found.cluster_id


async def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return ``function(*args)`` from a thread of its own, which a disk that hangs may keep: nobody waits for it."""
    executor = DiskExecutor(1, name=function.__name__)
    try:
        return await executor.run(function, *args, **kwargs)
    finally:
        executor.shutdown(wait=False)
