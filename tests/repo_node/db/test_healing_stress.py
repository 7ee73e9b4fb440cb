"""Uploads, repairs, moves, trims, suspicions, drains and gc at once on the same few blobs: nothing is lost.

The files are a set of names; every row that counts must have its file at every moment, and every blob its N copies
in the end.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from repo_node.db import moves, repair_queue, shards, walks
from repo_node.db.blobs import CommitOutcome
from repo_node.db.garbage import GarbageRows
from repo_node.db.lease import Lease
from repo_node.origin import Origin
from sharding.maintenance.catalogue import Claim, MoveOutcome, Repaired
from sharding.model import Generation, Replica, ShardId
from tests.repo_node.db.scene import Queries, Scene, open_scene

SECONDS, SECONDS_MAX = 3.5, 60.0
EXPECTED = (
    *("upload adopted", "upload deduplicated", "repair whole", "adopted", "trim True", "trim False"),
    *("move moved", "move surplus", "suspect", "drain", "collected"),
)
SHARDS = range(1, 7)
CONTENTS = [bytes([number]) * 40 for number in range(8)]

LIVE_SQL = "SELECT r.blob_id, r.shard_id, r.generation FROM replicas r WHERE r.state = 'live'"
SHORT_SQL = "SELECT count(*) FROM blobs b WHERE NOT is_whole(b.id, b.redundancy, ring_zones())"


class Store:
    """The files, and everybody who works on them."""

    def __init__(self, scene: Scene, seed: str) -> None:
        self.scene = scene
        self.chance = random.Random(seed)
        self.files: set[tuple[int, UUID]] = set()
        self.done: Counter[str] = Counter()

    def write(self, *shard_ids: int) -> list[Replica]:
        made = [Replica(ShardId(shard), Generation(uuid4())) for shard in shard_ids]
        self.files |= {(one.shard, one.generation) for one in made}
        return made

    def remove(self, replicas: list[Replica]) -> None:
        self.files -= {(one.shard, one.generation) for one in replicas}

    def holds(self, replica: Replica) -> bool:
        return (replica.shard, replica.generation) in self.files

    async def rows(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.scene.dsn)
        try:
            return list(await connection.fetch(sql, *args))
        finally:
            connection.terminate()

    async def upload(self) -> None:
        data, redundancy = self.chance.choice(CONTENTS), self.chance.choice((2, 2, 3))
        deployment = self.scene.deployment(f"d/{self.chance.randrange(12)}", data, redundancy=redundancy)
        ours = self.write(*self.chance.sample(SHARDS, redundancy))
        result = await self.scene.commit(deployment, ours)
        if result.outcome is CommitOutcome.CONFIRM:
            confirmed = [replica for replica in result.existing if self.holds(replica)]
            result = await self.scene.commit(deployment, ours, confirmed)
        if result.outcome is not CommitOutcome.ADOPTED:
            self.remove(ours)
        self.done[f"upload {result.outcome}"] += 1

    async def repair(self) -> None:
        token = uuid4()
        claims = await repair_queue.claim(self.scene.database, token, seconds=0.05, count=3, bytes_max=1 << 30)
        repaired = [Repaired(claim, tuple(self.copy(claim)), 0.01, None) for claim in claims]
        await asyncio.sleep(self.chance.choice((0, 0, 0.1)))  # at times beyond the claim
        settled = await repair_queue.settle(self.scene.database, token, repaired)
        for one in repaired:
            end = settled[one.claim.blob.id]
            self.remove([copy for copy in one.copies if copy.generation not in end.adopted])
            self.done[f"repair {end.outcome}"] += 1
            self.done["adopted"] += len(end.adopted)

    def copy(self, claim: Claim) -> list[Replica]:
        """Write what the blob lacks, if there is a file to copy from."""
        held = {one.shard for one in claim.replicas if one.counts}
        if not any(self.holds(one.replica) for one in claim.replicas):
            return []
        free = [shard for shard in SHARDS if shard not in held]
        return self.write(*self.chance.sample(free, min(len(free), max(1, claim.blob.redundancy - len(held)))))

    async def any_live(self) -> tuple[int, Replica] | None:
        rows = await self.rows(f"{LIVE_SQL} ORDER BY random() LIMIT 1")
        if not rows:
            return None
        return rows[0]["blob_id"], Replica(ShardId(rows[0]["shard_id"]), Generation(rows[0]["generation"]))

    async def trim(self) -> None:
        if (found := await self.any_live()) is not None:
            trimmed = await moves.trim(self.scene.database, *found, "trim")
            self.done[f"trim {trimmed}"] += 1
            if trimmed:
                self.remove([found[1]])

    async def move(self) -> None:
        if (found := await self.any_live()) is None or not self.holds(found[1]):
            return
        [new] = self.write(self.chance.choice(SHARDS))
        outcome = await moves.move(self.scene.database, *found, new)
        self.done[f"move {outcome}"] += 1
        self.remove({MoveOutcome.SURPLUS: [new], MoveOutcome.MOVED: [found[1]], MoveOutcome.COPIED: []}[outcome])

    async def suspect(self) -> None:
        """Lose one file of a blob that has another, and find it out at once."""
        if (found := await self.any_live()) is None:
            return
        connection = await asyncpg.connect(self.scene.dsn)
        try:
            async with connection.transaction():
                await connection.execute("SELECT 1 FROM blobs WHERE id = $1 FOR NO KEY UPDATE", found[0])
                others = await connection.fetch(
                    f"{LIVE_SQL} AND r.blob_id = $1 AND r.generation <> $2", *found_key(found)
                )
                if len(others) < 2:
                    return
                await connection.execute("SELECT suspect_replica($1, $2)", found[1].shard, found[1].generation)
        finally:
            connection.terminate()
        self.remove([found[1]])
        self.done["suspect"] += 1

    async def drain(self) -> None:
        """Drain one shard for a while; what is moved off goes from the rows, its files later."""
        shard = self.chance.choice(SHARDS)
        await shards.change(self.scene.database, shard, "drain", by=Origin("x", "r"))
        for _ in range(3):
            await walks.walk(self.scene.database, 50, again_seconds=0, lost_again_seconds=0)
            await asyncio.sleep(0.05)
        await shards.change(self.scene.database, shard, "activate", by=Origin("x", "r"))
        self.done["drain"] += 1

    async def begin_gc(self) -> None:
        """Be the primary, on a cluster without trash."""
        token = uuid4()
        await self.rows("UPDATE repositories SET trash = false")
        [[epoch]] = await self.rows("SELECT lease_acquire('n1', $1, 0, 3600)", token)
        self.lease = Lease(epoch, token)

    async def collect(self) -> None:
        garbage = GarbageRows(self.scene.database)
        page = await garbage.page(0, 100, 0)
        gone = await garbage.collect(self.lease, page, 0)
        self.done["collected"] += gone.blobs

    async def delete(self) -> None:
        connection = await asyncpg.connect(self.scene.dsn)
        try:
            name = str(self.chance.randrange(12))
            await connection.fetchval("SELECT delete_item(1, 'd', $1, 'x', 'r')", name)
        finally:
            connection.terminate()

    async def check(self) -> None:
        """Every live row has its file: looked at in one moment of this loop, with the rows of just before."""
        rows = {(row["shard_id"], row["generation"]) for row in await self.rows(LIVE_SQL)}
        gone = rows - self.files
        still = {(row["shard_id"], row["generation"]) for row in await self.rows(LIVE_SQL)} if gone else set()
        assert not gone & still, "a live row has lost its file"


def found_key(found: tuple[int, Replica]) -> tuple[int, UUID]:
    return found[0], found[1].generation


async def test_copies_are_kept_while_everybody_works_on_them(dsn: str, queries: Queries) -> None:
    seed = os.environ.get("HOLDFAST_TEST_SEED") or str(random.randrange(1 << 32))
    print(f"seed {seed}; HOLDFAST_TEST_SEED sets it")
    async with open_scene(dsn, queries, pool_connections_max=12, statement_timeout_seconds=30.0) as scene:
        store = Store(scene, seed)
        await store.begin_gc()
        workers: list[Callable[[], Awaitable[None]]] = [
            *[store.upload] * 4,
            *[store.repair] * 3,
            *[store.trim] * 2,
            *[store.move] * 2,
            store.suspect,
            store.drain,
            store.collect,
            store.delete,
            store.check,
        ]
        began = time.monotonic()

        def is_enough() -> bool:
            """Every outcome has been met, which takes a busy machine longer."""
            seconds = time.monotonic() - began
            return seconds > SECONDS_MAX or (seconds > SECONDS and all(store.done[what] for what in EXPECTED))

        await asyncio.gather(*(run(worker, is_enough) for worker in workers))
        print(dict(store.done))
        assert all(store.done[what] for what in EXPECTED), store.done
        await store.rows("SELECT enqueue_repair(id, 'census') FROM blobs")
        patience = time.monotonic() + 20
        while (await store.rows("SELECT count(*) FROM repair_queue"))[0][0]:
            assert time.monotonic() < patience, "the queue does not empty"
            await store.repair()
        assert (await store.rows(SHORT_SQL))[0][0] == 0
        await store.check()


async def run(worker: Callable[[], Awaitable[None]], is_enough: Callable[[], bool]) -> None:
    while not is_enough():
        await worker()
        await asyncio.sleep(0.002)
