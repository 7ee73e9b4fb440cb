"""Which digests a repository computes, what its clients are told, and how a blob comes to those it lacks."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import pytest

from tests.repo_node.http import Answer
from tests.repo_node.nodes import RunningCluster, errors_of, new_path, random_bytes
from tests.repo_node.test_checksum_deploy import deploy_known, digest

BASE = "/artifactory/api/repositories"
ALL = ("sha256", "sha1", "md5")
SIZES = [10, 100_000, (2 << 20) + 5]


@pytest.fixture
def make(one: RunningCluster) -> Callable[..., str]:
    """Make a repository with these digests and return its key."""

    def made(*digests: str) -> str:
        key = f"r-{secrets.token_hex(4)}"
        assert one.admin.put_json(f"{BASE}/{key}", {"digests": list(digests)}).status == 200
        return key

    return made


def told(answer: Answer) -> set[str]:
    """Return the names of the checksums that an answer's headers tell."""
    return {name for name in ALL if f"X-Checksum-{name.capitalize()}" in answer.headers}


def test_a_repository_computes_all_digests_unless_told_otherwise(one: RunningCluster, make: Callable[..., str]) -> None:
    assert one.admin.get(f"{BASE}/generic-local").json()["digests"] == list(ALL)
    key = make("md5", "sha256", "md5")
    assert one.admin.get(f"{BASE}/{key}").json()["digests"] == ["sha256", "md5"]
    assert one.admin.post_json(f"{BASE}/{key}", {"digests": ["sha256"]}).status == 200
    document = one.admin.get(f"{BASE}/{key}").json()
    assert (document["digests"], document["trash"]) == (["sha256"], True)
    assert one.admin.post_json(f"{BASE}/{key}", {"trash": False}).status == 200
    document = one.admin.get(f"{BASE}/{key}").json()
    assert (document["digests"], document["trash"]) == (["sha256"], False)
    events = one.sql("SELECT detail FROM events WHERE kind = 'repository_change' AND repository = $1 ORDER BY id", key)
    assert [row["detail"] for row in events] == ['{"digests": ["sha256"]}', '{"trash": false}']


@pytest.mark.parametrize("bad", [{"digests": ["sha1"]}, {"digests": []}, {"digests": ["sha256", "crc"]}])
def test_a_set_of_digests_that_cannot_be_is_400(
    one: RunningCluster, make: Callable[..., str], bad: dict[str, list[str]]
) -> None:
    key = make("sha256")
    assert errors_of(one.admin.post_json(f"{BASE}/{key}", bad))[0] == 400
    assert one.admin.get(f"{BASE}/{key}").json()["digests"] == ["sha256"]
    assert one.admin.put_json(f"{BASE}/{key}-2", bad).status == 400


@pytest.mark.parametrize("size", SIZES)
def test_what_was_not_computed_is_left_out(one: RunningCluster, make: Callable[..., str], size: int) -> None:
    data, path = random_bytes(size), f"/artifactory/{make('sha256')}/a"
    only = {"sha256": digest("sha256", data)}
    deployed = one.admin.put(path, data).json()
    assert (deployed["checksums"], deployed["originalChecksums"]) == (only, only)
    assert told(one.admin.head(path)) == told(one.admin.get(path)) == {"sha256"}
    info = one.admin.get(path.replace("/artifactory/", "/artifactory/api/storage/")).json()
    assert (info["checksums"], info["originalChecksums"]) == (only, only)
    assert one.admin.get(path).body == data


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["sha1", "md5"])
def test_a_declared_digest_is_computed_and_checked(
    one: RunningCluster, make: Callable[..., str], name: str, size: int
) -> None:
    data, path = random_bytes(size), f"/artifactory/{make('sha256')}/a"
    header = f"X-Checksum-{name.capitalize()}"
    assert one.admin.request("PUT", path, data, {header: digest(name, b"other")}).status == 409
    assert one.admin.get(path).status == 404
    deployed = one.admin.request("PUT", path, data, {header: digest(name, data)}).json()
    assert deployed["checksums"] == {each: digest(each, data) for each in ("sha256", name)}
    assert told(one.admin.get(path)) == {"sha256", name}


@pytest.mark.parametrize("size", SIZES)
def test_a_later_upload_fills_in_what_the_first_left_out(
    one: RunningCluster, make: Callable[..., str], size: int
) -> None:
    data, first, second = random_bytes(size), f"/artifactory/{make('sha256')}/a", new_path()
    assert one.admin.put(first, data).status == 201
    files = set(one.files())
    assert one.admin.put(second, data).json()["checksums"] == {name: digest(name, data) for name in ALL}
    for path in (first, second):
        headers = one.admin.head(path).headers
        assert {name: headers[f"X-Checksum-{name.capitalize()}"] for name in ALL} == {
            name: digest(name, data) for name in ALL
        }
    assert files <= set(one.files())
    # One that leaves them out again takes nothing away.
    assert one.admin.put(first, data).status == 201
    assert told(one.admin.head(first)) == set(ALL)


def test_content_is_not_known_by_a_digest_that_was_not_computed(one: RunningCluster, make: Callable[..., str]) -> None:
    data, key = random_bytes(500), make("sha256")
    assert one.admin.put(f"/artifactory/{key}/a", data).status == 201
    assert deploy_known(one.admin, new_path(), data, ("sha1",)).status == 404
    # It could not be compared: with the bytes it can.
    assert deploy_known(one.admin, new_path(), data, ALL).status == 404
    linked = deploy_known(one.admin, f"/artifactory/{key}/b", data)
    assert (linked.status, set(linked.json()["checksums"])) == (201, {"sha256"})
    assert one.admin.put(new_path(), data).status == 201
    assert deploy_known(one.admin, new_path(), data, ALL).status == 201


def test_a_change_holds_on_every_node_at_once(three: RunningCluster) -> None:
    key, [other, *_] = f"r-{secrets.token_hex(4)}", three.nodes[1:]
    assert three.admin.put(f"{BASE}/{key}").status == 200
    assert set(other.admin.put(f"/artifactory/{key}/a", b"1").json()["checksums"]) == set(ALL)
    assert three.admin.post_json(f"{BASE}/{key}", {"digests": ["sha256"]}).status == 200
    assert set(three.admin.put(f"/artifactory/{key}/b", b"2").json()["checksums"]) == {"sha256"}
    for number in range(200):
        if set(other.admin.put(f"/artifactory/{key}/c", str(number).encode()).json()["checksums"]) == {"sha256"}:
            return
    raise AssertionError("another node did not hear of the change")
