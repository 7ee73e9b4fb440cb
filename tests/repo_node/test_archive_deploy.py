"""``X-Explode-Archive`` over REST: what an archive holds becomes artifacts, whole, or nothing does."""

from __future__ import annotations

import hashlib
import os
import secrets
import tarfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.repo_node import archive_files as made
from tests.repo_node.http import Answer
from tests.repo_node.nodes import RunningCluster, errors_of, wait_until
from tests.repo_node.people import somebody

ROOT = "/artifactory/generic-local"
FILES = {"a.txt": b"content", "empty": b"", "sub/ünï/" + "x" * 150: b"y" * 1000, "sub/large": os.urandom(3 << 20)}
ATOMIC = {"X-Explode-Archive-Atomic": "true"}
PLAIN = {"X-Explode-Archive": "true"}
SEGMENTS = st.text("abcé. _-", min_size=1, max_size=30).filter(lambda name: name not in (".", ".."))
TREES = st.dictionaries(st.lists(SEGMENTS, min_size=1, max_size=3).map("/".join), st.binary(max_size=300), max_size=4)


@pytest.fixture
def top() -> str:
    return secrets.token_hex(6)


def explode(one: RunningCluster, path: str, data: bytes, headers: dict[str, str]) -> Answer:
    return one.admin.request("PUT", f"{ROOT}/{path}", data, headers)


def stored(one: RunningCluster, top: str) -> dict[str, bytes]:
    """Return every file that lies in a folder, as GET gives it."""
    listed = one.admin.get(f"/artifactory/api/storage/generic-local/{top}?list&deep=1")
    if listed.status == 404:
        return {}
    found = {}
    for file in listed.json()["files"]:
        answer = one.admin.get(f"{ROOT}/{top}{quote(file['uri'])}")
        assert answer.status == 200
        found[file["uri"][1:]] = answer.body
    return found


@pytest.mark.parametrize(
    ("kind", "headers"), [("zip", PLAIN), ("tar", PLAIN | ATOMIC), ("tar.gz", ATOMIC), ("tgz", PLAIN), ("zip", ATOMIC)]
)
def test_what_is_in_an_archive_lies_beside_it(
    one: RunningCluster, top: str, kind: str, headers: dict[str, str]
) -> None:
    data = made.packed(kind, FILES)
    sums = {"X-Checksum-Sha1": hashlib.sha1(data).hexdigest(), "X-Checksum": hashlib.sha256(data).hexdigest()}
    answer = explode(one, f"{top}/archive.{kind};of=it", data, headers | sums)
    assert answer.status == 201, answer
    document = answer.json()
    assert document["checksums"]["sha256"] == sums["X-Checksum"]
    assert (document["path"], document["artifacts"]) == (f"/{top}", len(FILES))
    assert stored(one, top) == FILES
    properties = one.admin.get(f"/artifactory/api/storage/generic-local/{top}/a.txt?properties").json()
    assert properties["properties"] == {"of": ["it"]}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TREES, st.sampled_from(made.KINDS), st.sampled_from([PLAIN, ATOMIC]))
def test_any_tree_comes_out_as_it_was_packed(
    one: RunningCluster, files: dict[str, bytes], kind: str, headers: dict[str, str]
) -> None:
    nested = any(other.startswith(f"{name}/") for name in files for other in files)
    top = secrets.token_hex(6)
    answer = explode(one, f"{top}/a.{kind}", made.packed(kind, files), headers)
    assert answer.status == (400 if nested else 201), answer
    assert stored(one, top) == ({} if nested else files)


def test_names_as_tar_writes_them_are_taken(one: RunningCluster, top: str) -> None:
    names = (made.tar_info("."), made.tar_info("./sub"))
    for info in names:
        info.type = tarfile.DIRTYPE
    data = made.tar_of(*names, made.tar_info("./sub/a"), made.tar_info("./b"))
    assert explode(one, f"{top}/a.tar", data, PLAIN).status == 201
    assert stored(one, top) == {"sub/a": b"", "b": b""}


@pytest.mark.parametrize(
    "name", ["../up", "a/../../up", "/etc/passwd", "a//b", "a\\b", "a/./b", "cafe\u0301", "a\x01b", "s" * 256, "."]
)
def test_s1_and_s18_a_name_that_leads_elsewhere_is_refused(one: RunningCluster, top: str, name: str) -> None:
    kind = "zip" if len(name) % 2 else "tar"
    answer = explode(one, f"{top}/in/a.{kind}", made.packed(kind, {"first": b"", name: b""}), PLAIN)
    assert errors_of(answer)[0] == 400
    assert stored(one, top) == {}


