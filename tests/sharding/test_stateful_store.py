"""The store against a model of what it acknowledged, while shards fail, fill up, stall and lose files.

Invariants: an acknowledged blob has a quorum of right copies on distinct shards; a read gives exactly
the bytes or raises; what was refused or given up leaves nothing once the janitor is done; no task stays.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from sharding.errors import BlobUnavailable, WriteQuorumNotMet
from sharding.guarded import GuardLimits, Operation
from sharding.janitor import SECOND_DELETION_SECONDS
from sharding.model import BlobName, Replica, ShardId
from sharding.reader import BlobToRead
from sharding.tally import WritePolicy
from tests.sharding.faulty import Fault
from tests.sharding.memory import Cluster, InstantLoop, mint, small_blocks
from tests.sharding.test_reader import Catalogue

T = TypeVar("T")

BLOCK = 64
SHARDS = 6
LAYOUTS = ("a1 a1 b2 b2 c3 c3", "a1 a2 a3 b4 b5 c6", "a1 a1 a1 a1 a1 b2")
POLICIES = (
    WritePolicy(redundancy=1),
    WritePolicy(redundancy=2),
    WritePolicy(redundancy=2, zones_min=2),
    WritePolicy(redundancy=3),
    WritePolicy(redundancy=3, write_quorum=1),
)
FAULTS = {
    Operation.PUT: (Fault.FAIL, Fault.FAIL_AFTER, Fault.FULL, Fault.STALL),
    Operation.STAGE: (Fault.FAIL, Fault.FULL, Fault.STALL),
    Operation.WRITE: (Fault.FAIL, Fault.FAIL_AFTER, Fault.FULL, Fault.STALL),
    Operation.COMMIT: (Fault.FAIL, Fault.FAIL_AFTER, Fault.FULL, Fault.STALL),
    Operation.READ_STAGED: (Fault.FAIL, Fault.CORRUPT, Fault.STALL),
    Operation.READ: (Fault.FAIL, Fault.CORRUPT, Fault.STALL),
    Operation.SIZES: (Fault.FAIL, Fault.STALL),
    Operation.DELETE: (Fault.FAIL_AFTER,),
}
"""Faults after which the janitor must still get its way: it tries each deletion twice."""

NEVER_OPEN = GuardLimits(failures_to_open=1_000_000)

shards = st.integers(0, SHARDS - 1).map(ShardId)
sizes = st.sampled_from([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 5 * BLOCK + 7, 40 * BLOCK])


@dataclass
class Acknowledged:
    """A blob a client was promised, and those of its copies that were spoilt since."""

    body: bytes
    sha256: bytes
    replicas: tuple[Replica, ...]
    spoilt: set[Replica] = field(default_factory=set)

    @property
    def good(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica not in self.spoilt]


class StoreMachine(RuleBasedStateMachine):
    """Steps of clients, of disks, and of time."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.stack.enter_context(small_blocks(BLOCK))
        self.stack.enter_context(mock.patch.multiple("sharding.provider", mint_uid=mint, mint_generation=mint))
        self.runner = self.stack.enter_context(asyncio.Runner(loop_factory=InstantLoop))
        self.bodies = random.Random(0)
        self.acknowledged: list[Acknowledged] = []
        self.were_down: set[ShardId] = set()

    @initialize(layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 5))
    def build(self, layout: str, seed: int) -> None:
        self.cluster = Cluster(layout, seed=seed, limits=NEVER_OPEN)
        self.provider = self.cluster.provider()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    # -------------------------------------------------------------- clients

    @rule(
        clients=st.lists(
            st.tuples(sizes, st.sampled_from(POLICIES), st.none() | st.integers(0, 60)), min_size=1, max_size=3
        )
    )
    def upload(self, clients: list[tuple[int, WritePolicy, int | None]]) -> None:
        """Upload at the same time; a number says after how many steps a client leaves."""

        async def upload_all() -> None:
            await asyncio.gather(*(self.upload_one(*client) for client in clients))

        self.run(upload_all())

    async def upload_one(self, size: int, policy: WritePolicy, steps: int | None) -> None:
        uploading = asyncio.create_task(self.store(self.bodies.randbytes(size), policy))
        if steps is not None:
            for _ in range(steps):
                await asyncio.sleep(0)
            uploading.cancel()
        try:
            self.acknowledged.append(await uploading)
        except asyncio.CancelledError:
            assert steps is not None
        except WriteQuorumNotMet as error:
            assert steps is not None or error.reasons or self.is_short_of_shards(policy)

    def is_short_of_shards(self, policy: WritePolicy) -> bool:
        view = self.cluster.view
        return len(view.writable) < policy.quorum or view.writable_zones < policy.zones_min

    async def store(self, body: bytes, policy: WritePolicy) -> Acknowledged:
        async with self.provider.open_upload(policy) as upload:
            for start in range(0, len(body), 150):
                await upload.write(body[start : start + 150])
            digests = await upload.finish()
            placement = await self.provider.commit(upload)
        if body:
            self.check_placement(body, placement.replicas, policy)
        return Acknowledged(body, digests.sha256, placement.replicas)

    def check_placement(self, body: bytes, replicas: tuple[Replica, ...], policy: WritePolicy) -> None:
        files = self.cluster.files()
        assert [files.get(replica) for replica in replicas] == [body] * len(replicas)
        distinct = {replica.shard for replica in replicas}
        assert policy.quorum <= len(distinct) == len(replicas) <= policy.redundancy
        assert len(self.cluster.zones(replicas)) >= policy.zones_min

    @precondition(lambda self: self.acknowledged)
    @rule(data=st.data(), patience=st.none() | st.integers(0, 30))
    def read(self, data: st.DataObject, patience: int | None) -> None:
        """Read a range; a number says after how many pieces the client leaves."""
        blob = data.draw(st.sampled_from(self.acknowledged))
        if not blob.body:
            return
        first = data.draw(st.integers(0, len(blob.body) - 1))
        last = data.draw(st.integers(first, len(blob.body) - 1))
        self.run(self.read_range(blob, first, last, patience))

    async def read_range(self, blob: Acknowledged, first: int, last: int, patience: int | None = None) -> bool:
        """Return whether the range could be read, having compared every byte that came."""
        reader = self.provider.read(
            BlobToRead(blob.sha256, len(blob.body), blob.replicas), Catalogue(blob.body, blob.replicas)
        )
        received, pieces_taken = b"", 0
        try:
            async with aclosing(reader.stream(first, last)) as pieces:
                async for piece in pieces:
                    received += piece
                    pieces_taken += 1
                    if pieces_taken == patience:
                        break
        except BlobUnavailable:
            assert blob.body[first : last + 1].startswith(received)
            return False
        expected = blob.body[first : last + 1]
        assert expected.startswith(received) if pieces_taken == patience else expected == received
        return True

    @precondition(lambda self: self.acknowledged)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        """Ask which copies are there: never one that is not."""
        blob = data.draw(st.sampled_from(self.acknowledged))
        confirmed = self.run(self.provider.confirm(blob.sha256, len(blob.body), blob.replicas))
        lost = {replica.generation for replica in blob.replicas if replica not in self.cluster.files()}
        assert not lost & set(confirmed)

    # -------------------------------------------------------------- disks

    @rule(shard=shards, operation=st.sampled_from(sorted(FAULTS)), data=st.data(), later=st.integers(0, 3))
    def plan(self, shard: ShardId, operation: Operation, data: st.DataObject, later: int) -> None:
        fault = data.draw(st.sampled_from(FAULTS[operation]))
        self.cluster.faulty[shard].plan(operation, *[None] * later, fault)

    @rule(shard=shards, noticed=st.booleans())
    def take_down(self, shard: ShardId, noticed: bool) -> None:
        self.cluster.faulty[shard].down = True
        self.were_down.add(shard)
        if noticed:
            self.cluster.unwritable.add(shard)

    @rule(shard=shards)
    def bring_back(self, shard: ShardId) -> None:
        self.cluster.faulty[shard].down = False
        self.cluster.unwritable.discard(shard)

    @rule(shard=shards, noticed=st.booleans())
    def fill(self, shard: ShardId, noticed: bool) -> None:
        self.cluster.faulty[shard].full = True
        if noticed and shard not in self.cluster.unwritable:
            self.cluster.full.add(shard)

    @precondition(lambda self: any(len(blob.good) > 1 for blob in self.acknowledged))
    @rule(data=st.data(), flip=st.booleans())
    def spoil(self, data: st.DataObject, flip: bool) -> None:
        """Lose or change one copy of a blob that has another."""
        blob = data.draw(st.sampled_from([blob for blob in self.acknowledged if len(blob.good) > 1]))
        replica = data.draw(st.sampled_from(blob.good))
        files = self.cluster.memory[replica.shard].files
        name = BlobName(blob.sha256, replica.generation)
        if flip:
            files[name] = bytes([files[name][0] ^ 1]) + files[name][1:]
        else:
            del files[name]
        blob.spoilt.add(replica)

    # -------------------------------------------------------------- time

    @rule(seconds=st.sampled_from([0.5, 5, 2 * SECOND_DELETION_SECONDS]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule()
    def heal(self) -> None:
        """Repair every disk, let the janitor finish, and compare what there is with what was acknowledged."""
        self.cluster.heal()
        self.run(asyncio.sleep(2 * SECOND_DELETION_SECONDS))
        assert asyncio.all_tasks(self.runner.get_loop()) == set()
        self.check_files()
        for blob in self.acknowledged:
            assert self.run(self.read_range(blob, 0, len(blob.body) - 1))

    def check_files(self) -> None:
        expected = {replica: blob for blob in self.acknowledged for replica in blob.replicas}
        found = self.cluster.files()
        for replica in set(found) - set(expected):
            # What the janitor could not reach at either time is for reconcile.
            assert replica.shard in self.were_down
            files = self.cluster.memory[replica.shard].files
            for name in [name for name in files if name.generation == replica.generation]:
                del files[name]
        for replica, blob in expected.items():
            assert replica in blob.spoilt or found[replica] == blob.body
        assert self.cluster.staged() == []
        self.cluster.check()
        self.were_down.clear()

    def teardown(self) -> None:
        try:
            if hasattr(self, "provider"):
                self.heal()
                self.run(self.provider.close())
                assert asyncio.all_tasks(self.runner.get_loop()) == set()
                loop = self.runner.get_loop()
                assert isinstance(loop, InstantLoop)
                assert loop.problems == []
        finally:
            self.stack.close()


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
