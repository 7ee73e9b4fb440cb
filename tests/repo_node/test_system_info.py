"""What clients ask of the system: tasks, licences, and all that peimanja/artifactory_exporter asks for."""

from __future__ import annotations

import json
import re
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

from repo_node.api.public import public_app
from repo_node.api.tasks import DESCRIPTIONS, STATES, task_document
from repo_node.auth.permissions import Permission
from repo_node.db.jobs import JobRow
from repo_node.web.routes import DECLARED
from sharding.maintenance.job import JobState
from sharding.model import NodeId
from tests.repo_node.nodes import RunningCluster, wait_until

API = "/artifactory/api"
ADMIN_ONLY = [
    "tasks", "system", "system/info", "system/service_id", "system/license", "system/licenses",
    "system/security/certificates", "replications", "storageinfo", "system/support/bundles",
]  # fmt: skip
OPEN = {f"{API}/{path}" for path in ("system/ping", "system/version", "v1/system/liveness", "v1/system/readiness")}


def test_tasks_are_the_jobs_of_all_nodes_in_artifactorys_document(three: RunningCluster) -> None:
    wait_until(lambda: len({row["nodeId"] for row in three.admin.get(f"{API}/tasks").json()["tasks"]}) == 3)
    answer = three.nodes[1].admin.get(f"{API}/tasks")
    tasks = answer.json()["tasks"]
    assert answer.headers["X-Artifactory-Node-Id"] == "node-2"
    assert all(set(task) == {"id", "type", "state", "description", "nodeId"} for task in tasks)
    assert len({task["id"] for task in tasks}) == len(tasks)
    assert {task["state"] for task in tasks} <= {"running", "scheduled", "stopped"}
    for node in ("node-1", "node-2", "node-3"):
        wait_until(lambda node=node: {"repair", "scrub", "gc", "storageinfo"} <= types_of(three, node))  # type: ignore[misc]
    assert {task["type"] for task in tasks} <= set(DESCRIPTIONS), "every job has a description"


def types_of(cluster: RunningCluster, node: str) -> set[str]:
    tasks = cluster.admin.get(f"{API}/tasks").json()["tasks"]
    return {task["type"] for task in tasks if task["nodeId"] == node}


@pytest.mark.parametrize("state", JobState)
def test_a_task_says_what_its_job_does_and_nothing_runs_on_a_node_that_is_down(state: JobState) -> None:
    row = JobRow(NodeId("n"), True, "gc", state, 0, None, 0, None, "disk on fire", None, None, None, None, None)
    task = task_document(row)
    assert (task["id"], task["type"], task["state"], task["nodeId"]) == ("gc@n", "gc", STATES[state], "n")
    assert ("disk on fire" in task["description"]) is (state is JobState.FAILED)
    down = JobRow(NodeId("n"), False, "gc", state, 0, None, 0, None, None, None, None, None, None, None)
    assert task_document(down)["state"] == "stopped"


def test_a_cluster_says_who_it_is_and_that_it_needs_no_licence(three: RunningCluster) -> None:
    [row] = three.sql("SELECT cluster_id FROM cluster")
    assert three.admin.get(f"{API}/system/service_id").body == f"jfrt@{row['cluster_id'].hex}".encode()
    licence = three.admin.get(f"{API}/system/license").json()
    assert set(licence) == {"type", "validThrough", "licensedTo"}
    licences = three.admin.get(f"{API}/system/licenses").json()["licenses"]
    assert [one["nodeId"] for one in licences] == ["node-1", "node-2", "node-3"]
    assert all(one["type"] == licence["type"] and one["expired"] is False for one in licences)


def test_the_system_tells_facts_of_the_node_that_is_asked(three: RunningCluster) -> None:
    facts = three.nodes[2].admin.get(f"{API}/system/info").json()
    assert (facts["node"], facts["nodes"], facts["nodes_up"], facts["shards"]) == ("node-3", 3, 3, 6)
    text = three.nodes[2].admin.get(f"{API}/system")
    assert text.headers["Content-Type"].startswith("text/plain")
    assert all(name.encode() in text.body for name in facts)


