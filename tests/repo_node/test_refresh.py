"""Refresh tokens over REST: how clients use them, and what becomes of one that somebody else used."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

import pytest

from repo_node.auth import tokens
from tests.repo_node.http import Answer, Client
from tests.repo_node.nodes import RunningCluster, wait_until
from tests.repo_node.people import client_of, grant, new_user
from tests.repo_node.test_tokens import ACCESS, PLATFORM, V1, bearer, post_form

REFRESH = {"grant_type": "refresh_token"}


def new_pair(who: Client, path: str = ACCESS, **said: Any) -> dict[str, Any]:
    """Return the answer to who asks for a token that can be refreshed."""
    made = who.post_json(path, {"expires_in": 60, "refreshable": True, **said})
    assert made.status == 200, made
    document: dict[str, Any] = made.json()
    assert tokens.looks_like_token(document["refresh_token"], tokens.Kind.REFRESH)
    return document


def refresh(cluster: RunningCluster, pair: dict[str, Any], node: int = 0) -> Answer:
    """Refresh as a client without credentials does, by both tokens."""
    both = {key: pair[key] for key in ("refresh_token", "access_token")}
    return cluster.nodes[node].client().post_json(ACCESS, {**REFRESH, **both})


@pytest.mark.parametrize("path", [ACCESS, PLATFORM, V1])
@pytest.mark.parametrize("as_form", [True, False])
def test_a_refresh_gives_another_pair_of_the_same_token(one: RunningCluster, path: str, as_form: bool) -> None:
    who = client_of(one, new_user(one))
    first = new_pair(who, path)
    fields = {**REFRESH, "refresh_token": first["refresh_token"], "access_token": first["access_token"]}
    nobody = one.first.client()
    answer = post_form(nobody, path, **fields) if as_form else nobody.post_json(path, fields)
    second = answer.json()
    assert answer.status == 200 and answer.headers["Cache-Control"] == "no-store"
    assert {key: second[key] for key in ("token_id", "scope", "token_type", "expires_in")} == {
        key: first[key] for key in ("token_id", "scope", "token_type", "expires_in")
    }
    assert second["access_token"] != first["access_token"] and second["refresh_token"] != first["refresh_token"]
    assert [bearer_of(one, pair).get(ACCESS).status for pair in (first, second)] == [401, 200]


def bearer_of(cluster: RunningCluster, pair: dict[str, Any], node: int = 0) -> Client:
    return cluster.nodes[node].client(f"Bearer {pair['access_token']}")


def test_who_asks_for_no_refresh_token_gets_none(one: RunningCluster) -> None:
    who = client_of(one, new_user(one))
    assert "refresh_token" not in who.post_json(ACCESS, {"expires_in": 60}).json()
    assert post_form(who, V1, refreshable="true", expires_in="60").json()["refresh_token"]
    refused = who.post_json(ACCESS, {"refreshable": True, "expires_in": 0})
    assert refused.status == 400 and b"expires_in" in refused.body


def test_a_token_that_has_ended_is_refreshed_on_any_node(three: RunningCluster) -> None:
    who = client_of(three, new_user(three))
    pair = new_pair(who, expires_in=1)
    wait_until(lambda: bearer_of(three, pair).get(ACCESS).status == 401, 5.0)
    assert pair["token_id"] in [token["token_id"] for token in who.get(ACCESS).json()["tokens"]]
    # As a client does that sends the ended token along.
    both = {key: pair[key] for key in ("refresh_token", "access_token")}
    answer = bearer_of(three, pair, 1).post_json(ACCESS, {**REFRESH, **both})
    assert answer.status == 200
    assert bearer_of(three, answer.json(), 2).get(ACCESS).status == 200


def test_a_refresh_token_used_twice_ends_all_that_came_of_it_on_every_node(three: RunningCluster) -> None:
    who = client_of(three, new_user(three))
    first = new_pair(who)
    second = refresh(three, first).json()
    child = bearer_of(three, second).post_json(ACCESS, {"expires_in": 30}).json()
    assert [bearer_of(three, pair, 2).get(ACCESS).status for pair in (second, child)] == [200, 200]
    again = refresh(three, first, 1)
    assert again.status == 401 and b"used before" in again.body
    wait_until(lambda: [bearer_of(three, pair, 2).get(ACCESS).status for pair in (second, child)] == [401, 401], 2.0)
    assert refresh(three, second).status == 401


def test_a_refresh_token_of_groups_or_narrow_scopes_gives_no_wider_one(one: RunningCluster) -> None:
    user = new_user(one)
    grant(one, user, ["read", "write"])
    who, path = client_of(one, user), f"/artifactory/generic-local/{uuid4().hex}"
    pair = new_pair(who, scope="read")
    fields = {
        **REFRESH,
        "refresh_token": pair["refresh_token"],
        "scope": "applied-permissions/admin",
        "username": "admin",
    }
    # Its scope lets it make no tokens, and itself be refreshed all the same.
    answer = bearer_of(one, pair).post_json(ACCESS, fields)
    assert answer.status == 200 and answer.json()["scope"] == "read"
    narrowed = bearer_of(one, answer.json())
    assert narrowed.put(path, b"x").status == 403 and narrowed.get(ACCESS).status == 403
    assert narrowed.get("/artifactory/api/repositories").status == 200


def test_what_is_no_good_refresh_token_is_refused_and_asks_the_database_nothing(one: RunningCluster) -> None:
    who, nobody = client_of(one, new_user(one)), one.first.client()
    pair, other = new_pair(who), new_pair(who)
    name = {"query": "refresh_token_use"}
    metric = "holdfast_database_query_duration_seconds_count"
    before = one.first.metric(metric, **name)
    for said in ("x", "", pair["access_token"], pair["refresh_token"][:-1], "hf_ref_" + "0" * 49):
        assert nobody.post_json(ACCESS, {**REFRESH, "refresh_token": said}).status == 401, said
    for said in ("x", pair["refresh_token"]):
        fields = {**REFRESH, "refresh_token": pair["refresh_token"], "access_token": said}
        assert nobody.post_json(ACCESS, fields).status == 401, said
    assert one.first.metric(metric, **name) == before
    assert nobody.post_json(ACCESS, {**REFRESH, "refresh_token": tokens.new_secret(tokens.Kind.REFRESH)}).status == 401
    crossed = {**REFRESH, "refresh_token": pair["refresh_token"], "access_token": other["access_token"]}
    assert nobody.post_json(ACCESS, crossed).status == 401
    assert one.first.client(f"Bearer {pair['refresh_token']}").get(ACCESS).status == 401, "it is no credential"
    assert refresh(one, pair).status == 200, "nothing of this has ended it"


def test_s4_a_body_lets_in_nobody_but_who_refreshes(one: RunningCluster) -> None:
    nobody = one.first.client()
    refresh_token = new_pair(client_of(one, new_user(one)))["refresh_token"]
    for path in (ACCESS, PLATFORM, V1):
        for said in ({}, REFRESH, {"refresh_token": refresh_token}, {"grant_type": "client_credentials"}):
            assert nobody.post_json(path, said).status == 401, (path, said)
        assert nobody.request("POST", path, b"{").status == 401
        assert post_form(nobody, path, username="admin", expires_in="60").status == 401
    fields = {**REFRESH, "refresh_token": refresh_token}
    for verb, path in (("POST", "/artifactory/api/security/apiKey"), ("GET", ACCESS), ("POST", f"{V1}/revoke")):
        assert post_form(nobody, path, verb, **fields).status == 401, path


def test_a_revoked_token_is_not_refreshed_and_revoked_by_its_refresh_token(one: RunningCluster) -> None:
    who = client_of(one, new_user(one))
    revoked, other = new_pair(who), new_pair(who)
    assert who.delete(f"{ACCESS}/{revoked['token_id']}").status == 200
    assert refresh(one, revoked).status == 401
    assert post_form(who, f"{V1}/revoke", token=other["refresh_token"]).status == 200
    assert bearer_of(one, other).get(ACCESS).status == 401


def test_nothing_is_refreshed_beyond_what_may_be_by_settings_or_while_the_cluster_is_read_only(
    one: RunningCluster,
) -> None:
    who = client_of(one, new_user(one))
    with one.settings(refresh_token_days=0):
        pair = new_pair(who, expires_in=1)
    began = time.monotonic()
    with one.settings(read_only_reason="a test"):
        kept = refresh(one, pair)
        assert kept.status == 503
    wait_until(lambda: time.monotonic() - began > 1.0)
    assert refresh(one, pair).status == 401


def test_a_refreshed_token_makes_nobody_prove_a_password_anew(one: RunningCluster) -> None:
    who = client_of(one, new_user(one))
    assert one.admin.get(ACCESS).status == 200
    name = {"query": "user_find"}
    metric = "holdfast_database_query_duration_seconds_count"
    before = one.first.metric(metric, **name)
    assert refresh(one, new_pair(who)).status == 200
    assert one.admin.get(ACCESS).status == 200
    assert one.first.metric(metric, **name) == before
    assert bearer(one, who.post_json(ACCESS, {})).get(ACCESS).status == 200
