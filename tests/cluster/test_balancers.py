"""The shipped load balancer files in front of a cluster whose nodes are killed, frozen and stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.cluster.balancers import haproxy, nginx
from tests.cluster.ledger import LedgerClient, under_load
from tests.cluster.processes import Cluster, NodeProcess, cluster, curl, is_ready, until

Balancer = Callable[[Cluster, Path], AbstractContextManager[str]]


@pytest.fixture(params=[haproxy, nginx], ids=["haproxy", "nginx"])
def balanced(request: pytest.FixtureRequest, tmp_path: Path, dsn: str) -> Iterator[tuple[Cluster, str]]:
    """A three-node cluster and the URL of a balancer in front of it."""
    with cluster(tmp_path / "cluster", dsn) as made, request.param(made, tmp_path) as url:
        yield made, url


async def load_through(
    balanced: tuple[Cluster, str],
    during: Callable[[Cluster], Awaitable[None]],
    *,
    retries: int = 1,
    keep_alive: bool = False,
) -> LedgerClient:
    """Load the cluster through its balancer, read everything back, and return the client with its ledger."""
    made, url = balanced
    async with LedgerClient([url], retries=retries, timeout_seconds=60, keep_alive=keep_alive) as client:
        await under_load(client, lambda: during(made))
        assert len(client.ledger.acknowledged) > 10
        await client.verify()
    assert client.ledger.wrong == []
    return client


async def test_balancer_passes_bytes_and_paths_through_unchanged(balanced: tuple[Cluster, str], tmp_path: Path) -> None:
    _, url = balanced
    source = tmp_path / "a file"
    source.write_bytes(bytes(range(256)) * 40_000)
    target = f"{url}/artifactory/generic-local/sp%20ace/%C3%A4+%25.bin;key=value"
    assert curl("-T", str(source), target)[0] == 201
    code, body = curl(target)
    assert (code, body) == (200, source.read_bytes())
    code, body = curl("-H", "Range: bytes=1000000-1000009", target)
    assert (code, body) == (206, source.read_bytes()[1_000_000:1_000_010])
    assert curl("--path-as-is", f"{url}/artifactory/generic-local/a/../b")[0] == 400
    assert curl("-H", "Transfer-Encoding: chunked", "-T", str(source), target)[0] == 201


async def test_killed_node_costs_one_retry_at_most(balanced: tuple[Cluster, str]) -> None:
    async def kill(made: Cluster) -> None:
        await asyncio.sleep(2)
        made.nodes[1].kill()
        await asyncio.sleep(4)
        await restart(made, made.nodes[1])

    await load_through(balanced, kill)


async def test_frozen_node_costs_nothing_acknowledged(balanced: tuple[Cluster, str]) -> None:
    async def freeze(made: Cluster) -> None:
        await asyncio.sleep(2)
        made.nodes[2].freeze()
        await asyncio.sleep(8)
        made.nodes[2].thaw()
        await asyncio.sleep(2)

    client = await load_through(balanced, freeze, retries=3)
    assert all(not key.startswith("get 404") for key in client.ledger.failures)


@pytest.mark.parametrize(("nodes", "keep_alive"), [(3, False), (2, True)])
async def test_restart_of_all_nodes_loses_no_request_even_without_a_retry(
    tmp_path: Path, dsn: str, nodes: int, keep_alive: bool
) -> None:
    # On a busy machine HAProxy may take longer to notice than it does in production.
    notice = "drain_notice_seconds = 6"
    with cluster(tmp_path / "cluster", dsn, nodes=nodes, http=notice) as made, haproxy(made, tmp_path) as url:

        async def roll(made: Cluster) -> None:
            for node in made.nodes:
                await asyncio.sleep(1)
                assert await asyncio.to_thread(node.stop) == 0
                await restart(made, node)
                await asyncio.sleep(1.5)

        client = await load_through((made, url), roll, retries=0, keep_alive=keep_alive)
        assert client.ledger.failures == {}


async def test_slow_upload_outlives_the_drain_of_its_node(tmp_path: Path, dsn: str) -> None:
    with cluster(tmp_path / "cluster", dsn, nodes=3, http="drain_notice_seconds = 1") as made:
        node = made.nodes[0]
        source = tmp_path / "source"
        source.write_bytes(b"slow" * 1_000_000)
        target = f"{node.url}/artifactory/generic-local/slow"
        began = time.monotonic()
        upload = asyncio.create_task(asyncio.to_thread(curl, "--limit-rate", "800k", "-T", str(source), target))
        await asyncio.sleep(1)
        assert await asyncio.to_thread(node.stop) == 0
        assert time.monotonic() - began > 3
        assert (await upload)[0] == 201


async def restart(made: Cluster, node: NodeProcess) -> None:
    node.start()
    await until(lambda: is_ready(node), f"{node.id} to come back", 30)
