"""One body on its way to N staged copies: every block hashed once, written to all of them, and kept at N.

A copy that fails is replaced at once by a handoff, which reads what it lacks from a surviving copy, in
turns with the blocks that arrive, and joins the others when it lacks nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from sharding.digests import BlobHasher, block_digests
from sharding.errors import ReplicaCorrupt, ShardError
from sharding.model import BLOCK_BYTES, BlobDigests, BlobName, Buffer, Generation, Member
from sharding.placer import Placer
from sharding.shard import StagedBlob
from sharding.tally import WritePolicy
from sharding.tasks import run_all, stop

BLOCKS_A_TURN = 4
"""Blocks a handoff catches up for each one that arrives: it gains on any client."""

CATCH_UP_BYTES_PER_SECOND_MIN = 16 << 20
"""What the whole body must come to, at the end, for a handoff that an acknowledgement cannot do without."""


class Cleaner(Protocol):
    """Removes, in the background, what nothing will ever refer to."""

    def delete_later(self, member: Member, name: BlobName) -> None: ...

    def abort_later(self, staged: StagedBlob) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """One copy in the making."""

    member: Member
    generation: Generation
    staged: StagedBlob


class Tee:
    """The staged copies of one upload. Belongs to one task: ``open``, ``send`` any number of times, ``finish``.

    ``copies`` have every byte stored so far; who commits one takes it out. ``close`` may be called at any time.
    """

    def __init__(
        self,
        placer: Placer,
        policy: WritePolicy,
        *,
        mint: Callable[[], Generation],
        hasher: BlobHasher,
        hashing: Executor,
        cleaner: Cleaner,
        length: int | None = None,
    ) -> None:
        self.copies: list[Copy] = []
        self._placer = placer
        self._policy = policy
        self._mint = mint
        self._hashing = hashing
        self._cleaner = cleaner
        self._length = length
        self._hasher = hasher
        self._stored = 0
        self._storing: asyncio.Task[None] | None = None
        self._handoffs: set[asyncio.Task[None]] = set()
        # Held while a block is stored, and by a handoff during its turn: a staged blob belongs to one task at a time.
        self._turn = asyncio.Lock()
        self._exhausted = False
        self._closed = False

    async def open(self) -> None:
        """Begin the copies. Raises ``WriteQuorumNotMet`` when there are not enough for an acknowledgement."""
        while missing := self._policy.redundancy - len(self.copies):
            members = self._placer.take(missing)
            if not members:
                break
            await run_all(self._begin(member) for member in members)
        self._check()

    async def send(self, block: Buffer) -> None:
        """Take the next block, which must not change until it is settled, once the one before it is stored.

        Every block but the last has ``BLOCK_BYTES``. Raises ``WriteQuorumNotMet`` when the upload has become hopeless.
        """
        await self.settle()
        if self._exhausted and all(handoff.done() for handoff in self._handoffs):
            self._check()
        self._storing = asyncio.create_task(self._store(block))

    async def settle(self) -> None:
        """Return when the block that was sent last is stored, and may change."""
        if self._storing is not None:
            await self._storing
            self._storing = None

    async def finish(self) -> BlobDigests:
        """Return the digests once every copy has the last block. Handoffs may still be catching up."""
        await self.settle()
        return self._hasher.finish()

    async def settle_handoffs(self, wait_seconds: float) -> None:
        """Wait for the handoffs that still catch up, then stop the rest.

        They have ``wait_seconds``; as long as an acknowledgement needs them, what a large body takes.
        """
        loop = asyncio.get_running_loop()
        began, needed_seconds = loop.time(), max(wait_seconds, self._stored / CATCH_UP_BYTES_PER_SECOND_MIN)
        while self._handoffs:
            limit = wait_seconds if self._placer.suffices(self._members()) else needed_seconds
            left = max(0.0, began + limit - loop.time())
            ended, _ = await asyncio.wait(self._handoffs, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not ended:
                break
            self._handoffs -= ended
            for handoff in ended:
                handoff.result()
        await stop(self._handoffs)

    async def stage(self, member: Member) -> Copy:
        """Begin one copy on ``member``."""
        generation = self._mint()
        return Copy(member, generation, await self._placer.shard(member).stage(generation, self._length))

    async def close(self) -> None:
        """Stop everything under way and remove what is staged."""
        self._closed = True
        try:
            await stop(self._handoffs if self._storing is None else {self._storing, *self._handoffs})
        finally:
            for copy in self.copies:
                self._cleaner.abort_later(copy.staged)
            self.copies = []

    def _members(self) -> list[Member]:
        return [copy.member for copy in self.copies]

    def _check(self) -> None:
        """Raise ``WriteQuorumNotMet`` when the copies would not do for an acknowledgement."""
        if not self._placer.suffices(self._members()):
            raise self._placer.refusal(self._members())

    async def _begin(self, member: Member) -> None:
        try:
            copy = await self.stage(member)
        except ShardError as error:
            self._placer.fail(member, error)
            return
        self.copies.append(copy)

    async def _store(self, block: Buffer) -> None:
        async with self._turn:
            hashed = asyncio.get_running_loop().run_in_executor(self._hashing, self._hasher.update, block)
            await run_all((hashed, *(self._write(copy, block) for copy in self.copies)))
            if not self.copies:
                raise self._placer.refusal(())
            self._stored += len(block)

    async def _write(self, copy: Copy, block: Buffer) -> None:
        try:
            await copy.staged.write(block)
        except ShardError as error:
            self._drop(copy, error)

    def _drop(self, copy: Copy, error: ShardError) -> None:
        """Give up a copy that failed, and begin a handoff in its place."""
        self.copies.remove(copy)
        self._cleaner.abort_later(copy.staged)
        self._placer.fail(copy.member, error)
        if not self._closed:
            self._handoffs.add(asyncio.create_task(self._hand_off()))

    async def _hand_off(self) -> None:
        """Add one copy made from the others. Ends without one when no shard is left, or no copy can be read."""
        while self.copies:
            members = self._placer.take(1)
            if not members:
                self._exhausted = True
                return
            try:
                copy = await self.stage(members[0])
            except ShardError as error:
                self._placer.fail(members[0], error)
                continue
            try:
                return await self._catch_up(copy)
            except ShardError as error:
                self._placer.fail(copy.member, error)
            finally:
                if copy not in self.copies:
                    self._cleaner.abort_later(copy.staged)

    async def _catch_up(self, copy: Copy) -> None:
        """Write to ``copy`` what it lacks, and let it join the others."""
        while True:
            async with self._turn:
                for _ in range(BLOCKS_A_TURN):
                    if copy.staged.written == self._stored:
                        self.copies.append(copy)
                        return
                    block = await self._read_back(copy.staged.written // BLOCK_BYTES)
                    if block is None:
                        self._placer.pass_over(copy.member)
                        return
                    await copy.staged.write(block)

    async def _read_back(self, index: int) -> Buffer | None:
        """Return a block from whichever copy has it right; None when none has."""
        offset = index * BLOCK_BYTES
        digest = self._hasher.block_digest(index)
        for copy in list(self.copies):
            try:
                block = await copy.staged.read(offset, min(BLOCK_BYTES, self._stored - offset))
                if block_digests(block) == digest:
                    return block
                raise ReplicaCorrupt(copy.member.shard, f"tmp/{copy.generation}: block {index} is not what was written")
            except ReplicaCorrupt as error:
                self._drop(copy, error)
            except ShardError as error:
                self._placer.failures.append(error)
        return None