@pytest.mark.parametrize(
    ("files", "kind"),
    [({"a": b"", "a/b": b""}, "zip"), ({"/".join("d" * 70): b""}, "tar"), ({"x" * 200 + "/y" * 450: b""}, "tgz")],
)
def test_paths_that_cannot_be_are_refused(one: RunningCluster, top: str, files: dict[str, bytes], kind: str) -> None:
    assert errors_of(explode(one, f"{top}/a.{kind}", made.packed(kind, files), PLAIN))[0] == 400
    assert stored(one, top) == {}


def test_a_name_that_comes_twice_is_refused(one: RunningCluster, top: str) -> None:
    data = made.tar_of(made.tar_info("a"), made.tar_info("./a"))
    assert "twice" in errors_of(explode(one, f"{top}/a.tar", data, PLAIN))[1]


@pytest.mark.parametrize(
    ("kind", "data", "status"),
    [
        ("zip", made.zip_with_link(), 400),
        ("zip", made.encrypted_zip(), 400),
        ("zip", made.overlapping_zip(50, 10_000), 400),
        ("zip", made.quoted_overlap_zip(), 400),
        ("zip", made.packed("zip", {"zeros": bytes(32 << 20)}), 413),
        ("tgz", made.packed("tgz", {"zeros": bytes(32 << 20)}), 413),
        ("tar", made.tar_of(made.tar_info("l", tarfile.SYMTYPE, "/"), made.tar_info("h", tarfile.LNKTYPE, "l")), 400),
        ("tar", made.negative_size_tar(), 400),
        ("zip", made.packed("zip", FILES)[:-30], 400),
        ("tar", made.packed("tar", {"a": bytes(5000)})[:3000], 400),
        ("tgz", made.packed("tgz", FILES)[:-9], 400),
        ("zip", b"", 400),
        ("tar", b"", 400),
        ("tgz", b"no archive", 400),
    ],
)
def test_s18_bombs_links_and_damage_store_nothing(
    one: RunningCluster, top: str, kind: str, data: bytes, status: int
) -> None:
    answer = explode(one, f"{top}/a.{kind}", data, PLAIN)
    assert errors_of(answer)[0] == status
    assert "refused" in errors_of(answer)[1]
    assert stored(one, top) == {}


@pytest.mark.parametrize(
    "limit",
    [
        {"explode_archive_bytes_max": 100},
        {"explode_bytes_max": 1000},
        {"explode_entries_max": 3},
        {"explode_ratio_max": 1, "explode_bytes_max": 3 << 20},
        {"body_bytes_max": 2 << 20},
        {"explodes_in_flight_max": 1, "explode_archive_bytes_max": 0},
    ],
)
def test_s18_the_limits_are_settings(one: RunningCluster, top: str, limit: dict[str, Any]) -> None:
    with one.settings(**limit):
        assert errors_of(explode(one, f"{top}/a.tgz", made.packed("tgz", FILES), PLAIN))[0] == 413
    assert stored(one, top) == {}


def test_an_atomic_archive_has_a_limit_of_its_own(one: RunningCluster, top: str) -> None:
    data = made.packed("tar", FILES)
    with one.settings(explode_atomic_entries_max=3):
        assert "explode_atomic_entries_max" in errors_of(explode(one, f"{top}/a.tar", data, ATOMIC))[1]
        assert explode(one, f"{top}/a.tar", data, PLAIN).status == 201


def test_a_wrong_checksum_or_name_stores_nothing(one: RunningCluster, top: str) -> None:
    data = made.packed("zip", FILES)
    wrong = {"X-Checksum-Sha256": hashlib.sha256(b"other").hexdigest()}
    assert errors_of(explode(one, f"{top}/a.zip", data, PLAIN | wrong))[0] == 409
    assert errors_of(explode(one, f"{top}/a.rar", data, PLAIN))[0] == 400
    assert errors_of(explode(one, f"{top}/", data, PLAIN))[0] == 400
    assert errors_of(explode(one, f"{top}/a.zip", data, {"X-Explode-Archive": "maybe"}))[0] == 400
    assert errors_of(explode(one, f"{top}/a.zip", b"", PLAIN | {"X-Checksum-Deploy": "true"} | wrong))[0] == 404
    assert errors_of(one.admin.request("PUT", "/artifactory/none/a.zip", data, PLAIN))[0] == 404
    assert stored(one, top) == {}
    assert explode(one, f"{top}/a.zip", data, {"X-Explode-Archive": "false"}).status == 201
    assert list(stored(one, top)) == ["a.zip"]


