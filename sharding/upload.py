"""One upload's bytes on their way to N shards: hashed and written once, while they arrive.

A body of one block or less stays in memory and goes out whole. A longer one streams block by block
to staged files; a shard that fails on the way is replaced at once by a handoff that catches up from
a surviving copy. ``commit.py`` makes the copies durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from sharding.digests import BlobHasher, digest_small
from sharding.errors import ShardError, ShardFull, WriteQuorumNotMet
from sharding.model import BLOCK_BYTES, BlobDigests, BlobName, Buffer, Generation, Member, Replica
from sharding.placer import Placer
from sharding.shard import StagedBlob
from sharding.tally import WritePolicy
from sharding.view import StoreView

INLINE_HASH_BYTES = 32 << 10
"""Below this, hashing costs less than the way to another thread and back."""


class Cleaner(Protocol):
    """Removes, in the background, what nothing will ever refer to."""

    def delete_later(self, member: Member, name: BlobName) -> None: ...

    def abort_later(self, staged: StagedBlob) -> None: ...


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy in the making."""

    member: Member
    generation: Generation
    staged: StagedBlob


@dataclass(frozen=True, slots=True)
class Durable:
    """One copy that is on its disk for good."""

    member: Member
    generation: Generation

    @property
    def replica(self) -> Replica:
        return Replica(self.member.shard, self.generation)


