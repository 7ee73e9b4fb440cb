"""Where the bytes of an upload end up."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.cluster.ledger import LedgerClient
from tests.cluster.processes import Cluster, cluster, sha256_of, wait_until
from tests.tools import skip


async def test_every_blob_lies_on_two_shards_in_two_zones(three: Cluster) -> None:
    async with LedgerClient([three.url]) as client:
        for number, size in enumerate([1, 4096, 70_000, 1 << 20, (1 << 20) + 1, 9_000_000]):
            assert await client.put(f"generic-local/a/{number}", bytes([number]) * size)
        replicas = three.replicas_on_disk()
        assert set(replicas) == set(client.ledger.acknowledged.values())
        for sha256, copies in replicas.items():
            assert len(copies) == 2
            assert len({node.zone for node, _ in copies}) == 2
            assert all(sha256_of(path) == sha256 for _, path in copies)
        assert not any(node.staged_files() for node in three.nodes)


async def test_empty_file_is_stored_without_a_shard(three: Cluster) -> None:
    async with LedgerClient([three.url]) as client:
        assert await client.put("generic-local/empty", b"")
        await client.verify()
    assert client.ledger.wrong == []
    assert three.replicas_on_disk() == {}


async def test_same_content_twice_keeps_two_files(three: Cluster) -> None:
    async with LedgerClient([three.url]) as client:
        for number in range(5):
            assert await client.put(f"generic-local/copy-{number}", b"the same bytes" * 100_000)
        wait_until(lambda: [len(copies) for copies in three.replicas_on_disk().values()] == [2], "two files", 10)
        await client.verify()
    assert client.ledger.wrong == []


async def test_s2_node_opens_only_files_of_its_own_shards(tmp_path: Path, dsn: str) -> None:
    if shutil.which("strace") is None:
        skip("strace is not installed: which files a node opens cannot be seen")
    with cluster(tmp_path / "cluster", dsn, nodes=0) as made:
        for _ in range(3):
            made.add_node()
        for node in made.nodes:
            trace = ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2", "-o", str(node.directory / "opens")]
            node.start(trace)
        made.start()
        async with LedgerClient([made.url]) as client:
            for number in range(12):
                assert await client.put(f"generic-local/{number}", bytes([number]) * (3_000_000 if number % 2 else 10))
            for node in made.nodes:
                client.urls = [node.url]
                await client.verify()
        assert client.ledger.wrong == []
        for node in made.nodes:
            node.stop()
            opened = (node.directory / "opens").read_text()
            assert str(node.shards[0]) in opened
            for other in made.nodes:
                if other is not node:
                    assert not any(str(shard) in opened for shard in other.shards)
