"""What a repository lets in and lets go: patterns, immutability (S29), quota, checksum policy, by whatever way."""

from __future__ import annotations

import hashlib
import io
import secrets
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.repo_node.http import Answer, Client
from tests.repo_node.nodes import RunningCluster, errors_of, remove_repositories, wait_until

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

    def made(**configuration: Any) -> str:
        key = f"r-{secrets.token_hex(4)}"
        answer = one.admin.put_json(f"{BASE}/{key}", configuration)
        assert answer.status == 200, answer
        return key

    return made


@pytest.fixture
def admin(one: RunningCluster) -> Client:
    return one.admin


def change(admin: Client, key: str, **fields: Any) -> None:
    answer = admin.post_json(f"{BASE}/{key}", fields)
    assert answer.status == 200, answer


def put(admin: Client, path: str, data: bytes = b"x", **headers: str) -> Answer:
    return admin.put(f"/artifactory/{path}", data, **headers)


def listed(admin: Client, key: str) -> set[str]:
    """Return the paths of all artifacts in a repository."""
    answer = admin.get(f"{API}/storage/{key}?list&deep=1")
    assert answer.status == 200, answer
    return {entry["uri"] for entry in answer.json()["files"]}


# ---------------------------------------------------------------- S29: immutability


def immutable(admin: Client, make: Make) -> str:
    """Return a repository in which ``a/b`` is, and in which nothing is overwritten or deleted."""
    key = make(allowOverwrite=False, allowDelete=False)
    assert put(admin, f"{key}/a/b", b"first").status == 201
    return key


def archive(data: bytes) -> bytes:
    """Return a tar with one file ``b``."""
    written, member = io.BytesIO(), tarfile.TarInfo("b")
    member.size = len(data)
    with tarfile.open(fileobj=written, mode="w") as tar:
        tar.addfile(member, io.BytesIO(data))
    return written.getvalue()


WAYS = {
    "archive": lambda admin, key, other: put(admin, f"{key}/a/x.tar", archive(b"second"), X_Explode_Archive="true"),
    "atomic archive": lambda admin, key, other: put(
        admin, f"{key}/a/x.tar", archive(b"second"), X_Explode_Archive_Atomic="true"
    ),
    "put": lambda admin, key, other: put(admin, f"{key}/a/b", b"second"),
    "put, with trash off": lambda admin, key, other: (
        change(admin, key, trash=False) or put(admin, f"{key}/a/b", b"second")
    ),
    "checksum deploy": lambda admin, key, other: put(
        admin,
        f"{key}/a/b",
        b"",
        X_Checksum_Deploy="true",
        X_Checksum_Sha256=hashlib.sha256(b"second").hexdigest(),
    ),
    "copy": lambda admin, key, other: admin.request("POST", f"{API}/copy/{other}/a/b?to=/{key}/a/b"),
    "move to": lambda admin, key, other: admin.request("POST", f"{API}/move/{other}/a/b?to=/{key}/a/b"),
    "copy of a folder": lambda admin, key, other: admin.request("POST", f"{API}/copy/{other}/a?to=/{key}/"),
    "move away": lambda admin, key, other: admin.request("POST", f"{API}/move/{key}/a/b?to=/{other}/c"),
    "move of a folder": lambda admin, key, other: admin.request("POST", f"{API}/move/{key}/a?to=/{other}/c"),
    "move within": lambda admin, key, other: admin.request("POST", f"{API}/move/{key}/a/b?to=/{key}/c"),
    "delete": lambda admin, key, other: admin.delete(f"/artifactory/{key}/a/b"),
    "delete of a folder": lambda admin, key, other: admin.delete(f"/artifactory/{key}/a"),
    "delete of the repository": lambda admin, key, other: admin.delete(f"{BASE}/{key}"),
    "restore": lambda admin, key, other: (
        admin.delete(f"/artifactory/{other}/a/b"),
        admin.request("POST", f"{API}/trash/restore/{other}/a/b?to={key}/a/b&replace=1"),
    )[1],
    "restore of a folder": lambda admin, key, other: (
        admin.delete(f"/artifactory/{other}/a"),
        admin.request("POST", f"{API}/trash/restore/{other}/a?to={key}/a&replace=1"),
    )[1],
}