def test_a_member_that_cannot_be_stored_is_named(one: RunningCluster, top: str) -> None:
    one.admin.put(f"{ROOT}/{top}/c/folder")
    data = made.packed("zip", {"a": b"a", "b": b"b", "c": b"where a folder is", "d": b"d"})
    before = len(one.files())
    status, message = errors_of(explode(one, f"{top}/a.zip", data, ATOMIC))
    assert status == 409 and "Nothing was stored" in message
    assert list(stored(one, top)) == ["c/folder"]
    wait_until(lambda: len(one.files()) == before)
    status, message = errors_of(explode(one, f"{top}/a.zip", data, PLAIN))
    assert status == 409 and f"{top}/c" in message and "stay" in message
    kept = stored(one, top)
    assert f"{len(kept) - 1} of the archive's 4 files" in message
    assert set(kept) <= {"a", "b", "d", "c/folder"}


def test_who_may_not_write_unpacks_nothing(one: RunningCluster, top: str) -> None:
    data = made.packed("zip", FILES)
    assert errors_of(one.with_token("read").request("PUT", f"{ROOT}/{top}/a.zip", data, PLAIN))[0] == 403
    assert one.with_token("write").request("PUT", f"{ROOT}/{top}/a.zip", data, PLAIN).status == 201


@pytest.mark.parametrize("headers", [PLAIN, ATOMIC])
def test_what_is_unpacked_again_is_stored_once(one: RunningCluster, top: str, headers: dict[str, str]) -> None:
    """Equal content, in one archive, in two, and in the store before, has one blob with its copies."""
    same = os.urandom(5000)
    files = {f"{number}": same for number in range(20)} | {"other": os.urandom(100)}
    for name in ("first", "second"):
        data = made.packed("zip", {f"{name}/{path}": content for path, content in files.items()})
        assert explode(one, f"{top}/a.zip", data, headers).status == 201
    assert stored(one, top) == {f"{name}/{path}": data for name in ("first", "second") for path, data in files.items()}
    for content in (same, files["other"]):
        sha256 = hashlib.sha256(content).hexdigest()
        wait_until(lambda sha256=sha256: sum(file.name.startswith(sha256) for file in one.files()) == 2)  # type: ignore[misc]


def test_archives_that_meet_leave_one_of_them_whole(three: Any, top: str) -> None:
    """Unpacked over one another by all nodes at once, atomically: in the end every file is of the same archive."""

    def go(number: int) -> Answer:
        files = {f"{name}": f"{number % 3} {name}".encode() for name in range(12)}
        node = three.nodes[number % 3]
        return node.admin.request("PUT", f"{ROOT}/{top}/a.tar", made.packed("tar", files), ATOMIC)

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(go, range(6)))
    assert {answer.status for answer in answers} <= {201, 503}, answers
    assert any(answer.status == 201 for answer in answers)
    found = stored(three, top)
    assert len(found) == 12 and len({content.split()[0] for content in found.values()}) == 1


def test_a_busy_node_unpacks_nothing_more(one: RunningCluster, top: str) -> None:
    data = made.packed("zip", FILES)
    one.set({"explodes_in_flight_max": 1})
    try:
        with one.admin.raw() as slow:
            slow.send_head("PUT", f"{ROOT}/{top}/a.zip", "X-Explode-Archive: true", f"Content-Length: {len(data)}")
            slow.send(data[:100])
            wait_until(lambda: explode(one, f"{top}/b.zip", data, PLAIN).status == 503)
            slow.send(data[100:])
            assert slow.read_answer()[0] == 201
    finally:
        one.set({"explodes_in_flight_max": 4})
    assert stored(one, top) == FILES


def test_members_obey_the_permissions_of_their_paths(one: RunningCluster, top: str) -> None:
    """Who may write below one folder alone, and not delete, neither writes elsewhere nor overwrites."""
    user = somebody(one, "read", "write", includes=[f"{top}/*.zip", f"{top}/mine/**"])

    def go(files: dict[str, bytes], headers: dict[str, str], properties: str = "") -> int:
        return user.request("PUT", f"{ROOT}/{top}/a.zip{properties}", made.packed("zip", files), headers).status

    assert go({"mine/first": b"1"}, PLAIN) == 201
    for headers in (PLAIN, ATOMIC):
        assert go({"mine/a": b"a", "theirs/b": b"b"}, headers) == 403
        assert go({"mine/new": b"n", "mine/first": b"2"}, headers) == 403
        assert go({"mine/again": b"n", "mine/first": b"1"}, headers) == 201, "the same content changes nothing"
        assert go({"mine/c": b"c"}, headers, ";k=v") == 403
    found = stored(one, top)
    assert set(found) <= {"mine/first", "mine/new", "mine/again"} and found["mine/first"] == b"1"