def test_use_is_taken_from_whoever_has_an_account(one: RunningCluster) -> None:
    body = {"productId": "jfrog-cli-go/2.78.0", "features": [{"featureId": "rt_upload"}]}
    assert one.admin.post_json(f"{API}/system/usage", body).status == 200
    assert one.first.client().post_json(f"{API}/system/usage", body).status == 401


def test_what_the_prometheus_exporter_asks_for_is_answered_or_said_not_to_be_there(one: RunningCluster) -> None:
    """Each request of its source, judged as it judges: any 2xx, or an error document of JSON."""
    wait_until(lambda: one.admin.get(f"{API}/storageinfo").status == 200)
    assert one.admin.get(f"{API}/system/ping").body == b"OK"
    for path, kind in (
        ("system/version", dict), ("system/license", dict), ("system/licenses", dict), ("storageinfo", dict),
        ("security/users", list), ("security/groups", list), ("system/security/certificates", list),
        ("replications", list), ("tasks", dict),
    ):  # fmt: skip
        answer = one.admin.get(f"{API}/{path}")
        assert answer.status == 200 and isinstance(answer.json(), kind), path
    for path in ("federation/status/mirrorsLag", "federation/status/unavailableMirrors"):
        answer = one.admin.get(f"{API}/{path}")
        assert answer.status == 404 and answer.json()["errors"], path
    validation = one.admin.post_json("/access/api/v1/system/federation/validate_server", {"url": "http://x"})
    assert validation.status == 404 and validation.json()["errors"]
    metrics = one.with_token("metrics").get(f"{API}/v1/metrics")
    assert metrics.status == 200 and b"holdfast_build_info" in metrics.body
    assert b"process_" not in metrics.body, "it would collide with the exporter's own"
    query = b'items.find({"created":{"$last":"1minutes"}}).include("name","repo")'
    assert one.admin.request("POST", f"{API}/search/aql", query).status == 200


@pytest.mark.parametrize("path", ADMIN_ONLY)
def test_only_administrators_hear_of_the_system(one: RunningCluster, path: str) -> None:
    assert one.first.client().get(f"{API}/{path}").status == 401
    assert one.with_token("read", "write", "metrics").get(f"{API}/{path}").status == 403


def test_s13_what_needs_no_credentials_tells_nothing_of_the_inside(
    three: RunningCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Health, readiness, ping, version, and every refusal: no environment, no DSN, no path, no name, no address."""
    monkeypatch.setenv("HOLDFAST_CANARY", "environment-canary-91c7")
    node, client = three.nodes[1], three.nodes[1].client()
    [cluster] = three.sql("SELECT cluster_id FROM cluster")
    inside = {
        "environment-canary-91c7", node.config.database.dsn, urlsplit(node.config.database.dsn).netloc,
        node.config.cluster_key.hex(), str(node.config.internal.listen), node.config.node.zone, node.config.node.id,
        str(cluster["cluster_id"]), cluster["cluster_id"].hex, *map(str, node.disks),
    } - {""}  # fmt: skip
    declared = public_app(cast(Any, None), cast(Any, None))[DECLARED]
    assert {one.template for one in declared.values() if one.permission is Permission.PUBLIC} >= OPEN
    for method, path, permission in ((route.method, one.template, one.permission) for route, one in declared.items()):
        answer = client.request(
            method, re.sub(r"\{[^}]*\}", "some", path), b"{}" if method in ("PUT", "POST") else None
        )
        # Of those that need no credentials some take them from the body.
        expected = {200, 400, 401, 404} if permission is Permission.PUBLIC else {401}
        assert answer.status in expected, (method, path)
        told = json.dumps(dict(answer.headers.items())) + answer.body.decode()
        assert not [one for one in inside if one in told], (method, path)
