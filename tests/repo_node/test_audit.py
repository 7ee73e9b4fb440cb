"""The audit log: each change is noted once, with who asked for it, by which request and from where."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

from repo_node.cli import audit, main
from repo_node.client.rest import Client, Credentials, Endpoint
from repo_node.web.routes import HARMLESS
from tests.postgres import TestServer
from tests.repo_node.nodes import (
    LOOPBACK,
    PASSWORD,
    RunningCluster,
    configure,
    errors_of,
    new_path,
    prepare,
    run_nodes,
    wait_until,
)
from tests.repo_node.test_auth import ROUTES

AUDIT = "/artifactory/api/holdfast/audit"
BASE = "/artifactory/api"
OWN = f"{BASE}/holdfast"


@dataclass(frozen=True)
class Act:
    """A request that changes something, and the kind of event that tells of it.

    ``{...}`` in the target, a header or the document stands for something that an earlier act or the scene has made.
    """

    method: str
    template: str
    target: str
    kind: str
    document: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    principal: str = "admin"


ITEM = "/artifactory/{item}"
STORAGE = f"{BASE}/storage/{{item}}"
SHARD, NODE = f"{OWN}/shards/{{id}}", f"{OWN}/nodes/{{id}}"
SETTING = f"{OWN}/settings/{{key}}"
SUPPORT = f"{BASE}/system/support/bundle"
REPOSITORY = f"{BASE}/repositories/{{key}}"
SECURITY = f"{BASE}/security"
USER, GROUP = f"{SECURITY}/users/{{name}}", f"{SECURITY}/groups/{{name}}"
AUTHORIZATION, UNLOCK = f"{SECURITY}/users/authorization", f"{SECURITY}/unlockUsers"
TARGETS, TARGETS2 = f"{SECURITY}/permissions", f"{BASE}/v2/security/permissions"
ACCESS, ACCESS2 = "/artifactory/access/api/v1/tokens", "/access/api/v1/tokens"
TOKEN, KEY = f"{SECURITY}/token", f"{SECURITY}/apiKey"
PASSWORDS = {
    "userName": "worker",
    "oldPassword": PASSWORD,
    "newPassword1": f"other-{PASSWORD}",
    "newPassword2": f"other-{PASSWORD}",
}

# In an order in which each finds what it needs. An overwritten artifact is told of by the new one's deployment, a
# folder that goes or moves by one event at its path, whatever lies in it.
ACTS = (
    Act("PUT", REPOSITORY, f"{BASE}/repositories/acts", "repository_create", {"rclass": "local"}),
    Act("POST", REPOSITORY, f"{BASE}/repositories/acts", "repository_change", {"digests": ["sha256"]}),
    Act("PUT", ITEM, "/artifactory/acts/f/a", "deploy", body=b"one"),
    Act("PUT", ITEM, "/artifactory/acts/f/a", "deploy", body=b"another"),
    Act("PUT", ITEM, "/artifactory/acts/f/b", "deploy", body=b"another"),
    Act(
        "PUT", ITEM, "/artifactory/acts/f/c", "deploy", headers={"X-Checksum-Deploy": "true", "X-Checksum": "{sha256}"}
    ),
    Act("PUT", ITEM, "/artifactory/acts/g/h/", "folder"),
    Act("PUT", STORAGE, f"{BASE}/storage/acts/f/a?properties=k=1", "properties"),
    Act("DELETE", STORAGE, f"{BASE}/storage/acts/f/a?properties=k", "properties"),
    Act("PATCH", f"{BASE}/metadata/{{item}}", f"{BASE}/metadata/acts/f", "properties", {"props": {"k": "2"}}),
    Act("POST", f"{BASE}/copy/{{item}}", f"{BASE}/copy/acts/f?to=/acts/copied", "copy"),
    Act("POST", f"{BASE}/move/{{item}}", f"{BASE}/move/acts/copied?to=/acts/moved", "move"),
    Act("DELETE", ITEM, "/artifactory/acts/moved", "delete"),
    Act("DELETE", ITEM, "/artifactory/acts/f/a", "delete"),
    Act("POST", f"{BASE}/trash/restore/{{item}}", f"{BASE}/trash/restore/acts/f/a", "restore"),
    Act("DELETE", f"{BASE}/trash/clean/{{item}}", f"{BASE}/trash/clean/acts/moved/a", "trash_empty"),
    Act("POST", f"{BASE}/trash/empty", f"{BASE}/trash/empty", "trash_empty"),
    Act("DELETE", REPOSITORY, f"{BASE}/repositories/acts", "repository_delete"),
    Act("PUT", SETTING, f"{OWN}/settings/ranges_max", "setting", {"value": 5}),
    Act("DELETE", SETTING, f"{OWN}/settings/ranges_max", "setting"),
    Act("POST", f"{OWN}/tokens", f"{OWN}/tokens", "token_create", {"scopes": ["read"]}),
    Act("DELETE", f"{OWN}/tokens/{{id}}", f"{OWN}/tokens/{{token}}", "token_revoke"),
    Act("POST", ACCESS, ACCESS, "token_create"),
    Act("DELETE", f"{ACCESS}/{{id}}", f"{ACCESS}/{{token}}", "token_revoke"),
    Act("POST", ACCESS2, ACCESS2, "token_create"),
    Act("DELETE", f"{ACCESS2}/{{id}}", f"{ACCESS2}/{{token}}", "token_revoke"),
    Act("POST", TOKEN, TOKEN, "token_create", {"username": "admin"}),
    Act("POST", f"{TOKEN}/revoke", f"{TOKEN}/revoke", "token_revoke", {"token": "{secret}"}),
    Act("POST", ACCESS, ACCESS, "token_create"),
    Act("DELETE", f"{ACCESS}/revoke", f"{ACCESS}/revoke", "token_revoke", {"token_id": "{token}"}),
    Act("POST", ACCESS2, ACCESS2, "token_create"),
    Act("DELETE", f"{ACCESS2}/revoke", f"{ACCESS2}/revoke", "token_revoke", {"token": "{secret}"}),
    Act("POST", KEY, KEY, "token_create"),
    Act("PUT", KEY, KEY, "token_replace"),
    Act("DELETE", KEY, KEY, "token_revoke"),
    Act("POST", KEY, KEY, "token_create"),
    Act("DELETE", f"{KEY}/{{name}}", f"{KEY}/admin", "token_revoke"),
    Act("PUT", GROUP, f"{SECURITY}/groups/workers", "group_create", {"description": "who works"}),
    Act("PUT", USER, f"{SECURITY}/users/worker", "user_create", {"email": "w@x", "password": PASSWORD}),
    Act("POST", USER, f"{SECURITY}/users/worker", "user_change", {"groups": ["workers"]}),
    Act("POST", GROUP, f"{SECURITY}/groups/workers", "group_change", {"userNames": ["worker"]}),
    Act("PUT", f"{TARGETS}/{{name}}", f"{TARGETS}/t1", "permission_create", {"repositories": ["ANY"]}),
    Act("PUT", f"{TARGETS2}/{{name}}", f"{TARGETS2}/t1", "permission_change", {"repo": {"repositories": ["ANY"]}}),
    Act("POST", f"{TARGETS2}/{{name}}", f"{TARGETS2}/t2", "permission_create", {"repo": {"repositories": ["ANY"]}}),
    Act("DELETE", f"{TARGETS}/{{name}}", f"{TARGETS}/t1", "permission_delete"),
    Act("DELETE", f"{TARGETS2}/{{name}}", f"{TARGETS2}/t2", "permission_delete"),
    Act(
        "POST",
        f"{AUTHORIZATION}/changePassword",
        f"{AUTHORIZATION}/changePassword",
        "password_change",
        PASSWORDS,
        principal="worker",
    ),
    Act("POST", f"{AUTHORIZATION}/expirePassword/{{name}}", f"{AUTHORIZATION}/expirePassword/worker", "user_change"),
    Act("POST", f"{UNLOCK}/{{name}}", f"{UNLOCK}/worker", "user_unlock"),
    Act("POST", UNLOCK, UNLOCK, "user_unlock", body=b'["worker"]'),
    Act("POST", f"{SECURITY}/unlockAllUsers", f"{SECURITY}/unlockAllUsers", "user_unlock"),
    Act("DELETE", USER, f"{SECURITY}/users/worker", "user_delete"),
    Act("DELETE", GROUP, f"{SECURITY}/groups/workers", "group_delete"),
    Act("POST", f"{BASE}/system/storage/gc", f"{BASE}/system/storage/gc", "job_request"),
    Act("POST", f"{OWN}/jobs/{{job}}/run", f"{OWN}/jobs/trim/run", "job_request"),
    Act("POST", f"{BASE}/storageinfo/calculate", f"{BASE}/storageinfo/calculate", "job_request"),
    Act("POST", SUPPORT, SUPPORT, "support_bundle", {"name": "acts"}),
    Act("DELETE", f"{SUPPORT}/{{id}}", f"{SUPPORT}/{{bundle}}", "support_bundle_delete"),
    Act("POST", f"{OWN}/gc/hold", f"{OWN}/gc/hold", "hold", {"detail": "a test"}),
    Act("POST", f"{OWN}/gc/release", f"{OWN}/gc/release", "release"),
    Act("POST", f"{OWN}/fsck", f"{OWN}/fsck", "check", {"dry_run": True}),
    Act("PUT", f"{SHARD}/weight", f"{OWN}/shards/{{empty}}/weight", "shard_weight", {"weight": 2.0}),
    Act("POST", f"{SHARD}/{{action}}", f"{OWN}/shards/{{empty}}/drain", "shard_state"),
    Act("DELETE", SHARD, f"{OWN}/shards/{{empty}}", "shard_remove"),
    Act("POST", f"{SHARD}/give-up", f"{OWN}/shards/{{lost}}/give-up", "shard_give_up", {"copies": 1}),
    Act("POST", f"{NODE}/{{action}}", f"{OWN}/nodes/node-1/reload", "node_reload", {}),
    Act("POST", f"{NODE}/stop", f"{OWN}/nodes/living/stop", "node_stop"),
    Act("DELETE", NODE, f"{OWN}/nodes/gone", "node_remove"),
)
GHOSTS = """
    WITH made AS (
        INSERT INTO nodes (id, zone, url, internal_url, version, incarnation, heartbeat_at)
        VALUES ('living', 'z', 'http://x', 'http://x', '0', gen_random_uuid(), now() + interval '1 day'),
               ('gone', 'z', 'http://x', 'http://x', '0', gen_random_uuid(), now() - interval '1 day'),
               ('empty', 'z', 'http://x', 'http://x', '0', gen_random_uuid(), now() - interval '1 day')
        RETURNING id
    )
    INSERT INTO shards (uid, node_id, path, state)
    SELECT gen_random_uuid(), 'empty', '/' || s, s FROM unnest(ARRAY['read_only', 'lost']) AS s, (SELECT count(*) FROM made) m
    RETURNING id, state
