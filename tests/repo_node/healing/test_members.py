"""Shards and nodes over REST: who may do what, and what is refused with which words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import TestServer
from tests.repo_node.nodes import (
    RunningCluster,
    configure,
    errors_of,
    new_path,
    prepare,
    random_bytes,
    run_nodes,
    wait_until,
)

BASE = "/artifactory/api/holdfast"
QUICK = {"walk_idle_seconds": 0.1, "drain_pass_seconds": 0.2, "repair_idle_seconds": 0.1, "heartbeat_seconds": 0.2}


@pytest.fixture(scope="module")
def pair(postgres: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Two nodes with two shards each, in one zone."""
    directory: Path = tmp_path_factory.mktemp("pair")
    with postgres.database(postgres.template()) as dsn:
        prepare(dsn)
        configs = [configure(dsn, directory, name=f"node-{n}") for n in (1, 2)]
        with run_nodes(configs) as cluster:
            cluster.set(QUICK)
            yield cluster


def states(cluster: RunningCluster) -> dict[int, str]:
    return {row["id"]: row["state"] for row in cluster.admin.get(f"{BASE}/shards").json()["shards"]}


def post(cluster: RunningCluster, path: str) -> tuple[int, object]:
    answer = cluster.admin.post_json(f"{BASE}/{path}", {})
    return answer.status, answer.json()


def test_shard_is_taken_out_of_use_and_back_and_the_store_heeds_it(pair: RunningCluster) -> None:
    assert post(pair, "shards/1/readonly") == (200, {"shard": 1, "outcome": "done"})
    assert post(pair, "shards/1/readonly") == (200, {"shard": 1, "outcome": "unchanged"})
    wait_until(lambda: all(1 not in node.node.view().writable for node in pair.nodes))
    assert states(pair)[1] == "read_only"
    assert post(pair, "shards/1/activate") == (200, {"shard": 1, "outcome": "done"})
    wait_until(lambda: all(1 in node.node.view().writable for node in pair.nodes))


def test_drained_shard_empties_and_is_listed_with_its_walk(pair: RunningCluster) -> None:
    for _ in range(20):
        assert pair.admin.put(new_path(), random_bytes(100)).status == 201
    assert post(pair, "shards/2/drain")[0] == 200
    row = pair.admin.get(f"{BASE}/shards").json()["shards"][1]
    assert (row["id"], row["state"], row["reason"]) == (2, "draining", "by an administrator")
    assert row["walk"]["kind"] == "drain"
    wait_until(lambda: pair.admin.get(f"{BASE}/shards").json()["shards"][1]["replicas"] == 0)
    status, message = errors_of(pair.admin.request("DELETE", f"{BASE}/shards/2"))
    assert status == 409 and "open on a living node" in message and "Nothing was changed" in message
    assert post(pair, "shards/2/activate")[0] == 200


def test_lost_shard_returns_in_doubt(pair: RunningCluster) -> None:
    paths = [new_path() for _ in range(10)]
    for path in paths:
        assert pair.admin.put(path, path.encode()).status == 201
    pair.sql("SELECT set_shard_state(3::smallint, 'lost', 'test', 'test', '')")
    assert errors_of(pair.admin.post_json(f"{BASE}/shards/3/drain", {}))[0] == 409
    wait_until(lambda: not pair.sql("SELECT 1 FROM repair_queue"))
    assert post(pair, "shards/3/activate") == (200, {"shard": 3, "outcome": "returning"})
    wait_until(lambda: states(pair)[3] == "active")
    live = "SELECT count(*) FROM replicas WHERE shard_id = 3 AND state = 'live'"
    assert pair.sql(live)[0][0] == 0
    for path in paths:
        assert pair.admin.get(path).body == path.encode()


def test_nodes_are_listed_drained_and_not_removed_while_they_live(pair: RunningCluster) -> None:
    rows = pair.admin.get(f"{BASE}/nodes").json()["nodes"]
    assert [(row["id"], row["up"], [shard["id"] for shard in row["shards"]]) for row in rows] == [
        ("node-1", True, [1, 2]),
        ("node-2", True, [3, 4]),
    ]
    assert post(pair, "nodes/node-2/drain") == (200, {"node": "node-2", "shards": {"3": "done", "4": "done"}})
    assert {states(pair)[shard] for shard in (3, 4)} == {"draining"}
    assert post(pair, "nodes/node-2/activate")[0] == 200
    assert "is up: stop it first" in errors_of(pair.admin.request("DELETE", f"{BASE}/nodes/node-2"))[1]


def test_last_copies_are_shown_and_given_up_of_a_lost_shard_alone(pair: RunningCluster) -> None:
    assert pair.admin.get(f"{BASE}/shards/1/last-copies").json()["shard"] == 1
    for body in ({}, {"copies": 0}, {"copies": True}, {"copies": "1"}, {"copies": 1, "more": 1}):
        assert pair.admin.post_json(f"{BASE}/shards/1/give-up", body).status == 400
    status, message = errors_of(pair.admin.post_json(f"{BASE}/shards/1/give-up", {"copies": 1}))
    assert status == 409 and "is not lost" in message
    assert errors_of(pair.admin.post_json(f"{BASE}/shards/99/give-up", {"copies": 1}))[0] == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "shards/99/drain"),
        ("POST", "shards/99999/drain"),
        ("POST", "shards/x/drain"),
        ("POST", "shards/1/explode"),
        ("DELETE", "shards/99"),
        ("GET", "shards/99/last-copies"),
        ("POST", "nodes/nobody/drain"),
        ("POST", "nodes/node-1/replace"),
        ("DELETE", "nodes/nobody"),
    ],
)
def test_what_is_not_there_is_not_found(pair: RunningCluster, method: str, path: str) -> None:
    assert errors_of(pair.admin.request(method, f"{BASE}/{path}"))[0] == 404


def test_everything_here_is_for_administrators(pair: RunningCluster) -> None:
    client = pair.with_token("read", "write", "delete")
    for method, path in (("GET", "shards"), ("POST", "shards/1/drain"), ("DELETE", "shards/1"), ("GET", "nodes")):
        assert client.request(method, f"{BASE}/{path}").status == 403


def test_weight_changes_the_ring_everywhere_and_outlives_the_nodes_configuration(pair: RunningCluster) -> None:
    assert pair.admin.put_json(f"{BASE}/shards/1/weight", {"weight": 2}).json() == {"shard": 1, "weight": 2.0}
    wait_until(lambda: all(node.node.view().members[1].weight == 2 for node in pair.nodes))  # type: ignore[index]
    assert pair.sql("SELECT weight, weight_set FROM shards WHERE id = 1") == [(2.0, True)]
    for weight in (0, -1, 1e9, "2", True, None):
        assert pair.admin.put_json(f"{BASE}/shards/1/weight", {"weight": weight}).status == 400
    assert pair.admin.put_json(f"{BASE}/shards/99/weight", {"weight": 1}).status == 404
