"""Two releases side by side: nodes of this one work on, and across, a schema that is one migration newer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from repo_node.db import migrate
from repo_node.db.errors import SchemaTooOld
from repo_node.db.migrate import Migration
from tests.postgres import run_apart
from tests.repo_node.nodes import (
    RunningCluster,
    RunningNode,
    configure,
    new_path,
    random_bytes,
    run_nodes,
    wait_until,
)

OURS = migrate.version_needed()
TABLES = ("nodes", "shards", "settings", "repositories", "blobs", "replicas", "artifacts", "events", "jobs", "lease")
NEXT = Migration(
    OURS + 1,
    "next",
    "\n".join(f"ALTER TABLE {name} ADD COLUMN hue text NOT NULL DEFAULT 'blue';" for name in TABLES)
    + """
    CREATE TABLE hues (blob_id bigint PRIMARY KEY REFERENCES blobs (id), hue text NOT NULL);
    CREATE INDEX events_of_principal ON events (principal);
    ALTER TABLE repair_queue ADD COLUMN hue text;
    ALTER TABLE scrubs ADD COLUMN hue text;
    """,
)
QUICK = {"heartbeat_seconds": 0.2, "repair_idle_seconds": 0.1, "census_idle_seconds": 0.1, "trash_days": 0}


async def upgrade(dsn: str) -> list[str]:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        return await migrate.apply(connection, [*migrate.migrations(), NEXT], None)
    finally:
        await connection.close()


@contextmanager
def load(nodes: list[RunningNode]) -> Iterator[list[str]]:
    """Upload and read back on each node all the while; what did not succeed is in the list."""
    failures: list[str] = []
    rounds: list[str] = []
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            for node in nodes:
                path, body = new_path(), random_bytes(3_000)
                put = node.admin.put(path, body)
                got = node.admin.get(path)
                if (put.status, got.status, got.body) != (201, 200, body):
                    failures.append(f"{node.config.node.id}: put {put.status} {put.body!r}, get {got.status}")
                rounds.append(path)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_until(lambda: len(rounds) > 4)
        yield failures
        before = len(rounds)
        wait_until(lambda: len(rounds) > before + 4)
    finally:
        over.set()
        thread.join()


def copies(cluster: RunningCluster) -> set[int]:
    """Return the numbers of copies that blobs have."""
    rows = cluster.sql("SELECT count(r.*) AS n FROM blobs b LEFT JOIN replicas r ON r.blob_id = b.id GROUP BY b.id")
    return {row["n"] for row in rows}


def collect(cluster: RunningCluster) -> None:
    """Delete an artifact, and see its blob go."""
    path, body = new_path(), random_bytes(1_000)
    assert cluster.admin.put(path, body).status == 201
    assert cluster.admin.request("DELETE", path).status == 204
    wait_until(lambda: cluster.sql("SELECT 1 FROM lease WHERE expires_at > now()"))
    cluster.sql("UPDATE gc_candidates SET since = now() - interval '9 days'")
    assert cluster.admin.post_json("/artifactory/api/holdfast/jobs/gc/run", {}).status in (200, 202)
    wait_until(lambda: not cluster.sql("SELECT 1 FROM gc_candidates"))
    assert cluster.admin.get(path).status == 404


def test_nodes_of_this_release_work_on_across_the_next_migration_beside_newer_ones(
    ready_dsn: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [configure(ready_dsn, directory, name=f"node-{n}", zone=f"zone-{n}") for n in (1, 2, 3)]

    @contextmanager
    def newer() -> Iterator[RunningCluster]:
        with monkeypatch.context() as patch:
            patch.setattr(migrate, "version_needed", lambda: OURS + 1)
            with run_nodes(configs[2:], ready=lambda one: one.node.is_ready()) as made:
                yield made

    with run_nodes(configs[:2]) as cluster:
        cluster.set(QUICK)
        with pytest.raises(SchemaTooOld, match=f"version {OURS} .* needs {OURS + 1}"), newer():
            pass
        with load(cluster.nodes) as failures:
            assert run_apart(upgrade(ready_dsn)) == ["next"]
        assert failures == []
        with newer() as added:
            wait_until(lambda: len(cluster.first.node.view().writable) == 6)
            nodes = cluster.admin.get("/artifactory/api/holdfast/nodes").json()["nodes"]
            assert {one["id"]: one["schema_version"] for one in nodes} == {
                "node-1": OURS,
                "node-2": OURS,
                "node-3": OURS + 1,
            }
            with load([*cluster.nodes, *added.nodes]) as failures:
                collect(cluster)
            assert failures == []
            cluster.set({"redundancy": 3})
            wait_until(lambda: copies(cluster) == {3}, 120)
            assert cluster.admin.post_json("/artifactory/api/holdfast/jobs/scrub/run", {}).status in (200, 202)
            done = "SELECT bool_and(answered_at IS NOT NULL AND state = 'idle') FROM jobs WHERE job = 'scrub'"
            wait_until(lambda: cluster.sql(done)[0][0], 60)
    with run_nodes(configs[:1]) as again:
        assert again.first.node.cluster().nodes
        assert again.admin.put(new_path(), b"an older node starts on a newer schema").status == 201


async def test_migration_that_cannot_lock_a_table_lets_go_and_comes_again(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not stand in line before the nodes' statements for as long as a backup reads."""
    monkeypatch.setattr(migrate, "LOCK_WAIT_MILLISECONDS", 50)
    reader, writer = await asyncpg.connect(dsn, timeout=10), await asyncpg.connect(dsn, timeout=10)
    try:
        reading = reader.transaction()
        await reading.start()
        await reader.fetch("SELECT * FROM artifacts")
        upgrading = asyncio.create_task(upgrade(dsn))
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'artifacts'::regclass"
        gave_up = False
        seen = False
        while not gave_up:
            waiting = await writer.fetchval(waits)
            gave_up, seen = seen and not waiting, seen or bool(waiting)
        assert not upgrading.done()
        assert await writer.fetchval("SELECT max(version) FROM schema_migrations") == OURS
        await reading.rollback()
        assert await upgrading == ["next"]
    finally:
        reader.terminate()
        writer.terminate()
