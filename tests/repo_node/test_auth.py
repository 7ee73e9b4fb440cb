"""Who may do what: every route's permission, passwords, tokens, and how soon a change holds everywhere."""

from __future__ import annotations

import re
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from argon2 import PasswordHasher

from repo_node.api.public import public_app
from repo_node.auth import logins, passwords, tokens
from repo_node.auth.passwords import PasswordVerifier, hash_password
from repo_node.auth.permissions import CONTAINED_IN, SCOPES, Permission, Principal
from repo_node.web.routes import DECLARED
from tests.repo_node.nodes import PASSWORD, RunningCluster, basic, new_path, wait_until
from tests.repo_node.statements import statements_sent

REPOSITORIES = "/artifactory/api/repositories"
TOKENS = "/artifactory/api/holdfast/tokens"


def all_routes() -> list[tuple[str, str, Permission]]:
    """Return method, template and permission of every route of the public listener."""
    app = public_app(None, None)  # type: ignore[arg-type]
    return [
        (route.method, app[DECLARED][route].template, app[DECLARED][route].permission) for route in app.router.routes()
    ]


ROUTES = all_routes()


MAKE_TOKENS = {
    *[("POST", f"{base}/access/api/v1/tokens") for base in ("", "/artifactory")],
    *[(method, "/artifactory/api/security/apiKey") for method in ("POST", "PUT")],
    ("POST", "/artifactory/api/security/token"),
}


def filled(template: str) -> str:
    """Return a path that the template matches and nothing is at; a user's own is the caller's."""
    template = template.replace("/users/{name}", "/users/admin")
    for name, value in (
        ("{item:.+}", "generic-local/x/y"),
        ("{key}", "nothing"),
        ("{id}", "0"),
        ("{name}", "nobody"),
        ("{item}", "x/y"),
        ("{job}", "nothing"),
        ("{action}", "drain"),
    ):
        template = template.replace(name, value)
    assert "{" not in template, template
    return template


def test_s4_every_route_has_a_permission_and_every_permission_a_route() -> None:
    assert len(ROUTES) == len(set(ROUTES)) >= 20
    assert {permission for _, _, permission in ROUTES} == set(Permission)


@pytest.mark.parametrize(("method", "template", "permission"), ROUTES)
def test_s4_a_route_lets_in_only_who_has_its_permission(
    one: RunningCluster, method: str, template: str, permission: Permission
) -> None:
    path = filled(template)
    public = permission is Permission.PUBLIC
    assert (one.first.client().request(method, path).status == 401) is not public
    for scope in sorted(SCOPES):
        may = public or scope in (permission, CONTAINED_IN.get(permission), Permission.ADMIN)
        # A token with scopes makes none that has more of them, and these would carry all rights.
        may = may and not (scope is Permission.ACCOUNT and (method, template) in MAKE_TOKENS)
        status = one.with_token(scope).request(method, path).status
        assert status != 401
        assert (status == 403) is not may, (scope, status)


def test_s4_what_has_no_route_is_for_admins_alone(one: RunningCluster) -> None:
    for path in ("/", "/nowhere", "/artifactory", "/internal/v1/node", "/artifactory/internal/v1/node"):
        assert one.first.client().get(path).status == 401
        assert one.with_token("metrics").get(path).status == 403
        assert one.admin.get(path).status == 404
    assert one.with_token("read", "write").request("POST", new_path()).status == 403


def test_s4_permissions_are_denied_by_default() -> None:
    assert not Principal("somebody", is_admin=False).may(Permission.READ)
    assert Principal("admin", is_admin=True).may(Permission.ADMIN)
    narrowed = Principal("admin", is_admin=True, scopes=frozenset({"read"}))
    assert [permission for permission in Permission if narrowed.may(permission)] == [Permission.PUBLIC, Permission.READ]
    nothing = Principal("admin", is_admin=True, scopes=frozenset())
    assert not any(nothing.may(permission) for permission in SCOPES)


# ---------------------------------------------------------------------- how credentials are written


def test_a_token_is_accepted_in_every_way_clients_send_it(one: RunningCluster) -> None:
    token = one.token("read")
    for authorization in (f"Bearer {token}", f"bearer {token}", basic("whoever", token), basic("", token)):
        assert one.first.client(authorization).get(REPOSITORIES).status == 200
    assert one.first.client().get(REPOSITORIES, X_JFrog_Art_Api=token).status == 200
    assert one.first.client().get(REPOSITORIES, X_JFrog_Art_Api=token[:-1]).status == 401


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic !!!",
        "Basic " + "YWRtaW4",  # no padding
        basic("admin", "wrong"),
        basic("admin", ""),
        basic("nobody", PASSWORD),
        basic("ADMIN", PASSWORD),
        basic("admin\0", PASSWORD),
        basic("admin", PASSWORD + "\0"),
        basic("admin", "x" * 2000),
        "Basic YWRtaW4=",  # no colon
        "Basic /////w==",  # no UTF-8
        "Bearer",
        "Bearer ",
        f"Bearer {PASSWORD}",
        "Bearer hf_tok_" + "0" * 49,
        "Digest x",
        f"Negotiate {PASSWORD}",
    ],
)
def test_what_proves_nothing_is_401(one: RunningCluster, authorization: str) -> None:
    answer = one.first.client().request("GET", REPOSITORIES, headers={"Authorization": authorization})
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="Holdfast", charset="UTF-8"'


