"""Stocks a running cluster with artifacts faster than clients could: rows by COPY, replicas as files on the shards.

What it makes is what uploads would have left: content of its own in each blob, two copies where the ring wants them,
every digest right, so that no job of the cluster finds fault with it. ``bench_scale`` has rows made without files.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import asyncpg
import xxhash

from benchmarks.cells import format_size
from benchmarks.cluster import BenchCluster
from benchmarks.content import Content
from benchmarks.generator import Stored
from sharding.digests import block_digests
from sharding.files import fan_out_of
from sharding.model import BlobName, Generation, Member, NodeId, ShardId, ZoneId, block_count
from sharding.ring import Ring, key_of

COPIES = 2
REPOSITORY = "generic-local"
FOLDER_ENTRIES = 1000
BATCH = 20_000
PLACES = 1_000
THREADS = os.cpu_count() or 1
SPACING_MS = 3
"""Between two uploads that are made to seem: some 300 in a second share a directory on each shard, at most."""

SHARDS_SQL = """
    SELECT s.id, s.uid, n.zone, n.id AS node, s.weight, s.path FROM shards s JOIN nodes n ON n.id = s.node_id
     WHERE s.state = 'active'
"""
RESERVE_SQL = """
    SELECT setval(pg_get_serial_sequence('blobs', 'id'), nextval(pg_get_serial_sequence('blobs', 'id')) + $1) - $1
"""
BLOB_COLUMNS = ("id", "uid", "sha256", "sha1", "md5", "size", "redundancy", "created_at", "block_digests")
REPLICA_COLUMNS = ("shard_id", "generation", "blob_id")


@dataclass(frozen=True, slots=True)
class Made:
    """One blob to be: its rows' values, where its files go, and how it is asked for."""

    uid: UUID
    digests: tuple[bytes, bytes, bytes, bytes]
    replicas: tuple[tuple[ShardId, Generation], ...]
    stored: Stored


class Stock:
    """Makes artifacts in one cluster. ``name`` is the folder they lie under. Made by ``open_stock``.

    Another kind of artifacts overrides ``columns`` and ``artifact``, and ``make_folders`` where they lie elsewhere.
    """

    columns: Sequence[str] = ("repo_id", "folder", "name", "blob_id", "created_by", "modified_by")
    """What of artifacts' rows is given; the rest is what an upload would leave."""

    def __init__(self, cluster: BenchCluster, shards: Sequence[asyncpg.Record], repository: int, name: str) -> None:
        self._nodes = {node: index for index, node in enumerate(cluster.node_ids)}
        self._folders: set[str] = set()
        self._paths = {ShardId(row["id"]): Path(row["path"]) for row in shards}
        self._ring = Ring(
            Member(ShardId(row["id"]), row["uid"], ZoneId(row["zone"]), NodeId(row["node"]), row["weight"])
            for row in sorted(shards, key=lambda row: row["uid"].int)
        )
        self._repository = repository
        self._name = name
        self._began_ms = time.time_ns() // 1_000_000
        self._homes = [self._place(uuid7_at(self._began_ms)) for _ in range(PLACES)]

    def make(self, content: Content | None, size: int, numbers: range) -> list[Made]:
        """Make the objects of ``numbers``, on the disks too; without ``content`` no files, and digests of nothing."""
        return [self._make(content, size, number) for number in numbers]

    def _make(self, content: Content | None, size: int, number: int) -> Made:
        at_ms = self._began_ms - number * SPACING_MS
        uid = uuid7_at(at_ms)
        # Where no file lies no job finds out that the ring wants it elsewhere, and a place costs a while.
        homes = self._homes[number % len(self._homes)] if content is None else self._place(uid)
        replicas = tuple((member.shard, uuid7_at(at_ms)) for member in homes)
        path = f"/artifactory/{REPOSITORY}/{self.folder_of(size, number)}/{number:07}.bin"
        nodes = tuple(self._nodes[member.node] for member in homes)
        if content is None:
            noise = random.randbytes(32)
            digests = (noise, noise[:20], noise[:16], bytes(8 * block_count(size)))
            return Made(uid, digests, replicas, Stored(path, size, b"", noise.hex(), nodes))
        body = b"".join(content.blocks(size))
        sha256, sha1, md5 = (hashlib.new(name, body).digest() for name in ("sha256", "sha1", "md5"))
        for shard, generation in replicas:
            self._write(shard, BlobName(sha256, generation), body)
        stored = Stored(path, size, xxhash.xxh3_128_digest(body), sha256.hex(), nodes)
        return Made(uid, (sha256, sha1, md5, block_digests(body)), replicas, stored)

    def _place(self, uid: UUID) -> tuple[Member, ...]:
        return self._ring.primaries(key_of(uid), COPIES)

    def _write(self, shard: ShardId, blob: BlobName, body: bytes) -> None:
        name = str(blob)
        folder = f"{self._paths[shard]}/blobs/{fan_out_of(name)}"
        if folder not in self._folders:
            Path(folder).mkdir(mode=0o700, exist_ok=True)
            self._folders.add(folder)
        file = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(file, body)
        finally:
            os.close(file)

    def folder_of(self, size: int, number: int) -> str:
        return f"{self._name}/{format_size(size)}/{number // FOLDER_ENTRIES:04}"

    async def insert(self, connection: asyncpg.Connection, size: int, made: Sequence[Made]) -> None:
        """COPY the rows of ``made``; folders are made separately."""
        first = await connection.fetchval(RESERVE_SQL, len(made))
        now, numbered = datetime.now(UTC), list(enumerate(made, first))
        blobs = ((blob, one.uid, *one.digests[:3], size, COPIES, now, one.digests[3]) for blob, one in numbered)
        replicas = ((shard, generation, blob) for blob, one in numbered for shard, generation in one.replicas)
        artifacts = (self.artifact(one.stored.path, blob) for blob, one in numbered)
        for table, columns, rows in (
            ("blobs", BLOB_COLUMNS, blobs),
            ("replicas", REPLICA_COLUMNS, replicas),
            ("artifacts", self.columns, artifacts),
        ):
            await connection.copy_records_to_table(table, columns=columns, records=rows)

    def artifact(self, path: str, blob: int) -> tuple[object, ...]:
        """Return the values of ``columns`` for an artifact."""
        folder, _, name = path.removeprefix(f"/artifactory/{REPOSITORY}/").rpartition("/")
        return self._repository, folder, name, blob, "bench", "bench"

    async def make_folders(self, connection: asyncpg.Connection, size: int, numbers: range) -> None:
        for number in range(numbers.start, numbers.stop, FOLDER_ENTRIES):
            folder = self.folder_of(size, number)
            await connection.execute("SELECT ensure_folder($1, $2, 'bench')", self._repository, folder)


