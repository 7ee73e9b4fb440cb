"""Shards that run out of space."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.cluster.ledger import LedgerClient
from tests.cluster.processes import Cluster, cluster, curl
from tests.tools import require_root

SMALL_BYTES = 8 << 20


@contextmanager
def small_disk(path: Path, size_bytes: int = SMALL_BYTES) -> Iterator[Path]:
    """Mount a file system of ``size_bytes`` at ``path``."""
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "none", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def with_small_disks(tmp_path: Path, dsn: str) -> Iterator[Cluster]:
    """Three nodes; the first shard of the first node is small."""
    require_root("a small file system has to be mounted")
    with ExitStack() as stack:
        small = stack.enter_context(small_disk(tmp_path / "small"))
        made = stack.enter_context(cluster(tmp_path / "cluster", dsn, nodes=0))
        made.add_node(shard_paths=[small, tmp_path / "large"])
        made.add_node()
        made.add_node()
        made.start()
        yield made


async def test_upload_succeeds_elsewhere_when_one_shard_fills_up(with_small_disks: Cluster) -> None:
    made = with_small_disks
    async with LedgerClient([made.url], retries=0) as client:
        for number in range(20):
            assert await client.put(f"generic-local/{number}", bytes([number]) * 3_000_000)
        await client.verify()
    assert client.ledger.wrong == []
    assert client.ledger.failures == {}
    assert all(len(copies) == 2 for copies in made.replicas_on_disk().values())


async def test_full_cluster_answers_507_keeps_nothing_and_still_serves(tmp_path: Path, dsn: str) -> None:
    require_root("small file systems have to be mounted")
    with ExitStack() as stack:
        disks = [stack.enter_context(small_disk(tmp_path / f"small-{number}")) for number in range(2)]
        made = stack.enter_context(cluster(tmp_path / "cluster", dsn, nodes=0))
        for disk in disks:
            made.add_node(shard_paths=[disk])
        made.start()
        async with LedgerClient([made.url], retries=0) as client:
            assert await client.put("generic-local/fits", b"f" * 5_000_000)
            assert not await client.put("generic-local/does-not", b"d" * 5_000_000)
            assert client.ledger.failures == {"put 507": 1}
            assert curl(f"{made.url}/artifactory/generic-local/does-not")[0] == 404
            await client.verify()
            assert await client.put("generic-local/small", b"s" * 1000)
            await client.verify()
        assert client.ledger.wrong == []
        assert not any(node.staged_files() for node in made.nodes)