"""
COUNTED = """
    INSERT INTO shard_walks (shard_id, kind, passes, last_copies, due_at) VALUES ($1, 'forget', 1, 1, now() + interval '1 day')
"""


@pytest.fixture(scope="module")
def acts(postgres: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A cluster of one node that acts may do anything to."""
    with postgres.database(postgres.template()) as dsn:
        prepare(dsn)
        with run_nodes([configure(dsn, tmp_path_factory.mktemp("acts"))]) as cluster:
            yield cluster


READING = {("POST", f"{BASE}/search/aql"), ("POST", f"{BASE}/system/usage")}
"""Routes that change nothing, whatever their method."""


def test_s40_the_acts_are_all_that_the_router_lets_change() -> None:
    mutating = {(method, template.replace(":.+", "")) for method, template, _ in ROUTES if method not in HARMLESS}
    assert {(act.method, act.template) for act in ACTS} == mutating - READING


def body_of(act: Act, made: Mapping[str, Any]) -> bytes | None:
    if act.document is None:
        return act.body
    return json.dumps(
        {key: value.format(**made) if isinstance(value, str) else value for key, value in act.document.items()}
    ).encode()


def test_s40_every_act_is_noted_once_with_who_and_from_where(acts: RunningCluster) -> None:
    made: dict[str, Any] = {}
    for act in ACTS:
        if act.kind == "shard_weight":
            rows = {row["state"]: row["id"] for row in acts.sql(GHOSTS)}
            acts.sql(COUNTED, rows["lost"])
            made |= {"empty": rows["read_only"], "lost": rows["lost"]}
        elif act.kind == "user_unlock":
            acts.sql("INSERT INTO login_failures (kind, name) VALUES ('user', 'worker')")
        identity, body = uuid4().hex, body_of(act, made)
        headers = {name: value.format(**made) for name, value in act.headers.items()} | {"X-Request-Id": identity}
        answer = acts.admin.request(act.method, act.target.format(**made), body, headers)
        assert 200 <= answer.status < 300, (act, answer)
        events = acts.admin.get(f"{AUDIT}?limit=50").json()["events"]
        noted = [one for one in events if one["request_id"] == identity]
        told = [(one["kind"], one["principal"], one["address"]) for one in noted]
        assert told == [(act.kind, act.principal, LOOPBACK)], act
        assert PASSWORD not in str(noted) and "hf_tok_" not in str(noted) and "argon2" not in str(noted), act
        if act.kind == "deploy":
            made["sha256"] = noted[0]["sha256"]
        elif act.kind == "support_bundle":
            made["bundle"] = noted[0]["detail"]["bundle"]
        elif act.kind == "token_create":
            made["token"] = str(noted[0]["detail"]["token"])
            made["secret"] = answer.json().get("access_token")