@pytest.mark.parametrize("way", WAYS)
def test_s29_nothing_is_overwritten_or_deleted_by_any_way(admin: Client, make: Make, way: str) -> None:
    key, other = immutable(admin, make), make()
    assert put(admin, f"{other}/a/b", b"second").status == 201
    answer = WAYS[way](admin, key, other)
    assert answer.status == 409, answer
    assert admin.get(f"/artifactory/{key}/a/b").body == b"first"
    assert listed(admin, key) == {"/a/b"}


def test_s29_what_is_new_is_let_in_and_the_same_again_changes_nothing(admin: Client, make: Make) -> None:
    key = immutable(admin, make)
    before = admin.get(f"{API}/storage/{key}/a/b").json()
    assert put(admin, f"{key}/a/c", b"another").status == 201
    # Who never heard the answer to its upload sends it again.
    assert put(admin, f"{key}/a/b;build=7", b"first").status == 201
    after = admin.get(f"{API}/storage/{key}/a/b").json()
    assert (after["created"], after["lastModified"]) == (before["created"], before["lastModified"])
    assert admin.get(f"{API}/storage/{key}/a/b?properties").json()["properties"] == {"build": ["7"]}


def test_s29_properties_may_change_and_each_half_of_the_rule_holds_alone(admin: Client, make: Make) -> None:
    key = immutable(admin, make)
    assert admin.put(f"{API}/storage/{key}/a/b?properties=q=1").status == 204
    change(admin, key, allowOverwrite=True)
    assert put(admin, f"{key}/a/b", b"second").status == 201
    assert admin.delete(f"/artifactory/{key}/a/b").status == 409
    change(admin, key, allowOverwrite=False, allowDelete=True)
    assert put(admin, f"{key}/a/b", b"third").status == 409
    assert admin.delete(f"/artifactory/{key}/a/b").status == 204
    assert put(admin, f"{key}/a/b", b"third").status == 201


def test_s29_of_uploads_to_one_path_at_once_one_wins(one: RunningCluster, make: Make) -> None:
    key = make(allowOverwrite=False)
    bodies = [bytes([n]) * 20 for n in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda body: put(one.admin, f"{key}/a/b", body).status, bodies))
    assert sorted(answers) == [201] + [409] * 11
    assert one.admin.get(f"/artifactory/{key}/a/b").body == bodies[answers.index(201)]


def test_s29_a_rule_holds_for_whatever_comes_after_its_change(three: RunningCluster) -> None:
    key = f"r-{secrets.token_hex(4)}"
    assert three.admin.put_json(f"{BASE}/{key}", {}).status == 200
    clients = [node.admin for node in three.nodes]
    assert put(clients[0], f"{key}/a", b"first").status == 201
    for client in clients:
        change(clients[0], key, allowOverwrite=False)
        # No node has to hear of it first: the commit itself looks.
        assert put(client, f"{key}/a", secrets.token_bytes(9)).status == 409
        change(clients[0], key, allowOverwrite=True)
        assert put(client, f"{key}/a", secrets.token_bytes(9)).status == 201


# ---------------------------------------------------------------- patterns


def test_what_patterns_keep_out_is_refused_by_any_way(admin: Client, make: Make) -> None:
    key, other = make(includesPattern="org/acme/**,com/**", excludesPattern="**/*.exe"), make()
    for path in ("org/acme/a", "com/x/y.jar"):
        assert put(admin, f"{key}/{path}").status == 201
    for path in ("net/a", "org/a", "com/setup.exe"):
        assert errors_of(put(admin, f"{key}/{path}"))[0] == 403
        assert put(admin, f"{other}/{path}").status == 201
        known = {"X_Checksum_Deploy": "true", "X_Checksum_Sha256": hashlib.sha256(b"x").hexdigest()}
        assert put(admin, f"{key}/{path}", b"", **known).status == 403
        assert admin.request("POST", f"{API}/copy/{other}/{path}?to=/{key}/{path}").status == 409
        assert admin.delete(f"/artifactory/{other}/{path}").status == 204
        assert admin.request("POST", f"{API}/trash/restore/{other}/{path}?to={key}/{path}").status == 403
    assert listed(admin, key) == {"/org/acme/a", "/com/x/y.jar"}


