"""The requests that ``jf rt`` makes, in its order and with its headers, judged by the answers it insists on."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, quote_plus, urlencode
from uuid import uuid4

import pytest

from tests.clients.conftest import REPOSITORY, Front
from tests.clients.recorder import Recorder
from tests.cluster.processes import wait_until
from tests.repo_node.archive_files import packed
from tests.repo_node.http import Answer, Client

CLIENT = "jf rt"
ABOUT = "The sequences of requests of JFrog's command line, with its headers; it is not run itself."

CHECKSUM_DEPLOY_BYTES_MIN = 10 << 10
PARTS_BYTES_MIN = 5_120_000
FIELDS = '"name","repo","path","actual_md5","actual_sha1","sha256","size","type","modified","created","property"'


class Jf:
    """One user's ``jf``: a connection for each request, which it closes."""

    def __init__(self, front: Front, seen: Recorder, authorization: str | None = None) -> None:
        host, _, port = front.url.removeprefix("http://").partition(":")
        self._client = Client(host, int(port), authorization)
        self._seen = seen

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {"User-Agent": "jfrog-cli-go/2.78.0", "Connection": "close", **named}
        target = path if path.startswith("/") else f"/artifactory/{path}"
        answer = self._client.request(method, target, body, sent)
        self._seen.note(method, target, answer.status)
        return answer

    def send_json(self, method: str, path: str, document: Any) -> Answer:
        return self.send(method, path, json.dumps(document).encode(), Content_Type="application/json")

    def send_form(self, path: str, **fields: str) -> Answer:
        return self.send("POST", path, urlencode(fields).encode(), Content_Type="application/x-www-form-urlencoded")

    def upload(self, path: str, data: bytes, properties: str = "", **headers: str) -> Answer:
        """Try a deploy by checksum where a file is large enough, then send it. Every body must be JSON."""
        sums = {
            "X_Checksum_Sha1": hashlib.sha1(data).hexdigest(),
            "X_Checksum_Md5": hashlib.md5(data).hexdigest(),
            "X_Checksum": hashlib.sha256(data).hexdigest(),
        }
        target = quote(path) + properties
        if len(data) >= CHECKSUM_DEPLOY_BYTES_MIN and not headers:
            answer = self.send("PUT", target, b"", X_Checksum_Deploy="true", **sums)
            if answer.status in (200, 201, 202):
                return answer
            assert answer.status == 404
        answer = self.send("PUT", target, data, **sums, **headers)
        assert answer.status in (200, 201, 202), answer
        if answer.body:
            assert answer.json()["checksums"]["sha256"] == sums["X_Checksum"]
        return answer

    def aql(self, path: str, name: str = "*", kind: str = "file", where: str = "") -> list[dict[str, Any]]:
        """Find what ``path/name`` matches, as every command does that takes a pattern."""
        place = f'{{"repo":"{REPOSITORY}","path":{{"$match":"{path}"}},"name":{{"$match":"{name}"}}}}'
        wanted = f'"type":"{kind}",' + where + f'"$or":[{{"$and":[{place}]}}]'
        answer = self.send("POST", "api/search/aql", f"items.find({{{wanted}}}).include({FIELDS})".encode())
        assert answer.status == 200, answer
        document = answer.json()
        assert document["range"]["total"] == len(document["results"])
        found: list[dict[str, Any]] = document["results"]
        return found


@pytest.fixture
def jf(front: Front, seen: Recorder) -> Jf:
    secret = base64.b64encode(f"admin:{front.password}".encode()).decode()
    return Jf(front, seen, f"Basic {secret}")


def inside(folder: str) -> str:
    return folder.partition("/")[2]


def test_ping(seen: Recorder, jf: Jf) -> None:
    with seen.call("ping"):
        answer = jf.send("GET", "api/system/ping")
        assert (answer.status, answer.body) == (200, b"OK")
    with seen.call("before large uploads"):
        version = jf.send("GET", "api/system/version")
        # From 7.82.2 on it would ask for uploads in parts.
        assert version.status == 200 and tuple(map(int, version.json()["version"].split("."))) < (7, 82, 2)


