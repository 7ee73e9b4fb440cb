"""Placement, repair, rebalance and trim together over shards in memory: seeded steps, the invariants after each.

A failure names its seed: ``pytest tests/simulation -k 'seed and 17'``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from sharding.guarded import Operation
from sharding.janitor import Janitor
from sharding.maintenance.placement import homes, missing_homes
from sharding.maintenance.rebalance import Rebalance, Trim
from sharding.maintenance.repair import Repair, RepairLimits
from sharding.model import Generation, Member, ShardId
from sharding.view import StoreView
from tests.sharding.faulty import Fault
from tests.sharding.maintenance.catalogue import MemoryCatalogue, Rows
from tests.sharding.memory import Cluster, instant, mint, small_blocks

LAYOUTS = ("a1 a1 b2 b2 c3 c3", "a1 a2 b3 b4", "a1 b2 c3", "a1 a1 a2 a2 a3")
STEPS = 80
LIMITS = RepairLimits(None, 60, 1, 10)
FAULTS = (Fault.FAIL, Fault.FAIL_AFTER, Fault.FULL)


class CheckedCatalogue(MemoryCatalogue):
    """Refuses, loudly, to let a copy go that its blob cannot do without."""

    def remove_later(self, rows: Rows, generation: Generation) -> None:
        assert self.is_whole(rows, without=generation), "a copy that is needed goes"
        super().remove_later(rows, generation)


class NodeOfStore:
    """The jobs of one node."""

    def __init__(self, catalogue: MemoryCatalogue, member: Member) -> None:
        cluster = catalogue.cluster

        def view() -> StoreView:
            return replace(cluster.view, node=member.node, zone=member.zone)

        def mint_generation() -> Generation:
            return Generation(mint())

        self.janitor = Janitor(cluster.shards.get)
        self.repair = Repair(view, catalogue, self.janitor, lambda: LIMITS, catalogue, mint_generation)
        self.rebalance = Rebalance(view, catalogue, self.janitor, lambda: None, lambda: 1e9, catalogue, mint_generation)
        self.trim = Trim(view, catalogue, lambda: 1e9, catalogue)


class Simulation:
    """A store, its nodes, and what befalls them. ``floor`` are the blobs that still had a copy when last looked at."""

    def __init__(self, layout: str, seed: int) -> None:
        self.chance = random.Random(seed)
        self.cluster = Cluster(layout, seed=seed)
        self.catalogue = CheckedCatalogue(self.cluster)
        members = {member.node: member for member in self.cluster.members}
        self.nodes = [NodeOfStore(self.catalogue, member) for member in members.values()]
        self.written = 0

    async def run(self) -> None:
        acts: tuple[Callable[[], Awaitable[None]], ...] = (
            self.upload,
            self.upload,
            self.lose,
            self.doubt,
            self.prove,
            self.turn_off,
            self.drain,
            self.break_down,
            self.work,
            self.work,
            self.work,
            self.cut_off,
            self.walk_anew,
            self.remove_files,
        )
        for _ in range(STEPS):
            await self.chance.choice(acts)()
            self.check()
        await self.come_to_rest()

    async def upload(self) -> None:
        self.written += 1
        redundancy, size = self.chance.choice((1, 2, 2, 3)), self.chance.choice((1, 60, 200))
        body = self.written.to_bytes(4, "big") * size
        probe = self.catalogue.add(body, (), redundancy)
        wanted = missing_homes(self.cluster.view, probe.blob.uid, redundancy, ())
        places = [member.shard for member in wanted if member.shard not in self.catalogue.draining]
        del self.catalogue.rows[probe.blob.id]
        if len(places) < min(redundancy, 2):
            return
        placed = self.catalogue.add(body, places[: self.chance.randint(min(redundancy, 2), redundancy)], redundancy)
        self.catalogue.rows[placed.blob.id] = placed
        if not self.catalogue.is_whole(placed):
            self.catalogue.enqueue(placed)

    async def lose(self) -> None:
        """Lose one copy of a blob that has another."""
        spare = [rows for rows in self.catalogue.rows.values() if len(set(rows.live.values())) > 1]
        if spare:
            rows = self.chance.choice(spare)
            self.catalogue.lose(rows, self.chance.choice(sorted(rows.live.values())))

    async def doubt(self) -> None:
        """Suspect a copy that is right, as the return of a shard does."""
        spare = [rows for rows in self.catalogue.rows.values() if len(set(rows.live.values())) > 1]
        if spare:
            rows = self.chance.choice(spare)
            self.catalogue.mark(rows, self.chance.choice(sorted(rows.live)))

    async def prove(self) -> None:
        """Read every suspect copy; those that are right count again, and may be surplus by now."""
        files = {(replica.shard, replica.generation) for replica in self.cluster.files()}
        for rows in self.catalogue.rows.values():
            for generation, shard in list(rows.suspect.items()):
                del rows.suspect[generation]
                if (shard, generation) in files:
                    rows.live[generation] = shard

    async def turn_off(self) -> None:
        """Let one shard take no writes, or all of them again."""
        shards = list(self.cluster.shards)
        self.cluster.unwritable = set() if self.chance.random() < 0.5 else {self.chance.choice(shards)}

    async def drain(self) -> None:
        """Begin or end the draining of one shard."""
        if self.catalogue.draining:
            self.catalogue.draining = set()
            return
        shard = self.chance.choice(list(self.cluster.shards))
        self.catalogue.draining = {shard}
        for rows in self.catalogue.rows.values():
            if shard in rows.live.values():
                self.catalogue.enqueue(rows)

    async def break_down(self) -> None:
        """Let some of the next calls to a shard fail."""
        faulty = self.chance.choice(list(self.cluster.faulty.values()))
        operation = self.chance.choice((Operation.PUT, Operation.WRITE, Operation.COMMIT))
        faulty.plan(operation, *(self.chance.choice(FAULTS) for _ in range(self.chance.randint(1, 3))))

    def step(self) -> Awaitable[object]:
        node = self.chance.choice(self.nodes)
        return self.chance.choice((node.repair, node.repair, node.rebalance, node.trim)).step()

    async def work(self) -> None:
        """Let several jobs of several nodes take a step at once."""
        await asyncio.gather(*(self.step() for _ in range(self.chance.randint(1, 6))))

    async def cut_off(self) -> None:
        """Let a job's process die in the middle of a step; what it had in the air is tidied or nobody's."""
        task = asyncio.ensure_future(self.step())
        for _ in range(self.chance.randint(0, 12)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def walk_anew(self) -> None:
        self.catalogue.cursors.clear()
        await asyncio.sleep(100)  # claims of the dead expire

    async def remove_files(self) -> None:
        for shard, name in list(self.catalogue.removals):
            await self.cluster.memory[shard].delete(name)
        self.catalogue.removals.clear()

    def check(self) -> None:
        files = {(replica.shard, replica.generation) for replica in self.cluster.files()}
        for rows in self.catalogue.rows.values():
            live = {(shard, generation) for generation, shard in rows.live.items()}
            assert live <= files, "a row without its file"
            assert live, "a blob without a copy"
        self.cluster.check()

    async def come_to_rest(self) -> None:
        """With everything well again, every blob ends with N copies in their places, and nothing is left over."""
        self.cluster.heal()
        self.catalogue.draining = set()
        await self.prove()
        for _ in range(4):
            await self.walk_anew()
            for rows in self.catalogue.rows.values():
                if not self.catalogue.is_whole(rows):
                    self.catalogue.enqueue(rows)
            for node in self.nodes:
                for job in (node.repair, node.rebalance, node.trim):
                    while not (await job.step()).idle:  # type: ignore[attr-defined]
                        pass
            self.check()
        for node in self.nodes:
            await node.janitor.close()
        for rows in self.catalogue.rows.values():
            wanted = [member.shard for member in homes(self.cluster.view, rows.blob.uid, rows.blob.redundancy)]
            assert sorted(rows.live.values()) == sorted(wanted)
        assert not self.catalogue.queue
        assert self.cluster.staged() == []


@pytest.mark.parametrize("seed", range(40))
def test_store_loses_nothing_and_comes_to_rest(seed: int) -> None:
    with small_blocks():
        instant(Simulation(LAYOUTS[seed % len(LAYOUTS)], seed).run)()


def test_shard_ids_are_those_of_the_layout() -> None:
    assert set(Simulation(LAYOUTS[0], 0).cluster.shards) == {ShardId(number) for number in range(6)}
