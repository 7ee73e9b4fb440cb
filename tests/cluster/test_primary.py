"""The primary node as real processes: killed, frozen, stopped; and garbage that really leaves the disks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.ledger import LedgerClient
from tests.cluster.processes import Cluster, NodeProcess, cluster, curl, until, wait_until

GC = "/artifactory/api/holdfast/gc"
TAKEOVER_SECONDS = 15.0


def lease(made: Cluster) -> tuple[str, int, bool]:
    """Return holder, epoch, and whether the lease is valid, as the database has it."""
    rows = made.query("SELECT holder, epoch, expires_at > clock_timestamp() FROM lease")
    return tuple(rows[0]) if rows else ("", 0, False)


def primary(made: Cluster) -> NodeProcess:
    wait_until(lambda: lease(made)[2], "a primary", TAKEOVER_SECONDS)
    holder = lease(made)[0]
    return next(node for node in made.nodes if node.id == holder)


def state(node: NodeProcess) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(curl(f"{node.url}{GC}", fail=True)[1])
    return found


def epochs_on_disk(made: Cluster) -> set[int]:
    files = [shard / "epoch" for node in made.nodes for shard in node.shards]
    return {int(file.read_text()) if file.exists() else 0 for file in files}


async def test_primary_that_is_killed_or_stopped_is_replaced_and_lost_history_is_found_out(three: Cluster) -> None:
    """With the default settings."""
    first = primary(three)
    epoch = lease(three)[1]
    await until(lambda: epochs_on_disk(three) == {epoch}, "every shard to know the epoch", 10)
    first.kill()
    await until(partial(replaced, three, first), "another primary", TAKEOVER_SECONDS)
    assert lease(three)[1] == epoch + 1
    first.start()
    await until(lambda: epochs_on_disk(three) == {epoch + 1}, "every shard to know the new epoch", 20)
    second = primary(three)
    assert second is not first, "the old one comes back as any other node"
    assert state(second)["holds"] == []

    assert second.stop() == 0
    await until(partial(replaced, three, second), "a successor at once", 5)

    # As a restore of the database that went back in time would have it.
    (second.shards[0] / "epoch").write_text("4711\n")
    second.start()
    third = primary(three)
    await until(lambda: "lost_history" in {one["reason"] for one in state(third)["holds"]}, "a hold", 20)
    await until(lambda: lease(three)[1] > 4711, "a primary above the highest epoch", 20)
    curl("-X", "POST", f"{third.url}{GC}/release", fail=True)
    await until(lambda: epochs_on_disk(three) == {lease(three)[1]}, "every shard to know the new epoch", 10)
    assert state(third)["holds"] == []


QUICK = {
    "trash_days": 0,
    "gc_grace_seconds": 0,
    "gc_idle_seconds": 0.2,
    "removal_delay_seconds": 0,
    "removal_idle_seconds": 0.2,
    "lease_renew_seconds": 0.3,
    "lease_seconds": 2,
}


@pytest.fixture
def quick(tmp_path: Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Three nodes that collect without grace, delay or trash."""
    monkeypatch.setenv("HOLDFAST_TEST_WITHOUT_GRACE", "1")
    with cluster(tmp_path / "quick", dsn, nodes=3) as made:
        for key, value in QUICK.items():
            made.set_setting(key, value)
        yield made


def replaced(made: Cluster, old: NodeProcess) -> bool:
    holder, _, valid = lease(made)
    return valid and holder != old.id


async def test_garbage_leaves_every_disk_and_nothing_else_does_while_primaries_die_and_freeze(quick: Cluster) -> None:
    """Deletes and re-uploads of the same contents all the while; the ledger is read back at the end."""
    async with LedgerClient([node.url for node in quick.nodes], retries=3) as client:
        for number in range(24):
            await client.put(f"generic-local/kept/{number}", b"kept %d" % number * 500)
        frozen: NodeProcess | None = None
        for turn in range(4):
            for number in range(12):
                await client.put(f"generic-local/shared/{turn}/{number}", b"shared %d" % number * 700)
                await client.put(f"generic-local/gone/{turn}/{number}", b"gone %d %d" % (turn, number) * 700)
            for folder in (f"shared/{turn - 1}", f"gone/{turn}"):
                curl("-X", "DELETE", f"{quick.live.url}/artifactory/generic-local/{folder}")
                client.ledger.acknowledged = {
                    path: sha256
                    for path, sha256 in client.ledger.acknowledged.items()
                    if not path.startswith(f"generic-local/{folder}/")
                }
            if turn == 1:
                frozen = primary(quick)
                frozen.freeze()
                client.urls = [node.url for node in quick.nodes if node is not frozen]
                await until(partial(replaced, quick, frozen), "a successor", TAKEOVER_SECONDS)
            if turn == 2:
                assert frozen is not None
                frozen.thaw()
                await until(quick.is_whole, "the frozen node to be back", 20)
                primary(quick).kill()
                quick.start()
                client.urls = [node.url for node in quick.nodes]
        await until(lambda: quick.query("SELECT count(*) FROM gc_candidates")[0][0] == 0, "no candidate", 30)
        await until(lambda: quick.query("SELECT count(*) FROM removals")[0][0] == 0, "no removal", 30)
        wanted = {row["sha"] for row in quick.query("SELECT encode(sha256, 'hex') AS sha FROM blobs WHERE size > 0")}
        on_disk = set(quick.replicas_on_disk())
        assert set(client.ledger.acknowledged.values()) <= wanted
        assert len(wanted) == 24 + 12, "what nothing refers to is gone"
        assert on_disk == wanted, "and its bytes are gone from every disk"
        await client.verify()
    assert client.ledger.wrong == []
    events = quick.query("SELECT count(*) AS n, count(DISTINCT sha256) AS d FROM events WHERE kind = 'gc'")[0]
    assert events["n"] >= 48
    epochs = [
        row[0] for row in quick.query("SELECT (detail ->> 'epoch')::int FROM events WHERE kind = 'gc' ORDER BY id")
    ]
    assert epochs == sorted(epochs) and len(set(epochs)) > 1, "no older primary committed after a younger one"
    assert quick.query("SELECT count(*) FROM holds")[0][0] == 0
