"""/metrics: who may read it, that it is well formed, and that clients cannot make it grow."""

from __future__ import annotations

import re
import secrets
import subprocess
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from repo_node import __version__
from repo_node.db.migrate import version_needed
from repo_node.metrics import Metrics
from tests.postgres import TestServer
from tests.repo_node.http import Client
from tests.repo_node.nodes import (
    LOOPBACK,
    RunningCluster,
    RunningNode,
    configure,
    free_address,
    new_path,
    prepare,
    run_nodes,
    wait_until,
)
from tests.tools import require_tool

UNITS = ("_total", "_bytes", "_seconds", "_connections", "_members", "_zones", "_state", "_info", "_ready", "_up")
OTHERS = {
    "holdfast_http_requests_in_flight",
    "holdfast_uploads_in_flight",
    "holdfast_upload_commit_group_uploads",
    "holdfast_shard_writable",
    "holdfast_quarantine_replicas",
    "holdfast_primary_held",
    "holdfast_primary_epoch",
    "holdfast_deletions_held",
    "holdfast_removal_backlog_files",
    "holdfast_gc_candidates",
    "holdfast_repair_backlog_blobs",
    "holdfast_repair_backlog_unreferenced_blobs",
}


@pytest.fixture(scope="module")
def open_metrics(postgres: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A node with a listener for metrics alone."""
    with postgres.database(postgres.template()) as dsn:
        prepare(dsn)
        config = configure(dsn, tmp_path_factory.mktemp("metrics"), http={"metrics_listen": free_address()})
        with run_nodes([config]) as cluster:
            yield cluster


def metrics_client(node: RunningNode) -> Client:
    assert node.config.http.metrics_listen is not None
    return Client(LOOPBACK, node.config.http.metrics_listen.port)


def scrape(node: RunningNode) -> str:
    answer = metrics_client(node).get("/metrics")
    assert answer.status == 200
    return answer.body.decode()


def series(text: str) -> set[str]:
    return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


def test_the_public_listener_wants_the_metrics_scope(one: RunningCluster) -> None:
    assert one.first.client().get("/metrics").status == 401
    assert one.with_token("read", "write", "delete").get("/metrics").status == 403
    for client in (one.with_token("metrics"), one.with_token("admin"), one.admin):
        answer = client.get("/metrics")
        assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/plain")


def test_a_listener_of_its_own_wants_nothing_and_has_nothing_else(open_metrics: RunningCluster) -> None:
    client = metrics_client(open_metrics.first)
    assert client.get("/metrics").status == 200
    for path in ("/", "/artifactory/generic-local/a", "/artifactory/api/system/ping"):
        assert client.get(path).status == 404
    assert client.request("POST", "/metrics").status == 405
    assert "aiohttp" not in str(client.get("/metrics").headers)


def test_names_types_and_help_follow_the_conventions(open_metrics: RunningCluster) -> None:
    open_metrics.admin.put(new_path(), b"x")
    families = text_string_to_metric_families(scrape(open_metrics.first))
    own = [family for family in families if family.name.startswith("holdfast")]
    assert len(own) > 25
    for family in own:
        name = family.name + ("_total" if family.type == "counter" else "_info" if family.type == "info" else "")
        assert re.fullmatch(r"holdfast(_[a-z]+)+", name)
        assert name.endswith(UNITS) or name in OTHERS, name
        assert family.documentation
        assert family.type != "untyped", name


def test_promtool_finds_nothing_wrong(open_metrics: RunningCluster) -> None:
    promtool = require_tool("promtool", "it checks the metrics as Prometheus does")
    found = subprocess.run(
        [promtool, "check", "metrics"], input=scrape(open_metrics.first).encode(), capture_output=True, timeout=30
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_clients_cannot_make_new_series(open_metrics: RunningCluster) -> None:
    admin, first = open_metrics.admin, open_metrics.first
    path = new_path()
    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "BREW"):
        admin.request(method, path)
        admin.request(method, "/nowhere")
        first.client().request(method, path)
        first.client().request(method, "/nowhere")
    admin.get(f"{path}/../x")
    first.client("Bearer wrong").get(path)
    before = series(scrape(first))
    names = [secrets.token_hex(8) for _ in range(100)]
    for name in names:
        for target in (f"/{name}", f"/artifactory/{name}/{name}", f"/artifactory/generic-local/{name};{name}=1"):
            admin.get(target, X_Request_Id=name, User_Agent=name, Host=f"{name}.example")
        admin.request(name[:4].upper() or "X", f"/{name}")
        first.client(f"Bearer {name}").get(f"/artifactory/{name}")
    grown = series(scrape(first)) - before
    # The first run of a job makes series of its own, a few; what clients make up would make one for each at least.
    assert len(grown) < len(names), grown
    assert not [one for one in grown if any(name in one for name in names)], grown


def test_what_happens_is_counted(open_metrics: RunningCluster) -> None:
    node, admin, body = open_metrics.first, open_metrics.admin, bytes(2_000_000)
    route = "/artifactory/{item}"

    def counted() -> dict[str, float]:
        return {
            "puts": node.metric("holdfast_http_requests_total", method="PUT", route=route, status="201"),
            "gets": node.metric("holdfast_http_requests_total", method="GET", route=route, status="200"),
            "absent": node.metric("holdfast_http_requests_total", method="GET", route=route, status="404"),
            "timed": node.metric("holdfast_http_request_duration_seconds_count", method="GET", route=route),
            "received": node.metric("holdfast_http_received_bytes_total"),
            "sent": node.metric("holdfast_http_sent_bytes_total"),
            "refused": node.metric("holdfast_auth_failures_total", reason="no_credentials"),
            "adopted": node.metric("holdfast_uploads_total", outcome="adopted"),
            "stages": sum(
                node.metric("holdfast_upload_stage_duration_seconds_count", stage=stage)
                for stage in ("receive", "store", "commit")
            ),
            "writes": node.metric("holdfast_shard_operation_duration_seconds_count", shard="1", operation="commit"),
            "commits": node.metric("holdfast_database_query_duration_seconds_count", query="upload_commit"),
        }

    before, path = counted(), new_path()
    admin.put(path, body + path.encode())
    admin.get(path)
    admin.get(path, Range="bytes=0-9")
    admin.get(f"{path}.absent")
    node.client().get(path)
    after = counted()
    size = len(body) + len(path)
    assert {name: after[name] - before[name] for name in after} == {
        "puts": 1,
        "gets": 1,
        "absent": 1,
        "timed": 4,
        "received": size,
        "sent": size + 10,
        "refused": 1,
        "adopted": 1,
        "stages": 3,
        "writes": 1,
        "commits": 1,
    }


def test_gauges_show_the_node_its_shards_and_its_ring(three: RunningCluster) -> None:
    three.with_token("metrics").get("/metrics")
    first = three.first
    assert first.metric("holdfast_node_ready") == 1
    assert first.metric("holdfast_ring_members") == 6
    assert first.metric("holdfast_ring_zones") == 3
    for number, running in enumerate(three.nodes, 1):
        labels = {"node": running.config.node.id, "zone": f"zone-{number}"}
        assert first.metric("holdfast_node_up", **labels) == 1
    for shard in first.node.cluster().shards.values():
        identity = str(shard.id)
        labels = {"shard": identity, "node": shard.member.node, "zone": shard.member.zone}
        assert first.metric("holdfast_shard_free_bytes", **labels) > 0
        assert first.metric("holdfast_shard_used_bytes", **labels) > 0
        assert first.metric("holdfast_shard_writable", shard=identity) == 1
        assert first.metric("holdfast_shard_state", shard=identity, state="active") == 1
        assert first.metric("holdfast_shard_state", shard=identity, state="lost") == 0
    assert first.metric("holdfast_database_pool_connections", state="idle") >= 1
    assert first.metric("holdfast_event_loop_lag_seconds_count") > 0


def test_two_nodes_in_one_process_do_not_share_their_metrics() -> None:
    one, two = Metrics(), Metrics()
    one.short_writes.inc()
    assert two.registry.get_sample_value("holdfast_replicas_written_short_total") == 0


def test_metrics_tell_the_primary_and_the_release_and_schema_of_each_node(three: RunningCluster) -> None:
    def value(name: str, **labels: str) -> float:
        return three.first.metric(name, **labels)

    def holder() -> list[str]:
        three.admin.get("/metrics")
        return [
            node.id
            for node in three.first.node.cluster().nodes.values()
            if value("holdfast_primary_holder_info", node=node.id)
        ]

    wait_until(lambda: len(holder()) == 1)
    assert holder() == [row["holder"] for row in three.sql("SELECT holder FROM lease")]
    assert value("holdfast_primary_epoch") > 0
    schema = str(version_needed())
    for number in (1, 2, 3):
        labels = {"node": f"node-{number}", "version": __version__, "schema": schema}
        assert value("holdfast_node_release_info", **labels) == 1
        assert value("holdfast_node_leaving_state", node=f"node-{number}") == 0
    assert value("holdfast_database_schema_info", schema=schema) == 1
    assert value("holdfast_read_only_state") == 0
