"""Postgres fails over to its synchronous standby, under load: nothing acknowledged is lost, no node is restarted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.ledger import LedgerClient, under_load
from tests.cluster.processes import Cluster, cluster, curl, is_ready, until
from tests.cluster.standby import PostgresPair, execute

RECOVERY_SECONDS = 30.0
UPLOADS = 12
"""So many acknowledged ones say that uploads go on."""

COUNT = "SELECT count(*) FROM artifacts"
CONNECTED = """
    SELECT count(*) FROM pg_stat_activity
     WHERE application_name LIKE 'holdfast%' AND wait_event IS DISTINCT FROM 'SyncRep'
"""
"""A commit that waits for a standby waits on when its client is long gone, and nobody sees what it wrote."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PostgresPair, Cluster]]:
    directory = tmp_path_factory.mktemp("failover")
    pair = PostgresPair(directory / "postgres")
    try:
        pair.start()
        with cluster(directory / "cluster", pair.dsn, nodes=2) as made:
            yield pair, made
    finally:
        pair.stop()


@pytest.fixture
def pair(shared: tuple[PostgresPair, Cluster]) -> PostgresPair:
    """The servers, with a standby that follows whatever the test before has done."""
    found = shared[0]
    if not found.follows():
        found.rebuild()
    return found


@pytest.fixture
def made(shared: tuple[PostgresPair, Cluster]) -> Cluster:
    return shared[1]


def load_client(made: Cluster, folder: str) -> LedgerClient:
    """Each test has a folder of its own: nodes may remember what lay at a path before it was overwritten elsewhere."""
    return LedgerClient([node.url for node in made.nodes], folder=folder)


async def uploads_go_on(client: LedgerClient, seconds: float = RECOVERY_SECONDS) -> None:
    before = len(client.ledger.acknowledged)
    await until(lambda: len(client.ledger.acknowledged) >= before + UPLOADS, "uploads to go on", seconds)


async def settle(client: LedgerClient, made: Cluster) -> None:
    """Everything acknowledged can be read, no request was left without its answer, and the same nodes run."""
    await until(lambda: all(is_ready(node) for node in made.nodes), "recovery", RECOVERY_SECONDS)
    await client.verify()
    assert client.ledger.wrong == []
    assert not [failure for failure in client.ledger.failures if "Timeout" in failure], client.ledger.failures


async def test_no_acknowledged_upload_is_lost_when_postgres_is_killed_and_fails_over(
    pair: PostgresPair, made: Cluster
) -> None:
    async with load_client(made, "killed") as client:

        async def fail_over() -> None:
            await uploads_go_on(client)
            await asyncio.to_thread(pair.primary.kill)
            await asyncio.to_thread(pair.promote)
            await uploads_go_on(client)

        await under_load(client, fail_over, workers=4)
        await settle(client, made)


async def test_a_frozen_postgres_that_wakes_after_its_failover_is_believed_by_nobody(
    pair: PostgresPair, made: Cluster
) -> None:
    """It still answers and takes writes, which only a synchronous standby keeps it from acknowledging."""
    old = pair.primary
    async with load_client(made, "woken") as client:

        async def fail_over() -> None:
            await uploads_go_on(client)
            await asyncio.to_thread(old.freeze)
            await asyncio.to_thread(pair.promote)
            await uploads_go_on(client)
            old.thaw()
            await until(lambda: execute(old, CONNECTED) == 0, "every node to leave it", RECOVERY_SECONDS)
            left = execute(old, COUNT)
            await uploads_go_on(client)
            # A node that starts has not seen the promotion, and finds the old one first in its DSN.
            await asyncio.to_thread(made.nodes[0].kill)
            await asyncio.to_thread(made.start)
            await uploads_go_on(client)
            assert execute(old, COUNT) == left

        await under_load(client, fail_over, workers=4)
        await settle(client, made)


async def test_uploads_go_on_by_themselves_after_a_restart_and_a_freeze_of_postgres(
    pair: PostgresPair, made: Cluster
) -> None:
    """Without a failover."""
    async with load_client(made, "restarted") as client:

        async def restart_and_freeze() -> None:
            await uploads_go_on(client)
            await asyncio.to_thread(pair.primary.kill)
            await asyncio.to_thread(pair.primary.postgres.start)
            await uploads_go_on(client)
            pair.primary.freeze()
            await asyncio.sleep(4)
            pair.primary.thaw()
            await uploads_go_on(client)

        await under_load(client, restart_and_freeze, workers=4)
        await settle(client, made)


async def test_uploads_wait_for_the_synchronous_standby_and_reads_do_not(pair: PostgresPair, made: Cluster) -> None:
    made.set_setting("outcome_wait_seconds", 1)
    url = f"{made.nodes[0].url}/artifactory/generic-local/standby"
    curl("-X", "PUT", "-d", "a", url, fail=True)
    await asyncio.to_thread(pair.standby.kill)
    assert (await asyncio.to_thread(curl, "-X", "PUT", "-d", "b", f"{url}-gone"))[0] == 503
    assert await asyncio.to_thread(curl, url) == (200, b"a")
    pair.wait_for_no_standby()
    await until(lambda: all(is_ready(node) for node in made.nodes), "recovery", RECOVERY_SECONDS)
    assert (await asyncio.to_thread(curl, "-X", "PUT", "-d", "b", f"{url}-gone"))[0] == 201


async def test_a_backup_is_taken_from_whichever_server_is_the_primary(
    shared: tuple[PostgresPair, Cluster], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "repo_node", "backup", "--dsn", shared[0].dsn, str(tmp_path / "backup")]
    result = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "artifacts" in result.stdout