def test_system(seen: Recorder, jf: Jf) -> None:
    with seen.call("usage report"):
        use = {"productId": "jfrog-cli-go/2.78.0", "features": [{"featureId": "rt_upload"}]}
        answer = jf.send("POST", "api/system/usage", json.dumps(use).encode(), Content_Type="application/json")
        assert answer.status in (200, 202)
    with seen.call("service id, before access tokens"):
        assert jf.send("GET", "api/system/service_id").body.startswith(b"jfrt@")
    wait_until(lambda: jf.send("GET", "api/storageinfo").status == 200, "a count of what is stored", 30)
    with seen.call("storage info, calculated anew"):
        assert jf.send("POST", "api/storageinfo/calculate").status == 202
        document = jf.send("GET", "api/storageinfo").json()
        assert all(isinstance(value, str) for value in document["binariesSummary"].values())
        rows = {row["repoKey"]: row for row in document["repositoriesSummaryList"]}
        assert {"TOTAL", REPOSITORY} <= rows.keys()
        assert all(isinstance(rows[REPOSITORY][name], int) for name in ("foldersCount", "filesCount", "itemsCount"))


def test_upload(seen: Recorder, jf: Jf, folder: str) -> None:
    with seen.call("upload"):
        assert jf.upload(f"{folder}/small", b"small").status == 201
        assert jf.upload(f"{folder}/sp ace/é+&", b"odd").status == 201
        assert jf.send("GET", quote(f"{folder}/sp ace/é+&")).body == b"odd"
    data = os.urandom(CHECKSUM_DEPLOY_BYTES_MIN)
    with seen.call("upload of 10 KiB and more: by checksum first"):
        assert jf.upload(f"{folder}/large", data).status == 201
        assert jf.upload(f"{folder}/same", data).status == 201
        assert jf.send("GET", f"{folder}/same").body == data
    with seen.call("upload --target-props"):
        assert jf.upload(f"{folder}/props", b"p", ";a=1;b=x%2Cy;b=z").status == 201
        properties = jf.send("GET", f"api/storage/{folder}/props?properties").json()["properties"]
        assert properties["a"] == ["1"] and "z" in properties["b"]
    with seen.call("upload --explode"):
        archive = packed("zip", {"in/side": b"content"})
        assert jf.upload(f"{folder}/a.zip", archive, X_Explode_Archive="true").status == 201
        assert jf.send("GET", f"{folder}/in/side").body == b"content"
    with seen.call("upload --include-dirs"):
        assert jf.send("PUT", f"{folder}/made/", b"").status == 201


def test_search(seen: Recorder, jf: Jf, folder: str) -> None:
    jf.upload(f"{folder}/a", b"a", ";of=it;os=linux;os=mac")
    jf.upload(f"{folder}/sub/b", b"bb")
    with seen.call("search"):
        [found] = jf.aql(inside(folder))
        assert (found["repo"], found["path"], found["name"], found["type"]) == (REPOSITORY, inside(folder), "a", "file")
        assert found["size"] == 1 and found["actual_sha1"] == hashlib.sha1(b"a").hexdigest()
        assert (
            found["sha256"] == hashlib.sha256(b"a").hexdigest() and found["actual_md5"] == hashlib.md5(b"a").hexdigest()
        )
        assert {(one["key"], one["value"]) for one in found["properties"]} == {
            ("of", "it"),
            ("os", "linux"),
            ("os", "mac"),
        }
        assert len(jf.aql(f"{inside(folder)}*")) == 2
    with seen.call("search --props"):
        assert len(jf.aql(f"{inside(folder)}*", where='"@of":{"$match":"i*"},')) == 1
    with seen.call("search, of folders"):
        assert [one["name"] for one in jf.aql(inside(folder), kind="folder")] == ["sub"]


def test_download(seen: Recorder, jf: Jf, folder: str) -> None:
    jf.upload(f"{folder}/small", b"small")
    with seen.call("download"):
        [found] = jf.aql(inside(folder), "small")
        body = jf.send("GET", f"{found['repo']}/{found['path']}/{found['name']}").body
        assert hashlib.sha1(body).hexdigest() == found["actual_sha1"]
    data = os.urandom(PARTS_BYTES_MIN + 1)
    jf.upload(f"{folder}/large", data)
    with seen.call("download of 5 MB and more: in three parts"):
        [found] = jf.aql(inside(folder), "large")
        path = f"{found['repo']}/{found['path']}/{found['name']}"
        head = jf.send("HEAD", path)
        assert head.status == 200 and head.headers["Accept-Ranges"] == "bytes"
        third = found["size"] // 3 + 1
        ranges = [f"bytes={start}-{min(start + third, found['size']) - 1}" for start in range(0, found["size"], third)]
        with ThreadPoolExecutor(3) as threads:
            parts = list(threads.map(lambda part: jf.send("GET", path, Range=part), ranges))
        assert [part.status for part in parts] == [206] * 3
        assert hashlib.sha1(b"".join(part.body for part in parts)).hexdigest() == found["actual_sha1"]