def test_what_new_patterns_hide_is_not_there_until_they_go(admin: Client, make: Make) -> None:
    key, other = make(), make()
    for path in ("a/secret.txt", "a/open.txt"):
        assert put(admin, f"{key}/{path}").status == 201
    change(admin, key, excludesPattern="**/secret*")
    assert admin.get(f"/artifactory/{key}/a/secret.txt").status == 404
    assert admin.head(f"/artifactory/{key}/a/secret.txt").status == 404
    assert admin.get(f"{API}/storage/{key}/a/secret.txt").status == 404
    assert listed(admin, key) == {"/a/open.txt"}
    assert [child["uri"] for child in admin.get(f"{API}/storage/{key}/a").json()["children"]] == ["/open.txt"]
    assert admin.get(f"{API}/search/artifact?name=secret.txt&repos={key}").json()["results"] == []
    assert admin.request("POST", f"{API}/copy/{key}/a?to=/{other}/").status == 200
    assert listed(admin, other) == {"/a/open.txt"}
    change(admin, key, excludesPattern="")
    assert admin.get(f"/artifactory/{key}/a/secret.txt").status == 200
    assert listed(admin, key) == {"/a/open.txt", "/a/secret.txt"}


def test_a_repository_that_is_blacked_out_shows_and_takes_nothing(admin: Client, make: Make) -> None:
    key = make()
    assert put(admin, f"{key}/a").status == 201
    change(admin, key, blackedOut=True)
    assert admin.get(f"/artifactory/{key}/a").status == 404
    assert errors_of(put(admin, f"{key}/b")) == (403, f"The repository {key} rejected b: it is blacked out.")
    change(admin, key, blackedOut=False)
    assert admin.get(f"/artifactory/{key}/a").status == 200


def test_patterns_that_change_while_a_body_comes_hold_for_it(admin: Client, make: Make) -> None:
    key = make()

    def body() -> Iterator[bytes]:
        yield b"first"
        change(admin, key, excludesPattern="a/*")
        yield b"second"

    answer = admin.request("PUT", f"/artifactory/{key}/a/b", body())
    assert errors_of(answer) == (
        403,
        f"Refused: the patterns of the repository {key} keep a/b out. Nothing was stored.",
    )
    change(admin, key, excludesPattern="")
    assert admin.get(f"/artifactory/{key}/a/b").status == 404


# ---------------------------------------------------------------- quota


def used(admin: Client, key: str) -> int | None:
    value: int | None = admin.get(f"{BASE}/{key}").json()["usedBytes"]
    return value


def really_used(one: RunningCluster, key: str) -> int:
    """Return the sum of the sizes of a repository's artifacts."""
    return int(
        one.sql(
            """
            SELECT coalesce(sum(b.size), 0) FROM artifacts a JOIN blobs b ON b.id = a.blob_id
              JOIN repositories r ON r.id = a.repo_id WHERE r.key = $1
            """,
            key,
        )[0][0]
    )


def test_a_quota_counts_what_comes_and_goes_by_every_way(one: RunningCluster, admin: Client, make: Make) -> None:
    key, other = make(quotaBytes=1000), make()
    assert used(admin, key) == 0
    steps: list[tuple[Answer, int]] = [
        (put(admin, f"{key}/d/a", b"a" * 300), 300),
        (put(admin, f"{key}/d/b", b"b" * 300), 600),
        (put(admin, f"{key}/d/a", b"c" * 200), 500),
        (put(admin, f"{key}/d/a", b"c" * 200), 500),
        (admin.request("POST", f"{API}/copy/{key}/d/a?to=/{key}/e/a"), 700),
        (admin.request("POST", f"{API}/move/{key}/e?to=/{other}/e"), 500),
        (admin.request("POST", f"{API}/move/{key}/d/a?to=/{key}/f/a"), 500),
        (admin.request("POST", f"{API}/copy/{other}/e?to=/{key}/"), 700),
        (admin.delete(f"/artifactory/{key}/d"), 400),
        (admin.delete(f"/artifactory/{key}/f/a"), 200),
        (admin.request("POST", f"{API}/trash/restore/{key}/d/b"), 500),
    ]
    for number, (answer, _) in enumerate(steps):
        assert answer.status in (200, 201, 202, 204), (number, answer)
    assert used(admin, key) == steps[-1][1] == really_used(one, key)


