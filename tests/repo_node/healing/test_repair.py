"""Repair on three real nodes: lost files come back, on the shards the ring wants, and nothing else changes."""

from __future__ import annotations

import time
from typing import Any

from tests.repo_node.nodes import RunningCluster, new_path, random_bytes, wait_until

REPLICAS_SQL = """
    SELECT r.shard_id, r.generation, r.state, r.blob_id FROM replicas r JOIN artifacts a USING (blob_id)
     WHERE concat('/artifactory/generic-local/', a.folder, '/', a.name) = $1
"""
QUEUED_SQL = """
    SELECT 1 FROM repair_queue q JOIN artifacts a USING (blob_id)
     WHERE concat('/artifactory/generic-local/', a.folder, '/', a.name) = ANY ($1)
"""
QUICK: dict[str, Any] = {"repair_idle_seconds": 0.1, "repair_retry_seconds": 0.1}


def put(cluster: RunningCluster, size: int) -> tuple[str, bytes]:
    path, body = new_path(), random_bytes(size)
    assert cluster.admin.put(path, body).status == 201
    return path, body


def replicas(cluster: RunningCluster, path: str) -> list[tuple[int, str]]:
    return sorted((row["shard_id"], row["state"]) for row in cluster.sql(REPLICAS_SQL, path))


def lose(cluster: RunningCluster, path: str, count: int = 1) -> list[Any]:
    """Remove the files of some of the blob's replicas and have a reader notice it."""
    rows = cluster.sql(REPLICAS_SQL, path)[:count]
    for row in rows:
        for file in cluster.files():
            if file.name.endswith(str(row["generation"])):
                file.unlink()
        cluster.sql("SELECT suspect_replica($1, $2)", row["shard_id"], row["generation"])
    return rows


def live(cluster: RunningCluster, path: str) -> list[int]:
    return [shard for shard, state in replicas(cluster, path) if state == "live"]


def queued(cluster: RunningCluster, *paths: str) -> bool:
    """Say whether any of these waits for a repair; other tests leave blobs behind that wait for ever."""
    return bool(cluster.sql(QUEUED_SQL, list(paths)))


def test_lost_copies_are_made_again_where_the_ring_wants_them(three: RunningCluster) -> None:
    with three.settings(**QUICK):
        bodies = dict(put(three, size) for size in (1, 5_000, 1 << 20, 3_500_000))
        before = {path: live(three, path) for path in bodies}
        for path in bodies:
            lose(three, path)
        wait_until(lambda: not queued(three, *bodies))
        for path, body in bodies.items():
            assert live(three, path) == before[path]
            assert three.admin.get(path).body == body


def test_blob_without_a_good_copy_stays_queued_until_one_is_uploaded_again(three: RunningCluster) -> None:
    with three.settings(**QUICK):
        path, body = put(three, 4_000)
        lose(three, path, 2)
        wait_until(lambda: three.sql(f"{QUEUED_SQL} AND q.urgency = 99 AND q.attempts > 1", [path]))
        assert three.admin.get(path).status == 503
        assert three.admin.put(path, body).status == 201
        wait_until(lambda: not queued(three, path))
        assert len(live(three, path)) == 2
        assert three.admin.get(path).body == body


def test_requested_run_shows_in_the_jobs(three: RunningCluster) -> None:
    base = "/artifactory/api/holdfast/jobs"
    wait_until(lambda: len([j for j in three.admin.get(base).json()["jobs"] if j["job"] == "repair"]) == 3)
    answer = three.admin.post_json(f"{base}/repair/run", {"node": None})
    assert answer.status == 202
    asked = {one["node"]: one["requested_at"] for one in answer.json()["nodes"]}
    assert sorted(asked) == ["node-1", "node-2", "node-3"]

    def answered() -> bool:
        rows = [row for row in three.admin.get(base).json()["jobs"] if row["job"] == "repair"]
        return all((row["answered_at"] or "") >= asked[row["node"]] for row in rows)

    started = time.monotonic()
    wait_until(answered)
    assert time.monotonic() - started < 5
    assert three.admin.post_json(f"{base}/no-such/run", {}).status == 404
    assert three.admin.post_json(f"{base}/repair/run", {"node": "nobody"}).status == 404
    assert three.admin.post_json(f"{base}/repair/run", {"nodes": 1}).status == 400
    assert three.with_token("read").get(base).status == 403
    assert three.first.metric("holdfast_job_step_duration_seconds_count", job="repair") > 0
    assert three.first.metric("holdfast_job_last_run_age_seconds", job="repair") < 60
