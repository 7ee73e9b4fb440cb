"""What a hostile client, or a hostile name, might reach: files, the internal listener, other people's trust."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from urllib.parse import quote

import pytest

from tests.repo_node.http import Client
from tests.repo_node.nodes import LOOPBACK, RunningCluster, new_path, random_bytes

FILE_NAME = re.compile(r"[0-9a-f]{64}\.[0-9a-f-]{36}")
NAMES = [
    "..%252f..%252fetc%252fpasswd",
    "%2e%2e%2e",
    "-rf",
    "~root",
    "$(id)",
    "a%0ab",
    "CON",
    "a%27;drop",
    "%EF%BC%8F..",
]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_of_a_client_becomes_the_name_of_a_file(one: RunningCluster, name: str) -> None:
    path, body = new_path(f"/{name}"), random_bytes(100)
    status = one.admin.put(path, body).status
    assert status in (201, 400)
    assert all(FILE_NAME.fullmatch(found.name) for found in one.files())
    if status == 201:
        assert one.admin.get(path).body == body


def test_a_link_planted_in_a_shard_is_not_followed(one: RunningCluster) -> None:
    path, body = new_path(), random_bytes(5000)
    assert one.admin.put(path, body).status == 201
    sha256 = hashlib.sha256(body).hexdigest()
    copies = [found for found in one.files() if found.name.startswith(sha256)]
    aside = copies[0].rename(copies[0].parents[2] / "aside")
    copies[0].symlink_to(aside)
    try:
        for _ in range(3):
            assert one.admin.get(path).body == body
        copies[1].unlink()
        assert one.admin.get(path).status == 503
    finally:
        copies[0].unlink()
        aside.unlink()


def test_the_internal_listener_wants_more_than_a_users_credentials(one: RunningCluster) -> None:
    address = one.first.config.internal.listen
    for authorization in (None, one.admin.authorization, f"Bearer {one.token('admin')}", "Holdfast ", "Holdfast x"):
        client = Client(LOOPBACK, address.port, authorization)
        for path in ("/internal/v1/node", "/", "/artifactory/generic-local/a", "/metrics"):
            assert client.get(path).status in (401, 404)
        assert client.get("/internal/v1/node").status == 401


def test_the_public_listener_has_no_internal_route(one: RunningCluster) -> None:
    for path in ("/internal/v1/node", "/internal/v1/shards/x/blobs/y", "/artifactory/internal/v1/node"):
        for method in ("GET", "PUT", "DELETE", "POST"):
            assert one.admin.request(method, path).status in (404, 405)


def test_what_proxies_add_is_not_believed(one: RunningCluster, caplog: pytest.LogCaptureFixture) -> None:
    path = new_path()
    headers = {
        "X-Forwarded-For": "10.9.8.7",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "https",
        "Forwarded": "for=10.9.8.7;host=evil.example",
        "X-HTTP-Method-Override": "DELETE",
        "X-Original-URL": "/artifactory/api/holdfast/settings",
    }
    with caplog.at_level(logging.INFO, "holdfast.requests"):
        answer = one.admin.request("PUT", path, b"x", headers)
    assert answer.status == 201
    assert answer.json()["downloadUri"] == f"http://127.0.0.1:{one.first.port}{path}"
    facts = [record.facts for record in caplog.records if record.message == "request"]  # type: ignore[attr-defined]
    assert [(one["client"], one["method"]) for one in facts] == [("127.0.0.1", "PUT")]
    assert one.first.client().request("GET", path, headers=headers).status == 401


def test_no_other_origin_is_let_in(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(path, b"x")
    for method in ("GET", "OPTIONS"):
        answer = one.admin.request(
            method, path, headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "PUT"}
        )
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    "text",
    ["'; DROP TABLE users; --", "%' OR 1=1", "\\", '"', "{{7*7}}", "${jndi:ldap://x}", "<script>alert(1)</script>"],
)
def test_text_of_clients_stays_text(one: RunningCluster, text: str) -> None:
    made = one.admin.post_json("/artifactory/api/holdfast/tokens", {"scopes": ["read"], "description": text})
    assert made.status == 201
    listed = one.admin.get("/artifactory/api/holdfast/tokens").json()["tokens"]
    assert next(token for token in listed if token["id"] == made.json()["id"])["description"] == text
    answer = one.admin.get(f"/artifactory/api/repositories/{quote(text, safe='')}")
    assert answer.status in (400, 404)
    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(answer.body)["errors"][0]["status"] == answer.status
    assert one.sql("SELECT count(*) AS n FROM users")[0]["n"] >= 1


def test_an_error_tells_nothing_of_the_inside(one: RunningCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the inside: /srv/secret.py")

    monkeypatch.setattr("repo_node.db.repositories.list_all", fail)
    answer = one.admin.get("/artifactory/api/repositories")
    assert answer.status == 500
    assert b"inside" not in answer.body and b"RuntimeError" not in answer.body
    assert answer.headers["X-Request-Id"]
    assert one.admin.get("/artifactory/api/repositories/generic-local").status == 200
