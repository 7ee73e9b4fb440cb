"""Makes the copies of a finished upload durable: all at once, with handoffs for those that fail or lag."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from sharding.errors import ShardError
from sharding.model import BLOCK_BYTES, BlobDigests, BlobName, Generation, Member, Replica
from sharding.tally import Tally, Verdict
from sharding.upload import Copy, Durable, Upload, quorum_not_met


@dataclass(frozen=True, slots=True)
class Placement:
    """The durable copies of an upload; ``short`` when they are fewer, or in fewer zones, than wanted."""

    replicas: tuple[Replica, ...]
    short: bool


class Commit:
    """The last stage of one upload. Whatever it leaves not durable is removed by generation.

    ``lag_seconds`` is how long a shard may keep the others waiting before a handoff starts beside
    it; ``wait_seconds`` bounds the whole.
    """

    def __init__(self, upload: Upload, *, lag_seconds: float, wait_seconds: float) -> None:
        assert upload.digests is not None, "finish() comes first"
        self._upload = upload
        self._digests: BlobDigests = upload.digests
        self._lag_seconds = lag_seconds
        self._wait_seconds = wait_seconds
        self._durable: list[Durable] = []

    async def run(self) -> Placement:
        """Return which copies are durable. An empty blob needs none.

        Raises ``WriteQuorumNotMet``, after which nothing of the upload stays.
        """
        if self._digests.size == 0:
            return Placement((), short=False)
        try:
            await self._reach_redundancy()
        except BaseException:
            self.withdraw()
            raise
        tally = Tally(
            self._upload.policy,
            tuple(copy.member for copy in self._durable),
            min(self._upload.policy.redundancy, self._upload.view.zones),
        )
        if tally.verdict is Verdict.REFUSED:
            self.withdraw()
            raise quorum_not_met(len(self._durable), self._upload.policy, self._upload.failures)
        return Placement(tuple(copy.replica for copy in self._durable), short=tally.verdict is Verdict.SHORT)

    def withdraw(self) -> None:
        """Remove every durable copy again: nothing refers to it, nor ever will."""
        for copy in self._durable:
            self._upload.cleaner.delete_later(copy.member, self._name(copy.generation))
        self._durable = []

    async def _reach_redundancy(self) -> None:
        """Run the first attempts and, for each that fails or lags, a handoff, until enough copies are durable."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_seconds
        redundancy = self._upload.policy.redundancy
        prompt = {asyncio.create_task(attempt) for attempt in self._first_attempts()}
        lagging: set[asyncio.Task[None]] = set()
        try:
            while len(self._durable) < redundancy and loop.time() < deadline:
                for attempt in self._handoffs(redundancy - len(self._durable) - len(prompt)):
                    prompt.add(asyncio.create_task(attempt))
                if not prompt and not lagging:
                    return
                wait = min(self._lag_seconds, deadline - loop.time()) if prompt else deadline - loop.time()
                done, _ = await asyncio.wait(prompt | lagging, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    lagging, prompt = lagging | prompt, set()
                prompt, lagging = prompt - done, lagging - done
                for task in done:
                    task.result()
        finally:
            await cancel(prompt | lagging)

    def _first_attempts(self) -> list[Coroutine[Any, Any, None]]:
        upload = self._upload
        if upload.small is not None:
            members = upload.placer.take(upload.policy.redundancy)
            return [self._put(member, upload.small) for member in members]
        return [
            *(self._commit_copy(copy) for copy in upload.copies),
            *(self._commit_follower(follower) for follower in upload.followers),
        ]

    def _handoffs(self, count: int) -> list[Coroutine[Any, Any, None]]:
        """Return up to ``count`` attempts on other shards, from memory or from a copy already durable."""
        upload = self._upload
        if count <= 0 or (upload.small is None and not self._durable):
            return []
        members = upload.placer.take(count, (copy.member for copy in self._durable))
        if upload.small is not None:
            return [self._put(member, upload.small) for member in members]
        return [self._replicate(member) for member in members]

    def _name(self, generation: Generation) -> BlobName:
        return BlobName(self._digests.sha256, generation)

    async def _put(self, member: Member, data: bytes) -> None:
        generation = self._upload.mint()
        shard = self._upload.view.shards[member.shard]
        await self._make_durable(member, generation, shard.put(self._name(generation), data))

    async def _commit_copy(self, copy: Copy) -> None:
        commit = copy.staged.commit(self._digests.sha256, self._digests.blocks)
        await self._make_durable(copy.member, copy.generation, commit)

    async def _commit_follower(self, follower: asyncio.Task[Copy | None]) -> None:
        copy = await follower
        if copy is not None:
            await self._commit_copy(copy)

    async def _replicate(self, member: Member) -> None:
        """Copy from a durable replica onto a shard that had no part in the upload."""
        try:
            copy = await self._upload.open_copy(member)
        except ShardError as error:
            self._upload.failures.append(error)
            return
        try:
            await self._fill(copy)
        except BaseException as error:
            self._upload.cleaner.abort_later(copy.staged)
            if not isinstance(error, ShardError):
                raise
            self._upload.failures.append(error)
            return
        await self._commit_copy(copy)

    async def _fill(self, copy: Copy) -> None:
        source, size = self._durable[0], self._digests.size
        shard = self._upload.view.shards[source.member.shard]
        for offset in range(0, size, BLOCK_BYTES):
            length = min(BLOCK_BYTES, size - offset)
            data = await shard.read(self._name(source.generation), size=size, offset=offset, length=length)
            await copy.staged.write(data)

    async def _make_durable(self, member: Member, generation: Generation, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except BaseException as error:
            self._upload.cleaner.delete_later(member, self._name(generation))
            if not isinstance(error, ShardError):
                raise
            self._upload.failures.append(error)
            return
        self._durable.append(Durable(member, generation))


async def cancel(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel ``tasks`` and wait until each has cleaned up behind itself."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
