"""Virtual repositories over HTTP: what is read through them, in which order, by whom, and what is refused."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.repo_node.http import Client
from tests.repo_node.nodes import RunningCluster, errors_of, remove_repositories, wait_until
from tests.repo_node.people import client_of, grant, new_user

API = "/artifactory/api"
BASE = f"{API}/repositories"

Make = Callable[..., str]


@pytest.fixture(autouse=True)
def left_as_they_were(request: pytest.FixtureRequest) -> Iterator[None]:
    """Take away what a test made in the clusters that it shares with others."""
    used = [request.getfixturevalue(name) for name in ("one", "three") if name in request.fixturenames]
    yield
    for cluster in used:
        remove_repositories(cluster.admin, "r-")


@pytest.fixture
def make(one: RunningCluster) -> Make:
    """Return what makes a repository of a configuration, and returns its key."""

    def made(*members: str, **configuration: Any) -> str:
        key = f"r-{secrets.token_hex(4)}"
        if members:
            configuration |= {"rclass": "virtual", "repositories": list(members)}
        answer = one.admin.put_json(f"{BASE}/{key}", configuration)
        assert answer.status == 200, answer
        return key

    return made


@pytest.fixture
def admin(one: RunningCluster) -> Client:
    return one.admin


def put(admin: Client, path: str, data: bytes = b"x") -> None:
    answer = admin.put(f"/artifactory/{path}", data)
    assert answer.status == 201, answer


def read(client: Client, path: str) -> bytes | int:
    """Return what is at a path, or the status that says why nothing is."""
    answer = client.get(f"/artifactory/{path}")
    return answer.body if answer.status == 200 else answer.status


# ---------------------------------------------------------------- reading


def test_the_first_member_that_has_a_path_gives_it(admin: Client, make: Make) -> None:
    first, second = make(), make()
    both, other = make(first, second), make(second, first)
    put(admin, f"{first}/a/b", b"first")
    put(admin, f"{second}/a/b", b"second")
    put(admin, f"{second}/a/c", b"only")
    assert [read(admin, f"{both}/a/{name}") for name in "bcd"] == [b"first", b"only", 404]
    assert read(admin, f"{other}/a/b") == b"second"
    assert read(admin, f"{both}/a") == 404


def test_a_part_a_condition_and_a_head_work_as_in_a_local_one(admin: Client, make: Make) -> None:
    member = make()
    key = make(make(), member)
    put(admin, f"{member}/a/b", b"0123456789")
    path = f"/artifactory/{key}/a/b"
    part = admin.get(path, Range="bytes=2-4")
    assert (part.status, part.body) == (206, b"234")
    head = admin.head(path)
    assert (head.status, head.headers["Content-Length"]) == (200, "10")
    assert admin.get(path, If_None_Match=head.headers["ETag"]).status == 304


def test_s28_what_a_member_with_priority_has_is_looked_for_nowhere_else(admin: Client, make: Make) -> None:
    outside, inside = make(), make(priorityResolution=True)
    key = make(outside, inside)
    put(admin, f"{outside}/lib/1", b"theirs")
    assert read(admin, f"{key}/lib/1") == b"theirs"
    put(admin, f"{inside}/lib/1", b"ours")
    assert read(admin, f"{key}/lib/1") == b"ours"
    assert admin.post_json(f"{BASE}/{inside}", {"priorityResolution": False}).status == 200
    assert read(admin, f"{key}/lib/1") == b"theirs"


def test_its_own_patterns_and_those_of_its_members_hold(admin: Client, make: Make) -> None:
    first, second = make(), make()
    key = make(first, second, excludesPattern="**/*.exe")
    nested = make(key, includesPattern="a/**")
    for path in ("a/x", "a/x.exe", "b/x"):
        put(admin, f"{first}/{path}", b"first")
        put(admin, f"{second}/{path}", b"second")
    assert admin.post_json(f"{BASE}/{first}", {"excludesPattern": "a/**"}).status == 200
    assert [read(admin, f"{key}/{path}") for path in ("a/x", "a/x.exe", "b/x")] == [b"second", 404, b"first"]
    assert [read(admin, f"{nested}/{path}") for path in ("a/x", "a/x.exe", "b/x")] == [b"second", 404, 404]
    assert admin.get(f"{API}/storage/{nested}/b/x").status == 404


def test_a_change_of_members_holds_on_every_node_within_a_second(three: RunningCluster) -> None:
    first, second, key = (f"r-{secrets.token_hex(4)}" for _ in range(3))
    for local in (first, second):
        assert three.admin.put_json(f"{BASE}/{local}", {}).status == 200
        put(three.admin, f"{local}/a", local.encode())
    assert three.admin.put_json(f"{BASE}/{key}", {"rclass": "virtual", "repositories": [first]}).status == 200
    for node in three.nodes:
        assert read(node.admin, f"{key}/a") == first.encode(), "a new one is known everywhere at once"
    assert three.admin.post_json(f"{BASE}/{key}", {"repositories": [second, first]}).status == 200
    for node in three.nodes:
        wait_until(lambda node=node: read(node.admin, f"{key}/a") == second.encode(), 1)  # type: ignore[misc]
    assert three.admin.delete(f"{BASE}/{key}").status == 200
    for node in three.nodes:
        wait_until(lambda node=node: read(node.admin, f"{key}/a") == 404, 1)  # type: ignore[misc]


def test_a_read_is_one_round_trip_and_a_local_one_pays_nothing(one: RunningCluster, admin: Client, make: Make) -> None:
    member = make()
    key = make(make(), make(), member)
    put(admin, f"{member}/a/b")

    def asked(path: str) -> dict[str, float]:
        def counts() -> dict[str, float]:
            registry = one.first.node.metrics.registry
            found = registry.collect()
            return {
                sample.labels["query"]: sample.value
                for family in found
                for sample in family.samples
                if sample.name == "holdfast_database_query_duration_seconds_count"
            }

        before = counts()
        assert read(admin, path) == b"x"
        return {
            name: value - before.get(name, 0) for name, value in counts().items() if name.startswith(("art", "rep"))
        }

    def only_looks(path: str) -> bool:
        found = {name: value for name, value in asked(path).items() if value}
        return found == {"artifact_resolve": 1}

    # By then the announcements of what was made have been heard.
    wait_until(lambda: only_looks(f"{key}/a/b"), 5)
    assert only_looks(f"{member}/a/b")


# ---------------------------------------------------------------- what is told of it


def test_folders_are_merged_in_lists_and_an_artifact_is_told_where_it_lies(admin: Client, make: Make) -> None:
    first, second = make(), make()
    key = make(first, second, excludesPattern="**/*.exe")
    for path in ("a/b/1", "a/2", "c"):
        put(admin, f"{first}/{path}", b"first")
    for path in ("a/b/1", "a/b/3", "d/4", "x.exe"):
        put(admin, f"{second}/{path}", b"second!")
    root = admin.get(f"{API}/storage/{key}").json()
    assert (root["repo"], [one["uri"] for one in root["children"]]) == (key, ["/a", "/c", "/d"])
    folder = admin.get(f"{API}/storage/{key}/a/b").json()
    assert (folder["repo"], folder["path"]) == (key, "/a/b")
    assert folder["children"] == [{"uri": "/1", "folder": False}, {"uri": "/3", "folder": False}]
    listed = admin.get(f"{API}/storage/{key}?list&deep=1").json()["files"]
    assert [(one["uri"], one["size"]) for one in listed] == [
        ("/c", 5),
        ("/a/2", 5),
        ("/a/b/1", 5),
        ("/a/b/3", 7),
        ("/d/4", 7),
    ]
    info = admin.get(f"{API}/storage/{key}/a/b/3").json()
    assert (info["repo"], info["path"], info["size"]) == (second, "/a/b/3", "7")
    assert read(admin, info["downloadUri"].partition("/artifactory/")[2]) == b"second!"
    assert admin.get(f"{API}/storage/{key}?lastModified").json()["uri"].endswith(f"{API}/storage/{key}/d/4")
    assert admin.get(f"{API}/storage/{key}/none").status == 404
    archive = admin.get(f"{API}/archive/download/{key}/a?archiveType=tar")
    assert archive.status == 200 and archive.body.count(b"first") == 2 and archive.body.count(b"second!") == 1


def test_properties_statistics_and_searches_find_what_a_member_has(
    one: RunningCluster, admin: Client, make: Make
) -> None:
    member = make()
    key, name = make(make(), member, excludesPattern="hidden/**"), f"n-{secrets.token_hex(4)}"
    for folder in ("a", "hidden"):
        put(admin, f"{member}/{folder}/{name};q=1")
    assert admin.get(f"{API}/storage/{key}/a/{name}?properties").json()["properties"] == {"q": ["1"]}
    for query in (f"artifact?name={name}", "prop?q=1", f"pattern?pattern={key}:a/*"):
        asked = f"{API}/search/{query}" + ("" if "pattern" in query else f"&repos={key}")
        found = admin.get(asked).json()
        places = found.get("files") or [result["uri"].partition("/storage/")[2] for result in found["results"]]
        assert places in ([f"{member}/a/{name}"], [f"a/{name}"]), query
    with one.settings(downloads_flush_seconds=0.1):
        assert read(admin, f"{key}/a/{name}") == b"x"
        count = lambda of: admin.get(f"{API}/storage/{of}/a/{name}?stats").json()["downloadCount"]  # noqa: E731
        wait_until(lambda: count(member) == 1)
    assert count(key) == 1


def test_an_artifact_is_copied_from_it_and_a_folder_is_not(admin: Client, make: Make) -> None:
    member, target = make(), make()
    key = make(make(), member)
    put(admin, f"{member}/a/b", b"bytes")
    assert admin.request("POST", f"{API}/copy/{key}/a/b?to=/{target}/c/d").status == 200
    assert read(admin, f"{target}/c/d") == b"bytes"
    refused = errors_of(admin.request("POST", f"{API}/copy/{key}/a?to=/{target}/"))
    assert refused[0] == 400 and member in refused[1]
    assert admin.request("POST", f"{API}/copy/{key}/none?to=/{target}/").status == 404


# ---------------------------------------------------------------- writing


def test_an_upload_through_it_goes_to_its_default_deployment_repository(admin: Client, make: Make) -> None:
    member = make(excludesPattern="**/*.exe")
    key = make(make(), member, defaultDeploymentRepo=member, includesPattern="a/**")
    answer = admin.put(f"/artifactory/{key}/a/b;q=1", b"bytes")
    assert answer.status == 201
    assert (answer.json()["repo"], answer.json()["path"]) == (member, "/a/b")
    assert read(admin, f"{member}/a/b") == read(admin, f"{key}/a/b") == b"bytes"
    assert admin.put(f"/artifactory/{key}/a/folder/").status == 201
    assert admin.put(f"/artifactory/{key}/b/x", b"x").status == 403, "its own patterns"
    assert admin.put(f"/artifactory/{key}/a/x.exe", b"x").status == 403, "the member's"
    assert admin.get(f"{API}/storage/{member}/a/folder").status == 200


def test_what_it_cannot_do_is_refused_with_a_reason_and_changes_nothing(admin: Client, make: Make) -> None:
    member = make()
    key = make(member)
    put(admin, f"{member}/a/b", b"bytes")
    refused = {
        "upload": admin.put(f"/artifactory/{key}/a/c", b"x"),
        "folder": admin.put(f"/artifactory/{key}/a/folder/"),
        "delete": admin.delete(f"/artifactory/{key}/a/b"),
        "properties": admin.put(f"{API}/storage/{key}/a/b?properties=q=1"),
        "move": admin.request("POST", f"{API}/move/{key}/a/b?to=/{member}/c"),
        "copy to it": admin.request("POST", f"{API}/copy/{member}/a/b?to=/{key}/c"),
    }
    for what, answer in refused.items():
        status, message = errors_of(answer)
        assert (status, key in message) == (400, True), what
    assert read(admin, f"{key}/a/b") == b"bytes"
    assert [one["uri"] for one in admin.get(f"{API}/storage/{member}?list&deep=1").json()["files"]] == ["/a/b"]


# ---------------------------------------------------------------- permissions


def test_reading_through_it_needs_read_where_the_artifact_lies(one: RunningCluster, admin: Client, make: Make) -> None:
    closed, opened = make(), make()
    key = make(closed, opened)
    put(admin, f"{closed}/a/x", b"closed")
    put(admin, f"{opened}/a/x", b"open")
    put(admin, f"{closed}/a/y", b"closed")
    put(admin, f"{opened}/secret/z", b"open")
    user = new_user(one)
    grant(one, user, ["read"], [opened], includes=["a/**"])
    who = client_of(one, user)
    assert read(who, f"{key}/a/x") == b"open", "as if the member that may not be read were none"
    assert read(who, f"{key}/a/y") == 404
    assert read(who, f"{key}/secret/z") == 403
    assert who.get(f"{API}/storage/{key}/a/x").json()["repo"] == opened
    assert who.get(f"{API}/storage/{key}/a/y").status == 404
    assert [child["uri"] for child in who.get(f"{API}/storage/{key}").json()["children"]] == ["/a"]
    assert [file["uri"] for file in who.get(f"{API}/storage/{key}?list&deep=1").json()["files"]] == ["/a/x"]
    assert json.loads(who.get(f"{API}/search/artifact?name=*&repos={key}").body)["results"] == [
        {"uri": f"http://127.0.0.1:{one.first.port}{API}/storage/{opened}/a/x"}
    ]
    assert {entry["key"] for entry in who.get(BASE).json()} == {key, opened}
    assert who.get(f"{BASE}/{key}").status == 200
    stranger = client_of(one, new_user(one))
    assert read(stranger, f"{key}/a/x") == 403
    assert stranger.get(f"{API}/storage/{key}").status == 403


@pytest.mark.parametrize("hides", [False, True])
@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/artifactory/{key}/x"),
        ("PUT", "/artifactory/{key}/x"),
        ("DELETE", "/artifactory/{key}/x"),
        ("PUT", f"{API}/storage/{{key}}/x?properties=a=b"),
        ("GET", f"{API}/storage/{{key}}"),
    ],
)
def test_s7_who_may_read_no_member_does_not_learn_that_there_is_a_virtual_repository(
    one: RunningCluster, admin: Client, make: Make, hides: bool, method: str, target: str
) -> None:
    member = make()
    virtual, user = make(member, defaultDeploymentRepo=member), new_user(one)
    grant(one, user, ["read", "annotate", "write", "delete"])
    who = client_of(one, user)

    def ask(key: str) -> tuple[int, bytes]:
        answer = who.request(method, target.format(key=key))
        return answer.status, answer.body.replace(key.encode(), b"*")

    with one.settings(hide_unauthorised_resources=hides):
        assert ask(virtual) == ask(f"r-{secrets.token_hex(4)}")


def test_a_right_at_the_virtual_repository_itself_gives_nothing(one: RunningCluster, admin: Client, make: Make) -> None:
    member = make()
    key = make(member, defaultDeploymentRepo=member)
    put(admin, f"{member}/a")
    user = new_user(one)
    grant(one, user, ["read", "write", "delete", "annotate"], [key])
    who = client_of(one, user)
    assert read(who, f"{key}/a") == 403
    assert who.put(f"/artifactory/{key}/b", b"x").status == 403


def test_uploading_through_it_needs_write_where_the_upload_goes(one: RunningCluster, make: Make) -> None:
    member = make()
    key = make(member, defaultDeploymentRepo=member)
    user = new_user(one)
    grant(one, user, ["read", "write"], [member], includes=["a/**"])
    who = client_of(one, user)
    assert who.put(f"/artifactory/{key}/a/b", b"x").status == 201
    assert who.put(f"/artifactory/{key}/b", b"x").status == 403
    assert who.put(f"/artifactory/{key}/a/b", b"other").status == 403, "over another artifact it needs delete"


def test_a_query_finds_through_it_what_it_shows_of_its_members(one: RunningCluster, admin: Client, make: Make) -> None:
    member, other = make(excludesPattern="**/*.exe"), make()
    key, partly = make(make(), member), make(member, excludesPattern="b/**")
    outer = make(partly, other, includesPattern="*/b")
    for path in (f"{member}/a/b", f"{member}/b/b", f"{member}/a/c", f"{other}/b/b"):
        put(admin, path)

    def found(criterion: str) -> list[str]:
        query = f'items.find({{"repo": {criterion}}}).include("repo", "path", "name")'
        answer = admin.request("POST", f"{API}/search/aql", query.encode())
        assert answer.status == 200, answer
        return sorted("/".join(result.values()) for result in answer.json()["results"])

    assert found(f'"{key}"') == sorted(f"{member}/{path}" for path in ("a/b", "a/c", "b/b"))
    assert found(f'"{partly}"') == [f"{member}/a/b", f"{member}/a/c"]
    assert found(f'"{outer}"') == sorted([f"{member}/a/b", f"{other}/b/b"])
    hidden = found(f'{{"$ne": "{outer}"}}')
    assert {f"{member}/b/b", f"{member}/a/c"} <= set(hidden) and not set(found(f'"{outer}"')) & set(hidden)
