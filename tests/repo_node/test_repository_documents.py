"""Repositories over REST: Artifactory's configuration JSON, what clients send of it, and Holdfast's own fields."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from tests.repo_node.nodes import RunningCluster, errors_of, remove_repositories, wait_until

BASE = "/artifactory/api/repositories"


@pytest.fixture(autouse=True)
def left_as_they_were(request: pytest.FixtureRequest) -> Iterator[None]:
    """Take away what a test made in the clusters that it shares with others."""
    used = [request.getfixturevalue(name) for name in ("one", "three") if name in request.fixturenames]
    yield
    for cluster in used:
        remove_repositories(cluster.admin, "r-")


@pytest.fixture
def key() -> str:
    return f"r-{secrets.token_hex(4)}"


DEFAULTS = {
    "rclass": "local",
    "packageType": "generic",
    "description": "",
    "notes": "",
    "includesPattern": "**/*",
    "excludesPattern": "",
    "repoLayoutRef": "simple-default",
    "checksumPolicyType": "client-checksums",
    "blackedOut": False,
    "priorityResolution": False,
    "allowOverwrite": True,
    "allowDelete": True,
    "quotaBytes": None,
    "redundancy": None,
    "trash": True,
    "digests": ["sha256", "sha1", "md5"],
}


def test_a_repository_of_which_nothing_is_said_has_the_defaults(one: RunningCluster, key: str) -> None:
    assert one.admin.put_json(f"{BASE}/{key}", {}).status == 200
    assert one.admin.get(f"{BASE}/{key}").json() == {"key": key, **DEFAULTS}


def test_what_is_said_is_kept_and_a_change_keeps_what_it_does_not_name(one: RunningCluster, key: str) -> None:
    said: dict[str, Any] = {
        "description": "libraries",
        "notes": "of the team",
        "includesPattern": "org/**",
        "excludesPattern": "**/*.exe",
        "repoLayoutRef": "maven-2-default",
        "checksumPolicyType": "server-generated-checksums",
        "priorityResolution": True,
        "allowOverwrite": False,
        "allowDelete": False,
        "redundancy": 3,
        "trash": False,
        "digests": ["sha256", "md5"],
    }
    assert one.admin.put_json(f"{BASE}/{key}", {"key": key, "rclass": "local", **said}).status == 200
    document = one.admin.get(f"{BASE}/{key}").json()
    assert document == {"key": key, **DEFAULTS, **said}
    assert one.admin.post_json(f"{BASE}/{key}", {"description": "other", "redundancy": None}).status == 200
    assert one.admin.get(f"{BASE}/{key}").json() == document | {"description": "other", "redundancy": None}


def test_what_clients_of_artifactory_send_besides_is_ignored(one: RunningCluster, key: str) -> None:
    besides = {
        "xrayIndex": True,
        "propertySets": [],
        "handleReleases": True,
        "snapshotVersionBehavior": "unique",
        "maxUniqueSnapshots": 0,
        "archiveBrowsingEnabled": False,
        "environments": ["DEV"],
        "repositories": [],
        "description": None,
        "checksumPolicyType": None,
    }
    assert one.admin.put_json(f"{BASE}/{key}", besides).status == 200
    assert one.admin.post_json(f"{BASE}/{key}", besides).status == 200
    assert one.admin.get(f"{BASE}/{key}").json() == {"key": key, **DEFAULTS}


@pytest.mark.parametrize(
    "bad",
    [
        {"rclass": "remote"},
        {"packageType": "maven"},
        {"includesPattern": "a\\b"},
        {"excludesPattern": "a\nb"},
        {"checksumPolicyType": "none"},
        {"quotaBytes": -1},
        {"quotaBytes": "10"},
        {"quotaBytes": 1 << 63},
        {"allowOverwrite": "no"},
        {"rclass": "virtual", "repositories": ["no-such"]},
        {"rclass": "virtual", "repositories": [5]},
        {"rclass": "virtual", "quotaBytes": 5},
        {"rclass": "virtual", "allowDelete": False},
        {"rclass": "virtual", "repositories": [], "defaultDeploymentRepo": "generic-local"},
    ],
)
def test_what_cannot_be_is_400_and_makes_nothing(one: RunningCluster, key: str, bad: dict[str, Any]) -> None:
    assert errors_of(one.admin.put_json(f"{BASE}/{key}", bad))[0] == 400
    assert one.admin.get(f"{BASE}/{key}").status == 404


def test_a_virtual_repository_is_described_listed_and_changed(one: RunningCluster, key: str) -> None:
    said = {"rclass": "virtual", "repositories": ["generic-local"], "defaultDeploymentRepo": "generic-local"}
    assert one.admin.put_json(f"{BASE}/{key}", said).status == 200
    general = {name: DEFAULTS[name] for name in ("description", "notes", "includesPattern", "excludesPattern")}
    wanted = {"key": key, "packageType": "generic", "repoLayoutRef": "simple-default", **general, **said}
    assert one.admin.get(f"{BASE}/{key}").json() == wanted
    assert key in [found["key"] for found in one.admin.get(f"{BASE}?type=virtual").json()]
    assert key not in [found["key"] for found in one.admin.get(f"{BASE}?type=local").json()]
    [entry] = [found for found in one.admin.get(BASE).json() if found["key"] == key]
    assert (entry["type"], entry["packageType"]) == ("VIRTUAL", "Generic")
    assert errors_of(one.admin.post_json(f"{BASE}/{key}", {"repositories": []}))[0] == 400
    assert one.admin.get(f"{BASE}/{key}").json() == wanted, "the default deployment repository must be a member"
    cleared = {"repositories": [], "defaultDeploymentRepo": ""}
    assert one.admin.post_json(f"{BASE}/{key}", cleared).status == 200
    assert one.admin.get(f"{BASE}/{key}").json() == wanted | {"repositories": [], "defaultDeploymentRepo": None}
    assert errors_of(one.admin.post_json(f"{BASE}/{key}", {"rclass": "local"}))[0] == 400


def test_a_virtual_repository_is_never_a_member_of_itself(one: RunningCluster, key: str) -> None:
    first, second = f"{key}-1", f"{key}-2"
    assert one.admin.put_json(f"{BASE}/{first}", {"rclass": "virtual"}).status == 200
    assert one.admin.put_json(f"{BASE}/{second}", {"rclass": "virtual", "repositories": [first]}).status == 200
    for members in ([first], [second]):
        assert errors_of(one.admin.post_json(f"{BASE}/{first}", {"repositories": members}))[0] == 400
    assert one.admin.get(f"{BASE}/{first}").json()["repositories"] == []


def test_a_member_that_is_deleted_leaves_the_virtual_repository(one: RunningCluster, key: str) -> None:
    virtual = f"{key}-v"
    assert one.admin.put_json(f"{BASE}/{key}", {}).status == 200
    said = {"rclass": "virtual", "repositories": ["generic-local", key], "defaultDeploymentRepo": key}
    assert one.admin.put_json(f"{BASE}/{virtual}", said).status == 200
    assert one.admin.delete(f"{BASE}/{key}").status == 200
    document = one.admin.get(f"{BASE}/{virtual}").json()
    assert (document["repositories"], document["defaultDeploymentRepo"]) == (["generic-local"], None)
    assert one.admin.delete(f"{BASE}/{virtual}").status == 200
    assert one.admin.get("/artifactory/api/repositories/generic-local").status == 200


def test_all_configurations_come_by_class(one: RunningCluster, key: str) -> None:
    assert one.admin.put_json(f"{BASE}/{key}", {"rclass": "virtual"}).status == 200
    found = one.admin.get(f"{BASE}/configurations").json()
    assert one.admin.get(f"{BASE}/{key}").json() in found["VIRTUAL"]
    assert "generic-local" in [document["key"] for document in found["LOCAL"]]
    assert list(one.admin.get(f"{BASE}/configurations?repoType=virtual").json()) == ["VIRTUAL"]
    assert one.with_token("read").get(f"{BASE}/configurations").status == 403
    assert one.admin.put(f"{BASE}/configurations").status == 400


def test_a_change_holds_on_every_node_within_a_second(three: RunningCluster, key: str) -> None:
    assert three.admin.put_json(f"{BASE}/{key}", {}).status == 200
    for node in three.nodes:
        assert node.admin.put(f"/artifactory/{key}/a", b"x").status == 201  # by now each remembers it
    assert three.admin.post_json(f"{BASE}/{key}", {"excludesPattern": "**/*.exe"}).status == 200
    for node in three.nodes:
        refused = lambda node=node: node.admin.put(f"/artifactory/{key}/b.exe", b"x").status == 403  # noqa: E731
        wait_until(refused, 1)


def test_a_changed_redundancy_asks_for_a_census_and_nothing_else_does(one: RunningCluster, key: str) -> None:
    def asked() -> int:
        return int(one.sql("SELECT asked FROM census")[0][0])

    assert one.admin.put_json(f"{BASE}/{key}", {}).status == 200
    before = asked()
    assert one.admin.post_json(f"{BASE}/{key}", {"notes": "x", "trash": False}).status == 200
    assert asked() == before
    assert one.admin.post_json(f"{BASE}/{key}", {"redundancy": 2}).status == 200
    assert asked() == before + 1
