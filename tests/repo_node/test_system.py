"""Health, version, and Holdfast's own surface: status, settings, tokens."""

from __future__ import annotations

import re
import time
from urllib.parse import quote

import pytest

from repo_node.settings import Settings
from tests.repo_node.nodes import RunningCluster, errors_of, new_path, wait_until

SYSTEM = "/artifactory/api/v1/system"
HOLDFAST = "/artifactory/api/holdfast"


def test_s13_health_needs_no_credentials_and_tells_nothing(one: RunningCluster) -> None:
    client = one.first.client()
    for path in ("/artifactory/api/system/ping", f"{SYSTEM}/liveness", f"{SYSTEM}/readiness"):
        answer = client.get(path)
        assert (answer.status, answer.body) == (200, b"OK")
        assert client.head(path).status == 200


def test_the_version_keeps_jfrogs_clients_from_multipart_uploads(one: RunningCluster) -> None:
    document = one.first.client().get("/artifactory/api/system/version").json()
    assert tuple(map(int, document["version"].split("."))) < (7, 82, 2)
    assert document["addons"] == [] and document["revision"] and document["license"]


def test_s13_every_answer_says_holdfast_and_nothing_of_what_it_is_made_of(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(path, b"x")
    answers = [
        one.admin.get(path),
        one.admin.get(new_path()),
        one.first.client().get("/"),
        one.admin.get("/nowhere"),
        one.admin.request("PATCH", path),
        one.admin.get(f"{path}%00"),
        one.with_token("metrics").get("/metrics"),
    ]
    for answer in answers:
        assert answer.headers["Server"] == "Holdfast"
        assert not re.search(r"aiohttp|python/", str(answer.headers), re.IGNORECASE)
    for answer in answers[1:6]:
        assert not re.search(rb"aiohttp|python|traceback", answer.body, re.IGNORECASE)


def test_status_shows_nodes_shards_and_counts(three: RunningCluster) -> None:
    assert three.admin.put(new_path(), b"counted").status == 201
    document = three.admin.get(f"{HOLDFAST}/status").json()
    named = {"cluster_id", "nodes", "shards", "blobs", "repair_queue", "primary", "deletion_holds"}
    assert set(document) == named | {"schema_version", "read_only_reason", "partition_suspicions"}
    assert (document["read_only_reason"], document["partition_suspicions"]) == ("", [])
    assert document["primary"] in {"node-1", "node-2", "node-3"}
    assert document["deletion_holds"] == []
    assert [(node["id"], node["zone"], node["up"]) for node in document["nodes"]] == [
        (f"node-{n}", f"zone-{n}", True) for n in (1, 2, 3)
    ]
    for node, running in zip(document["nodes"], three.nodes, strict=True):
        assert node["url"] == f"http://127.0.0.1:{running.port}"
        assert set(node) == {"id", "zone", "url", "up", "leaving", "version", "schema_version", "heartbeat_age_seconds"}
        assert 0 <= node["heartbeat_age_seconds"] < 10
    assert len(document["shards"]) == 6
    for shard in document["shards"]:
        assert set(shard) == {
            "id", "uid", "node", "zone", "path", "state", "up", "writable", "trouble", "weight",
            "capacity_bytes", "free_bytes", "replicas",
        }  # fmt: skip
        assert (shard["state"], shard["up"], shard["writable"]) == ("active", True, True)
        assert shard["capacity_bytes"] > shard["free_bytes"] > 0
    assert set(document["blobs"]) == {"count", "bytes", "missing_copies", "short", "unreferenced"}
    assert document["blobs"]["count"] > 0
    assert sum(shard["replicas"] for shard in document["shards"]) >= 2


# ---------------------------------------------------------------------- settings


def test_settings_are_listed_with_their_defaults(one: RunningCluster) -> None:
    found = {setting["key"]: setting for setting in one.admin.get(f"{HOLDFAST}/settings").json()["settings"]}
    assert list(found) == sorted(Settings.model_fields)
    assert set(found["redundancy"]) == {"key", "value", "default", "is_set", "description", "warning"}
    assert found["ranges_max"] == one.admin.get(f"{HOLDFAST}/settings/ranges_max").json()
    assert all(setting["description"] for setting in found.values())


def test_a_setting_holds_on_every_node_within_a_second(three: RunningCluster) -> None:
    answer = three.nodes[0].admin.put_json(f"{HOLDFAST}/settings/ranges_max", {"value": 3})
    began = time.monotonic()
    assert answer.status == 200
    assert (answer.json()["value"], answer.json()["default"], answer.json()["is_set"]) == (3, 16, True)
    wait_until(lambda: all(node.holds({"ranges_max": 3}) for node in three.nodes), 5)
    assert time.monotonic() - began < 5
    three.set({"ranges_max": 16})


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("redundancy", 0, "redundancy"),
        ("redundancy", "2", "redundancy"),
        ("redundancy", True, "redundancy"),
        ("redundancy", None, "redundancy"),
        ("redundancy", 2.0, "redundancy"),
        ("write_quorum", 16, "write_quorum cannot be above redundancy"),
        ("node_down_seconds", 0.5, "at least twice heartbeat_seconds"),
        ("read_hedge_seconds", float("nan"), "read_hedge_seconds"),
        ("ranges_max", {"a": 1}, "ranges_max"),
    ],
)
def test_a_bad_value_is_400_with_a_sentence_and_changes_nothing(
    one: RunningCluster, key: str, value: object, part: str
) -> None:
    before = one.admin.get(f"{HOLDFAST}/settings/{key}").json()
    status, message = errors_of(one.admin.put_json(f"{HOLDFAST}/settings/{key}", {"value": value}))
    assert status == 400 and part in message
    assert one.admin.get(f"{HOLDFAST}/settings/{key}").json() == before


