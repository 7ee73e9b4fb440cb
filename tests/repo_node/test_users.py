"""Users and groups over REST, their passwords, and who is locked out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests import canaries
from tests.repo_node.http import Answer, Client
from tests.repo_node.nodes import PASSWORD, RunningCluster, basic, errors_of, wait_until
from tests.repo_node.people import client_of, grant, new_user

SECURITY = "/artifactory/api/security"
USERS, GROUPS = f"{SECURITY}/users", f"{SECURITY}/groups"
CHANGE = f"{USERS}/authorization/changePassword"
REPOSITORIES = "/artifactory/api/repositories"
OLD, NEW = canaries.password("old-1"), canaries.password("new-2")


@pytest.fixture
def name(one: RunningCluster) -> Iterator[str]:
    """The name of a user of this test's own, made with ``OLD``."""
    name = f"u-{uuid4().hex[:12]}"
    assert put_user(one.admin, name).status == 201
    yield name
    one.admin.delete(f"{USERS}/{name}")


def put_user(client: Client, name: str, /, **said: Any) -> Answer:
    return client.put_json(f"{USERS}/{name}", {"email": f"{name}@example.org", "password": OLD, **said})


def change_password(client: Client, name: str, old: str, new: str) -> Answer:
    document = {"userName": name, "oldPassword": old, "newPassword1": new, "newPassword2": new}
    return client.post_json(CHANGE, document)


def status(cluster: RunningCluster, name: str, password: str, node: int = 0) -> int:
    return cluster.nodes[node].client(basic(name, password)).get(f"{USERS}/{name}").status


@pytest.mark.parametrize("said", ["\0", "\ud800"], ids=["NUL", "half-a-pair"])
@pytest.mark.parametrize(
    ("method", "path", "document"),
    [
        ("PUT", f"{USERS}/odd", {"name": "{said}", "email": "a", "password": OLD}),
        ("PUT", f"{GROUPS}/odd", {"name": "{said}"}),
        ("PUT", f"{SECURITY}/permissions/odd", {"name": "{said}", "repositories": ["ANY"]}),
        ("PUT", f"{SECURITY}/permissions/odd", {"repositories": ["ANY"], "principals": {"users": {"{said}": ["r"]}}}),
        ("POST", f"{SECURITY}/unlockUsers", ["{said}"]),
        ("POST", f"{SECURITY}/token/revoke", {"token_id": "{said}"}),
    ],
)
def test_what_postgres_cannot_keep_is_refused_wherever_it_is_said(
    one: RunningCluster, said: str, method: str, path: str, document: Any
) -> None:
    body = json.dumps(document).replace("{said}", json.dumps(said)[1:-1]).encode()
    status, message = errors_of(one.admin.request(method, path, body))
    assert status in (400, 404) and message


def test_a_user_is_made_read_changed_and_deleted(one: RunningCluster, name: str) -> None:
    admin = one.admin
    document = admin.get(f"{USERS}/{name}").json()
    assert document["email"] == f"{name}@example.org"
    assert (document["admin"], document["groups"], document["realm"]) == (False, [], "internal")
    assert name in [user["name"] for user in admin.get(USERS).json()]
    assert admin.post_json(f"{USERS}/{name}", {"email": "b@example.org", "profileUpdatable": True}).status == 200
    assert admin.get(f"{USERS}/{name}").json()["email"] == "b@example.org"
    assert put_user(admin, name, admin=True).status == 200
    assert admin.get(f"{USERS}/{name}").json()["admin"] is True
    assert admin.delete(f"{USERS}/{name}").status == 200
    missing = admin.get(f"{USERS}/{name}")
    assert missing.status == 404 and b"Not Found" in missing.body
    assert admin.post_json(f"{USERS}/{name}", {"email": "c@example.org"}).status == 404
    assert status(one, name, OLD) == 401


@pytest.mark.parametrize(
    "said",
    [
        {"email": None},
        {"password": None},
        {"password": "short"},
        {"password": "x" * 1025},
        {"admin": "yes"},
        {"name": "another"},
        {"groups": ["nowhere"]},
        {"email": "a\0b"},
    ],
)
def test_a_user_that_cannot_be_is_refused_and_not_made(one: RunningCluster, said: dict[str, Any]) -> None:
    name = f"u-{uuid4().hex[:12]}"
    assert put_user(one.admin, name, **said).status == 400
    assert one.admin.get(f"{USERS}/{name}").status == 404


@pytest.mark.parametrize("name", ["Capital", "a%20b", "-x", "x" * 65, "%C3%BC"])
def test_a_name_that_could_be_read_differently_is_refused(one: RunningCluster, name: str) -> None:
    document = {"email": "a@example.org", "password": OLD}
    assert one.admin.put_json(f"{USERS}/{name}", document).status == 400


