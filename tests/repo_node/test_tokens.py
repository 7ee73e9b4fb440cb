"""Tokens over REST as Artifactory's clients ask for them: whose rights they carry, and how they end."""

from __future__ import annotations

import base64
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest

from repo_node.auth.scopes import OF_USER
from repo_node.db.principals import GENERATIONS_MAX
from tests.repo_node.http import Answer, Client
from tests.repo_node.nodes import RunningCluster, basic, wait_until
from tests.repo_node.people import client_of, grant, new_user

ACCESS = "/artifactory/access/api/v1/tokens"
PLATFORM = "/access/api/v1/tokens"
V1 = "/artifactory/api/security/token"
KEY = "/artifactory/api/security/apiKey"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def post_form(client: Client, path: str, verb: str = "POST", **fields: str) -> Answer:
    return client.request(verb, path, urlencode(fields).encode(), FORM)


def bearer(cluster: RunningCluster, answer: Answer, node: int = 0) -> Client:
    assert answer.status == 200, answer
    return cluster.nodes[node].client(f"Bearer {answer.json()['access_token']}")


@pytest.mark.parametrize("base", [ACCESS, PLATFORM])
def test_a_token_is_made_listed_read_and_revoked(one: RunningCluster, base: str) -> None:
    who = client_of(one, new_user(one))
    made = who.post_json(base, {"scope": "applied-permissions/user", "expires_in": 60, "refreshable": False})
    document = made.json()
    assert (document["token_type"], document["expires_in"], document["scope"]) == (
        "Bearer",
        60,
        "applied-permissions/user",
    )
    assert made.headers["Cache-Control"] == "no-store"
    identity = document["token_id"]
    assert identity in [token["token_id"] for token in who.get(base).json()["tokens"]]
    assert document["access_token"] not in who.get(base).body.decode()
    assert who.get(f"{base}/{identity}").json()["token_id"] == identity
    assert bearer(one, made).get(base).status == 200
    assert who.delete(f"{base}/{identity}").status == 200
    assert bearer(one, made).get(base).status == 401
    assert who.delete(f"{base}/{identity}").status == 404


def test_a_token_by_a_form_is_revoked_by_its_secret(one: RunningCluster) -> None:
    who = client_of(one, new_user(one))
    made = post_form(who, ACCESS, scope="applied-permissions/user", expires_in="60")
    token = made.json()["access_token"]
    assert post_form(who, f"{ACCESS}/revoke", "DELETE", token=token).status == 200
    assert bearer(one, made).get(ACCESS).status == 401
    old = post_form(who, V1, username="", scope="api:* member-of-groups:*")
    assert old.json()["expires_in"] == 3600
    assert post_form(who, f"{V1}/revoke", token=old.json()["access_token"]).status == 200
    assert post_form(who, f"{V1}/revoke", token=old.json()["access_token"]).status == 404
    assert post_form(who, f"{V1}/revoke").status == 400


def test_a_token_for_groups_carries_their_rights_alone(one: RunningCluster) -> None:
    user, group = new_user(one), f"g {uuid4().hex[:8]}"
    path = f"/artifactory/generic-local/{uuid4().hex}"
    assert one.admin.put(path, b"x").status == 201
    quoted = group.replace(" ", "%20")
    assert one.admin.put_json(f"/artifactory/api/security/groups/{quoted}", {"userNames": [user]}).status == 201
    grant(one, user, ["write"])
    target = {"repo": {"repositories": ["ANY"], "actions": {"groups": {group: ["read"]}}}}
    assert one.admin.put_json(f"/artifactory/api/v2/security/permissions/{uuid4().hex}", target).status == 201
    who = client_of(one, user)
    made = post_form(who, V1, scope=f'member-of-groups:"{group}"')
    reader = bearer(one, made)
    assert who.put(f"{path}-new", b"x").status == 201
    assert reader.get(path).status == 200 and reader.put(f"{path}-other", b"x").status == 403
    assert reader.get(ACCESS).status == 403 and post_form(reader, ACCESS).status == 403, "it makes no wider one"
    assert post_form(who, V1, scope="member-of-groups:others").status == 403
    assert one.admin.post_json(f"/artifactory/api/security/groups/{quoted}", {"userNames": []}).status == 200
    wait_until(lambda: reader.get(path).status == 403, 2.0)