def test_s8_an_unknown_user_and_a_wrong_password_get_the_same_answer(one: RunningCluster) -> None:
    answers = [one.first.client(basic(user, "wrong")).get(REPOSITORIES) for user in ("admin", "nobody")]
    assert answers[0].body == answers[1].body


def test_s32_tokens_are_recognisable_and_have_a_checksum() -> None:
    made = {tokens.new_secret() for _ in range(50)}
    assert len(made) == 50
    for secret in made:
        assert re.fullmatch(r"hf_tok_[0-9A-Za-z]{49}", secret)
        assert tokens.looks_like_token(secret)
        spoiled = secret[:20] + ("a" if secret[20] != "a" else "b") + secret[21:]
        assert not tokens.looks_like_token(spoiled)


def test_s32_a_garbage_token_asks_the_database_nothing(one: RunningCluster) -> None:
    name = {"query": "token_find"}
    metric = "holdfast_database_query_duration_seconds_count"
    before = one.first.metric(metric, **name)
    for garbage in ("x", "hf_tok_" + "0" * 49, one.token("read")[:-1] + "!", "\u00e9" * 56):
        assert one.first.client(f"Bearer {garbage}".encode().decode("latin-1")).get(REPOSITORIES).status == 401
    assert one.first.metric(metric, **name) == before
    assert one.first.client(f"Bearer {tokens.new_secret()}").get(REPOSITORIES).status == 401
    assert one.first.metric(metric, **name) == before + 1


@pytest.mark.parametrize("form", ["Bearer {}", "bearer  {}", "key"])
def test_s32_garbage_is_refused_without_a_word_to_postgres(one: RunningCluster, form: str) -> None:
    secret = one.token("read")
    spoiled = [secret[:n] + ("a" if secret[n] != "a" else "b") + secret[n + 1 :] for n in (8, 30, len(secret) - 1)]
    for garbage in (*spoiled, secret[:-1], secret + "0", secret.upper(), "x", "' OR 1=1 --", "0" * 4000):
        identity = secrets.token_hex(8)
        headers = {"X-JFrog-Art-Api": garbage} if form == "key" else {"Authorization": form.format(garbage)}
        with statements_sent() as sent:
            answer = one.first.client().request("GET", REPOSITORIES, headers={"X-Request-Id": identity, **headers})
        assert answer.status == 401 and answer.headers["X-Request-Id"] == identity
        assert [found.name for found in sent if found.request == identity or "token" in found.name] == []


# ---------------------------------------------------------------------- changes


def test_s32_a_revoked_token_is_refused_by_every_node_at_once(three: RunningCluster) -> None:
    made = three.admin.post_json(TOKENS, {"scopes": ["read"]}).json()
    clients = [node.client(f"Bearer {made['token']}") for node in three.nodes]
    for client in clients * 2:
        assert client.get(REPOSITORIES).status == 200
    assert three.admin.delete(f"{TOKENS}/{made['id']}").status == 204
    began = time.monotonic()
    wait_until(lambda: all(client.get(REPOSITORIES).status == 401 for client in clients))
    assert time.monotonic() - began < 2


def test_an_expired_token_is_refused(one: RunningCluster) -> None:
    token = one.token("read", expires_in_seconds=1)
    client = one.first.client(f"Bearer {token}")
    assert client.get(REPOSITORIES).status == 200
    wait_until(lambda: client.get(REPOSITORIES).status == 401, 5)


@pytest.fixture
def user(three: RunningCluster) -> str:
    """The name of an administrator of this test's own, whose password is ``first``."""
    name = f"user-{secrets.token_hex(4)}"
    three.sql("INSERT INTO users (name, password_hash, is_admin) VALUES ($1, $2, true)", name, hash_password("first"))
    return name


def test_s31_a_changed_password_holds_on_every_node_at_once(three: RunningCluster, user: str) -> None:
    old = [node.client(basic(user, "first")) for node in three.nodes]
    new = [node.client(basic(user, "second")) for node in three.nodes]
    assert [client.get(REPOSITORIES).status for client in old + new] == [200] * 3 + [401] * 3
    three.sql("UPDATE users SET password_hash = $2 WHERE name = $1", user, hash_password("second"))
    began = time.monotonic()
    wait_until(lambda: [client.get(REPOSITORIES).status for client in old + new] == [401] * 3 + [200] * 3)
    assert time.monotonic() - began < 5


