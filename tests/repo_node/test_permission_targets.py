"""Permission targets over REST: both forms, and what somebody who manages one may change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.repo_node.nodes import RunningCluster, wait_until
from tests.repo_node.people import client_of, new_user

V1, V2 = "/artifactory/api/security/permissions", "/artifactory/api/v2/security/permissions"


@pytest.fixture
def target(one: RunningCluster) -> Iterator[str]:
    """A name for a permission target of this test's own."""
    name = f"t {uuid4().hex[:8]}"
    yield name.replace(" ", "%20")
    one.admin.delete(f"{V1}/{name.replace(' ', '%20')}")


def v2(users: dict[str, list[str]], **said: Any) -> dict[str, Any]:
    return {"repo": {"repositories": ["generic-local"], "actions": {"users": users, "groups": {}}, **said}}


def test_the_first_form_is_written_and_read(one: RunningCluster, target: str) -> None:
    user = new_user(one)
    document = {
        "name": target.replace("%20", " "),
        "includesPattern": "a/**, b/*",
        "excludesPattern": "",
        "repositories": ["generic-local", "ANY REMOTE"],
        "principals": {"users": {user: ["r", "w", "n", "d", "m", "mxm"]}, "groups": {}},
    }
    assert one.admin.put_json(f"{V1}/{target}", document).status == 201
    assert one.admin.put_json(f"{V1}/{target}", document).status == 200
    found = one.admin.get(f"{V1}/{target}").json()
    assert found["principals"]["users"] == {user: ["n", "d", "m", "r", "w"]}
    assert (found["includesPattern"], found["excludesPattern"]) == ("a/**,b/*", "")
    assert found["repositories"] == ["generic-local", "ANY REMOTE"]
    assert document["name"] in [one["name"] for one in one.admin.get(V1).json()]
    assert one.admin.delete(f"{V1}/{target}").status == 200
    missing = one.admin.get(f"{V1}/{target}")
    assert missing.status == 404 and b"Not Found" in missing.body


def test_the_second_form_is_made_once_and_replaced(one: RunningCluster, target: str) -> None:
    user = new_user(one)
    document = v2({user: ["read"]}, **{"include-patterns": ["x/**"], "exclude-patterns": [""]})
    document["build"] = {"repositories": ["artifactory-build-info"], "actions": {}}
    assert one.admin.post_json(f"{V2}/{target}", document).status == 201
    assert one.admin.post_json(f"{V2}/{target}", document).status == 409
    assert one.admin.put_json(f"{V2}/{target}", document).status == 200
    assert one.admin.get(f"{V2}/{target}").json()["repo"] == {
        "include-patterns": ["x/**"],
        "exclude-patterns": [""],
        "repositories": ["generic-local"],
        "actions": {"users": {user: ["read"]}, "groups": {}},
    }
    client, path = client_of(one, user), f"x/{uuid4().hex}"
    assert one.admin.put(f"/artifactory/generic-local/{path}", b"x").status == 201
    assert client.get(f"/artifactory/generic-local/{path}").status == 200
    assert one.admin.delete(f"{V2}/{target}").status == 200
    wait_until(lambda: client.get(f"/artifactory/generic-local/{path}").status == 403, 2.0)


@pytest.mark.parametrize(
    "document",
    [
        v2({"nobody-at-all": ["read"]}),
        v2({"admin": ["fly"]}),
        v2({"admin": ["read"]}, repositories=["no/repository"]),
        v2({}, **{"include-patterns": ["x" * 2000]}),
        v2({}, **{"include-patterns": ["a\0"]}),
        v2({}, repositories="generic-local"),
        {"name": "another"},
    ],
)
def test_a_target_that_cannot_be_is_refused(one: RunningCluster, target: str, document: dict[str, Any]) -> None:
    assert one.admin.put_json(f"{V2}/{target}", document).status == 400
    assert one.admin.get(f"{V2}/{target}").status == 404


def test_who_manages_a_target_gives_and_takes_what_they_have_by_it(one: RunningCluster, target: str) -> None:
    manager, other = new_user(one), new_user(one)
    assert one.admin.put_json(f"{V2}/{target}", v2({manager: ["manage", "read"], other: ["delete"]})).status == 201
    client, url = client_of(one, manager), f"{V2}/{target}"
    assert [found["name"] for found in client.get(V2).json()] == [target.replace("%20", " ")]
    assert client.get(url).status == 200

    def tries(users: dict[str, list[str]], **said: Any) -> int:
        return client.put_json(url, v2(users, **said)).status

    assert tries({manager: ["manage", "read"], other: ["delete", "read"]}) == 200
    assert tries({manager: ["manage", "read", "write"], other: ["delete", "read"]}) == 403, "what they have not"
    assert tries({manager: ["manage", "read"]}) == 403, "nor take it"
    assert tries({manager: ["manage", "read"], other: ["delete"]}, repositories=["ANY"]) == 403
    assert tries({manager: ["manage", "read"], other: ["delete"]}, **{"include-patterns": ["x"]}) == 403
    assert client.put_json(f"{V2}/another-target", v2({manager: ["read"]})).status == 403
    assert client.delete(url).status == 403
    assert client_of(one, other).get(url).status == 403
    assert one.admin.get(url).json()["repo"]["actions"]["users"] == {
        manager: ["manage", "read"],
        other: ["delete", "read"],
    }


def test_a_repository_that_is_made_again_is_not_given_by_what_gave_the_one_before(
    three: RunningCluster, target: str
) -> None:
    key, user = f"again-{uuid4().hex[:8]}", new_user(three)
    repository, path = f"/artifactory/api/repositories/{key}", f"/artifactory/{key}/a"
    clients = [client_of(three, user, node=node) for node in range(3)]
    named = v2({user: ["read", "write"]})
    named["repo"]["repositories"] = [key, "generic-local"]
    assert three.admin.put_json(f"{V2}/{target}", named).status == 201
    try:
        assert three.admin.put_json(repository, {"rclass": "local"}).status == 200
        for number, client in enumerate(clients):
            wait_until(lambda client=client, number=number: client.put(f"{path}-{number}", b"x").status == 201)  # type: ignore[misc]
        assert three.admin.delete(repository).status == 200
        assert three.admin.get(f"{V2}/{target}").json()["repo"]["repositories"] == ["generic-local"]
        assert three.admin.put_json(repository, {"rclass": "local"}).status == 200
        assert clients[0].put(path, b"y").status == 403
        for client in clients:
            wait_until(lambda client=client: client.put(path, b"y").status == 403)  # type: ignore[misc]
    finally:
        three.admin.delete(repository)