def test_a_refused_or_idle_request_is_noted_by_no_event(one: RunningCluster) -> None:
    path = new_path()
    assert one.admin.put(path, b"x").status == 201
    last = one.admin.get(f"{AUDIT}?limit=1").json()["next"]
    for method, target, status in (
        ("DELETE", f"{path}-not-there", 404),
        ("PUT", f"{path}/below", 409),
        ("PUT", f"{OWN}/settings/ranges_max", 400),
        ("PUT", f"{BASE}/storage{path.removeprefix('/artifactory')}?properties=", 400),
        ("POST", f"{BASE}/copy{path.removeprefix('/artifactory')}?to=/generic-local/{uuid4().hex}&dry=1", 200),
    ):
        assert one.admin.request(method, target, b"{}").status == status, target
    assert one.first.client().put(path, b"y").status == 401
    mine = [
        event
        for event in one.admin.get(f"{AUDIT}?after={last}").json()["events"]
        if path in f"/artifactory/{event['repository']}/{event['path']}" and event["kind"] != "deploy"
    ]
    assert mine == []


def test_who_deleted_what_is_answered_for_every_artifact_of_a_folder(one: RunningCluster) -> None:
    folder = new_path()
    for name in ("a", "b/c"):
        assert one.admin.put(f"{folder}/{name}", b"x").status == 201
    assert one.admin.delete(folder).status == 204
    path = folder.removeprefix("/artifactory/generic-local/")
    for name in ("a", "b/c"):
        found = one.admin.get(f"{AUDIT}?repository=generic-local&path={path}/{name}&limit=10").json()["events"]
        assert [(event["kind"], event["path"]) for event in found] == [("delete", path), ("deploy", f"{path}/{name}")]
        assert found[0]["detail"] == {"items": 4} and found[0]["principal"] == "admin"