def test_s5_no_token_does_more_than_who_made_it(one: RunningCluster) -> None:
    user = new_user(one)
    grant(one, user, ["read"])
    who = client_of(one, user)
    for said in ({"scope": "applied-permissions/admin"}, {"scope": "admin"}, {"username": "admin"}):
        assert who.post_json(ACCESS, said).status == 403
    assert who.post_json(ACCESS, {"scope": "everything"}).status == 400
    assert who.post_json(ACCESS, {"grant_type": "refresh_token"}).status == 400
    narrowed = bearer(one, who.post_json(ACCESS, {"scope": "read"}))
    assert narrowed.get("/artifactory/api/repositories").status == 200
    assert narrowed.post_json(ACCESS, {}).status == 403 and narrowed.get(ACCESS).status == 403
    for_accounts = bearer(one, who.post_json(ACCESS, {"scope": "read account"}))
    for scope, status in (("applied-permissions/user", 403), ("write", 403), ("read write", 403), ("read", 200)):
        assert for_accounts.post_json(ACCESS, {"scope": scope}).status == status, scope
    others = one.admin.post_json(ACCESS, {}).json()["token_id"]
    assert who.get(f"{ACCESS}/{others}").status == 404 and who.delete(f"{ACCESS}/{others}").status == 404
    for_user = bearer(one, one.admin.post_json(ACCESS, {"username": user, "scope": "applied-permissions/admin"}))
    assert for_user.get("/artifactory/api/security/users").status == 403
    by_admin = bearer(one, one.admin.post_json(ACCESS, {"scope": "applied-permissions/admin"}))
    assert by_admin.get("/artifactory/api/security/users").status == 200


def test_s5_nothing_that_a_token_makes_outlives_it(one: RunningCluster) -> None:
    who = client_of(one, new_user(one))
    short = bearer(one, who.post_json(ACCESS, {"expires_in": 60}))
    for path, asked in ((ACCESS, 61), (ACCESS, 0), (PLATFORM, 3600), (V1, 3600), (V1, 0)):
        refused = post_form(short, path, expires_in=str(asked))
        assert refused.status == 403 and b"outlives" in refused.body, (path, asked)
    for path in (ACCESS, PLATFORM, V1):
        assert post_form(short, path, expires_in="30").json()["expires_in"] == 30
        assert 30 < post_form(short, path).json()["expires_in"] <= 60, "what is not asked for ends with it"
    for verb in ("POST", "PUT"):
        assert short.request(verb, KEY).status == 403
    assert who.get(KEY).json() == {}
    admin = bearer(one, one.admin.post_json(ACCESS, {"expires_in": 60}))
    own = "/artifactory/api/holdfast/tokens"
    assert admin.post_json(own, {"scopes": ["read"], "expires_in_seconds": 61}).status == 403
    assert 30 < admin.post_json(own, {"scopes": ["read"]}).json()["expires_in_seconds"] <= 60


def test_s32_a_line_of_tokens_that_make_one_another_ends_somewhere(one: RunningCluster) -> None:
    who = client_of(one, new_user(one))  # by a token, the first of the line
    for _ in range(GENERATIONS_MAX - 1):
        made = who.post_json(ACCESS, {"expires_in": 0})
        who = bearer(one, made)
    for verb, path in (("POST", ACCESS), ("POST", V1), ("POST", KEY)):
        refused = who.request(verb, path)
        assert refused.status == 403 and b"made one another" in refused.body, path