def test_a_risky_value_is_taken_with_a_warning_and_reset(one: RunningCluster) -> None:
    answer = one.admin.put_json(f"{HOLDFAST}/settings/removal_delay_seconds", {"value": 0}).json()
    assert answer["value"] == 0 and "removal_delay_seconds below 3600" in answer["warning"]
    answer = one.admin.delete(f"{HOLDFAST}/settings/removal_delay_seconds").json()
    assert (answer["value"], answer["is_set"], answer["warning"]) == (86_400, False, None)
    assert one.admin.delete(f"{HOLDFAST}/settings/removal_delay_seconds").status == 200, "again, to the same effect"
    assert one.admin.delete(f"{HOLDFAST}/settings/nonsense").status == 404
    assert one.with_token("read", "write", "delete").delete(f"{HOLDFAST}/settings/ranges_max").status == 403


def test_an_unknown_setting_is_404(one: RunningCluster) -> None:
    assert one.admin.get(f"{HOLDFAST}/settings/nonsense").status == 404
    assert one.admin.put_json(f"{HOLDFAST}/settings/nonsense", {"value": 1}).status == 400


@pytest.mark.parametrize("body", [{}, {"value": 3, "more": 1}, {"Value": 3}])
def test_a_body_without_just_a_value_is_400(one: RunningCluster, body: dict[str, int]) -> None:
    assert one.admin.put_json(f"{HOLDFAST}/settings/ranges_max", body).status == 400


def test_a_setting_of_a_newer_release_is_no_hindrance(one: RunningCluster) -> None:
    one.sql("INSERT INTO settings (key, value, updated_by) VALUES ('of_a_newer_release', '1', 'test')")
    try:
        with one.settings(ranges_max=7):
            assert one.admin.get(f"{HOLDFAST}/settings/ranges_max").json()["value"] == 7
    finally:
        one.sql("DELETE FROM settings WHERE key = 'of_a_newer_release'")


def test_redundancy_and_quorum_are_live(three: RunningCluster) -> None:
    with three.settings(redundancy=3, write_quorum=3):
        path = new_path()
        assert three.admin.put(path, path.encode()).status == 201
        digest = three.admin.head(path).headers["X-Checksum-Sha256"]
        files = [found for found in three.files() if found.name.startswith(digest)]
        assert len({found.parents[3] for found in files}) == 3
    path = new_path()
    assert three.admin.put(path, path.encode()).status == 201
    digest = three.admin.head(path).headers["X-Checksum-Sha256"]
    assert sum(found.name.startswith(digest) for found in three.files()) == 2


# ---------------------------------------------------------------------- tokens


def test_s32_a_token_is_shown_once_listed_without_its_secret_and_revoked(one: RunningCluster) -> None:
    body = {"description": "ci", "scopes": ["write", "read"], "expires_in_seconds": 3600}
    answer = one.admin.post_json(f"{HOLDFAST}/tokens", body)
    assert answer.status == 201
    assert answer.headers["Cache-Control"] == "no-store"
    made = answer.json()
    assert set(made) == {"id", "token", "scopes", "expires_in_seconds"}
    assert (made["scopes"], made["expires_in_seconds"]) == (["read", "write"], 3600)
    listing = one.admin.get(f"{HOLDFAST}/tokens")
    assert made["token"].encode() not in listing.body
    found = {token["id"]: token for token in listing.json()["tokens"]}[made["id"]]
    assert set(found) == {"id", "user", "ending", "description", "scopes", "created_at", "expires_at"}
    assert (found["user"], found["description"], found["ending"]) == ("admin", "ci", made["token"][-4:])
    client = one.first.client(f"Bearer {made['token']}")
    assert client.get("/artifactory/api/repositories").status == 200
    assert one.admin.delete(f"{HOLDFAST}/tokens/{made['id']}").status == 204
    assert client.get("/artifactory/api/repositories").status == 401
    assert one.admin.delete(f"{HOLDFAST}/tokens/{made['id']}").status == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"scopes": []},
        {"scopes": ["root"]},
        {"scopes": ["public"]},
        {"scopes": "read"},
        {"scopes": ["read"], "admin": True},
        {"scopes": ["read"], "expires_in_seconds": 0},
        {"scopes": ["read"], "expires_in_seconds": "60"},
        {"scopes": ["read"], "description": "x" * 501},
        {"scopes": ["read"], "description": "\0"},
    ],
)
def test_a_token_that_cannot_be_made_is_400(one: RunningCluster, body: dict[str, object]) -> None:
    assert one.admin.post_json(f"{HOLDFAST}/tokens", body).status == 400


@pytest.mark.parametrize("identity", ["0", "999999999", "9" * 30, "abc", "-1", "\u0663"])
def test_revoking_what_is_no_token_is_404(one: RunningCluster, identity: str) -> None:
    assert one.admin.delete(f"{HOLDFAST}/tokens/{quote(identity)}").status == 404