class Upload:
    """The bytes of one upload. Belongs to one task: ``write`` any number of times, then ``finish``.

    What happens to the copies then is for ``commit.py``; ``close`` may be called at any time.
    """

    def __init__(
        self,
        uid: UUID,
        view: StoreView,
        policy: WritePolicy,
        *,
        mint: Callable[[], Generation],
        hashing: Executor,
        cleaner: Cleaner,
    ) -> None:
        refuse_hopeless(view, policy)
        self.uid = uid
        self.view = view
        self.policy = policy
        self.mint = mint
        self.cleaner = cleaner
        self.placer = Placer(uid, view)
        self.failures: list[ShardError] = []
        self.copies: list[Copy] = []
        self.followers: list[asyncio.Task[Copy | None]] = []
        self.small: bytes | None = None
        self.digests: BlobDigests | None = None
        self._hashing = hashing
        self._hasher: BlobHasher | None = None
        self._pending: list[Buffer] = []
        self._pending_bytes = 0
        self._storing: asyncio.Task[None] | None = None
        self._stored = 0
        self._complete = False
        self._progress = asyncio.Event()
        self.size = 0

    async def write(self, data: Buffer) -> None:
        """Take the next bytes of the body, which must not change afterwards; return when there is room for more.

        Raises ``WriteQuorumNotMet`` once no copy is left.
        """
        self.size += len(data)
        rest = memoryview(data)
        while self._pending_bytes + len(rest) > BLOCK_BYTES:
            head = BLOCK_BYTES - self._pending_bytes
            await self._send(b"".join((*self._pending, rest[:head])))
            self._pending, self._pending_bytes, rest = [], 0, rest[head:]
        if len(rest):
            self._pending.append(rest)
            self._pending_bytes += len(rest)

    async def finish(self) -> BlobDigests:
        """Say that the body is complete and return its digests. Nothing is visible or durable yet."""
        rest = b"".join(self._pending)
        self._pending = []
        if self._hasher is None:
            self.small = rest
            self.digests = await self._digest(rest)
            return self.digests
        await self._send(rest)
        await self._settle()
        self.digests = self._hasher.finish()
        self._complete = True
        self._progress.set()
        return self.digests

    async def _digest(self, data: bytes) -> BlobDigests:
        if len(data) <= INLINE_HASH_BYTES:
            return digest_small(data)
        return await asyncio.get_running_loop().run_in_executor(self._hashing, digest_small, data)

    async def _send(self, block: bytes) -> None:
        """Hand one block on, once the block before it is stored."""
        if self._hasher is None:
            self._hasher = BlobHasher()
            await self._open_copies()
        await self._settle()
        self._storing = asyncio.create_task(self._store(self._hasher, block))

    async def _settle(self) -> None:
        if self._storing is not None:
            storing, self._storing = self._storing, None
            await storing

    async def _store(self, hasher: BlobHasher, block: bytes) -> None:
        copies = self.copies
        hashed = asyncio.get_running_loop().run_in_executor(self._hashing, hasher.update, block)
        outcomes = await asyncio.gather(hashed, *(copy.staged.write(block) for copy in copies), return_exceptions=True)
        failed = [copy for copy, outcome in zip(copies, outcomes[1:], strict=True) if self._is_failure(outcome)]
        self._is_failure(outcomes[0])
        self.copies = [copy for copy in copies if copy not in failed]
        for copy in failed:
            self.cleaner.abort_later(copy.staged)
        if not self.copies:
            raise quorum_not_met(0, self.policy, self.failures)
        self._stored += len(block)
        self._progress.set()
        self.followers.extend(asyncio.create_task(self._follow()) for _ in failed)

    def _is_failure(self, outcome: object) -> bool:
        """Note a shard's failure; anything else that is wrong is a fault of ours and is raised."""
        if isinstance(outcome, ShardError):
            self.failures.append(outcome)
            return True
        if isinstance(outcome, BaseException):
            raise outcome
        return False

    async def _open_copies(self) -> None:
        while missing := self.policy.redundancy - len(self.copies):
            members = self.placer.take(missing, (copy.member for copy in self.copies))
            if not members:
                break
            for outcome in await asyncio.gather(*map(self.open_copy, members), return_exceptions=True):
                if not self._is_failure(outcome):
                    assert isinstance(outcome, Copy)
                    self.copies.append(outcome)
        if len(self.copies) < self.policy.quorum:
            raise quorum_not_met(len(self.copies), self.policy, self.failures)

    async def open_copy(self, member: Member) -> Copy:
        """Begin one copy on ``member``."""
        generation = self.mint()
        return Copy(member, generation, await self.view.shards[member.shard].stage(generation))

    async def _follow(self) -> Copy | None:
        """Build one more copy from a surviving one, a little behind it, until the body is complete.

        Returns None when there is no shard left to try, or no copy to read.
        """
        while members := self.placer.take(1, (copy.member for copy in self.copies)):
            copy: Copy | None = None
            try:
                copy = await self.open_copy(members[0])
                await self._catch_up(copy.staged)
                return copy
            except BaseException as error:
                if copy is not None:
                    self.cleaner.abort_later(copy.staged)
                if not isinstance(error, ShardError):
                    raise
                self.failures.append(error)
        return None

    async def _catch_up(self, staged: StagedBlob) -> None:
        while not (self._complete and staged.written == self._stored):
            if staged.written < self._stored:
                length = min(BLOCK_BYTES, self._stored - staged.written)
                await staged.write(await self._read_survivor(staged.written, length))
            else:
                self._progress.clear()
                await self._progress.wait()

    async def _read_survivor(self, offset: int, length: int) -> Buffer:
        for copy in self.copies:
            try:
                return await copy.staged.read(offset, length)
            except ShardError as error:
                failure = error
        raise failure

    async def close(self) -> None:
        """Stop everything under way and remove what is staged; what is durable already is not touched."""
        tasks: list[asyncio.Task[object]] = [*self.followers]
        if self._storing is not None:
            tasks.append(self._storing)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        copies = [*self.copies, *(outcome for outcome in ended if isinstance(outcome, Copy))]
        self.copies, self.followers, self._storing, self._pending, self.small = [], [], None, [], None
        for copy in copies:
            self.cleaner.abort_later(copy.staged)


def refuse_hopeless(view: StoreView, policy: WritePolicy) -> None:
    """Raise ``WriteQuorumNotMet`` before the first byte when too few shards take writes at all."""
    writable = len(view.writable)
    if writable < policy.quorum:
        raise WriteQuorumNotMet(writable, policy.quorum, full=writable + len(view.full) >= policy.quorum)


def quorum_not_met(durable: int, policy: WritePolicy, failures: list[ShardError]) -> WriteQuorumNotMet:
    """Return the error for an upload that came to ``durable`` copies after ``failures``."""
    full = bool(failures) and all(isinstance(failure, ShardFull) for failure in failures)
    return WriteQuorumNotMet(durable, policy.quorum, full=full)
