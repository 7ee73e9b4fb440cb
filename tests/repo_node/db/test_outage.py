"""Postgres freezes, dies, is demoted or loses its standby: errors are honest and in time, and no restart is needed.

These tests have a server of their own, because they take it away.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import asyncpg
import psutil
import pytest

from repo_node import settings as typed
from repo_node.db import artifacts, durability, migrate, nodes, settings
from repo_node.db.blobs import CommitOutcome, CommitResult
from repo_node.db.errors import CatalogueUnavailable, NotDurable, OutcomeUnknown
from repo_node.db.pool import Database, Statement, open_database
from repo_node.launch.postgres import EmbeddedPostgres
from repo_node.origin import Origin
from sharding.model import NodeId
from tests.postgres import run_apart
from tests.repo_node.db.scene import (
    REPOSITORY,
    WAIT_SECONDS,
    Queries,
    Scene,
    commit,
    copies,
    database_section,
    open_scene,
    replicas_in,
)

ONE = Statement("one", "SELECT 1 AS one")
DEADLINE_SECONDS = 0.5
CONNECTIONS = 4
MARGIN_SECONDS = 5.0
"""For a busy machine: far below any time-out that would be at work if ours were not."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    value = EmbeddedPostgres(tmp_path_factory.mktemp("outage"))
    try:
        value.start()
        run_apart(migrate.init_db(value.dsn("postgres")))
        yield value
    finally:
        value.stop()
        value.remove()


@pytest.fixture
async def scene(server: EmbeddedPostgres, queries: Queries) -> AsyncIterator[Scene]:
    dsn = server.dsn("postgres")
    async with administrator(dsn) as connection:
        await connection.execute("SET session_replication_role = replica")
        for name in ("replicas", "repair_queue", "gc_candidates", "artifacts", "events", "settings", "blobs"):
            await connection.execute(f"TRUNCATE {name} CASCADE")
        await connection.execute("TRUNCATE nodes, shards RESTART IDENTITY CASCADE")
    limits = {
        "connect_timeout_seconds": DEADLINE_SECONDS,
        "statement_timeout_seconds": DEADLINE_SECONDS,
        "pool_connections_max": CONNECTIONS,
    }
    async with open_scene(dsn, queries, **limits) as value:
        yield value