def test_the_log_is_followed_page_by_page_by_administrators(one: RunningCluster) -> None:
    assert one.with_token("read").get(AUDIT).status == 403
    last = one.sql("SELECT coalesce(max(id), 0) AS id FROM events")[0]["id"]
    paths = [new_path() for _ in range(3)]
    for path in paths:
        assert one.admin.put(path, path.encode()).status == 201
    found: list[dict[str, object]] = []

    def follow() -> bool:
        nonlocal last
        page = one.admin.get(f"{AUDIT}?after={last}&limit=2").json()
        assert len(page["events"]) <= 2
        last = page["next"]
        found.extend(event for event in page["events"] if event["kind"] == "deploy")
        return len(found) == 3

    wait_until(follow)
    assert [f"/artifactory/{event['repository']}/{event['path']}" for event in found] == paths
    assert set(found[0]) == {
        "id", "at", "kind", "repository", "path", "sha256", "principal", "address", "request_id", "detail",
    }  # fmt: skip
    beyond = 10**17
    assert one.admin.get(f"{AUDIT}?after={beyond}").json() == {"events": [], "next": beyond, "more": False}


def test_the_newest_come_first_and_go_back_to_the_first(one: RunningCluster) -> None:
    for _ in range(3):
        one.admin.put(new_path(), b"x")
    ids: list[int] = []
    query = "limit=7"
    while True:
        page = one.admin.get(f"{AUDIT}?{query}").json()
        ids += [event["id"] for event in page["events"]]
        if not page["more"]:
            break
        query = f"limit=7&before={page['next']}"
    assert ids == sorted(ids, reverse=True)
    assert len(ids) >= one.sql("SELECT count(*) AS n FROM events WHERE id <= $1", ids[0])[0]["n"]


