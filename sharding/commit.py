"""Makes the copies of a finished upload durable: all at once, with handoffs for those that fail or lag."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Sequence
from dataclasses import dataclass

from sharding.digests import block_digests
from sharding.errors import ReplicaCorrupt, ReplicaMissing, ShardError, ShardUnavailable
from sharding.model import (
    BLOCK_BYTES,
    BLOCK_DIGEST_BYTES,
    BlobDigests,
    BlobName,
    Buffer,
    Generation,
    Member,
    Replica,
    block_count,
)
from sharding.tally import Verdict
from sharding.tasks import stop
from sharding.tee import Copy, Tee
from sharding.upload import Upload

Attempts = dict[asyncio.Task[None], Member]


@dataclass(frozen=True, slots=True)
class Placement:
    """The durable copies of an upload; ``short`` when they are fewer, or in fewer zones, than wanted."""

    replicas: tuple[Replica, ...]
    short: bool


@dataclass(frozen=True, slots=True)
class Durable:
    """One copy that is on its disk for good."""

    member: Member
    generation: Generation


class Commit:
    """The last stage of one upload. Whatever it does not return as durable is removed by generation.

    ``lag_seconds`` is how long a shard may keep the others waiting before a handoff starts beside
    it; ``wait_seconds`` bounds the whole, once the handoffs of a staged body have caught up.
    """

    def __init__(self, upload: Upload, *, lag_seconds: float, wait_seconds: float) -> None:
        assert upload.digests is not None, "finish() comes first"
        self._upload = upload
        self._policy = upload.policy
        self._placer = upload.placer
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
            members = [copy.member for copy in self._durable]
            verdict = self._placer.tally(members).verdict
            if verdict is Verdict.REFUSED:
                raise self._placer.refusal(members)
        except BaseException:
            self._give_up(self._durable)
            raise
        self._give_up(surplus(self._durable, self._policy.redundancy))
        replicas = tuple(Replica(copy.member.shard, copy.generation) for copy in self._durable)
        return Placement(replicas, short=verdict is Verdict.SHORT)

    async def _reach_redundancy(self) -> None:
        """Run the first attempts and, for each that fails or lags, a handoff, until enough copies are durable."""
        running = await self._first_attempts()
        lagging: set[Member] = set()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_seconds
        try:
            while not self._has_enough():
                prompt = [member for member in running.values() if member not in lagging]
                handoffs = self._hand_off(prompt)
                running |= handoffs
                left = deadline - loop.time()
                if not running or left <= 0:
                    break
                wait = min(self._lag_seconds, left) if prompt or handoffs else left
                # Where every attempt is needed, only one that fails is news before the last has ended.
                spare = len(self._durable) + len(running) > self._policy.redundancy
                news = asyncio.FIRST_COMPLETED if spare else asyncio.FIRST_EXCEPTION
                done, _ = await asyncio.wait(running, timeout=wait, return_when=news)
                news_came = bool(done) if spare else any(attempt.exception() is not None for attempt in done)
                for attempt in done:
                    self._judge(attempt, running[attempt])
                    del running[attempt]
                if not news_came:
                    lagging.update(running.values())
                    for member in running.values():
                        self._placer.pass_over(member)
        finally:
            await stop(running)
        late = (ShardUnavailable(member.shard, "its copy was not durable in time") for member in running.values())
        self._placer.failures.extend(late)

    def _has_enough(self) -> bool:
        if len(self._durable) < self._policy.redundancy:
            return False
        zones_min = self._policy.zones_min
        return zones_min == 1 or len({copy.member.zone for copy in self._durable}) >= zones_min

    async def _first_attempts(self) -> Attempts:
        """Begin to commit the staged copies; a small body has none."""
        tee = self._upload.tee
        if tee is None:
            return {}
        await tee.settle_handoffs(self._wait_seconds)
        return {asyncio.create_task(self._commit(copy, tee)): copy.member for copy in tee.copies}

    def _hand_off(self, prompt: Collection[Member]) -> Attempts:
        """Begin what is wanted beside the copies that are durable or on their way, from memory or a durable copy."""
        tee, small, policy = self._upload.tee, self._upload.small, self._policy
        if small is None and not self._durable:
            return {}
        members = self._placer.take(policy.redundancy - len(self._durable) - len(prompt))
        if policy.zones_min > 1:
            zones = {member.zone for member in (*(copy.member for copy in self._durable), *prompt, *members)}
            members += self._placer.take(policy.zones_min - len(zones), new_zones=True)
        if small is not None:
            return {asyncio.create_task(self._put(member, small)): member for member in members}
        assert tee is not None, "a body is small or staged"
        return {asyncio.create_task(self._replicate(member, tee)): member for member in members}

    def _judge(self, attempt: asyncio.Task[None], member: Member) -> None:
        """Take note of a shard that failed; anything else that went wrong is a fault of ours and is raised."""
        error = attempt.exception()
        if isinstance(error, ShardError):
            self._placer.fail(member, error)
        elif error is not None:
            raise error

    def _name(self, generation: Generation) -> BlobName:
        return BlobName(self._digests.sha256, generation)

    async def _put(self, member: Member, data: Buffer) -> None:
        generation = self._upload.mint()
        await self._make_durable(member, generation, self._placer.shard(member).put(self._name(generation), data))

    async def _commit(self, copy: Copy, tee: Tee) -> None:
        # From here on it is this task's to abort.
        if copy in tee.copies:
            tee.copies.remove(copy)
        commit = copy.staged.commit(self._digests.sha256, self._digests.blocks)
        try:
            await self._make_durable(copy.member, copy.generation, commit)
        except BaseException:
            # Its guard may have refused before the shard heard of it.
            self._upload.cleaner.abort_later(copy.staged)
            raise

    async def _replicate(self, member: Member, tee: Tee) -> None:
        """Copy from durable replicas onto a shard that had no part in the upload."""
        copy = await tee.stage(member)
        try:
            for index in range(block_count(self._digests.size)):
                await copy.staged.write(await self._read_block(index, member))
        except BaseException:
            self._upload.cleaner.abort_later(copy.staged)
            raise
        await self._commit(copy, tee)

    async def _read_block(self, index: int, reader: Member) -> Buffer:
        """Return a block from whichever durable copy has it right; one that has not is none. Raises ``ShardError``."""
        failure: ShardError = ShardUnavailable(reader.shard, "no durable copy is left to read from")
        size, offset = self._digests.size, index * BLOCK_BYTES
        digest = self._digests.blocks[index * BLOCK_DIGEST_BYTES : (index + 1) * BLOCK_DIGEST_BYTES]
        for source in list(self._durable):
            shard, name = self._placer.shard(source.member), self._name(source.generation)
            try:
                data = await shard.read(name, size=size, offset=offset, length=min(BLOCK_BYTES, size - offset))
                if block_digests(data) == digest:
                    return data
                raise ReplicaCorrupt(shard.id, f"{name}: block {index} is not what was stored")
            except ShardError as error:
                failure = error
                if isinstance(error, (ReplicaMissing, ReplicaCorrupt)) and source in self._durable:
                    self._placer.fail(source.member, error)
                    self._give_up([source])
        raise failure

    async def _make_durable(self, member: Member, generation: Generation, work: Awaitable[None]) -> None:
        try:
            await work
        except BaseException:
            self._upload.cleaner.delete_later(member, self._name(generation))
            raise
        self._durable.append(Durable(member, generation))
        self._placer.count(member)

    def _give_up(self, copies: Sequence[Durable]) -> None:
        """Remove durable copies again: nothing refers to them, nor ever will."""
        for copy in copies:
            self._upload.cleaner.delete_later(copy.member, self._name(copy.generation))
        self._durable = [copy for copy in self._durable if copy not in copies]


def surplus(durable: Sequence[Durable], redundancy: int) -> list[Durable]:
    """Return the copies beyond ``redundancy``: rather those that add no zone, or no node, than others."""
    if len(durable) <= redundancy:
        return []
    kept: list[Durable] = []
    rest = list(durable)
    for _ in range(redundancy):
        zones, nodes = {copy.member.zone for copy in kept}, {copy.member.node for copy in kept}
        best = max(rest, key=lambda copy: (copy.member.zone not in zones, copy.member.node not in nodes))
        kept.append(best)
        rest.remove(best)
    return rest
