"""Shards wiped, lost, drained and replaced under a running cluster: it becomes whole again by itself."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

from tests.cluster.ledger import LedgerClient, under_load
from tests.cluster.processes import Cluster, NodeProcess, curl, is_ready, status, until

QUICK: dict[str, Any] = {
    "heartbeat_seconds": 0.25,
    "node_down_seconds": 2,
    "repair_idle_seconds": 0.2,
    "repair_retry_seconds": 0.2,
    "repair_retry_seconds_max": 2,
    "verdict_idle_seconds": 0.2,
    "walk_idle_seconds": 0.2,
    "drain_pass_seconds": 0.5,
    "census_idle_seconds": 0.2,
}
SHORT_SQL = """
    SELECT count(*) FROM blobs b
     WHERE b.size > 0 AND (SELECT count(DISTINCT g.shard_id) FROM good_replicas(b.id) g) < b.redundancy
"""
WHOLE_SQL = "SELECT count(*) FROM blobs b WHERE b.size > 0 AND NOT is_whole(b.id, b.redundancy, ring_zones())"


def hasten(cluster: Cluster, **more: Any) -> None:
    for key, value in {**QUICK, **more}.items():
        cluster.set_setting(key, value)


def number(cluster: Cluster, sql: str, *arguments: Any) -> int:
    return int(cluster.query(sql, *arguments)[0][0])


def is_whole(cluster: Cluster) -> bool:
    return number(cluster, WHOLE_SQL) == 0 and number(cluster, "SELECT count(*) FROM repair_queue") == 0


def shard_at(cluster: Cluster, path: Path) -> int:
    return number(cluster, "SELECT id FROM shards WHERE path = $1 AND state <> 'lost'", str(path))


def state_of(cluster: Cluster, shard: int) -> str:
    rows = cluster.query("SELECT state FROM shards WHERE id = $1", shard)
    return str(rows[0][0]) if rows else "removed"


def direct(cluster: Cluster, method: str, path: str, document: Any = None) -> tuple[int, Any]:
    body_of = () if document is None else ("-d", json.dumps(document))
    code, body = curl("-X", method, *body_of, f"{cluster.live.url}/artifactory/api/holdfast/{path}")
    return code, json.loads(body)


def check_rows_have_files(cluster: Cluster, *, without: NodeProcess | None = None) -> None:
    """Every live replica, but for those on one node, has its file of the right size."""
    rows = cluster.query(
        "SELECT s.path, s.node_id, encode(b.sha256, 'hex') AS sha256, r.generation, b.size FROM replicas r"
        " JOIN blobs b ON b.id = r.blob_id JOIN shards s ON s.id = r.shard_id WHERE r.state = 'live'"
    )
    for row in rows:
        if without is None or row["node_id"] != without.id:
            [file] = Path(row["path"]).glob(f"blobs/*/{row['sha256']}.{row['generation']}")
            assert file.stat().st_size == row["size"]


async def fill(client: LedgerClient, count: int) -> None:
    for start in range(0, count, 20):
        await asyncio.gather(
            *(client.put(f"generic-local/fill/{n}", b"%d" % n * (n % 7 * 400 + 1)) for n in range(start, start + 20))
        )
    assert len(client.ledger.acknowledged) == count


async def test_200_blobs_wiped_from_a_shard_are_whole_again_in_their_places(three: Cluster) -> None:
    """By the default settings."""
    async with LedgerClient([three.url]) as client:
        await fill(client, 200)
        wiped = three.nodes[1].shards[0]
        shard = shard_at(three, wiped)
        held = number(three, "SELECT count(*) FROM replicas WHERE shard_id = $1 AND blob_id IS NOT NULL", shard)
        assert held > 20
        for file in (wiped / "blobs").glob("*/*"):
            file.unlink()
        await client.verify()
        # What readers have not come across, a look at the directory would tell.
        three.query(
            "SELECT suspect_replica(shard_id, generation) FROM replicas WHERE shard_id = $1 AND blob_id IS NOT NULL",
            shard,
        )
        await until(lambda: is_whole(three), "every blob to be whole", 30)
        live = "SELECT count(*) FROM replicas WHERE shard_id = $1 AND state = 'live'"
        assert number(three, live, shard) == held
        check_rows_have_files(three)
        await client.verify()
    assert client.ledger.wrong == []


async def test_killed_node_is_made_good_on_the_others_and_comes_back_in_doubt(three: Cluster) -> None:
    hasten(three, lost_after_seconds=3, judge_interval_seconds=3600)
    node = three.nodes[2]
    async with LedgerClient([three.url]) as client:
        await fill(client, 60)
        files = {path for paths in three.replicas_on_disk().values() for _, path in paths}
        shards = [shard_at(three, path) for path in node.shards]
        node.kill()
        await until(lambda: {state_of(three, shard) for shard in shards} == {"lost"}, "the verdict", 20)
        await until(lambda: is_whole(three), "every blob to be whole without the node", 30)
        assert number(three, SHORT_SQL) == 0
        check_rows_have_files(three, without=node)
        await client.verify()
        assert all(path.exists() for path in files), "nothing was deleted"
        node.start()
        await until(lambda: is_ready(node), "the node to come back", 30)
        doubted = "SELECT count(*) FROM replicas WHERE shard_id = ANY ($1::smallint[]) AND state = 'suspect'"
        await until(lambda: number(three, doubted, shards) > 0, "its copies to be doubted", 20)
        await until(lambda: {state_of(three, shard) for shard in shards} == {"active"}, "its shards to return", 20)
        await client.verify()
        hasten(three, judge_interval_seconds=0.2)
        await until(lambda: number(three, doubted, shards) == 0, "its copies to be read and to count again", 20)
        await client.verify()
    assert client.ledger.wrong == []


async def test_node_that_restarts_in_time_starts_no_repairs(three: Cluster) -> None:
    hasten(three, lost_after_seconds=60, census_period_seconds=1)
    node = three.nodes[0]
    async with LedgerClient([three.url]) as client:
        await fill(client, 40)
        before = sorted(path.name for paths in three.replicas_on_disk().values() for _, path in paths)
        node.kill()
        await asyncio.sleep(4)
        assert number(three, "SELECT count(*) FROM repair_queue") == 0
        node.start()
        await until(lambda: is_ready(node), "the node to come back", 30)
        await until(three.is_whole, "the nodes to know one another again", 20)
        assert number(three, "SELECT count(*) FROM repair_queue") == 0
        assert sorted(path.name for paths in three.replicas_on_disk().values() for _, path in paths) == before
        await client.verify()
    assert client.ledger.wrong == []


async def test_shard_is_drained_under_load_without_a_blob_ever_short_then_removed(three: Cluster) -> None:
    hasten(three)
    node = three.nodes[0]
    shard = shard_at(three, node.shards[0])
    short: list[int] = []
    left = "SELECT count(*) FROM replicas WHERE shard_id = $1 AND blob_id IS NOT NULL"

    async def drain() -> None:
        await asyncio.sleep(1)
        assert direct(three, "POST", f"shards/{shard}/drain") == (200, {"shard": shard, "outcome": "done"})
        for _ in range(300):
            short.append(await asyncio.to_thread(number, three, SHORT_SQL))
            if len(short) > 20 and await asyncio.to_thread(number, three, left, shard) == 0:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the shard is not drained")

    async with LedgerClient([three.url]) as client:
        await fill(client, 100)
        await under_load(client, drain, workers=4)
        assert set(short) == {0}
        await until(lambda: is_whole(three) and number(three, left, shard) == 0, "what came late to go", 20)
        assert direct(three, "DELETE", f"shards/{shard}")[0] == 409, "it is open on its node"
        config = node.config.read_text()
        node.config.write_text(config.replace(f'[[shards]]\npath = "{node.shards[0]}"\nreserve_bytes = 0\n', ""))
        assert direct(three, "POST", f"nodes/{node.id}/reload")[0] == 202
        owned = "SELECT count(*) FROM shards WHERE id = $1 AND owner IS NOT NULL"
        await until(lambda: number(three, owned, shard) == 0, "the node to give the shard up", 30)
        assert direct(three, "DELETE", f"shards/{shard}") == (200, {"shard": shard, "outcome": "removed"})
        await client.verify()
    assert client.ledger.wrong == []


async def test_dead_disk_is_replaced_by_an_empty_one(three: Cluster) -> None:
    hasten(three, rebalance_idle_seconds=0.2, rebalance_retry_seconds=0.5)
    node = three.nodes[1]
    disk = node.shards[0]
    old = shard_at(three, disk)
    async with LedgerClient([three.url]) as client:
        await fill(client, 60)
        node.kill()
        shutil.rmtree(disk)
        disk.mkdir()
        node.start()
        await until(lambda: is_ready(node), "the node to start without the disk", 30)
        (row,) = (one for one in status(node)["shards"] if one["id"] == old)
        assert not row["up"] and "is its disk mounted?" in row["trouble"]
        assert direct(three, "POST", f"shards/{old}/replace") == (200, {"shard": old, "outcome": "done"})
        assert not any(disk.iterdir()), "an empty directory is no shard by itself"
        assert direct(three, "POST", f"nodes/{node.id}/reload", {"shard": str(disk)})[0] == 202
        at_path = "SELECT count(*) FROM shards WHERE path = $1 AND NOT replaced"
        await until(lambda: number(three, at_path, str(disk)) == 1, "the node to take the new disk", 30)
        new = shard_at(three, disk)
        assert new != old and state_of(three, old) == "lost"
        await until(lambda: is_whole(three), "every blob to be whole", 30)
        held = "SELECT count(*) FROM replicas WHERE shard_id = $1 AND blob_id IS NOT NULL"
        await until(lambda: number(three, held, new) > 0, "the new disk to take its share", 45)
        assert direct(three, "DELETE", f"shards/{old}")[0] in (200, 202)
        await until(lambda: state_of(three, old) == "removed", "the old shard to be forgotten", 20)
        check_rows_have_files(three)
        await client.verify()
    assert client.ledger.wrong == []


async def test_added_shard_takes_its_share_and_nothing_else_moves(three: Cluster) -> None:
    hasten(three, rebalance_idle_seconds=0.2, rebalance_retry_seconds=0.5, trim_period_seconds=1)
    node = three.nodes[0]
    in_zone = "SELECT count(*) FROM replicas r JOIN shards s ON s.id = r.shard_id WHERE s.node_id = $1 AND r.blob_id IS NOT NULL"
    async with LedgerClient([three.url]) as client:
        await fill(client, 200)
        before = {one.id: number(three, in_zone, one.id) for one in three.nodes}
        disk = node.directory / "shard-3"
        node.config.write_text(
            node.config.read_text().replace("[log]", f'[[shards]]\npath = "{disk}"\nreserve_bytes = 0\n[log]')
        )
        node.stop()
        node.start()
        await until(lambda: is_ready(node), "the node to take the new disk", 30)
        shard = shard_at(three, disk)
        moved = "SELECT count(*) FROM replicas WHERE shard_id = $1 AND blob_id IS NOT NULL"
        share = before[node.id] / 3
        await until(lambda: number(three, moved, shard) > share / 2, "copies to move", 45)
        passes = (
            "SELECT count(*) FROM shard_cursors WHERE job = 'rebalance' AND cursor IS NULL AND ring <> ''"
            " AND ring = (SELECT ring FROM shard_cursors WHERE job = 'rebalance' AND shard_id = $1)"
        )
        await until(lambda: number(three, passes, shard) == 7, "a complete pass over every shard for the new ring", 45)
        held = number(three, moved, shard)
        assert share / 2 < held < share * 2
        after = {one.id: number(three, in_zone, one.id) for one in three.nodes}
        assert sum(after.values()) == sum(before.values())
        # Whatever moved, moved to the new shard; the old files stay for a while, by the list of removals.
        assert number(three, "SELECT count(*) FROM removals WHERE reason = 'rebalance'") == held
        assert number(three, SHORT_SQL) == 0
        check_rows_have_files(three)
        await client.verify()
    assert client.ledger.wrong == []