@asynccontextmanager
async def administrator(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(
        dsn, timeout=30, server_settings={"synchronous_commit": "local", "default_transaction_read_only": "off"}
    )
    try:
        yield connection
    finally:
        connection.terminate()


@contextmanager
def frozen(server: EmbeddedPostgres) -> Iterator[None]:
    """Stop the server's processes, all of them, and let them go on after."""
    assert server.pid is not None
    main = psutil.Process(server.pid)
    main.send_signal(signal.SIGSTOP)
    stopped = [main, *main.children(recursive=True)]
    try:
        for process in stopped[1:]:
            process.send_signal(signal.SIGSTOP)
        yield
    finally:
        for process in stopped:
            process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def altered(server: EmbeddedPostgres, setting: str, value: str) -> AsyncIterator[None]:
    """Give the running server another setting, and take it back after."""
    dsn = server.dsn("postgres")
    try:
        await alter(dsn, f"ALTER SYSTEM SET {setting} = '{value}'", setting, value)
        yield
    finally:
        await alter(dsn, f"ALTER SYSTEM RESET {setting}", setting)


async def alter(dsn: str, statement: str, setting: str, value: str = "") -> None:
    async with administrator(dsn) as connection:
        await connection.execute(statement)
        await connection.execute("SELECT pg_reload_conf()")
    plain = await asyncpg.connect(dsn, timeout=30)
    async with asyncio.timeout(WAIT_SECONDS):
        while (await plain.fetchval("SELECT current_setting($1)", setting)).replace("off", "") != value:
            await asyncio.sleep(0.02)
    plain.terminate()


async def commit_until_known(scene: Scene, *args: Any) -> CommitResult:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                return await scene.commit(*args)
            except (CatalogueUnavailable, OutcomeUnknown):
                await asyncio.sleep(0.05)


async def until_it_answers(database: Database) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                await database.fetchrow(ONE)
                return
            except CatalogueUnavailable:
                await asyncio.sleep(0.05)


async def count_events(scene: Scene, upload: Any) -> int:
    async with administrator(scene.dsn) as connection:
        return int(await connection.fetchval("SELECT count(*) FROM events WHERE upload_id = $1", upload))


# ---------------------------------------------------------------- frozen


async def test_frozen_server_is_unavailable_for_reads_and_unknown_for_writes(
    scene: Scene, server: EmbeddedPostgres
) -> None:
    await scene.upload("a", b"before")
    deployment, ours = scene.deployment("b", b"during"), copies(1, 3)
    tasks = asyncio.all_tasks()
    with frozen(server):
        began = time.monotonic()
        with pytest.raises(OutcomeUnknown):
            await scene.commit(deployment, ours)
        with pytest.raises(CatalogueUnavailable):
            await artifacts.resolve(scene.database, REPOSITORY, "", "a")
        with pytest.raises(CatalogueUnavailable, match="no connection"):
            await scene.commit(deployment, ours)
        assert time.monotonic() - began < 3 * DEADLINE_SECONDS + MARGIN_SECONDS
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == tasks, "something still waits for the frozen server"
    result = await commit_until_known(scene, deployment, ours)
    assert result.outcome is CommitOutcome.ADOPTED
    assert await count_events(scene, deployment.upload) == 1


async def test_server_frozen_inside_a_transaction_holds_nobody(scene: Scene, server: EmbeddedPostgres) -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def work(connection: asyncpg.Connection) -> None:
        await connection.execute("INSERT INTO events (kind, principal, request_id) VALUES ('x', 'x', 'x')")
        inside.set()
        await go_on.wait()
        await connection.execute("SELECT 1")

    task = asyncio.create_task(scene.database.transact(ONE, work))
    await inside.wait()
    with frozen(server):
        go_on.set()
        with pytest.raises(OutcomeUnknown):
            await asyncio.wait_for(task, 2 * DEADLINE_SECONDS + MARGIN_SECONDS)
    await until_it_answers(scene.database)
    async with administrator(scene.dsn) as connection:
        assert await connection.fetchval("SELECT count(*) FROM events WHERE kind = 'x'") == 0


async def test_server_frozen_right_after_its_answer_spoils_nothing(scene: Scene, server: EmbeddedPostgres) -> None:
    """Giving the connection back to the pool says nothing to the server."""
    frost = frozen(server)

    async def work(connection: asyncpg.Connection) -> int:
        value = await connection.fetchval("SELECT 7")
        frost.__enter__()
        return int(value)

    try:
        assert await asyncio.wait_for(scene.database._run(ONE, work), MARGIN_SECONDS) == 7
    finally:
        frost.__exit__(None, None, None)
    await until_it_answers(scene.database)


async def test_many_requests_to_a_frozen_server_all_end_in_time_and_leak_nothing(
    scene: Scene, server: EmbeddedPostgres
) -> None:
    await asyncio.gather(*(scene.database.fetch(Statement("s", "SELECT pg_sleep(0.05)")) for _ in range(CONNECTIONS)))
    with frozen(server):
        began = time.monotonic()
        calls = [scene.database.write(ONE) if i % 2 else scene.database.fetch(ONE) for i in range(6 * CONNECTIONS)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - began < 3 * DEADLINE_SECONDS + MARGIN_SECONDS
    assert {type(result) for result in results} <= {CatalogueUnavailable, OutcomeUnknown}
    assert CatalogueUnavailable in {type(result) for result in results}
    await until_it_answers(scene.database)
    await asyncio.gather(*(scene.database.fetch(Statement("s", "SELECT pg_sleep(0.05)")) for _ in range(CONNECTIONS)))
    assert scene.database.connections == (CONNECTIONS, CONNECTIONS)


async def test_heartbeat_to_a_frozen_server_ends_by_the_time_out_of_its_connection(
    scene: Scene, server: EmbeddedPostgres
) -> None:
    connection = await asyncpg.connect(scene.dsn, command_timeout=DEADLINE_SECONDS)
    incarnation = await connection.fetchval("SELECT incarnation FROM nodes WHERE id = 'n1'")
    with frozen(server):
        began = time.monotonic()
        with pytest.raises((TimeoutError, asyncpg.InterfaceError)):
            await nodes.heartbeat(connection, NodeId("n1"), incarnation, {})
        assert time.monotonic() - began < 5 * DEADLINE_SECONDS + MARGIN_SECONDS
        connection.terminate()


async def test_closing_does_not_wait_for_a_frozen_server(server: EmbeddedPostgres, queries: Queries) -> None:
    async with open_database(database_section(server.dsn("postgres")), queries) as database:
        await database.fetch(ONE)
        frost = frozen(server)
        frost.__enter__()
        began = time.monotonic()
    frost.__exit__(None, None, None)
    assert time.monotonic() - began < MARGIN_SECONDS


# ---------------------------------------------------------------- dead


async def test_killed_server_is_found_again_without_a_new_pool(scene: Scene, server: EmbeddedPostgres) -> None:
    await scene.upload("a", b"before")
    deployment, ours = scene.deployment("b", b"during"), copies(1, 3)
    holding = asyncio.create_task(scene.database.fetch(Statement("s", "SELECT pg_sleep(30)")))
    await asyncio.sleep(0.1)
    kill(server)
    with pytest.raises(CatalogueUnavailable):
        await holding
    began = time.monotonic()
    with pytest.raises(CatalogueUnavailable):
        await artifacts.resolve(scene.database, REPOSITORY, "", "a")
    with pytest.raises(CatalogueUnavailable):
        await scene.commit(deployment, ours)
    assert time.monotonic() - began < MARGIN_SECONDS
    await asyncio.to_thread(server.start)
    result = await commit_until_known(scene, deployment, ours)
    assert result.outcome is CommitOutcome.ADOPTED
    found = await artifacts.resolve(scene.database, REPOSITORY, "", "a")
    assert found.item is not None, "an acknowledged upload is gone"


async def test_uploads_around_a_crash_of_the_server_have_one_effect_each(
    scene: Scene, server: EmbeddedPostgres
) -> None:
    deployments = [(scene.deployment(f"f/{i}", bytes([i])), copies(1, 3)) for i in range(40)]
    acknowledged: list[CommitResult] = []

    async def upload(offset: int) -> None:
        for deployment, ours in deployments[offset::CONNECTIONS]:
            acknowledged.append(await commit_until_known(scene, deployment, ours))

    tasks = [asyncio.create_task(upload(offset)) for offset in range(CONNECTIONS)]
    async with asyncio.timeout(WAIT_SECONDS):
        while len(acknowledged) < 8:
            await asyncio.sleep(0.001)
    kill(server)
    await asyncio.to_thread(server.start)
    await asyncio.gather(*tasks)
    assert [result.outcome for result in acknowledged] == [CommitOutcome.ADOPTED] * len(deployments)
    async with administrator(scene.dsn) as connection:
        for deployment, ours in deployments:
            assert set(await replicas_in(connection, bytes([int(deployment.name)]))) == {r.generation for r in ours}
        assert await connection.fetchval("SELECT count(*) FROM events") == len(deployments)


def kill(server: EmbeddedPostgres) -> None:
    """Kill the server's processes, all of them, as a loss of power would."""
    assert server.pid is not None
    main = psutil.Process(server.pid)
    processes = [main, *main.children(recursive=True)]
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=WAIT_SECONDS)


# ---------------------------------------------------------------- demoted, unsafe, without its standby


async def test_connection_to_a_server_that_takes_no_writes_is_dropped(scene: Scene, server: EmbeddedPostgres) -> None:
    deployment, ours = scene.deployment("a", b"new"), copies(1, 3)
    await scene.database.fetch(ONE)
    size, _ = scene.database.connections
    async with altered(server, "default_transaction_read_only", "on"):
        with pytest.raises(CatalogueUnavailable, match="read-only"):
            await scene.commit(deployment, ours)
        assert scene.database.connections[0] == size - 1
        with pytest.raises(CatalogueUnavailable, match="read-only"):
            await settings.write(scene.database, "redundancy", 3, by=Origin("x", "r"), check=typed.combine)
        assert (await artifacts.resolve(scene.database, REPOSITORY, "", "a")).item is None, "reads go on"
    result = await commit_until_known(scene, deployment, ours)
    assert result.outcome is CommitOutcome.ADOPTED


async def test_commit_that_no_standby_confirms_is_unknown_until_one_does(
    scene: Scene, server: EmbeddedPostgres
) -> None:
    deployment, ours = scene.deployment("a", b"new"), copies(1, 3)
    async with altered(server, "synchronous_standby_names", "nobody"):
        for _ in range(2):
            with pytest.raises(OutcomeUnknown, match="timed out"):
                await scene.commit(deployment, ours)
    result = await commit_until_known(scene, deployment, ours)
    assert result.outcome is CommitOutcome.ADOPTED
    assert await count_events(scene, deployment.upload) == 1


async def test_repeat_waits_for_the_standby_although_it_changes_nothing(
    scene: Scene, server: EmbeddedPostgres, queries: Queries
) -> None:
    """The first stands on this server alone: an answer to the repeat would promise what a failover may undo."""
    deployment, ours = scene.deployment("a", b"new"), copies(1, 3)
    async with (
        open_database(database_section(scene.dsn), queries) as patient,
        altered(server, "synchronous_standby_names", "nobody"),
    ):
        first = asyncio.create_task(commit(patient, deployment, ours))
        await cancel_waiting(scene.dsn)
        with pytest.raises(OutcomeUnknown, match="synchronous replication"):
            await first
        assert await count_events(scene, deployment.upload) == 1
        with pytest.raises(OutcomeUnknown, match="timed out"):
            await scene.commit(deployment, ours)
    assert (await commit_until_known(scene, deployment, ours)).outcome is CommitOutcome.ADOPTED
    assert await count_events(scene, deployment.upload) == 1


@pytest.mark.parametrize("kind", ["write", "transact"])
async def test_write_whose_wait_for_the_standby_was_cancelled_is_unknown(
    server: EmbeddedPostgres, queries: Queries, kind: str
) -> None:
    """Postgres answers such a commit with success and a warning."""
    statement = Statement("note", "INSERT INTO events (kind, principal, request_id) VALUES ('x', 'x', 'x')")
    async with (
        open_database(database_section(server.dsn("postgres")), queries) as database,
        altered(server, "synchronous_standby_names", "nobody"),
    ):
        if kind == "write":
            task: asyncio.Task[object] = asyncio.create_task(database.write(statement))
        else:
            task = asyncio.create_task(database.transact(statement, lambda c: c.execute(statement.sql)))
        await cancel_waiting(server.dsn("postgres"))
        with pytest.raises(OutcomeUnknown, match="synchronous replication"):
            await task
    assert queries.seen == [("note", "unavailable")]


async def cancel_waiting(dsn: str) -> None:
    sql = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    async with administrator(dsn) as connection, asyncio.timeout(WAIT_SECONDS):
        while not await connection.fetchval(sql):
            await asyncio.sleep(0.01)


async def test_durable_server_is_accepted(scene: Scene) -> None:
    await durability.check_durability(scene.database)


@pytest.mark.parametrize("scope", ["DATABASE postgres", "ROLE CURRENT_USER"])
@pytest.mark.parametrize("value", ["off", "local", "remote_write"])
async def test_setting_that_lets_postgres_forget_is_refused(
    server: EmbeddedPostgres, queries: Queries, scope: str, value: str
) -> None:
    dsn = server.dsn("postgres")
    async with administrator(dsn) as connection:
        await connection.execute(f"ALTER {scope} SET synchronous_commit = {value}")
    try:
        async with open_database(database_section(dsn), queries) as database:
            with pytest.raises(NotDurable, match=f"synchronous_commit = {value}"):
                await durability.check_durability(database)
    finally:
        async with administrator(dsn) as connection:
            await connection.execute(f"ALTER {scope} RESET synchronous_commit")


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
async def test_server_that_a_crash_can_corrupt_is_refused(name: str) -> None:
    class Reckless:
        async def fetchrow(self, statement: Statement) -> dict[str, str]:
            assert f"current_setting('{name}')" in statement.sql
            return {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", name: "off"}

    with pytest.raises(NotDurable, match=f"{name} = off"):
        await durability.check_durability(cast(Database, Reckless()))