def test_s37_nobody_makes_themselves_an_administrator(one: RunningCluster, name: str) -> None:
    own = one.first.client(basic(name, OLD))
    assert own.get(f"{USERS}/{name}").status == 200
    for said in (
        {"admin": True},
        {"groups": ["x"]},
        {"password": NEW},
        {"enabled": True},
        {"mustChangePassword": False},
    ):
        assert own.post_json(f"{USERS}/{name}", said).status == 403
    assert own.post_json(f"{USERS}/{name}", {"email": "own@example.org"}).status == 200
    assert own.get(f"{USERS}/admin").status == 403
    assert own.put_json(f"{USERS}/{name}", {"email": "x@example.org", "password": NEW, "admin": True}).status == 403
    assert one.admin.get(f"{USERS}/{name}").json()["admin"] is False


def test_there_is_always_an_administrator(one: RunningCluster, name: str) -> None:
    assert one.admin.post_json(f"{USERS}/admin", {"admin": False}).status == 409
    assert one.admin.post_json(f"{USERS}/admin", {"enabled": False}).status == 409
    assert one.admin.delete(f"{USERS}/admin").status == 409
    assert put_user(one.admin, name, admin=True).status == 200
    assert one.first.client(basic(name, OLD)).delete(f"{USERS}/{name}").status == 409, "nobody deletes themselves"
    assert one.admin.get(USERS).status == 200


def test_s37_nobody_can_make_the_anonymous_user_more(one: RunningCluster) -> None:
    for said in ({"admin": True}, {"password": OLD}):
        assert one.admin.post_json(f"{USERS}/anonymous", said).status == 400
    assert one.admin.delete(f"{USERS}/anonymous").status == 409


def test_a_user_without_a_password_does_not_log_in_but_by_a_token(one: RunningCluster, name: str) -> None:
    assert one.admin.post_json(f"{USERS}/{name}", {"internalPasswordDisabled": True}).status == 200
    assert [status(one, name, password) for password in (OLD, "!", "")] == [401] * 3
    assert client_of(one, name).get(f"{USERS}/{name}").status == 200


def test_groups_are_made_joined_and_left(one: RunningCluster, name: str) -> None:
    group, admin = f"g-{uuid4().hex[:8]}", one.admin
    assert admin.put_json(f"{GROUPS}/{group}", {"name": group, "description": "d"}).status == 201
    assert admin.put_json(f"{GROUPS}/{group}", {"description": "e"}).status == 200
    assert admin.post_json(f"{GROUPS}/{group}", {"userNames": [name]}).status == 200
    assert admin.get(f"{USERS}/{name}").json()["groups"] == [group]
    found = admin.get(f"{GROUPS}/{group}?includeUsers=true").json()
    assert (found["description"], found["userNames"], found["adminPrivileges"]) == ("e", [name], False)
    assert "userNames" not in admin.get(f"{GROUPS}/{group}").json()
    assert group in [one["name"] for one in admin.get(GROUPS).json()]
    assert admin.post_json(f"{USERS}/{name}", {"groups": []}).status == 200
    assert admin.get(f"{GROUPS}/{group}?includeUsers=true").json()["userNames"] == []
    assert admin.post_json(f"{GROUPS}/{group}", {"userNames": ["nobody-at-all"]}).status == 400
    assert admin.put_json(f"{GROUPS}/{group}", {"adminPrivileges": True}).status == 400
    assert admin.delete(f"{GROUPS}/{group}").status == 200
    assert admin.delete(f"{GROUPS}/{group}").status == 404
    assert admin.post_json(f"{GROUPS}/{group}", {}).status == 404


def test_new_users_join_the_groups_that_say_so(one: RunningCluster) -> None:
    group, name = f"g-{uuid4().hex[:8]}", f"u-{uuid4().hex[:12]}"
    assert one.admin.put_json(f"{GROUPS}/{group}", {"autoJoin": True}).status == 201
    assert put_user(one.admin, name).status == 201
    assert one.admin.get(f"{USERS}/{name}").json()["groups"] == [group]
    assert one.admin.delete(f"{GROUPS}/{group}").status == 200


def test_users_and_groups_are_for_administrators(one: RunningCluster, name: str) -> None:
    own = one.first.client(basic(name, OLD))
    for path in (USERS, GROUPS, f"{GROUPS}/x", f"{SECURITY}/lockedUsers"):
        assert own.get(path).status == 403
    assert put_user(own, "another").status == 403
    assert own.delete(f"{USERS}/admin").status == 403
    assert own.request("POST", f"{SECURITY}/unlockAllUsers").status == 403


# ---------------------------------------------------------------------- passwords


def test_s31_a_changed_password_holds_on_every_node_and_the_old_one_fails(three: RunningCluster) -> None:
    name = f"u-{uuid4().hex[:12]}"
    assert put_user(three.admin, name).status == 201
    assert [status(three, name, OLD, node) for node in range(3)] == [200] * 3, "remembered by each"
    assert change_password(three.nodes[1].client(), name, OLD, NEW).status == 200
    for node in range(3):
        wait_until(lambda node=node: status(three, name, OLD, node) == 401, 2.0)  # type: ignore[misc]
        assert status(three, name, NEW, node) == 200


