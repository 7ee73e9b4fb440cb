"""Ways that are cut without a word: between a node and Postgres, between nodes, and in one direction alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.cluster.ledger import LedgerClient, under_load
from tests.cluster.network import POSTGRES, Star, can_make_star, star
from tests.cluster.processes import Cluster, is_ready, set_password, until
from tests.cluster.server import OwnServer
from tests.postgres import run_apart
from tests.tools import require_root, require_tool, skip

NODES = 3
CUT_SECONDS = 6.0


@pytest.fixture
def network() -> Iterator[Star]:
    require_root("network namespaces are root's")
    require_tool("nsenter", "nodes run in namespaces of their own")
    require_tool("ip", "it makes the network between them")
    if not can_make_star():
        skip("this machine makes no network namespaces")
    with star(NODES) as made:
        yield made


@pytest.fixture
def spread(network: Star, tmp_path: Path) -> Iterator[Cluster]:
    """Three nodes, each in a network of its own."""
    server = OwnServer(tmp_path / "postgres", network.address(POSTGRES), network.subnet)
    made = Cluster(tmp_path / "cluster", server.dsn)
    run_apart(set_password(server.dsn))
    dsn = server.dsn.replace("127.0.0.1", network.address(POSTGRES))
    for number in range(1, NODES + 1):
        made.add_node(dsn=dsn, host=network.address(number), wrapper=network.wrapper(number))
    try:
        made.start()
        for key, value in (("heartbeat_seconds", 0.5), ("node_down_seconds", 3)):
            made.set_setting(key, value)
        yield made
    finally:
        made.stop()
        server.stop()


@pytest.mark.parametrize(
    ("ways", "ready"),
    [
        pytest.param([(1, POSTGRES), (POSTGRES, 1)], [False, True, True], id="node-1 and Postgres"),
        pytest.param([(POSTGRES, 1)], [False, True, True], id="Postgres to node-1"),
        pytest.param([(1, 2), (2, 1)], [True, True, True], id="node-1 and node-2"),
        pytest.param([(1, 2)], [True, True, True], id="node-1 to node-2"),
    ],
)
async def test_partition_costs_nothing_acknowledged_and_heals_by_itself(
    spread: Cluster, network: Star, ways: Sequence[tuple[int, int]], ready: Sequence[bool]
) -> None:
    urls = [node.url for node in spread.nodes]
    async with LedgerClient(urls, retries=2) as client:

        async def cut() -> None:
            await asyncio.sleep(1)
            before = len(client.ledger.acknowledged)
            for way in ways:
                await asyncio.to_thread(network.cut, *way)
            try:
                seen = [(lambda node=node: is_ready(node)) for node in spread.nodes]  # type: ignore[misc]
                for asked, expected in zip(seen, ready, strict=True):
                    await until(lambda asked=asked, expected=expected: asked() is expected, "readiness", 30)  # type: ignore[misc]
                await asyncio.sleep(CUT_SECONDS)
                await until(lambda: len(client.ledger.acknowledged) > before, "uploads to go on", 60)
            finally:
                await asyncio.to_thread(network.mend)
            await until(lambda: all(is_ready(node) for node in spread.nodes), "every node to be ready", 60)
            await until(spread.is_whole, "the nodes to know one another", 60)

        await under_load(client, cut, workers=4)
        for url in urls:
            client.urls = [url]
            await client.verify()
        assert client.ledger.wrong == []