def test_properties(seen: Recorder, jf: Jf, folder: str) -> None:
    jf.upload(f"{folder}/a", b"a")
    with seen.call("set-props"):
        for found in jf.aql(inside(folder)):
            pairs = ";".join(
                f"{quote_plus(key)}={quote_plus(value)}" for key, value in (("k", "v 1"), ("l", "x\\,y"), ("l", "z"))
            )
            assert (
                jf.send("PUT", f"api/storage/{found['repo']}/{found['path']}/{found['name']}?properties={pairs}").status
                == 204
            )
        properties = jf.send("GET", f"api/storage/{folder}/a?properties").json()["properties"]
        assert properties == {"k": ["v 1"], "l": ["x,y", "z"]}
    with seen.call("delete-props"):
        for found in jf.aql(inside(folder)):
            assert (
                jf.send("DELETE", f"api/storage/{found['repo']}/{found['path']}/{found['name']}?properties=k,l").status
                == 204
            )
        answer = jf.send("GET", f"api/storage/{folder}/a?properties")
        assert (
            answer.status == 404 and "No properties could be found" in json.loads(answer.body)["errors"][0]["message"]
        )


def test_delete(seen: Recorder, jf: Jf, folder: str) -> None:
    jf.upload(f"{folder}/a", b"a")
    jf.upload(f"{folder}/sub/b", b"b")
    with seen.call("delete"):
        for kind in ("folder", "file"):
            for found in jf.aql(inside(folder), kind=kind):
                assert jf.send("DELETE", f"{found['repo']}/{found['path']}/{found['name']}").status == 204
        assert jf.aql(f"{inside(folder)}*") == []
    with seen.call("delete, repeated: HEAD first"):
        assert jf.send("HEAD", f"{folder}/a").status == 404


@pytest.mark.parametrize("verb", ["copy", "move"])
def test_copy_and_move(seen: Recorder, jf: Jf, folder: str, verb: str) -> None:
    jf.upload(f"{folder}/src/a", b"a", ";of=it")
    jf.upload(f"{folder}/src/sub/b b", b"b")
    with seen.call(verb):
        for found in jf.aql(f"{inside(folder)}/src*"):
            source = quote(f"{found['repo']}/{found['path']}/{found['name']}")
            target = quote_plus(f"{folder}/dst/{found['name']}", safe="/")
            assert jf.send("POST", f"api/{verb}/{source}?to=/{target}&dry=0").status == 200
        assert {found["name"] for found in jf.aql(f"{inside(folder)}/dst")} == {"a", "b b"}
        assert len(jf.aql(f"{inside(folder)}/src*")) == (2 if verb == "copy" else 0)
    with seen.call(f"{verb} of a folder, repeated after a lost answer"):
        jf.upload(f"{folder}/tree/in", b"in")
        for _ in range(2):
            assert jf.send("POST", f"api/{verb}/{folder}/tree?to=/{folder}/there").status == 200
        assert [found["path"] for found in jf.aql(f"{inside(folder)}/there*")] == [f"{inside(folder)}/there"]


def test_users_and_groups(seen: Recorder, jf: Jf) -> None:
    name, group = f"jf-{uuid4().hex[:8]}", f"jf-{uuid4().hex[:8]}"
    user, path = f"api/security/users/{name}", f"api/security/groups/{group}"
    with seen.call("users-create"):
        assert jf.send("GET", user).status == 404
        details = {"name": name, "email": f"{name}@example.org", "password": "Canary-password-5dd1", "admin": False}
        assert jf.send_json("PUT", user, {**details, "profileUpdatable": True, "groups": []}).status in (200, 201)
    with seen.call("group-create"):
        assert jf.send("GET", f"{path}?includeUsers=false").status == 404
        details = {
            "name": group,
            "description": "",
            "autoJoin": False,
            "adminPrivileges": False,
            "realm": "",
            "userNames": [],
        }
        assert jf.send_json("PUT", path, details).status in (200, 201)
    with seen.call("group-add-users"):
        assert jf.send_json("POST", path, {"name": group, "userNames": [name, "admin"]}).status in (200, 201)
        assert set(jf.send("GET", f"{path}?includeUsers=true").json()["userNames"]) == {name, "admin"}
    with seen.call("users: update"):
        found = jf.send("GET", user).json()
        assert (found["name"], found["groups"]) == (name, [group])
        assert jf.send_json("POST", user, {**found, "email": f"{name}@example.com", "groups": []}).status in (200, 201)
        assert jf.send("GET", user).json()["groups"] == []
        assert name in {one["name"] for one in jf.send("GET", "api/security/users").json()}
    with seen.call("users-delete, group-delete"):
        assert jf.send("DELETE", user).status == 200
        assert jf.send("DELETE", path).status == 200
        assert jf.send("GET", user).status == 404