def test_a_password_is_changed_by_who_knows_the_old_one(one: RunningCluster, name: str) -> None:
    client = one.first.client()
    assert change_password(client, name, "wrong-password", NEW).status == 401
    assert change_password(client, "nobody", OLD, NEW).status == 401
    assert change_password(client, name, OLD, OLD).status == 400
    assert change_password(client, name, OLD, "short").status == 400
    differing = {"userName": name, "oldPassword": OLD, "newPassword1": NEW, "newPassword2": NEW + "x"}
    assert client.post_json(CHANGE, differing).status == 400
    assert status(one, name, OLD) == 200
    assert change_password(client, name, OLD, NEW).status == 200
    assert change_password(client, "anonymous", "!", NEW).status == 401


def test_s38_a_first_password_must_be_changed_before_anything_else(one: RunningCluster, name: str) -> None:
    assert put_user(one.admin, name, mustChangePassword=True).status == 200
    grant(one, name, ["read"])
    refused = one.first.client(basic(name, OLD)).get(REPOSITORIES)
    assert refused.status == 401 and b"must be changed" in refused.body
    assert client_of(one, name).get(REPOSITORIES).status == 401, "nor by a token"
    assert b"must be changed" not in one.first.client(basic(name, "wrong")).get(REPOSITORIES).body
    assert change_password(one.first.client(), name, OLD, NEW).status == 200
    assert one.first.client(basic(name, NEW)).get(REPOSITORIES).status == 200
    assert one.admin.request("POST", f"{USERS}/authorization/expirePassword/{name}").status == 200
    assert status(one, name, NEW) == 401


def test_the_password_policy_holds_for_new_passwords(one: RunningCluster, name: str) -> None:
    with one.settings(password_characters_min=12, password_kinds_min=3):
        for password in ("Aa1-567890", "only-small-letters", name):
            assert change_password(one.first.client(), name, OLD, password).status == 400
        assert change_password(one.first.client(), name, OLD, "Capital-and-9").status == 200


# ---------------------------------------------------------------------- locked out


def test_s8_too_many_wrong_logins_lock_a_name_on_every_node_until_an_administrator_unlocks_it(
    three: RunningCluster,
) -> None:
    name = f"u-{uuid4().hex[:12]}"
    assert put_user(three.admin, name).status == 201
    with three.settings(login_failures_max=3):
        for who in (name, f"nobody-{name}"):
            answers = [three.nodes[n % 3].client(basic(who, f"wrong-{n}")).get(REPOSITORIES) for n in range(4)]
            assert [answer.status for answer in answers] == [401] * 4
            assert b"Too many" in answers[3].body and b"Too many" not in answers[2].body, "whether there is such a user"
        assert [status(three, name, OLD, node) for node in range(3)] == [401] * 3, "the right one too"
        assert name in three.admin.get(f"{SECURITY}/lockedUsers").json()
        assert three.admin.get(REPOSITORIES).status == 200, "nobody else is locked out"
        assert three.admin.request("POST", f"{SECURITY}/unlockUsers/{name}").status == 200
        assert [status(three, name, OLD, node) for node in range(3)] == [200] * 3
        assert name not in three.admin.get(f"{SECURITY}/lockedUsers").json()


def test_s8_a_lock_ends_by_time_and_a_right_login_forgets_the_wrong_ones(one: RunningCluster, name: str) -> None:
    def wrong() -> bytes:
        return one.first.client(basic(name, uuid4().hex)).get(REPOSITORIES).body

    with one.settings(login_failures_max=2, login_lock_seconds=1.0):
        wrong(), wrong()
        assert b"Too many" in wrong()
        wait_until(lambda: status(one, name, OLD) == 200, 5.0)
        assert one.sql("SELECT * FROM login_failures WHERE name = $1", name) == []
        assert b"Too many" not in wrong()


def test_s8_wrong_logins_from_one_address_lock_it_out_whatever_the_names(one: RunningCluster, name: str) -> None:
    one.sql("DELETE FROM login_failures")
    with one.settings(login_failures_per_address_max=3):
        for n in range(3):
            assert b"Too many" not in one.first.client(basic(f"nobody-{n}", "x")).get(REPOSITORIES).body
        rows = one.sql("SELECT count(*) AS n FROM login_failures")[0]["n"]
        for n in range(5):
            assert b"Too many" in one.first.client(basic(f"other-{n}", "x")).get(REPOSITORIES).body
        assert one.sql("SELECT count(*) AS n FROM login_failures")[0]["n"] == rows, "a flood writes nothing more"
        assert client_of(one, new_user(one)).get(REPOSITORIES).status == 403, "tokens go on"
        one.sql("DELETE FROM login_failures")
        assert status(one, name, OLD) == 200


def test_s33_no_password_stands_in_an_answer_or_in_the_events(one: RunningCluster, name: str) -> None:
    secret = canaries.password(uuid4().hex)
    answer = put_user(one.admin, name, password=secret, admin="no")
    assert answer.status == 400 and secret.encode() not in answer.body
    assert put_user(one.admin, name, password=secret).status == 200
    assert secret not in one.admin.get(f"{USERS}/{name}").body.decode()
    assert not [row for row in one.sql("SELECT detail::text FROM events") if secret in (row["detail"] or "")]
    assert PASSWORD not in one.admin.get(f"{USERS}/admin").body.decode()
