"""What later jobs will do to replicas, as the design's rule for reducers has it, on a store that is a set of names.

The rule: lock the blob's row, count anew in the next statement, act; files go after the commit.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from repo_node.db import removals
from sharding.model import Generation, Replica, ShardId

SHARDS = range(1, 7)
File = tuple[int, UUID]

CANDIDATE_SQL = "SELECT blob_id, since FROM gc_candidates ORDER BY random() LIMIT 1"
ANY_BLOB_SQL = "SELECT id FROM blobs ORDER BY random() LIMIT 1"
QUEUED_SQL = "SELECT blob_id FROM repair_queue ORDER BY random() LIMIT 1"
LOCK_SQL = "SELECT redundancy FROM blobs WHERE id = $1 FOR NO KEY UPDATE"
COLLECT_SQL = "SELECT * FROM gc_collect($1, $2, ARRAY[$3::bigint], ARRAY[$4::timestamptz], '0')"
LISTED_SQL = "SELECT shard_id, generation FROM removals ORDER BY random() LIMIT 5"
TRASHED_SQL = "SELECT id FROM trash ORDER BY random() LIMIT 3"
REPLICAS_SQL = "SELECT shard_id, generation, state FROM replicas WHERE blob_id = $1"
GOOD_SQL = "SELECT shard_id, generation FROM good_replicas($1)"


@dataclass
class Store:
    """The files on all shards, and how often each reducer did something."""

    files: set[File] = field(default_factory=set)
    done: dict[str, int] = field(default_factory=dict)
    lease: tuple[int, UUID] = (0, UUID(int=0))
    """What proves that this test is the primary: epoch and token."""

    def write(self, shards: list[int]) -> list[Replica]:
        """Make a durable file of a new generation on each of ``shards``."""
        replicas = [Replica(ShardId(shard), Generation(uuid4())) for shard in shards]
        self.files |= {(replica.shard, replica.generation) for replica in replicas}
        return replicas

    def holds(self, replica: Replica) -> bool:
        return (replica.shard, replica.generation) in self.files

    def remove(self, replicas: list[Replica]) -> None:
        self.files -= {(replica.shard, replica.generation) for replica in replicas}

    def count(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1


class Reducer:
    """Runs the jobs on one connection; every deadlock is retried and counted."""

    def __init__(self, connection: asyncpg.Connection, store: Store, chance: random.Random) -> None:
        self._connection = connection
        self._store = store
        self._chance = chance

    async def _transact(self, work: Callable[[], Awaitable[list[File]]]) -> None:
        """Run ``work`` in a transaction, and remove the files it returns once that has committed."""
        while True:
            try:
                async with self._connection.transaction():
                    gone = await work()
                break
            except asyncpg.DeadlockDetectedError:
                self._store.count("deadlock")
        self._store.files -= set(gone)

    async def collect(self) -> bool:
        """Remove a candidate that nothing refers to, with no grace at all; False when there is no candidate."""
        candidate = await self._connection.fetchrow(CANDIDATE_SQL)
        if candidate is None:
            return False
        blob = candidate["blob_id"]

        while True:
            try:
                gone = await self._connection.fetchrow(COLLECT_SQL, *self._store.lease, blob, candidate["since"])
                break
            except asyncpg.DeadlockDetectedError:
                self._store.count("deadlock")
        if gone["removed_blobs"]:
            self._store.count("collected")
        return True

    async def remove(self) -> bool:
        """Remove some listed files, and only then the rows that list them; False when none is listed."""
        listed = files(await self._connection.fetch(LISTED_SQL))
        self._store.files -= set(listed)
        for shard, generation in listed:
            await self._connection.execute(removals.DONE.sql, shard, [generation])
            self._store.count("removed")
        return bool(listed)

    async def empty(self) -> bool:
        """Let go of something in the trash; False when it is empty."""
        ids = [row["id"] for row in await self._connection.fetch(TRASHED_SQL)]

        async def work() -> list[File]:
            await self._connection.execute("SELECT empty_trash($1, 'expired')", ids)
            self._store.count("emptied")
            return []

        await self._transact(work)
        return bool(ids)

    async def trim(self) -> None:
        """Remove one good replica of some blob that has more than it needs."""
        blob = await self._connection.fetchval(ANY_BLOB_SQL)

        async def work() -> list[File]:
            redundancy = await self._connection.fetchval(LOCK_SQL, blob)
            if redundancy is None:
                return []
            good = files(await self._connection.fetch(GOOD_SQL, blob))
            surplus = self._chance.choice(good) if good else None
            if (
                surplus is None
                or len({shard for shard, generation in good if (shard, generation) != surplus}) < redundancy
            ):
                return []
            await self._connection.execute("SELECT remove_later($1, $2, $3, 'trim')", *surplus, bytes(32))
            self._store.count("trimmed")
            return []

        await self._transact(work)

    async def wipe(self) -> None:
        """Lose one file of some blob that has another, and find it out at once."""
        blob = await self._connection.fetchval(ANY_BLOB_SQL)

        async def work() -> list[File]:
            if await self._connection.fetchval(LOCK_SQL, blob) is None:
                return []
            good = files(await self._connection.fetch(GOOD_SQL, blob))
            if len(set(good) & self._store.files) < 2:
                return []
            lost = self._chance.choice(good)
            await self._connection.execute("SELECT suspect_replica($1, $2)", *lost)
            self._store.count("wiped")
            return [lost]

        await self._transact(work)

    async def repair(self) -> bool:
        """Give a queued blob the copies it lacks and take its bad ones away; False when the queue is empty."""
        blob = await self._connection.fetchval(QUEUED_SQL)
        if blob is None:
            return False

        async def work() -> list[File]:
            redundancy = await self._connection.fetchval(LOCK_SQL, blob)
            if redundancy is None:
                return []
            rows = await self._connection.fetch(REPLICAS_SQL, blob)
            good = files([row for row in rows if row["state"] == "live"])
            bad = files([row for row in rows if row["state"] == "suspect"])
            await self._copy(blob, good, redundancy)
            for shard, generation in bad:
                await self._connection.execute(
                    "DELETE FROM replicas WHERE shard_id = $1 AND generation = $2", shard, generation
                )
            await self._connection.execute("DELETE FROM repair_queue WHERE blob_id = $1", blob)
            self._store.count("repaired")
            return bad

        await self._transact(work)
        return True

    async def _copy(self, blob: int, good: list[File], redundancy: int) -> None:
        free = [shard for shard in SHARDS if shard not in {shard for shard, _ in good}]
        missing = redundancy - len({shard for shard, _ in good})
        if missing <= 0:
            return
        assert set(good) <= self._store.files and good, f"blob {blob} has no file left to copy from"
        for replica in self._store.write(self._chance.sample(free, missing)):
            await self._connection.execute(
                "INSERT INTO replicas (shard_id, generation, blob_id) VALUES ($1, $2, $3)",
                replica.shard,
                replica.generation,
                blob,
            )


def files(rows: list[Any]) -> list[File]:
    return [(row["shard_id"], row["generation"]) for row in rows]