def test_s32_a_revoked_token_takes_what_it_made_along_on_every_node(three: RunningCluster) -> None:
    user = new_user(three)
    who = client_of(three, user)
    parent = who.post_json(ACCESS, {"expires_in": 0})
    child = bearer(three, parent).post_json(ACCESS, {"expires_in": 0})
    key = bearer(three, child).request("POST", KEY).json()["apiKey"]
    clients = [bearer(three, child, 1), three.nodes[2].client(f"Bearer {key}")]
    assert [client.get(ACCESS).status for client in clients] == [200, 200]
    assert who.delete(f"{ACCESS}/{parent.json()['token_id']}").status == 200
    wait_until(lambda: [client.get(ACCESS).status for client in clients] == [401, 401], 2.0)
    assert who.get(ACCESS).status == 200


def test_a_token_is_read_by_clients_as_a_json_web_token_and_taken_bare_too(one: RunningCluster) -> None:
    user = new_user(one)
    who = client_of(one, user)
    made = who.post_json(ACCESS, {"expires_in": 60, "include_reference_token": True}).json()
    head, claims, secret = made["access_token"].split(".")
    assert json.loads(decoded(head)) == {"alg": "holdfast", "typ": "JWT"}
    told = json.loads(decoded(claims))
    assert (told["jti"], told["sub"], told["scp"]) == (made["token_id"], f"holdfast/users/{user}", OF_USER)
    assert told["exp"] - told["iat"] == 60 and 0 <= time.time() - told["iat"] < 30
    assert secret == made["reference_token"] and re.fullmatch(r"hf_tok_[0-9A-Za-z]{49}", secret)
    for text in (secret, made["access_token"], f"x.y.{secret}"):
        for authorization in (f"Bearer {text}", basic("whoever", text)):
            assert one.first.client(authorization).get(ACCESS).status == 200, authorization
    for text in (f"{head}.{claims}.", f"{head}.{secret}", f"{secret}.{claims}.{head}", f"{head}.{claims}.{secret}."):
        assert one.first.client(f"Bearer {text}").get(ACCESS).status == 401, text


def test_a_token_with_a_long_scope_fits_into_a_header(one: RunningCluster) -> None:
    groups = ",".join(f"ü{number}-{'x' * 50}" for number in range(80))
    made = one.admin.post_json(ACCESS, {"scope": f"applied-permissions/groups:{groups}"})
    assert len(made.json()["access_token"]) < 1000
    assert bearer(one, made).get(ACCESS).status == 403, "known, and of groups alone"


def decoded(part: str) -> bytes:
    """Decode a part as the strictest client does, by the standard alphabet."""
    return base64.b64decode(part + "=" * (-len(part) % 4), validate=True)


def test_s32_a_revoked_or_expired_token_fails_on_every_node(three: RunningCluster) -> None:
    user = new_user(three)
    grant(three, user, ["read"])
    who, repositories = client_of(three, user), "/artifactory/api/repositories"
    revoked = who.post_json(ACCESS, {"expires_in": 0})
    expired = who.post_json(ACCESS, {"expires_in": 1})
    assert "expires_in" not in revoked.json()
    for node in range(3):
        assert bearer(three, revoked, node).get(repositories).status == 200
    assert who.delete(f"{ACCESS}/{revoked.json()['token_id']}").status == 200
    for made in (revoked, expired):
        for node in range(3):
            wait_until(
                lambda made=made, node=node: bearer(three, made, node).get(repositories).status == 401,  # type: ignore[misc]
                2.0,
            )


def test_a_disabled_or_deleted_users_tokens_fail(one: RunningCluster) -> None:
    user = new_user(one)
    grant(one, user, ["read"])
    who = client_of(one, user)
    assert who.get(ACCESS).status == 200
    assert one.admin.post_json(f"/artifactory/api/security/users/{user}", {"enabled": False}).status == 200
    assert who.get(ACCESS).status == 401
    assert one.admin.post_json(f"/artifactory/api/security/users/{user}", {"enabled": True}).status == 200
    assert who.get(ACCESS).status == 200
    assert one.admin.delete(f"/artifactory/api/security/users/{user}").status == 200
    assert who.get(ACCESS).status == 401


