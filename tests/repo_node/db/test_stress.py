"""Everybody at once on a handful of digests: no acknowledged byte is lost, no deadlock reaches a client."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import uuid4

import asyncpg

from repo_node.db import artifacts, repositories, trash
from repo_node.db.blobs import CommitOutcome, PathConflict
from repo_node.db.commit_groups import CommitGroups, UploadToCommit
from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.trash import Position, Restored
from repo_node.origin import Origin
from tests.repo_node.db.reducers import SHARDS, Reducer, Store
from tests.repo_node.db.scene import DAY_SECONDS, Queries, Scene, open_scene, table

SECONDS = 8.0
NODES = 2
CLIENTS = 24
CONNECTIONS = 14
CONTENTS = [b""] + [bytes([number]) * 40 for number in range(6)]
FOLDERS = ("", "a", "a/b", "a/b/c", "d", "e/f")
DEADLOCKS_SQL = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
JOBS = ("collected", "trimmed", "wiped", "repaired", "removed", "emptied")
NAMES = ("1", "2", "b")
"""``a/b`` is now a file, now a folder: the loser gets a conflict."""
UNIQUE_SHARE = 0.1
"""Uploads with a content of their own: nobody else saves their blobs from being forgotten."""


@dataclass
class Ledger:
    """What was acknowledged."""

    deploys: Counter[str] = field(default_factory=Counter)
    deleted_items: list[int] = field(default_factory=list)
    repositories: Counter[str] = field(default_factory=Counter)
    restores: Counter[str] = field(default_factory=Counter)


class Client:
    """Uploads, overwrites and deletes at random, and keeps the ledger."""

    def __init__(
        self,
        scene: Scene,
        groups: CommitGroups,
        store: Store,
        ledger: Ledger,
        keys: list[str],
        chance: random.Random,
    ) -> None:
        self._scene = scene
        self._groups = groups
        self._store = store
        self._ledger = ledger
        self._keys = keys
        self._chance = chance

    async def step(self) -> None:
        what = self._chance.random()
        if what < 0.75:
            await self.upload()
        elif what < 0.94:
            await self.delete()
        elif what < 0.97:
            await self.restore()
        elif what < 0.98:
            await self.renew_repository()
        else:
            await self.make_folder()

    def path(self) -> str:
        return "/".join(filter(None, (self._chance.choice(FOLDERS), self._chance.choice(NAMES))))

    async def repository(self) -> int | None:
        found = await repositories.find(self._scene.database, self._chance.choice(self._keys))
        return None if found is None else found.id

    async def upload(self) -> None:
        repository = await self.repository()
        if repository is None:
            return
        redundancy = self._chance.choice((1, 2, 2, 2, 3))
        unique = self._chance.random() < UNIQUE_SHARE
        data = self._chance.randbytes(20) if unique else self._chance.choice(CONTENTS)
        deployment = self._scene.deployment(self.path(), data, repository_id=repository, redundancy=redundancy)
        ours = self._store.write(self._chance.sample(SHARDS, redundancy)) if data else []
        try:
            upload = UploadToCommit(deployment, ours, "{}", age_max_seconds=DAY_SECONDS, short=False)
            result = await self._groups.commit(upload)
            if result.outcome is CommitOutcome.CONFIRM:
                await asyncio.sleep(self._chance.choice((0, 0.002)))
                confirmed = [replica for replica in result.existing if self._store.holds(replica)]
                result = await self._groups.commit(upload, [replica.generation for replica in confirmed])
            if result.outcome is not CommitOutcome.NO_REPOSITORY and self._chance.random() < 0.1:
                assert await self._groups.commit(upload) == result
        except PathConflict:
            self._store.remove(ours)
            self._ledger.deploys["conflict"] += 1
            return
        if result.outcome is not CommitOutcome.ADOPTED:
            self._store.remove(ours)
        self._ledger.deploys[result.outcome] += 1

    async def delete(self) -> None:
        repository = await self.repository()
        if repository is None:
            return
        folder, _, name = self._chance.choice((self.path(), self.path(), "a", "a/b", "d", "e")).rpartition("/")
        gone = await artifacts.delete(self._scene.database, repository, folder, name, by=Origin("x", "r"))
        if gone:
            self._ledger.deleted_items.append(gone)

    async def restore(self) -> None:
        key = self._chance.choice(self._keys)
        found = await repositories.find(self._scene.database, key)
        thrown = await trash.list_tree(self._scene.database, key, "", Position(), 200) if found else []
        if found is None or not thrown:
            return
        one = self._chance.choice(thrown)
        try:
            outcome = await trash.restore(
                self._scene.database, one.id, found.id, one.folder, one.name,
                replace=self._chance.random() < 0.5, by=Origin("x", "r"),
            )  # fmt: skip
            self._ledger.restores[outcome] += 1
        except (PathConflict, CatalogueUnavailable):
            self._ledger.restores["conflict"] += 1

    async def make_folder(self) -> None:
        repository = await self.repository()
        if repository is not None and repository == self._scene.repository:
            try:
                await artifacts.make_folder(self._scene.database, repository, self.path(), by=Origin("x", "r"))
                self._ledger.deploys["folder"] += 1
            except PathConflict:
                self._ledger.deploys["folder conflict"] += 1

    async def renew_repository(self) -> None:
        key = self._keys[-1]
        if await repositories.delete(self._scene.database, key, by=Origin("x", "r")):
            self._ledger.repositories["repository_delete"] += 1
        try:
            configuration = repositories.Configuration()
            await repositories.create(self._scene.database, key, configuration, by=Origin("x", "r"))
            self._ledger.repositories["repository_create"] += 1
        except repositories.RepositoryExists:
            pass


async def test_nothing_is_lost_while_everybody_works_on_a_few_digests(dsn: str, queries: Queries) -> None:
    seed = int(os.environ.get("HOLDFAST_TEST_SEED", random.randrange(1 << 32)))
    print(f"seed {seed}; HOLDFAST_TEST_SEED sets it")
    store, ledger, keys = Store(), Ledger(), ["generic-local", "second", "renewed"]
    async with open_scene(dsn, queries, pool_connections_max=CONNECTIONS, statement_timeout_seconds=30.0) as scene:
        connections = [await asyncpg.connect(dsn) for _ in range(7)]
        token = uuid4()
        store.lease = await connections[0].fetchval("SELECT lease_acquire('x', $1, 0, 3600)", token), token
        for key in keys[1:]:
            await connections[0].execute("INSERT INTO repositories (key, created_by) VALUES ($1, 'x')", key)
        nodes = [CommitGroups(scene.database) for _ in range(NODES)]
        clients = [
            Client(scene, nodes[i % NODES], store, ledger, keys, random.Random(f"{seed}/{i}")) for i in range(CLIENTS)
        ]
        jobs = [Reducer(connection, store, random.Random(f"{seed}/job{i}")) for i, connection in enumerate(connections)]
        steps = [client.step for client in clients]
        work = [
            jobs[0].collect,
            jobs[1].collect,
            jobs[2].trim,
            jobs[3].wipe,
            jobs[4].repair,
            jobs[5].remove,
            jobs[6].empty,
        ]
        deadline = time.monotonic() + SECONDS
        await asyncio.gather(*(run(step, deadline, 0) for step in steps), *(run(job, deadline, 0.002) for job in work))
        while await jobs[4].repair() or await jobs[5].remove():
            pass
        uploads = {str(outcome): count for outcome, count in ledger.deploys.items()}
        print(f"uploads {uploads}, {len(ledger.deleted_items)} deletions, {ledger.restores}, jobs {store.done}")
        print(f"deadlocks {await connections[0].fetchval(DEADLOCKS_SQL)}")
        await check_everything(connections[0], store, ledger)
        assert all(store.done.get(what) for what in JOBS), store.done
        assert {CommitOutcome.ADOPTED, CommitOutcome.DEDUPLICATED, "conflict"} <= set(ledger.deploys), ledger.deploys
        assert ledger.restores[Restored.RESTORED], ledger.restores
        while await jobs[6].empty() or await jobs[0].collect() or await jobs[5].remove():
            pass
        await check_everything(connections[0], store, ledger)
        referenced = "SELECT count(*) FROM blobs b WHERE NOT EXISTS (SELECT 1 FROM artifacts a WHERE a.blob_id = b.id)"
        assert await connections[0].fetchval(referenced) == 0, "gc has missed a blob"
        for connection in connections:
            connection.terminate()


async def run(step: Callable[[], Awaitable[object]], deadline: float, pause_seconds: float) -> None:
    while time.monotonic() < deadline:
        await step()
        await asyncio.sleep(pause_seconds)


async def check_everything(connection: asyncpg.Connection, store: Store, ledger: Ledger) -> None:
    await check_replicas(connection, store)
    await check_events(connection, store, ledger)
    await check_tree(connection)


async def check_replicas(connection: asyncpg.Connection, store: Store) -> None:
    rows = await connection.fetch("SELECT blob_id, shard_id, generation, state FROM replicas")
    assert {row["state"] for row in rows} <= {"live"}, "the last repair has left none suspect"
    assert {(row["shard_id"], row["generation"]) for row in rows} == store.files, "rows and files differ"
    shards: dict[int, set[int]] = {}
    for row in rows:
        shards.setdefault(row["blob_id"], set()).add(row["shard_id"])
    for blob, size, redundancy in await table(connection, "SELECT id, size, redundancy FROM blobs"):
        assert size == 0 or len(shards.get(blob, ())) >= redundancy, f"blob {blob} is short of copies"
    leaked = """
        SELECT count(*) FROM blobs b WHERE NOT EXISTS (SELECT 1 FROM artifacts a WHERE a.blob_id = b.id)
           AND NOT EXISTS (SELECT 1 FROM trash t WHERE t.blob_id = b.id)
           AND NOT EXISTS (SELECT 1 FROM gc_candidates c WHERE c.blob_id = b.id)
    """
    assert await connection.fetchval(leaked) == 0, "a blob that nothing refers to is no candidate"


async def check_events(connection: asyncpg.Connection, store: Store, ledger: Ledger) -> None:
    kinds = dict(await table(connection, "SELECT kind, count(*) FROM events GROUP BY kind"))
    deploys = ledger.deploys[CommitOutcome.ADOPTED] + ledger.deploys[CommitOutcome.DEDUPLICATED]
    assert kinds.pop("deploy") == deploys
    items = [
        json.loads(row[0])["items"] for row in await connection.fetch("SELECT detail FROM events WHERE kind = 'delete'")
    ]
    assert kinds.pop("delete") == len(ledger.deleted_items)
    assert sum(items) == sum(ledger.deleted_items)
    assert kinds.pop("primary") == 1
    assert kinds.pop("gc") > 0
    assert kinds.pop("replica_remove") == store.done["trimmed"]
    assert kinds.pop("restore") == ledger.restores[Restored.RESTORED]
    # One that was there already is made without an event.
    assert kinds.pop("folder", 0) <= ledger.deploys["folder"]
    assert kinds == dict(ledger.repositories)
    adopted = await connection.fetchval("SELECT count(*) FROM events WHERE kind = 'deploy' AND adopted")
    assert adopted == ledger.deploys[CommitOutcome.ADOPTED]
    unexplained = """
        SELECT count(*) FROM artifacts a JOIN blobs b ON b.id = a.blob_id JOIN repositories r ON r.id = a.repo_id
         WHERE NOT EXISTS (SELECT 1 FROM events e
                            WHERE e.kind = 'deploy' AND e.repository = r.key AND e.sha256 = b.sha256
                              AND e.path = concat_ws('/', nullif(a.folder, ''), a.name) AND e.at = a.created_at)
    """
    assert await connection.fetchval(unexplained) == 0, "an artifact that nobody deployed"


async def check_tree(connection: asyncpg.Connection) -> None:
    rows = await table(connection, "SELECT repo_id, concat_ws('/', nullif(folder, ''), name), blob_id FROM artifacts")
    folders = {(repository, path) for repository, path, blob in rows if blob is None}
    for repository, path, _ in rows:
        parent = path.rpartition("/")[0]
        assert not parent or (repository, parent) in folders, f"{path} lies in no folder"