def test_permission_targets(seen: Recorder, jf: Jf) -> None:
    path = f"api/v2/security/permissions/jf-{uuid4().hex[:8]}"
    repo = {
        "include-patterns": ["**"],
        "exclude-patterns": [],
        "repositories": [REPOSITORY],
        "actions": {"users": {"admin": ["read", "managedXrayMeta"]}, "groups": {}},
    }
    document = {"name": path.rpartition("/")[2], "repo": repo}
    with seen.call("permission-target-create"):
        assert jf.send("GET", path).status == 404
        assert jf.send_json("POST", path, document).status in (200, 201)
        assert jf.send_json("POST", path, document).status == 409
    with seen.call("permission-target-update"):
        repo["actions"] = {"users": {"admin": ["read", "write"]}, "groups": {}}
        assert jf.send_json("PUT", path, document).status in (200, 201)
        assert jf.send("GET", path).json()["repo"]["actions"]["users"] == {"admin": ["read", "write"]}
    with seen.call("permission-target-delete"):
        assert jf.send("DELETE", path).status == 200
        assert jf.send("GET", path).status == 404


def test_api_keys(seen: Recorder, jf: Jf, front: Front) -> None:
    name, password = f"jf-{uuid4().hex[:8]}", "Canary-password-5dd1"
    details = {"name": name, "email": f"{name}@example.org", "password": password}
    assert jf.send_json("PUT", f"api/security/users/{name}", details).status == 201
    user = Jf(front, seen, f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}")
    with seen.call("API key: create, regenerate, get"):
        assert user.send("POST", "api/security/apiKey").status == 201
        assert user.send("PUT", "api/security/apiKey").json()["apiKey"]
        assert user.send("GET", "api/security/apiKey").json()["apiKey"]
    assert jf.send("DELETE", f"api/security/users/{name}").status == 200


def payload_of(token: str) -> dict[str, Any]:
    """Read an access token as ``jf`` does: three parts, of which it decodes the second by the standard alphabet."""
    _, payload, _ = token.split(".")
    found: dict[str, Any] = json.loads(base64.b64decode(payload + "=" * (-len(payload) % 4), validate=True))
    return found


def test_tokens(seen: Recorder, jf: Jf, front: Front) -> None:
    with seen.call("access-token-create"):
        made = jf.send_json(
            "POST",
            "/access/api/v1/tokens",
            {"scope": "applied-permissions/user", "expires_in": 300, "refreshable": True, "description": "jf"},
        )
        assert made.status == 200 and made.json()["token_type"] == "Bearer"
    with seen.call("rt access-token-create"):
        made = jf.send_form(
            "api/security/token",
            grant_type="client_credentials",
            username="admin",
            scope="api:* member-of-groups:*",
            expires_in="300",
            refreshable="true",
        )
        assert made.status == 200 and made.json()["access_token"]
    with seen.call("the token's user and its time left, before a command"):
        pair = made.json()
        payload = payload_of(pair["access_token"])
        assert payload["sub"].rpartition("/")[2] == "admin" and payload["exp"] - payload["iat"] == 300
        assert Jf(front, seen, f"Bearer {pair['access_token']}").send("GET", "api/system/version").status == 200
    with seen.call("a token that ends soon is refreshed, without credentials"):
        both = {key: pair[key] for key in ("access_token", "refresh_token")}
        renewed = Jf(front, seen).send_form("api/security/token", grant_type="refresh_token", **both)
        assert renewed.status == 200 and payload_of(renewed.json()["access_token"])["exp"] >= payload["exp"]
        pair = renewed.json()
    with seen.call("the same of the platform"):
        both = {key: pair[key] for key in ("access_token", "refresh_token")}
        bearer = Jf(front, seen, f"Bearer {pair['access_token']}")
        renewed = bearer.send_json("POST", "/access/api/v1/tokens", {"grant_type": "refresh_token", **both})
        assert renewed.status == 200
        pair = renewed.json()
        assert Jf(front, seen, f"Bearer {pair['access_token']}").send("GET", "api/repositories").status == 200
    with seen.call("tokens: list, revoke"):
        listed = {one["token_id"]: one for one in jf.send("GET", "api/security/token").json()["tokens"]}
        assert listed[pair["token_id"]]["refreshable"] is True
        assert jf.send_form("api/security/token/revoke", token_id=pair["token_id"]).status == 200
        assert Jf(front, seen, f"Bearer {pair['access_token']}").send("GET", "api/repositories").status == 401


def test_the_table_is_what_was_seen(settle: Callable[[], None]) -> None:
    settle()