def test_an_api_key_is_made_once_replaced_and_revoked(one: RunningCluster) -> None:
    path, who = KEY, client_of(one, new_user(one))
    assert who.get(path).json() == {}
    made = who.request("POST", path)
    assert made.status == 201 and who.request("POST", path).status == 409
    first = made.json()["apiKey"]
    nobody = one.first.client()
    assert nobody.get(ACCESS, X_JFrog_Art_Api=first).status == 200
    assert who.get(path).json() == {"apiKey": f"...{first[-4:]}"}
    second = who.request("PUT", path).json()["apiKey"]
    assert nobody.get(ACCESS, X_JFrog_Art_Api=first).status == 401
    assert nobody.get(ACCESS, X_JFrog_Art_Api=second).status == 200
    assert who.delete(path).status == 200 and who.delete(path).status == 404
    assert nobody.get(ACCESS, X_JFrog_Art_Api=second).status == 401


def test_an_administrator_revokes_the_api_key_of_another_user_or_of_all(one: RunningCluster) -> None:
    names = [new_user(one) for _ in range(3)]
    who = [client_of(one, name) for name in names]
    keys = [one.request("POST", KEY).json()["apiKey"] for one in who]

    def statuses() -> list[int]:
        return [one.first.client().get(ACCESS, X_JFrog_Art_Api=key).status for key in keys]

    assert who[0].delete(f"{KEY}/{names[1]}").status == 403 and who[0].delete(f"{KEY}?deleteAll=1").status == 403
    assert statuses() == [200, 200, 200]
    assert one.admin.delete(f"{KEY}/{names[0]}").status == 200 and one.admin.delete(f"{KEY}/{names[0]}").status == 404
    assert statuses() == [401, 200, 200]
    assert one.admin.delete(f"{KEY}?deleteAll=1").status == 200
    assert statuses() == [401, 401, 401]
    assert [client.get(ACCESS).status for client in who] == [200] * 3, "other tokens go on"


@pytest.mark.parametrize(("verb", "statuses"), [("POST", [201, 409, 409, 409]), ("PUT", [200] * 4)])
def test_one_api_key_is_valid_after_several_were_asked_for_at_once(
    one: RunningCluster, verb: str, statuses: list[int]
) -> None:
    who = client_of(one, new_user(one))
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: who.request(verb, KEY), range(4)))
    assert sorted(answer.status for answer in made) == statuses
    keys = [answer.json()["apiKey"] for answer in made if answer.status < 300]
    nobody = one.first.client()
    assert sorted(nobody.get(ACCESS, X_JFrog_Art_Api=key).status for key in keys) == [200] + [401] * (len(keys) - 1)


@pytest.mark.parametrize(
    "body",
    [b"\x90J<\xfe\x00%", b"scope=%ff", b"&".join(b"a=1" for _ in range(100)), b"expires_in=-1", b"expires_in=x"],
)
def test_a_form_that_cannot_be_read_makes_no_token(one: RunningCluster, body: bytes) -> None:
    who = client_of(one, new_user(one))
    before: Any = who.get(ACCESS).json()
    answer = who.request("POST", ACCESS, body, FORM)
    assert answer.status in (200, 400)
    if answer.status == 400:
        assert who.get(ACCESS).json() == before


def test_the_rows_of_ended_tokens_go_by_a_job(one: RunningCluster) -> None:
    user = new_user(one)
    client_of(one, user), client_of(one, user)
    of_user = "FROM tokens WHERE user_id = (SELECT id FROM users WHERE name = $1)"
    one.sql(f"UPDATE tokens SET revoked_at = now() - '31 days'::interval WHERE id = (SELECT min(id) {of_user})", user)
    assert one.admin.request("POST", "/artifactory/api/holdfast/jobs/tokens/run").status < 300
    wait_until(lambda: len(one.sql(f"SELECT id {of_user}", user)) == 1)