def uuid7_at(milliseconds: int) -> Generation:
    """Return a new UUIDv7 (RFC 9562) of an earlier time."""
    noise = random.getrandbits(74)
    return Generation(UUID(int=milliseconds << 80 | 7 << 76 | noise >> 62 << 64 | 2 << 62 | noise & (1 << 62) - 1))


async def open_stock(
    connection: asyncpg.Connection, cluster: BenchCluster, name: str, kind: type[Stock] = Stock
) -> Stock:
    """Return what makes artifacts under the folder ``name`` of ``cluster``."""
    shards = await connection.fetch(SHARDS_SQL)
    repository = await connection.fetchval("SELECT id FROM repositories WHERE key = $1", REPOSITORY)
    return kind(cluster, shards, repository, name)


async def make_stock(
    connection: asyncpg.Connection, stock: Stock, size: int, numbers: range, *, files: bool = True
) -> list[Stored]:
    """Make artifacts of ``size`` bytes with the ``numbers``; return them."""
    await stock.make_folders(connection, size, numbers)
    stored: list[Stored] = []
    loop = asyncio.get_running_loop()
    contents = [Content() if files else None for _ in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as threads:
        for batch in batches(numbers, BATCH):
            parts = [
                loop.run_in_executor(threads, stock.make, content, size, batch[start::THREADS])
                for start, content in enumerate(contents)
            ]
            made = [one for part in await asyncio.gather(*parts) for one in part]
            await stock.insert(connection, size, made)
            stored += [one.stored for one in made]
    return stored


def batches(numbers: range, length: int) -> Iterator[range]:
    """Yield ``numbers`` in runs of at most ``length``."""
    for start in range(0, len(numbers), length):
        yield numbers[start : start + length]


def fill(cluster: BenchCluster, size: int, count: int, folder: str = "bench/stock") -> list[Stored]:
    """Stock ``cluster`` with ``count`` artifacts of ``size`` bytes, durable, statistics included, and return them."""

    async def work() -> list[Stored]:
        connection = await open_loading(cluster.dsn)
        try:
            stock = await open_stock(connection, cluster, folder)
            stored = await make_stock(connection, stock, size, range(count))
            await connection.execute("VACUUM ANALYZE artifacts, blobs, replicas")
            # Uploads leave nothing to be written later: gigabytes that are would stall the reads that are measured.
            await connection.execute("CHECKPOINT")
            os.sync()
            return stored
        finally:
            await connection.close()

    return asyncio.run(work())


async def open_loading(dsn: str) -> asyncpg.Connection:
    """Return a connection that loads rows without looking for what they refer to, and without waiting for the disk."""
    settings = {"session_replication_role": "replica", "synchronous_commit": "off"}
    return await asyncpg.connect(dsn, server_settings=settings)
