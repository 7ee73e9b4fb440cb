"""Support bundles: what all nodes report, as one archive that any node gives, and none of the cluster's secrets."""

from __future__ import annotations

import io
import json
import logging
import math
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from repo_node import logs
from repo_node.log_memory import LogMemory
from tests.canaries import WATCH
from tests.postgres import TestServer
from tests.repo_node.http import Client
from tests.repo_node.nodes import (
    CLUSTER_KEY,
    PASSWORD,
    RunningCluster,
    configure,
    prepare,
    query,
    run_nodes,
    wait_until,
)

BASE = "/artifactory/api/system/support"
DSN_PASSWORD = "dsn-canary-7be1"
PROXY_PASSWORD = "url-canary-22aa"


@pytest.fixture
def remembered() -> Iterator[logs.GatheringHandler]:
    """A handler of the log that remembers, as ``logs.configure`` makes one."""
    handler = logs.GatheringHandler(io.StringIO(), LogMemory(1 << 20))
    handler.setFormatter(logs.TextFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def ordered(client: Client, **document: Any) -> str:
    answer = client.post_json(f"{BASE}/bundle", document)
    assert answer.status == 201, answer
    assert answer.json()["status"] in ("in progress", "success")
    identity: str = answer.json()["id"]
    return identity


def state_of(client: Client, bundle: str) -> str:
    state: str = client.get(f"{BASE}/bundle/{bundle}").json()["status"]
    return state


def made(client: Client, **document: Any) -> str:
    """Order a bundle, and return its id when it is ready."""
    bundle = ordered(client, **document)
    wait_until(lambda: state_of(client, bundle) != "in progress")
    assert state_of(client, bundle) == "success", client.get(f"{BASE}/bundle/{bundle}").json()
    return bundle


def files_of(client: Client, bundle: str) -> dict[str, str]:
    answer = client.get(f"{BASE}/bundle/{bundle}/archive")
    assert answer.status == 200 and answer.headers["Content-Type"] == "application/zip", answer
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_a_bundle_holds_what_all_nodes_report_and_any_node_gives_it(
    three: RunningCluster, remembered: logs.GatheringHandler
) -> None:
    logging.getLogger("holdfast").warning("a line for the bundle", extra={"facts": {"cause": "a test"}})
    bundle = made(three.nodes[0].admin, name="first", description="why")
    files = files_of(three.nodes[2].admin, bundle)
    about = json.loads(files["bundle.json"])
    assert (about["id"], about["name"], about["description"], about["made_by"]) == (bundle, "first", "why", "node-1")
    assert about["nodes"] == {"node-1": "reported", "node-2": "reported", "node-3": "reported"}
    for node in ("node-1", "node-2", "node-3"):
        part = f"nodes/{node}"
        assert json.loads(files[f"{part}/configuration.json"])["node"] == {
            "id": node, "zone": f"zone-{node[-1]}", "cluster_key_file": "(hidden)", "accepted_key_files": "(hidden)", "workers": 1,
        }  # fmt: skip
        assert json.loads(files[f"{part}/system.json"])["ready"] is True
        assert "holdfast_build_info" in files[f"{part}/metrics.txt"]
        assert "a line for the bundle cause=a test" in files[f"{part}/process-0/log.txt"]
        assert "thread MainThread" in files[f"{part}/process-0/stacks-1.txt"]
        assert "membership.py" in files[f"{part}/process-0/stacks-1.txt"]
    assert {row["node_id"] for row in json.loads(files["cluster/shards.json"])} == {"node-1", "node-2", "node-3"}
    assert {row["job"] for row in json.loads(files["cluster/jobs.json"])} >= {"repair", "gc"}
    assert "login_failures_max" in json.loads(files["cluster/settings.json"])
    assert json.loads(files["cluster/migrations.json"])[0]["version"] == 1
    assert {row["name"] for row in json.loads(files["postgres/tables.json"])} >= {"artifacts", "blobs", "replicas"}
    assert {row["application_name"].split()[0] for row in json.loads(files["postgres/activity.json"])} >= {"holdfast"}
    for folder in ("cluster", "postgres"):
        assert not [name for name in files if name.startswith(folder) and '"error":' in files[name]]


def test_parameters_narrow_a_bundle(one: RunningCluster, remembered: logs.GatheringHandler) -> None:
    logging.getLogger("holdfast").warning("of today")
    everything = {f"nodes/node-1/{name}" for name in ("configuration.json", "system.json", "metrics.txt")}
    parameters: dict[str, Any] = {"configuration": False, "system": False, "logs": {"include": False}}
    files = files_of(one.admin, made(one.admin, parameters=parameters | {"thread_dump": {"count": 2, "interval": 10}}))
    assert set(files) == {"bundle.json", *(f"nodes/node-1/process-0/stacks-{n}.txt" for n in (1, 2))}
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    files = files_of(one.admin, made(one.admin, parameters={"logs": {"start_date": tomorrow}}))
    assert files["nodes/node-1/process-0/log.txt"] == ""
    assert set(files) > everything
    today = datetime.now(UTC).date().isoformat()
    files = files_of(one.admin, made(one.admin, parameters={"logs": {"start_date": today, "end_date": tomorrow}}))
    assert "of today" in files["nodes/node-1/process-0/log.txt"]


@pytest.mark.parametrize(
    "document",
    [
        {"name": "x" * 201},
        {"name": 1},
        {"parameters": {"logs": {"start_date": "yesterday"}}},
        {"parameters": {"thread_dump": {"count": 1000}}},
        {"parameters": {"thread_dump": {"interval": -1}}},
        {"parameters": {"configuration": "yes"}},
    ],
)
def test_an_order_that_cannot_be_read_is_400(one: RunningCluster, document: dict[str, Any]) -> None:
    assert one.admin.post_json(f"{BASE}/bundle", document).status == 400


def test_the_last_ones_are_kept_listed_and_deleted(one: RunningCluster) -> None:
    quick = {"parameters": {"configuration": False, "system": False, "logs": {"include": False}}}
    with one.settings(support_bundles_kept=2):
        bundles = [made(one.admin, name=f"number {n}", **quick) for n in range(3)]
        listed = one.admin.get(f"{BASE}/bundles").json()
        assert listed["count"] == 2 and [found["id"] for found in listed["bundles"]] == bundles[:0:-1]
        assert listed["bundles"][0]["name"] == "number 2" and listed["bundles"][0]["bytes"] > 0
        assert listed["bundles"][0]["artifactory"]["bundle_url"].endswith(f"/bundle/{bundles[2]}/archive")
        assert one.sql("SELECT count(DISTINCT bundle_id) AS n FROM support_bundle_parts")[0]["n"] == 2
    assert one.admin.get(f"{BASE}/bundle/{bundles[0]}/archive").status == 404
    assert one.admin.delete(f"{BASE}/bundle/{bundles[1]}").status == 204
    assert one.admin.delete(f"{BASE}/bundle/{bundles[1]}").status == 404
    head = one.admin.head(f"{BASE}/bundle/{bundles[2]}/archive")
    assert (head.status, int(head.headers["Content-Length"])) == (200, listed["bundles"][0]["bytes"])


def test_one_that_is_deleted_while_it_is_made_is_made_no_further(
    one: RunningCluster, remembered: logs.GatheringHandler
) -> None:
    quick = {"configuration": False, "system": False, "logs": {"include": False}}
    bundle = ordered(one.admin, parameters={**quick, "thread_dump": {"count": 3, "interval": 200}})
    assert one.admin.delete(f"{BASE}/bundle/{bundle}").status == 204
    wait_until(lambda: any(f"bundle={bundle}" in line for line in logs.kept_lines(0, math.inf)))
    [told] = [line for line in logs.kept_lines(0, math.inf) if f"bundle={bundle}" in line]
    assert "state=failed cause=it was deleted" in told
    assert one.sql("SELECT count(*) AS n FROM support_bundle_parts WHERE bundle_id = $1", bundle)[0]["n"] == 0


def test_one_is_made_at_a_time_and_one_whose_node_ended_counts_as_failed(one: RunningCluster) -> None:
    one.sql(
        "INSERT INTO support_bundles (id, name, description, node, created_by, gives_up_at)"
        " VALUES ('stuck', '', '', 'node-9', 'admin', clock_timestamp() + interval '1 minute')"
    )
    try:
        assert one.admin.post_json(f"{BASE}/bundle", {}).status == 409
        assert one.admin.get(f"{BASE}/bundle/stuck/archive").status == 409
        one.sql("UPDATE support_bundles SET gives_up_at = clock_timestamp() WHERE id = 'stuck'")
        found = one.admin.get(f"{BASE}/bundle/stuck").json()
        assert found["status"] == "failed" and "node-9" in found["doing"]
        assert one.admin.get(f"{BASE}/bundle/stuck/archive").status == 404
        made(one.admin)
    finally:
        one.admin.delete(f"{BASE}/bundle/stuck")


def test_a_node_that_is_down_or_does_not_answer_is_said_in_the_bundle(one: RunningCluster) -> None:
    one.sql(
        "INSERT INTO nodes (id, zone, url, internal_url, version, incarnation, heartbeat_at)"
        " VALUES ('gone', 'z', 'http://x', 'http://127.0.0.1:9', '1', gen_random_uuid(), now() - interval '1 hour'),"
        "        ('mute', 'z', 'http://x', 'http://127.0.0.1:9', '1', gen_random_uuid(), now() + interval '1 hour')"
    )
    try:
        wait_until(lambda: {"gone", "mute"} <= set(one.first.node.cluster().nodes))
        outcomes = json.loads(files_of(one.admin, made(one.admin))["bundle.json"])["nodes"]
    finally:
        one.sql("DELETE FROM nodes WHERE id IN ('gone', 'mute')")
        wait_until(lambda: set(one.first.node.cluster().nodes) == {"node-1"})
    assert outcomes["node-1"] == "reported"
    assert outcomes["gone"].startswith("down") and outcomes["mute"].startswith("no report")


def test_what_would_make_a_bundle_too_large_is_left_out_and_said(
    one: RunningCluster, remembered: logs.GatheringHandler
) -> None:
    remembered.memory = LogMemory(16 << 20)
    for _ in range(3_000):  # random, so that it is no smaller when it is packed
        remembered.memory.put(datetime.now(UTC).timestamp(), secrets.token_hex(500), is_request=False)
    with one.settings(support_bundle_bytes_max=1 << 20):
        bundle = made(one.admin)
    files = files_of(one.admin, bundle)
    assert json.loads(files["bundle.json"])["nodes"]["node-1"].startswith("left out")
    assert not [name for name in files if name.startswith("nodes/")] and "cluster/shards.json" in files


def test_who_orders_and_deletes_is_noted(one: RunningCluster) -> None:
    bundle = made(one.admin, parameters={"configuration": False, "system": False})
    assert one.admin.delete(f"{BASE}/bundle/{bundle}").status == 204
    found = one.sql("SELECT kind, principal FROM events WHERE detail ->> 'bundle' = $1 ORDER BY id", bundle)
    assert [(row["kind"], row["principal"]) for row in found] == [
        ("support_bundle", "admin"), ("support_bundle_delete", "admin"),
    ]  # fmt: skip


def test_a_bundle_can_be_ordered_while_the_cluster_is_read_only(one: RunningCluster) -> None:
    with one.settings(read_only_reason="work on the database"):
        bundle = made(one.admin)
        assert "work on the database" in files_of(one.admin, bundle)["cluster/settings.json"]
        assert one.admin.delete(f"{BASE}/bundle/{bundle}").status == 204


def test_s33_no_secret_gets_into_a_bundle(
    postgres: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remembered: logs.GatheringHandler
) -> None:
    """Secrets planted wherever a node has them, and in its log as a careless line would have them."""
    monkeypatch.setenv("HOLDFAST_TOKEN", "environment-canary-50d3")
    with postgres.database(postgres.template()) as dsn:
        prepare(dsn)
        http = {"public_url": f"http://u:{PROXY_PASSWORD}@x"}
        with role(dsn) as own_dsn, run_nodes([configure(own_dsn, tmp_path, http=http)]) as cluster:
            config = cluster.first.config
            token = cluster.token("admin")
            cluster.sql(
                "INSERT INTO settings (key, value, updated_by) VALUES ('later_secret', '\"setting-canary-9\"', 'x')"
            )
            careless = logging.getLogger("holdfast")
            careless.error("cannot connect to %s", config.database.dsn)
            careless.error("key %s, Authorization: Bearer %s", CLUSTER_KEY.hex(), token)
            careless.error("GET /x?token=%s as admin:%s", token, "query")
            careless.error("Authorization: %s", cluster.admin.authorization)
            assert len(WATCH.take()) >= 4, "these lines are meant to show secrets, and nothing else is"
            session = cluster.on_loop(idle_session(own_dsn, "SELECT 'statement-canary-31'"))
            cluster.admin.get(f"/artifactory/generic-local/a?access_token={token}")
            files = files_of(cluster.admin, made(cluster.admin))
            cluster.on_loop(session.close())
    assert "(not one of Holdfast's)" in files["postgres/activity.json"]
    whole = "\n".join(files.values())
    assert "cannot connect to" in whole, "the lines are there, without their secrets"
    basic = str(cluster.admin.authorization).partition(" ")[2]
    for secret in (
        DSN_PASSWORD, PROXY_PASSWORD, CLUSTER_KEY.hex(), token, PASSWORD, basic, "environment-canary-50d3",
        "setting-canary-9", "statement-canary-31",
    ):  # fmt: skip
        assert secret not in whole, secret


async def idle_session(dsn: str, statement: str) -> asyncpg.Connection:
    """Return a session whose last statement Postgres shows to whoever asks."""
    connection = await asyncpg.connect(dsn, timeout=10)
    await connection.execute(statement)
    return connection


@contextmanager
def role(dsn: str) -> Iterator[str]:
    """Yield a DSN with a user of its own, whose password is ``DSN_PASSWORD``."""
    name, parts = f"canary_{secrets.token_hex(4)}", urlsplit(dsn)
    query(dsn, f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{DSN_PASSWORD}'")
    try:
        host = parts.netloc.rpartition("@")[2]
        yield urlunsplit(parts._replace(netloc=f"{name}:{DSN_PASSWORD}@{host}"))
    finally:
        query(dsn, f"DROP ROLE {name}")