def test_a_disabled_user_and_their_tokens_are_refused(three: RunningCluster, user: str) -> None:
    token = three.first.client(basic(user, "first")).post_json(TOKENS, {"scopes": ["read"]}).json()["token"]
    clients = [three.nodes[1].client(basic(user, "first")), three.nodes[2].client(f"Bearer {token}")]
    assert [client.get(REPOSITORIES).status for client in clients] == [200, 200]
    three.sql("UPDATE users SET is_enabled = false WHERE name = $1", user)
    wait_until(lambda: [client.get(REPOSITORIES).status for client in clients] == [401, 401], 5)


def test_a_user_who_loses_their_rights_loses_those_of_their_tokens(three: RunningCluster, user: str) -> None:
    client = three.first.client(basic(user, "first"))
    token = client.post_json(TOKENS, {"scopes": ["admin"]}).json()["token"]
    bearer = three.nodes[1].client(f"Bearer {token}")
    assert bearer.get(TOKENS).status == 200
    three.sql("UPDATE users SET is_admin = false WHERE name = $1", user)
    wait_until(lambda: (client.get(TOKENS).status, bearer.get(TOKENS).status) == (403, 403), 5)


# ---------------------------------------------------------------------- what passwords cost


def count_verifications(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the name of the thread of every check of a password."""
    threads: list[str] = []
    verify = PasswordHasher.verify

    def counted(hasher: PasswordHasher, hashed: str, password: str) -> bool:
        threads.append(threading.current_thread().name)
        return bool(verify(hasher, hashed, password))

    monkeypatch.setattr(PasswordHasher, "verify", counted)
    return threads


def test_s8_an_unknown_user_costs_as_much_as_a_known_one(one: RunningCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = count_verifications(monkeypatch)
    for user in ("admin", "nobody"):
        assert one.first.client(basic(user, secrets.token_hex())).get(REPOSITORIES).status == 401
    assert len(threads) == 2
    assert all(name.startswith("argon2") for name in threads)


def test_s8_an_unknown_user_is_asked_for_and_counted_as_a_known_one(one: RunningCluster) -> None:
    one.sql("INSERT INTO users (name, password_hash) VALUES ('unable', '!') ON CONFLICT DO NOTHING")
    with one.settings(login_failures_max=100):
        asked = []
        for user in ("admin", f"nobody-{secrets.token_hex(4)}", "unable"):
            identity = secrets.token_hex(8)
            headers = {"Authorization": basic(user, secrets.token_hex()), "X-Request-Id": identity}
            with statements_sent() as sent:
                assert one.first.client().request("GET", REPOSITORIES, headers=headers).status == 401
            # A check is shared by those who bring the same credentials, and so is of no request.
            asked.append([found.name for found in sent if "login" in found.name or "user" in found.name])
    assert asked[0] == asked[1] == asked[2] and len(asked[0]) >= 3
    one.sql("DELETE FROM login_failures")


def test_s31_a_right_password_is_checked_once_for_many_requests(
    one: RunningCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.on_loop(forget(one))
    threads = count_verifications(monkeypatch)
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: one.admin.get(REPOSITORIES).status, range(200)))
    assert set(answers) == {200}
    assert len(threads) == 1


def test_a_password_is_checked_each_time_where_nothing_is_to_be_remembered(
    one: RunningCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with one.settings(password_cache_seconds=0):
        one.on_loop(forget(one))
        threads = count_verifications(monkeypatch)
        assert [one.admin.get(REPOSITORIES).status for _ in range(3)] == [200] * 3
        assert len(threads) == 3


async def forget(cluster: RunningCluster) -> None:
    cluster.first.node._membership._on_principals()


def test_s30_a_flood_of_logins_is_bounded_and_hurts_nobody_who_is_known(
    one: RunningCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins, "WAITING_MAX", 8)
    assert one.admin.get(REPOSITORIES).status == 200
    with ThreadPoolExecutor(64) as pool:
        flood = [pool.submit(one.first.client(basic("admin", f"wrong {n}")).get, REPOSITORIES) for n in range(150)]
        while not all(one.done() for one in flood):
            assert one.admin.get(REPOSITORIES).status == 200
        answers = [one.result() for one in flood]
    assert {answer.status for answer in answers} <= {401, 503}
    refused = [answer for answer in answers if answer.status == 503]
    assert refused and all("Retry-After" in answer.headers for answer in refused)


async def test_nobodys_password_is_never_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "check_password", lambda hashed, password: True)
    verifier = PasswordVerifier()
    try:
        assert await verifier.verify(None, "whatever") is False
    finally:
        verifier.close()