def test_what_exceeds_a_quota_is_refused_and_what_makes_room_lets_it_in(admin: Client, make: Make) -> None:
    key, other = make(quotaBytes=100), make()
    assert put(admin, f"{key}/a", b"a" * 60).status == 201
    assert errors_of(put(admin, f"{key}/b", b"b" * 41))[0] == 413
    assert put(admin, f"{key}/b", b"b" * 40).status == 201
    assert put(admin, f"{other}/c", b"c").status == 201
    assert put(admin, f"{other}/d", b"d" * 50).status == 201
    digest = hashlib.sha256(b"c").hexdigest()
    assert put(admin, f"{key}/c", b"", X_Checksum_Deploy="true", X_Checksum_Sha256=digest).status == 413
    refused = admin.request("POST", f"{API}/copy/{other}/c?to=/{key}/c")
    assert (refused.status, "quota" in refused.body.decode()) == (409, True)
    assert put(admin, f"{key}/a", b"A" * 60).status == 201, "as much in the place of as much"
    assert put(admin, f"{key}/a", b"A" * 61).status == 413
    assert put(admin, f"{key}/a", b"A").status == 201
    assert admin.request("POST", f"{API}/copy/{other}/d?to=/{key}/d").status == 200
    assert used(admin, key) == 91
    change(admin, key, quotaBytes=10)
    assert put(admin, f"{key}/e", b"e").status == 413
    change(admin, key, quotaBytes=None)
    assert put(admin, f"{key}/e", b"e" * 1000).status == 201
    assert "usedBytes" not in admin.get(f"{BASE}/{key}").json()


def test_a_body_without_length_is_refused_when_it_turns_out_too_large(admin: Client, make: Make) -> None:
    key = make(quotaBytes=10)
    assert admin.put(f"/artifactory/{key}/a", [b"a" * 6, b"b" * 6]).status == 413
    assert admin.get(f"/artifactory/{key}/a").status == 404


def test_a_quota_holds_for_what_was_there_before_once_it_is_counted(
    one: RunningCluster, admin: Client, make: Make
) -> None:
    key = make()
    assert put(admin, f"{key}/a", b"a" * 90).status == 201
    with one.settings(usage_idle_seconds=0.1):
        change(admin, key, quotaBytes=100)
        wait_until(lambda: used(admin, key) == 90)
        assert put(admin, f"{key}/b", b"b" * 11).status == 413
        assert put(admin, f"{key}/b", b"b" * 10).status == 201
        wait_until(lambda: one.sql("SELECT count(*) FROM usage_changes")[0][0] == 0)
    assert used(admin, key) == 100 == really_used(one, key)


def test_uploads_at_once_exceed_a_quota_by_no_more_than_those_that_overlap(three: RunningCluster) -> None:
    key, size, clients = f"r-{secrets.token_hex(4)}", 1000, 8
    assert three.admin.put_json(f"{BASE}/{key}", {"quotaBytes": 20 * size}).status == 200

    def upload(n: int) -> int:
        return put(three.nodes[n % 3].admin, f"{key}/f{n}", secrets.token_bytes(size)).status

    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(upload, range(60)))
    assert set(answers) == {201, 413}
    stored = answers.count(201)
    assert 20 <= stored < 20 + clients
    assert used(three.admin, key) == stored * size == really_used(three, key)
    assert put(three.admin, f"{key}/last", b"x").status == 413


# ---------------------------------------------------------------- checksum policy


def test_a_repository_that_trusts_itself_stores_what_came_and_says_what_differs(admin: Client, make: Make) -> None:
    key, wrong = make(checksumPolicyType="server-generated-checksums"), "0" * 40
    answer = put(
        admin, f"{key}/a", b"bytes", X_Checksum_Sha1=wrong, X_Checksum_Sha256=hashlib.sha256(b"bytes").hexdigest()
    )
    assert answer.status == 201
    assert answer.headers["X-Holdfast-Checksum-Mismatch"] == "sha1"
    document = answer.json()
    assert document["checksums"]["sha1"] == hashlib.sha1(b"bytes").hexdigest()
    assert document["originalChecksums"]["sha1"] == wrong
    assert admin.get(f"/artifactory/{key}/a").body == b"bytes"
    change(admin, key, checksumPolicyType="client-checksums")
    assert put(admin, f"{key}/b", b"bytes", X_Checksum_Sha1=wrong).status == 409


def test_content_without_bytes_is_never_taken_for_another(admin: Client, make: Make) -> None:
    key = make(checksumPolicyType="server-generated-checksums")
    assert put(admin, f"{key}/a", b"bytes").status == 201
    declared = {"X_Checksum_Sha256": hashlib.sha256(b"bytes").hexdigest(), "X_Checksum_Sha1": "0" * 40}
    assert put(admin, f"{key}/b", b"", X_Checksum_Deploy="true", **declared).status == 409
