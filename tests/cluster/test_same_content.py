"""Many clients of three nodes upload, overwrite and delete the same few contents at once, while gc runs without grace."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.ledger import LedgerClient
from tests.cluster.processes import Cluster, cluster, until
from tests.cluster.test_healing import direct, hasten, number

CLIENTS = 12
PATHS = 2
SECONDS = 6.0
SIZES = (1, 700, 700, 40_000, 300_000, 1_300_000)
QUICK: dict[str, Any] = {
    "trash_days": 0,
    "gc_grace_seconds": 0,
    "gc_idle_seconds": 0.1,
    "removal_delay_seconds": 0,
    "removal_idle_seconds": 0.1,
    "trim_period_seconds": 1,
    "rebalance_idle_seconds": 0.2,
}
UNREST_SQL = """
    SELECT (SELECT count(*) FROM gc_candidates) + (SELECT count(*) FROM removals) + (SELECT count(*) FROM repair_queue)
         + (SELECT count(*) FROM blobs b
             WHERE (SELECT count(*) FROM replicas r WHERE r.blob_id = b.id) <> b.redundancy)
"""
LIVE_SQL = """
    SELECT encode(b.sha256, 'hex') || '.' || r.generation AS name
      FROM replicas r JOIN blobs b ON b.id = r.blob_id WHERE r.state = 'live'
"""


@pytest.fixture
def quick(tmp_path: Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Three nodes that collect and heal without waiting."""
    monkeypatch.setenv("HOLDFAST_TEST_WITHOUT_GRACE", "1")
    with cluster(tmp_path / "quick", dsn) as made:
        hasten(made, **QUICK)
        yield made


async def work(client: LedgerClient, own: int, contents: list[bytes], deadline: float) -> None:
    """Upload any content to paths of one's own, and delete them, until ``deadline``."""
    chance = random.Random(own)
    while time.monotonic() < deadline:
        path = f"generic-local/same/{own}/{chance.randrange(PATHS)}"
        if path in client.ledger.acknowledged and chance.random() < 0.9:
            await client.delete(path)
        else:
            await client.put(path, chance.choice(contents))


async def test_same_contents_uploaded_and_deleted_by_many_are_kept_once_and_leave_nothing(quick: Cluster) -> None:
    contents = [bytes([index]) * size for index, size in enumerate(SIZES)]
    async with LedgerClient([node.url for node in quick.nodes], retries=0) as client:
        deadline = time.monotonic() + SECONDS
        await asyncio.gather(*(work(client, own, contents, deadline) for own in range(CLIENTS)))
        assert client.ledger.failures == {}
        assert client.ledger.acknowledged and client.ledger.deleted
        await client.verify()
        await until(lambda: number(quick, UNREST_SQL) == 0, "the cluster to come to rest", 60)
        await until(lambda: files(quick) == {row["name"] for row in quick.query(LIVE_SQL)}, "no file too many", 30)
        assert set(quick.replicas_on_disk()) == set(client.ledger.acknowledged.values())
        for _ in range(2):
            assert await findings(quick) == [{}] * 6
        await client.verify()
    assert client.ledger.wrong == []
    assert number(quick, "SELECT count(*) FROM events WHERE kind = 'gc'") > len(contents), "gc came in between"
    assert number(quick, "SELECT count(*) FROM events WHERE kind = 'deploy' AND NOT adopted") > len(contents)


def files(made: Cluster) -> set[str]:
    """Return the name of every file on the shards, those of uploads under way too."""
    staged = {str(path) for node in made.nodes for path in node.staged_files()}
    return {path.name for node in made.nodes for path in node.blob_files()} | staged


async def findings(made: Cluster) -> list[dict[str, Any]]:
    """Compare every shard with its rows, and return what differs on each, what is too young to touch too."""
    code, ordered = direct(made, "POST", "fsck")
    assert code in (200, 202), ordered

    def checks() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = direct(made, "GET", f"fsck/{ordered['request']}")[1]["checks"]
        return found

    await until(lambda: all(check["finished_at"] for check in checks()), "the comparison to end", 60)
    assert not any(check["error"] for check in checks())
    return [check["report"]["findings"] for check in checks()]