@pytest.mark.parametrize(
    "query", ["after=x", "before=-1", "limit=many", "path=a", "since=yesterday", "kind=%00", "repository=r&path=%00"]
)
def test_a_question_that_cannot_be_answered_is_400(one: RunningCluster, query: str) -> None:
    assert errors_of(one.admin.get(f"{AUDIT}?{query}"))[0] == 400


def test_the_command_shows_the_latest_last_and_who_did_it(one: RunningCluster) -> None:
    path = new_path()
    at = path.removeprefix("/artifactory/")
    for body in (b"1", b"2"):
        assert one.admin.put(path, body).status == 201
    assert one.admin.delete(path).status == 204
    environment = {"HOLDFAST_URL": f"http://{LOOPBACK}:{one.first.port}", "HOLDFAST_TOKEN": one.token("admin", "read")}

    def lines(*arguments: str) -> list[str]:
        result = CliRunner(env=environment).invoke(main, ["audit", at, *arguments])
        assert result.exit_code == 0, result.output
        return result.output.splitlines()

    told = [line.split()[1:5] for line in lines()]
    assert told == [["admin", LOOPBACK, kind, at] for kind in ("deploy", "deploy", "delete")]
    assert [line.split()[3] for line in lines("--limit", "2")] == ["deploy", "delete"]
    [event] = map(json.loads, lines("--kind", "delete", "--json"))
    assert event["path"] == at.partition("/")[2] and event["principal"] == "admin"
    assert lines("--principal", "nobody") == lines("--kind", "delte") == ["No such events in the log."]


def test_the_command_follows_what_happens(one: RunningCluster) -> None:
    paths = [new_path() for _ in range(3)]

    async def follow() -> list[str]:
        endpoint = Endpoint(f"http://{LOOPBACK}:{one.first.port}", Credentials.basic("admin", PASSWORD, "a test"))
        found: list[str] = []
        async with Client(endpoint) as client:
            _, after = await audit.read_latest(client, {}, 1)
            for path in paths:
                await asyncio.to_thread(one.admin.put, path, b"x")
            async for event in audit.following(client, {"kind": "deploy"}, after):
                found.append(f"/artifactory/{event['repository']}/{event['path']}")
                if len(found) == len(paths):
                    return found
        raise AssertionError("it never ends by itself")

    assert asyncio.run(asyncio.wait_for(follow(), 20)) == paths
