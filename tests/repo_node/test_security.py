"""What a hostile client, or a hostile name, might reach: files, the internal listener, other people's trust."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from urllib.parse import quote, urlsplit
from uuid import uuid4

import psutil
import pytest

from repo_node import keys
from repo_node.api.internal import internal_app
from repo_node.auth.permissions import Permission
from sharding import wire
from sharding.model import NodeId
from tests.repo_node.http import Client
from tests.repo_node.nodes import CLUSTER_KEY, LOOPBACK, RunningCluster, new_path, random_bytes
from tests.repo_node.test_auth import ROUTES
from tests.repo_node.test_openapi import PATH as API_DOCUMENT

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
def test_s2_no_name_of_a_client_becomes_the_name_of_a_file(one: RunningCluster, name: str) -> None:
    path, body = new_path(f"/{name}"), random_bytes(100)
    status = one.admin.put(path, body).status
    assert status in (201, 400)
    assert all(FILE_NAME.fullmatch(found.name) for found in one.files())
    if status == 201:
        assert one.admin.get(path).body == body


def test_s2_a_link_planted_in_a_shard_is_not_followed(one: RunningCluster) -> None:
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


def test_s10_the_internal_listener_wants_more_than_a_users_credentials(one: RunningCluster) -> None:
    address = one.first.config.internal.listen
    for authorization in (None, one.admin.authorization, f"Bearer {one.token('admin')}", "Holdfast ", "Holdfast x"):
        client = Client(LOOPBACK, address.port, authorization)
        for path in ("/internal/v1/node", "/", "/artifactory/generic-local/a", "/metrics"):
            assert client.get(path).status in (401, 404)
        assert client.get("/internal/v1/node").status == 401


def internal_paths() -> set[str]:
    """Return the paths of the listener for nodes."""
    app = internal_app(
        shards=lambda uid: None, node_id=NodeId("x"), incarnation=uuid4(), cluster_id=lambda: None, accepted=[]
    )
    found = {route.resource.canonical for route in app.router.routes() if route.resource is not None}
    assert len(found) > 2
    return {re.sub(r"{\w+}", str(uuid4()), path) for path in found}


def test_s10_no_internal_route_is_reached_at_the_public_listener(one: RunningCluster) -> None:
    key = keys.derive(CLUSTER_KEY, wire.TOKEN_PURPOSE)
    for who in (one.admin, one.first.client(f"{wire.AUTHORIZATION_SCHEME} {key}")):
        for path in internal_paths() | {"/internal/v1/shards/x/blobs/y"}:
            for prefix in ("", "/artifactory", "/artifactory/api", "/%69nternal/.."):
                for method in ("GET", "PUT", "DELETE", "POST"):
                    assert who.request(method, f"{prefix}{path}").status in (400, 401, 404, 405)


def test_s10_a_node_listens_for_clients_and_for_nodes_and_nowhere_else(one: RunningCluster) -> None:
    """The other sockets of this process are those of tests, on the loopback as well."""
    config = one.first.config
    ours = {(LOOPBACK, config.http.listen.port), (LOOPBACK, config.internal.listen.port)}
    sockets = [found for found in psutil.Process().net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    listening = {(found.laddr.ip, found.laddr.port) for found in sockets}
    assert ours <= listening
    assert {address for address, _ in listening} <= {LOOPBACK}, "nobody asked for more than that"


def test_s13_what_needs_no_credentials_tells_nothing_of_the_inside(one: RunningCluster) -> None:
    config, dsn = one.first.config, urlsplit(one.dsn)
    [cluster] = one.sql("SELECT cluster_id::text AS id FROM cluster")
    inside = {
        dsn.password,
        dsn.path[1:],
        cluster["id"],
        config.node.id,
        config.node.zone,
        str(config.internal.listen.port),
        *map(str, one.first.disks),
        *(value for name, value in os.environ.items() if len(value) > 8 and "PATH" in name),
    }
    free = [template for method, template, permission in ROUTES if (method, permission) == ("GET", Permission.PUBLIC)]
    assert len(free) >= 4
    for template in (*free, "/artifactory/api/system/ping?verbose=1", "/artifactory/api/v1/system/readiness?debug"):
        answer = one.first.client().get(template)
        told = str(answer.headers) + answer.body.decode()
        assert not [one for one in inside if one and one in told], template
        assert len(answer.body) < 300 or template == API_DOCUMENT


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}${7*7}<%= 7*7 %>",
    "javascript:alert(1)",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_s22_what_is_shown_again_is_a_document_that_no_browser_takes_for_a_page(one: RunningCluster, text: str) -> None:
    name, folder = quote(text, safe=""), f"/artifactory/generic-local/{uuid4().hex}"
    path = f"{folder}/{name.replace('%2F', '')}"
    who = one.first.client(one.admin.authorization)
    agent = {"User-Agent": text, "Referer": text, "X-Request-Id": text}
    assert who.request("PUT", f"{path};note={quote(text, safe='')}", b"x", agent).status == 201
    storage = path.replace("/artifactory/", "/artifactory/api/storage/")
    shows = [
        storage,
        f"{storage}?properties",
        storage.rpartition("/")[0],
        f"{storage.rpartition('/')[0]}?list&deep=1",
        f"{path}/nothing-below",
        f"{path}?properties={name}",
        f"/artifactory/{name}/x",
        f"/artifactory/api/repositories/{name}",
        f"/artifactory/api/security/users/{name}",
        f"/artifactory/api/holdfast/settings/{name}",
        f"/artifactory/api/search/prop?note={name}&repos=generic-local",
        f"/artifactory/api/search/artifact?name={name}",
        "/artifactory/api/holdfast/audit?newest=true",
        f"/artifactory/api/holdfast/audit?principal={name}",
    ]
    shown = 0
    for url in shows:
        answer = who.get(url)
        kind = answer.headers.get_content_type()
        assert kind.startswith(("application/json", "application/vnd.org.jfrog", "application/octet-stream")), (
            url,
            kind,
        )
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        if "json" in kind:
            shown += json.dumps(text.replace("/", ""))[1:-1] in json.dumps(answer.json())
    assert shown >= 3, "some of them do show it"


def test_s14_what_proxies_add_is_not_believed(one: RunningCluster, caplog: pytest.LogCaptureFixture) -> None:
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


def test_s23_no_other_origin_is_let_in(one: RunningCluster) -> None:
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
def test_s19_text_of_clients_stays_text(one: RunningCluster, text: str) -> None:
    made = one.admin.post_json("/artifactory/api/holdfast/tokens", {"scopes": ["read"], "description": text})
    assert made.status == 201
    listed = one.admin.get("/artifactory/api/holdfast/tokens").json()["tokens"]
    assert next(token for token in listed if token["id"] == made.json()["id"])["description"] == text
    answer = one.admin.get(f"/artifactory/api/repositories/{quote(text, safe='')}")
    assert answer.status in (400, 404)
    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(answer.body)["errors"][0]["status"] == answer.status
    assert one.sql("SELECT count(*) AS n FROM users")[0]["n"] >= 1


def test_s13_an_error_tells_nothing_of_the_inside(one: RunningCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the inside: /srv/secret.py")

    monkeypatch.setattr("repo_node.db.repositories.list_all", fail)
    answer = one.admin.get("/artifactory/api/repositories")
    assert answer.status == 500
    assert b"inside" not in answer.body and b"RuntimeError" not in answer.body
    assert answer.headers["X-Request-Id"]
    assert one.admin.get("/artifactory/api/repositories/generic-local").status == 200
