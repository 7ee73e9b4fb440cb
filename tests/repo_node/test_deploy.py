"""PUT of artifacts and folders, DELETE: what is stored, what is refused, and that a refusal leaves nothing."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.repo_node.http import Client
from tests.repo_node.nodes import RunningCluster, basic, errors_of, new_path, random_bytes, wait_until
from tests.tools import require_tool

LARGE_BYTES = (3 << 20) + 12_345
SIZES = [1, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, LARGE_BYTES]
HEADERS = {"md5": "X-Checksum-Md5", "sha1": "X-Checksum-Sha1", "sha256": "X-Checksum-Sha256"}


def digest(name: str, data: bytes) -> str:
    return hashlib.new(name, data).hexdigest()


@contextmanager
def nothing_stored(cluster: RunningCluster, path: str) -> Iterator[None]:
    """Check that the block makes nothing visible at ``path`` and leaves no file on any shard."""
    before = set(cluster.files())
    yield
    assert cluster.admin.get(path).status == 404
    wait_until(lambda: not set(cluster.files()) - before)


# ---------------------------------------------------------------------- what is stored


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
@pytest.mark.parametrize("size", SIZES)
def test_put_stores_exactly_the_bytes(one: RunningCluster, size: int, chunked: bool) -> None:
    path, body = new_path(), random_bytes(size)
    pieces = [body[start : start + 70_000] for start in range(0, size, 70_000)]
    answer = one.admin.put(path, pieces if chunked else body)
    assert answer.status == 201
    assert one.admin.get(path).body == body
    files = [found for found in one.files() if found.name.startswith(digest("sha256", body))]
    assert len(files) == 2
    assert {found.read_bytes() for found in files} == {body}


def test_put_answers_as_artifactory_does(one: RunningCluster) -> None:
    path, body = new_path(".txt"), b"hello"
    answer = one.admin.put(path, body, X_Checksum_Sha1=digest("sha1", body))
    document = answer.json()
    base = f"http://127.0.0.1:{one.first.port}/artifactory"
    within = path.removeprefix("/artifactory/generic-local")
    checksums = {name: digest(name, body) for name in ("sha1", "md5", "sha256")}
    created = document.pop("created")
    assert document == {
        "repo": "generic-local",
        "path": within,
        "createdBy": "admin",
        "downloadUri": f"{base}/generic-local{within}",
        "mimeType": "text/plain",
        "size": "5",
        "checksums": checksums,
        "originalChecksums": {"sha1": checksums["sha1"], "sha256": checksums["sha256"]},
        "uri": f"{base}/api/storage/generic-local{within}",
    }
    assert created.endswith("Z") and len(created) == len("2025-01-01T00:00:00.000Z")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Location"] == document["downloadUri"]


def test_an_empty_file_needs_no_shard(one: RunningCluster) -> None:
    path, before = new_path(), set(one.files())
    assert one.admin.put(path).json()["size"] == "0"
    answer = one.admin.get(path)
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
    assert set(one.files()) == before


def test_s16_a_gzip_encoded_body_is_stored_as_it_was_sent(one: RunningCluster) -> None:
    path, body = new_path(".tar.gz"), gzip.compress(b"x" * 2_000_000)
    answer = one.admin.put(path, body, Content_Encoding="gzip", X_Checksum_Sha256=digest("sha256", body))
    assert answer.status == 201
    assert answer.json()["size"] == str(len(body))
    found = one.admin.get(path, Accept_Encoding="gzip")
    assert found.body == body
    assert "Content-Encoding" not in found.headers


def test_s16_a_body_that_would_inflate_to_much_more_stays_as_small_as_it_came(one: RunningCluster) -> None:
    path, body = new_path(".gz"), gzip.compress(bytes(64 << 20), compresslevel=1)
    with one.settings(body_bytes_max=len(body)):
        assert one.admin.put(path, body, Content_Encoding="gzip").json()["size"] == str(len(body))
    assert one.admin.get(path).body == body


def test_an_overwrite_replaces_the_bytes(one: RunningCluster) -> None:
    path = new_path()
    for body in (b"first", b"second"):
        assert one.admin.put(path, body).status == 201
    assert one.admin.get(path).body == b"second"


def test_the_same_content_twice_is_kept_once(one: RunningCluster) -> None:
    body = random_bytes(2 << 20)
    paths = [new_path(), new_path()]
    for path in paths:
        assert one.admin.put(path, body).status == 201
    wait_until(lambda: sum(found.name.startswith(digest("sha256", body)) for found in one.files()) == 2)
    assert [one.admin.get(path).body for path in paths] == [body, body]


def test_matrix_parameters_become_properties(one: RunningCluster) -> None:
    path = new_path()
    assert one.admin.put(f"{path};build=7;os=linux,mac;note=a%20b", b"x").status == 201
    info = path.replace("/artifactory/", "/artifactory/api/storage/")
    found = one.admin.get(f"{info}?properties").json()["properties"]
    assert found == {"build": ["7"], "os": ["linux", "mac"], "note": ["a b"]}
    assert one.admin.get(f"{info}?properties=os").json()["properties"] == {"os": ["linux", "mac"]}
    assert one.admin.get(f"{path};os=mac").body == b"x"
    assert one.admin.get(f"{path};os=bsd").status == 404
    assert "No properties could be found" in errors_of(one.admin.get(f"{info}?properties=none"))[1]


# ---------------------------------------------------------------------- checksums


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("header", ["own", "X-Checksum"])
@pytest.mark.parametrize("size", [100, LARGE_BYTES])
def test_a_right_checksum_is_accepted_and_a_wrong_one_stores_nothing(
    one: RunningCluster, name: str, header: str, size: int
) -> None:
    header = HEADERS[name] if header == "own" else header
    path, body = new_path(), random_bytes(size)
    with nothing_stored(one, path):
        answer = one.admin.request("PUT", path, body, {header: digest(name, body + b"x")})
        status, message = errors_of(answer)
        assert status == 409 and digest(name, body) in message
    assert one.admin.request("PUT", path, body, {header: digest(name, body).upper()}).status == 201


@pytest.mark.parametrize("value", ["", "12", "zz" * 32, "a" * 63, "\u0661" * 64])
def test_a_checksum_that_is_none_is_400(one: RunningCluster, value: str) -> None:
    for header in ("X-Checksum-Sha256", "X-Checksum"):
        assert one.admin.request("PUT", new_path(), b"x", {header: value.encode().decode("latin-1")}).status == 400


def test_checksums_that_contradict_each_other_are_409(one: RunningCluster) -> None:
    headers = {"X-Checksum": "a" * 64, "X-Checksum-Sha256": "b" * 64}
    assert one.admin.request("PUT", new_path(), b"x", headers).status == 409


def test_an_archive_to_be_unpacked_is_refused_rather_than_stored(one: RunningCluster) -> None:
    path = new_path(".zip")
    with nothing_stored(one, path):
        assert one.admin.put(path, b"PK", X_Explode_Archive="true").status == 400


# ---------------------------------------------------------------------- before the body


def expect_cases(one: RunningCluster) -> dict[str, tuple[Client, str, list[str], int]]:
    admin, path = one.admin, new_path()
    return {
        "anonymous": (one.first.client(), path, [], 401),
        "wrong password": (one.first.client(basic("admin", "wrong")), path, [], 401),
        "wrong scope": (one.with_token("read"), path, [], 403),
        "no repository": (admin, "/artifactory/no-such/a", [], 404),
        "no route": (admin, "/elsewhere", [], 404),
        "no route, anonymous": (one.first.client(), "/elsewhere", [], 401),
        "bad path": (admin, f"{path}/../x", [], 400),
        "bad checksum": (admin, path, ["X-Checksum: 12"], 400),
    }


CASES = [
    "anonymous",
    "wrong password",
    "wrong scope",
    "no repository",
    "no route",
    "no route, anonymous",
    "bad path",
    "bad checksum",
]


@pytest.mark.parametrize("case", CASES)
def test_a_refusal_comes_before_the_body_is_asked_for(one: RunningCluster, case: str) -> None:
    client, path, headers, wanted = expect_cases(one)[case]
    with client.raw() as raw:
        raw.send_head("PUT", path, "Expect: 100-continue", "Content-Length: 1000000", *headers)
        status, answered = raw.read_head()
    assert status == wanted
    assert answered["connection"] == "close"


def test_a_method_that_the_route_lacks_is_refused_before_the_body(one: RunningCluster) -> None:
    with one.admin.raw() as raw:
        raw.send_head("PATCH", new_path(), "Expect: 100-continue", "Content-Length: 10")
        status, headers = raw.read_head()
    assert status == 405
    assert {"GET", "PUT", "DELETE"} <= set(headers["allow"].split(","))


def test_an_announced_length_above_the_limit_is_refused_before_the_body(one: RunningCluster) -> None:
    with one.settings(body_bytes_max=1000), one.admin.raw() as raw:
        raw.send_head("PUT", new_path(), "Expect: 100-continue", "Content-Length: 1001")
        assert raw.read_head()[0] == 413


@pytest.mark.parametrize("size", [0, 5, LARGE_BYTES])
def test_an_accepted_expectation_gets_one_100_and_then_the_answer(one: RunningCluster, size: int) -> None:
    path, body = new_path(), random_bytes(size)
    with one.admin.raw() as raw:
        raw.send_head("PUT", path, "Expect: 100-Continue", f"Content-Length: {size}")
        assert raw.read_head() == (100, {})
        raw.send(body)
        assert raw.read_answer()[0] == 201
        raw.send_head("GET", path)
        assert raw.read_answer()[2] == body


def test_a_client_of_http_1_0_gets_no_100(one: RunningCluster) -> None:
    with one.admin.raw() as raw:
        raw.send_head("PUT", new_path(), "Expect: 100-continue", "Content-Length: 2", version="HTTP/1.0")
        raw.send(b"ok")
        assert raw.read_head()[0] == 201


def test_another_expectation_is_417(one: RunningCluster) -> None:
    with one.admin.raw() as raw:
        raw.send_head("PUT", new_path(), "Expect: coffee", "Content-Length: 2")
        assert raw.read_head()[0] == 417


def test_curl_sends_no_byte_of_a_body_that_is_refused(one: RunningCluster, tmp_path: Path) -> None:
    curl = require_tool("curl", "it is the client whose behaviour is tested")
    (tmp_path / "body").write_bytes(bytes(5 << 20))
    url = f"http://127.0.0.1:{one.first.port}{new_path()}"
    command = [curl, "-s", "-o", "/dev/null", "-w", "%{http_code} %{size_upload}", "-H", "Expect: 100-continue"]
    command += ["--expect100-timeout", "20", "-u", "admin:wrong", "-T", str(tmp_path / "body"), url]
    assert subprocess.run(command, capture_output=True, timeout=60).stdout == b"401 0"


# ---------------------------------------------------------------------- broken bodies


@pytest.mark.parametrize("sent", [0, 10, 500_000, (1 << 20) + 5, LARGE_BYTES - 1])
@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_body_that_breaks_off_leaves_nothing(one: RunningCluster, sent: int, chunked: bool, end: str) -> None:
    path, body = new_path(), random_bytes(LARGE_BYTES)
    with nothing_stored(one, path):
        with one.admin.raw() as raw:
            raw.send_head("PUT", path, "Transfer-Encoding: chunked" if chunked else f"Content-Length: {LARGE_BYTES}")
            raw.send((f"{LARGE_BYTES:x}\r\n".encode() if chunked else b"") + body[:sent])
            if end == "reset":
                raw.reset()
        wait_until(lambda: one.first.metric("holdfast_uploads_in_flight") == 0)


def test_a_chunked_body_without_its_last_chunk_leaves_nothing(one: RunningCluster) -> None:
    path = new_path()
    with nothing_stored(one, path), one.admin.raw() as raw:
        raw.send_head("PUT", path, "Transfer-Encoding: chunked")
        raw.send(b"5\r\nhello\r\n")
        assert raw.is_silent(0.2)


@pytest.mark.parametrize("chunk", [b"zz\r\nhello\r\n", b"-5\r\nhello\r\n", b"5\r\nhelloXX0\r\n\r\n"])
def test_a_malformed_chunk_is_400_and_leaves_nothing(one: RunningCluster, chunk: bytes) -> None:
    path = new_path()
    with nothing_stored(one, path), one.admin.raw() as raw:
        raw.send_head("PUT", path, "Transfer-Encoding: chunked")
        raw.send(chunk)
        assert raw.read_head()[0] == 400


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: -5"],
        ["Content-Length: 5x"],
        ["Transfer-Encoding: chunked, identity"],
        ["Host: another"],
    ],
)
def test_s15_a_request_two_servers_could_read_differently_is_400(one: RunningCluster, headers: list[str]) -> None:
    path = new_path()
    with nothing_stored(one, path), one.admin.raw() as raw:
        raw.send_head("PUT", path, *headers)
        raw.send(b"hello")
        status, answered, body = raw.read_answer()
    assert status == 400
    assert answered["server"] == "Holdfast"
    assert b'"errors"' in body and b"hello" not in body


def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(one: RunningCluster) -> None:
    path = new_path()
    with one.settings(body_bytes_max=2 << 20), nothing_stored(one, path), one.admin.raw() as raw:
        raw.send_head("PUT", path, "Transfer-Encoding: chunked")
        for _ in range(3):
            raw.send(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
        assert raw.read_head()[0] == 413


def test_a_body_of_just_the_largest_size_is_accepted(one: RunningCluster) -> None:
    with one.settings(body_bytes_max=1000):
        assert one.admin.put(new_path(), bytes(1000)).status == 201
        assert one.admin.put(new_path(), bytes(1001)).status == 413


# ---------------------------------------------------------------------- files and folders


def test_a_file_and_a_folder_cannot_have_one_path(one: RunningCluster) -> None:
    path = new_path()
    assert one.admin.put(path, b"file").status == 201
    with nothing_stored(one, f"{path}/below"):
        assert errors_of(one.admin.put(f"{path}/below", random_bytes(100)))[0] == 409
    assert one.admin.put(f"{path}/").status == 409
    folder = path.rpartition("/")[0]
    assert one.admin.put(folder, random_bytes(100)).status == 409
    assert one.admin.get(path).body == b"file"


def test_a_folder_is_made_with_its_ancestors_and_twice_is_no_error(one: RunningCluster) -> None:
    path = new_path("/b/c/")
    for _ in range(2):
        answer = one.admin.put(path)
        assert answer.status == 201
        assert answer.json()["path"] == path.removeprefix("/artifactory/generic-local").rstrip("/")
        assert answer.json()["children"] == []
    assert one.admin.get(path.replace("/artifactory/", "/artifactory/api/storage/")).json()["children"] == []


def test_a_folder_takes_no_body(one: RunningCluster) -> None:
    assert one.admin.put(new_path("/"), b"x").status == 400


def test_delete_removes_a_file_once(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(path, b"x")
    answer = one.admin.delete(path)
    assert (answer.status, answer.body) == (204, b"")
    assert "Content-Length" not in answer.headers
    assert "File not found" in errors_of(one.admin.delete(path))[1]
    assert one.admin.get(path).status == 404


def test_delete_of_a_folder_takes_everything_in_it_and_nothing_beside(one: RunningCluster) -> None:
    folder = new_path().rpartition("/")[0]
    inside = [f"{folder}/a", f"{folder}/b/c", f"{folder}/b/d/e"]
    beside = [f"{folder}-b", f"{folder}.x/a", f"{folder}0"]
    for path in (*inside, *beside):
        assert one.admin.put(path, b"x").status == 201
    assert one.admin.delete(f"{folder}/").status == 204
    assert [one.admin.get(path).status for path in inside] == [404] * 3
    assert [one.admin.get(path).status for path in beside] == [200] * 3


def test_delete_with_matrix_parameters_deletes_nothing(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(f"{path};os=linux", b"x")
    assert one.admin.delete(f"{path};os=mac").status == 400
    assert one.admin.get(path).status == 200


def test_a_repository_is_neither_made_nor_deleted_as_a_path(one: RunningCluster) -> None:
    for path in ("/artifactory/generic-local", "/artifactory/generic-local/"):
        assert one.admin.put(path).status == 400
        assert one.admin.delete(path).status == 400
    assert one.admin.put("/artifactory/no-such/a/", b"").status == 404
    assert "Unable to find item" in errors_of(one.admin.put("/artifactory/no-such/a", b"x"))[1]
    assert "Unable to find item" in errors_of(one.admin.delete("/artifactory/no-such/a"))[1]
