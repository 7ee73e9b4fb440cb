"""Repositories: list, read, create, delete."""

from __future__ import annotations

import secrets

import pytest

from tests.repo_node.nodes import RunningCluster, errors_of, wait_until

BASE = "/artifactory/api/repositories"


@pytest.fixture
def key() -> str:
    """The key of a repository that no other test has."""
    return f"r-{secrets.token_hex(4)}"


def test_the_first_repository_is_there_from_the_start(one: RunningCluster) -> None:
    found = one.admin.get(BASE).json()
    assert {
        "key": "generic-local",
        "type": "LOCAL",
        "description": "The first repository",
        "url": f"http://127.0.0.1:{one.first.port}/artifactory/generic-local",
        "packageType": "Generic",
    } in found


def test_a_repository_is_made_read_and_deleted(one: RunningCluster, key: str) -> None:
    body = {"key": key, "rclass": "local", "packageType": "generic", "description": None, "xrayIndex": True}
    answer = one.admin.put_json(f"{BASE}/{key}", body)
    assert (answer.status, answer.body.decode()) == (200, f"Successfully created repository '{key}'\n")
    document = one.admin.get(f"{BASE}/{key}").json()
    assert (document["key"], document["rclass"], document["packageType"]) == (key, "local", "generic")
    assert one.admin.put(f"/artifactory/{key}/a/b", b"x").status == 201
    assert one.admin.delete(f"{BASE}/{key}").status == 200
    assert one.admin.get(f"/artifactory/{key}/a/b").status == 404
    assert one.admin.get(f"{BASE}/{key}").status == 404
    assert one.admin.delete(f"{BASE}/{key}").status == 404
    assert key not in [one["key"] for one in one.admin.get(BASE).json()]


def test_the_list_can_be_narrowed(one: RunningCluster) -> None:
    assert one.admin.get(f"{BASE}?type=local&packageType=generic").json()
    assert one.admin.get(f"{BASE}?type=remote").json() == []
    assert one.admin.get(f"{BASE}?packageType=maven").json() == []


def test_an_empty_body_makes_a_local_generic_repository(one: RunningCluster, key: str) -> None:
    assert one.admin.put(f"{BASE}/{key}").status == 200
    assert one.admin.put(f"{BASE}/{key}").status == 409


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"[" * 100_000, 400),
        (b"9" * 5_000, 400),
        (b'{"key": "another"}', 400),
        (b'{"rclass": "remote"}', 400),
        (b'{"packageType": "maven"}', 400),
        (b'{"redundancy": 0}', 400),
        (b'{"redundancy": "2"}', 400),
        (b'{"description": "\\u0000"}', 400),
        (b'{"description": "\\ud800"}', 400),
        (b'{"description": 5}', 400),
        (b'"' + b"x" * (1 << 20) + b'"', 413),
        (b"\xff\xfe", 400),
    ],
)
def test_a_body_that_says_nothing_sensible_makes_nothing(
    one: RunningCluster, key: str, body: bytes, status: int
) -> None:
    assert errors_of(one.admin.put(f"{BASE}/{key}", body))[0] == status
    assert one.admin.get(f"{BASE}/{key}").status == 404


@pytest.mark.parametrize("bad", ["api", "UI", "-x", ".x", "a%20b", "x" * 65, "caf%C3%A9"])
def test_a_key_that_cannot_be_used_is_400(one: RunningCluster, bad: str) -> None:
    assert one.admin.put(f"{BASE}/{bad}").status == 400


def test_s16_a_compressed_body_is_415(one: RunningCluster, key: str) -> None:
    assert one.admin.put(f"{BASE}/{key}", b"{}", Content_Encoding="gzip").status == 415


def test_only_an_admin_makes_or_deletes_one(one: RunningCluster, key: str) -> None:
    client = one.with_token("read", "write", "delete", "metrics")
    assert client.put(f"{BASE}/{key}").status == 403
    assert client.delete(f"{BASE}/generic-local").status == 403
    assert client.get(f"{BASE}/generic-local").status == 200


def test_a_new_repository_is_known_to_every_node_at_once(three: RunningCluster, key: str) -> None:
    assert three.nodes[0].admin.put_json(f"{BASE}/{key}", {"redundancy": 3}).status == 200
    assert three.nodes[1].admin.put(f"/artifactory/{key}/a", b"three copies").status == 201
    assert three.nodes[2].admin.get(f"/artifactory/{key}/a").body == b"three copies"
    digest = three.nodes[2].admin.head(f"/artifactory/{key}/a").headers["X-Checksum-Sha256"]
    assert sum(found.name.startswith(digest) for found in three.files()) == 3


def test_uploads_to_one_repository_ask_for_it_once_until_it_changes(one: RunningCluster, key: str) -> None:
    def asks() -> bool:
        before = one.first.metric("holdfast_database_query_duration_seconds_count", query="repository_find")
        assert one.admin.put(f"/artifactory/{key}/a", secrets.token_bytes(20)).status == 201
        after = one.first.metric("holdfast_database_query_duration_seconds_count", query="repository_find")
        return after > before

    assert one.admin.put(f"{BASE}/{key}").status == 200
    # Once the announcement of its making has been heard, nothing is asked any more.
    wait_until(lambda: not any(asks() for _ in range(5)))
    one.sql("UPDATE repositories SET description = 'changed' WHERE key = $1", key)
    wait_until(asks, 2)


def test_an_upload_to_a_repository_that_is_gone_or_made_anew_lands_in_neither(
    one: RunningCluster, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    membership = one.first.node._membership
    services = membership._on_repositories.__self__  # type: ignore[attr-defined]
    monkeypatch.setattr(membership, "_on_repositories", lambda: None)  # announcements come late
    assert one.admin.put(f"{BASE}/{key}").status == 200
    assert one.admin.put(f"/artifactory/{key}/a", b"1").status == 201
    stale = dict(services._remembered)
    assert one.admin.delete(f"{BASE}/{key}").status == 200
    assert one.admin.put(f"{BASE}/{key}").status == 200
    services._remembered.update(stale)
    refused = one.admin.put(f"/artifactory/{key}/b", b"2")
    assert errors_of(refused)[0] == 503 and refused.headers["Retry-After"]
    assert one.admin.get(f"/artifactory/{key}/b").status == 404
    assert one.admin.put(f"/artifactory/{key}/b", b"2").status == 201
    assert one.admin.delete(f"{BASE}/{key}").status == 200
    services._remembered.update(stale)
    assert errors_of(one.admin.put(f"/artifactory/{key}/c", b"3"))[0] == 404


def test_a_repository_made_anew_takes_uploads_at_once_where_it_was_made(one: RunningCluster, key: str) -> None:
    for count in range(30):
        assert one.admin.put(f"{BASE}/{key}").status == 200
        assert one.admin.put(f"/artifactory/{key}/a{count}", b"x").status == 201
        assert one.admin.delete(f"{BASE}/{key}").status == 200


def test_an_admin_action_is_in_the_events(one: RunningCluster, key: str) -> None:
    answer = one.admin.put(f"{BASE}/{key}")
    row = one.sql("SELECT kind, principal, request_id FROM events WHERE repository = $1", key)[0]
    assert tuple(row) == ("repository_create", "admin", answer.headers["X-Request-Id"])
