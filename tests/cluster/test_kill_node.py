"""A node killed with kill -9 while clients work."""

from __future__ import annotations

import asyncio

import pytest

from tests.cluster.ledger import LedgerClient, under_load
from tests.cluster.processes import Cluster, NodeProcess, is_ready, status, until


@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_killed_node_costs_nothing_acknowledged_and_no_retried_request(three: Cluster, victim: int) -> None:
    node = three.nodes[victim]

    async def kill_and_restart() -> None:
        await asyncio.sleep(1.5)
        node.kill()
        await asyncio.sleep(4)
        node.start()
        await until(lambda: is_ready(node), "the killed node to come back", 30)
        await asyncio.sleep(1)

    async with LedgerClient([three.url], seed=victim) as client:
        await under_load(client, kill_and_restart)
        assert len(client.ledger.acknowledged) > 20
        await client.verify()
        assert client.ledger.wrong == []
        await until(three.is_whole, "the nodes to know one another again", 15)
        await client.verify()
    assert client.ledger.wrong == []


async def test_staged_files_of_a_killed_node_vanish_from_peers_and_at_its_next_start(three: Cluster) -> None:
    victim = three.nodes[0]
    reader, writer = await asyncio.open_connection("127.0.0.1", victim.port)
    await begin_upload(writer, "generic-local/never", 50_000_000)
    for _ in range(20):
        writer.write(b"x" * 1_000_000)
        await writer.drain()
    await until(lambda: any(node.staged_files() for node in three.nodes), "staged files", 10)
    victim.kill()
    writer.close()
    peers = three.nodes[1:]
    await until(lambda: not any(node.staged_files() for node in peers), "the peers' staged files to vanish", 5)
    victim.start()
    await until(lambda: is_ready(victim), "the killed node to come back", 30)
    assert victim.staged_files() == []
    assert three.replicas_on_disk() == {}
    assert reader.at_eof() or await reader.read() == b""


async def test_staged_files_vanish_everywhere_when_the_client_goes_away(three: Cluster) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", three.nodes[1].port)
    await begin_upload(writer, "generic-local/never", 50_000_000)
    for _ in range(10):
        writer.write(b"x" * 1_000_000)
        await writer.drain()
    await until(lambda: sum(len(node.staged_files()) for node in three.nodes) == 2, "two staged files", 10)
    writer.transport.abort()
    await until(lambda: not any(node.staged_files() for node in three.nodes), "the staged files to vanish", 5)
    assert three.replicas_on_disk() == {}


async def begin_upload(writer: asyncio.StreamWriter, path: str, length: int) -> None:
    import base64

    from tests.cluster.processes import PASSWORD

    credentials = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
    writer.write(
        f"PUT /artifactory/{path} HTTP/1.1\r\nHost: test\r\nAuthorization: Basic {credentials}\r\n"
        f"Content-Length: {length}\r\n\r\n".encode()
    )
    await writer.drain()


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_one_node_left_of_three_still_reads_and_writes_and_copies_spread_when_zones_return(
    three: Cluster, size: int
) -> None:
    survivor = three.nodes[2]
    async with LedgerClient([three.url]) as client:
        for number in range(10):
            assert await client.put(f"generic-local/before/{number}", bytes([number]) * size)
        for node in three.nodes[:2]:
            node.kill()
        await until(lambda: living(survivor) == 1, "the survivor to notice", 20)
        for number in range(10):
            assert await client.put(f"generic-local/after/{number}", bytes([100 + number]) * size)
        assert status(survivor)["repair_queue"] >= 10
        for path in [path for path in client.ledger.acknowledged if "/after/" in path]:
            assert await client.get(path)
        for node in three.nodes[:2]:
            node.start()
        await until(three.is_whole, "the others to come back", 30)
        await client.verify()
        await until(lambda: min(zones_of_blobs(three)) >= 2, "every blob to be in two zones again", 60)
    assert client.ledger.wrong == []


def zones_of_blobs(made: Cluster) -> set[int]:
    """Return in how many zones the blobs have copies that count."""
    rows = made.query(
        """
        SELECT count(DISTINCT n.zone) AS zones
          FROM blobs b LEFT JOIN replicas r ON r.blob_id = b.id AND r.state = 'live'
          LEFT JOIN shards s ON s.id = r.shard_id LEFT JOIN nodes n ON n.id = s.node_id GROUP BY b.id
        """
    )
    return {row["zones"] for row in rows}


def living(node: NodeProcess) -> int:
    return sum(one["up"] for one in status(node)["nodes"])


async def test_last_node_of_two_still_acknowledges_writes_and_they_spread_when_the_other_returns(two: Cluster) -> None:
    two.nodes[0].kill()
    await until(lambda: living(two.nodes[1]) == 1, "the survivor to notice", 20)
    async with LedgerClient([two.url]) as client:
        assert await client.put("generic-local/small", b"small")
        assert await client.put("generic-local/large", b"large" * 1_000_000)
        await client.verify()
        assert all(len(copies) == 2 for copies in two.replicas_on_disk().values())
        assert zones_of_blobs(two) == {1}
        two.start()
        await until(lambda: zones_of_blobs(two) == {2}, "both blobs to be in both zones", 60)
        two.nodes[1].kill()
        client.urls = [two.nodes[0].url]
        await until(lambda: living(two.nodes[0]) == 1, "the other one to notice", 20)
        await client.verify()
    assert client.ledger.wrong == []
