"""Postgres frozen, killed, or cut off in the middle of a commit."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.cluster.balancers import haproxy
from tests.cluster.ledger import LedgerClient
from tests.cluster.processes import Cluster, cluster, curl, is_ready, until
from tests.cluster.proxy import CuttingProxy
from tests.cluster.server import OwnServer


@pytest.fixture
def server(tmp_path: Path) -> OwnServer:
    """A Postgres of this test's own, to be mistreated."""
    made = OwnServer(tmp_path / "postgres")
    yield made  # type: ignore[misc]
    made.stop()


async def test_frozen_postgres_is_503_in_time_lets_a_node_leave_and_recovers_by_itself(
    server: OwnServer, tmp_path: Path
) -> None:
    with cluster(tmp_path / "cluster", server.dsn) as made:
        async with LedgerClient([made.url], retries=0) as client:
            assert await client.put("generic-local/a", b"a" * 5000)
            read_on(made, "generic-local/a", stale=False)
            server.freeze()
            await unavailable(made)
            read_on(made, "generic-local/a", stale=True)
            stopped = made.nodes[2]
            assert await asyncio.to_thread(stopped.stop, 60) == 0, "a node leaves in order meanwhile"
            server.thaw()
            await until(lambda: all(is_ready(node) for node in made.nodes[:2]), "recovery", 20)
            stopped.start()
            await until(lambda: all(is_ready(node) for node in made.nodes), "all nodes to be back", 30)
            read_on(made, "generic-local/a", stale=False)
            assert await client.put("generic-local/c", b"c")
            await client.verify()
        assert client.ledger.wrong == []


async def test_killed_postgres_is_503_and_recovers_when_it_is_back(server: OwnServer, tmp_path: Path) -> None:
    with cluster(tmp_path / "cluster", server.dsn) as made, haproxy(made, tmp_path) as balanced:
        async with LedgerClient([made.url], retries=0) as client:
            for number in range(5):
                assert await client.put(f"generic-local/{number}", bytes([number]) * 5000)
            read_on(made, "generic-local/0", stale=False)
            server.kill()
            await unavailable(made)
            read_on(made, "generic-local/0", stale=True)
            through = f"{balanced}/artifactory/generic-local/0"
            await until(lambda: curl(through)[0] == 200, "a read through the balancer, for which no node is ready", 20)
            server.start()
            await until(lambda: all(is_ready(node) for node in made.nodes), "recovery", 20)
            await client.verify()
        assert client.ledger.wrong == []


def read_on(made: Cluster, path: str, *, stale: bool) -> None:
    """The node answers from Postgres, or, of what it told lately, from memory with a header that says so."""
    code, head = curl("-D", "-", "-o", "/dev/null", f"{made.nodes[0].url}/artifactory/{path}")
    assert code == 200
    assert (b"X-Holdfast-Stale: " in head) is stale


async def unavailable(made: Cluster) -> None:
    """Writes, and reads of what was not read lately, answer 503 with Retry-After in time; liveness does not care."""
    began = time.monotonic()
    url = f"{made.nodes[0].url}/artifactory/generic-local/never"
    for arguments in ((url,), ("-X", "PUT", "-d", "b", url)):
        code, head = await asyncio.to_thread(curl, "-D", "-", *arguments)
        assert code == 503
        assert b"\r\nRetry-After: " in head
    assert time.monotonic() - began < 20
    assert curl(f"{made.nodes[0].url}/artifactory/api/v1/system/liveness")[0] == 200
    await until(
        lambda: curl(f"{made.nodes[0].url}/artifactory/api/v1/system/readiness")[0] == 503, "readiness to end", 20
    )


@pytest.mark.parametrize("answers_lost", [1, 3])
async def test_commit_whose_answer_is_lost_has_one_effect(dsn: str, tmp_path: Path, answers_lost: int) -> None:
    async with CuttingProxy.before(dsn) as proxy:
        with cluster(tmp_path / "cluster", dsn, nodes=0) as made:
            made.add_node(dsn=proxy.dsn)
            made.add_node(zone="zone-2")
            await asyncio.to_thread(made.start)
            async with LedgerClient([made.nodes[0].url], retries=0) as client:
                assert await client.put("generic-local/before", b"before")
                proxy.lose_answers_to(b"commit_upload", answers_lost)
                assert await client.put("generic-local/unknown", b"unknown" * 1000)
                assert proxy.lost == answers_lost
                await client.verify()
            assert client.ledger.wrong == []
            events = made.query("SELECT count(*) FROM events WHERE path = 'unknown'")
            assert events[0]["count"] == 1
            files = made.replicas_on_disk()
            assert len(files[client.ledger.acknowledged["generic-local/unknown"]]) == 2
            rows = made.query("SELECT count(*) FROM replicas")
            assert rows[0]["count"] == 4


async def test_commit_that_stays_unknown_is_503_and_deletes_no_file(dsn: str, tmp_path: Path) -> None:
    async with CuttingProxy.before(dsn) as proxy:
        with cluster(tmp_path / "cluster", dsn, nodes=0) as made:
            made.add_node(dsn=proxy.dsn)
            made.add_node(zone="zone-2")
            await asyncio.to_thread(made.start)
            await asyncio.to_thread(made.set_setting, "outcome_wait_seconds", 1)
            await asyncio.sleep(0.5)
            async with LedgerClient([made.nodes[0].url], retries=0) as client:
                proxy.lose_answers_to(b"commit_upload", 10_000)
                assert not await client.put("generic-local/unknown", b"unknown" * 1000)
                assert client.ledger.failures == {"put 503": 1}
                proxy.lose_answers_to(b"commit_upload", 0)
                # It did stand: a reader sees it, and a retry of the client changes nothing.
                code, body = await asyncio.to_thread(curl, f"{made.nodes[1].url}/artifactory/generic-local/unknown")
                assert (code, body) == (200, b"unknown" * 1000)
                assert await client.put("generic-local/unknown", b"unknown" * 1000)
                await client.verify()
            assert client.ledger.wrong == []
