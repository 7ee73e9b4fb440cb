"""A node that is frozen: it holds its sockets and answers nothing."""

from __future__ import annotations

import asyncio

from tests.cluster.ledger import LedgerClient
from tests.cluster.processes import Cluster, until
from tests.cluster.test_kill_node import living


async def test_uploads_and_downloads_go_on_while_a_peer_is_frozen(three: Cluster) -> None:
    frozen, *rest = three.nodes
    async with LedgerClient([node.url for node in rest], retries=0) as client:
        for number in range(12):
            assert await client.put(f"generic-local/before/{number}", bytes([number]) * 100_000)
        frozen.freeze()
        await asyncio.gather(*(client.put(f"generic-local/during/{n}", bytes([n]) * 100_000) for n in range(12)))
        assert len(client.ledger.acknowledged) == 24
        await client.verify()
        await until(lambda: living(rest[0]) == 2, "the frozen node to count as down", 20)
        assert await client.put("generic-local/after", b"after" * 1_000_000)
        frozen.thaw()
        await until(three.is_whole, "the frozen node to come back", 20)
        await client.verify()
    assert client.ledger.wrong == []
    assert client.ledger.failures == {}


async def test_node_frozen_in_mid_stream_is_replaced_by_a_handoff(three: Cluster) -> None:
    async with LedgerClient([three.nodes[0].url], retries=0, timeout_seconds=90) as client:
        big = bytes(range(256)) * 100_000
        uploads = [asyncio.create_task(client.put(f"generic-local/{n}", bytes([n]) + big)) for n in range(6)]
        await asyncio.sleep(0.15)
        three.nodes[1].freeze()
        assert all(await asyncio.gather(*uploads))
        await client.verify()
        three.nodes[1].thaw()
        await client.verify()
    assert client.ledger.wrong == []
