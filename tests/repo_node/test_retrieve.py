"""GET and HEAD of artifacts: the bytes, the headers, conditions, and who is told what of the absent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.web.streaming import media_type, type_by_suffixes
from tests.repo_node.nodes import RunningCluster, basic, configure, errors_of, new_path, random_bytes, run_nodes

BLOCK = 1 << 20


@pytest.fixture(params=[0, 5, BLOCK, 2 * BLOCK + 77], ids=["empty", "small", "one block", "several blocks"])
def artifact(one: RunningCluster, request: pytest.FixtureRequest) -> Iterator[tuple[str, bytes]]:
    """An artifact and its bytes."""
    path, body = new_path(".bin"), random_bytes(int(request.param))
    assert one.admin.put(path, body).status == 201
    yield path, body


def test_get_sends_the_bytes_and_what_identifies_them(one: RunningCluster, artifact: tuple[str, bytes]) -> None:
    path, body = artifact
    answer = one.admin.get(path)
    assert (answer.status, answer.body) == (200, body)
    sha256 = hashlib.sha256(body).hexdigest()
    assert answer.headers["X-Checksum-Sha256"] == sha256
    assert answer.headers["X-Checksum-Sha1"] == hashlib.sha1(body).hexdigest()
    assert answer.headers["X-Checksum-Md5"] == hashlib.md5(body).hexdigest()
    assert answer.headers["ETag"] == f'"{sha256}"'
    assert answer.headers["Content-Length"] == str(len(body))
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["X-Artifactory-Filename"] == "a.bin"
    assert parsedate_to_datetime(answer.headers["Last-Modified"])


@pytest.mark.parametrize("asked", [None, "bytes=1-3", "bytes=1-2,4-4", "bytes=99999999-"])
def test_head_sends_the_headers_of_get_and_no_body(
    one: RunningCluster, artifact: tuple[str, bytes], asked: str | None
) -> None:
    path, _ = artifact
    headers = {"Range": asked} if asked else {}
    got, head = one.admin.get(path, **headers), one.admin.head(path, **headers)
    found, wanted = head.head(), got.head()
    if "multipart" in wanted["Content-Type"]:  # its boundary is random
        assert len(found.pop("Content-Type")) == len(wanted.pop("Content-Type"))
    assert (head.status, found, head.body) == (got.status, wanted, b"")
    assert head.headers["Content-Length"] == str(len(got.body))


def test_the_connection_goes_on_after_head_and_after_errors(one: RunningCluster, artifact: tuple[str, bytes]) -> None:
    path, body = artifact
    with one.admin.raw() as raw:
        raw.send_head("HEAD", path)
        assert raw.read_head()[0] == 200
        raw.send_head("GET", f"{path}.absent")
        assert raw.read_answer()[0] == 404
        raw.send_head("GET", path, "Range: bytes=99999999-")
        assert raw.read_answer()[0] == 416
        raw.send_head("GET", path)
        assert raw.read_answer()[2] == body


def test_pipelined_requests_are_answered_in_order(one: RunningCluster) -> None:
    paths = [new_path() for _ in range(5)]
    for path in paths:
        one.admin.put(path, path.encode())
    with one.admin.raw() as raw:
        for path in paths:
            raw.send_head("GET", path)
        assert [raw.read_answer()[2] for _ in paths] == [path.encode() for path in paths]


# ---------------------------------------------------------------------- conditions


def test_what_the_client_has_is_not_sent_again(one: RunningCluster, artifact: tuple[str, bytes]) -> None:
    path, body = artifact
    first = one.admin.get(path)
    etag, modified = first.headers["ETag"], first.headers["Last-Modified"]
    for headers in (
        {"If_None_Match": etag},
        {"If_None_Match": f'"other", W/{etag}'},
        {"If_None_Match": "*"},
        {"If_Modified_Since": modified},
        {"If_Modified_Since": "Fri, 01 Jan 2100 00:00:00 GMT"},
        {"If_None_Match": etag, "Range": "bytes=0-0"},
    ):
        answer = one.admin.get(path, **headers)
        assert (answer.status, answer.body) == (304, b""), headers
        assert answer.headers["ETag"] == etag
        assert one.admin.head(path, **headers).status == 304
    for headers in (
        {"If_None_Match": '"other"'},
        {"If_None_Match": '"other"', "If_Modified_Since": modified},
        {"If_Modified_Since": "Sat, 01 Jan 2000 00:00:00 GMT"},
        {"If_Modified_Since": "yesterday"},
        {"If_Modified_Since": "Sat, 01 Jan 99999999999999999999 00:00:00 GMT"},
    ):
        answer = one.admin.get(path, **headers)
        assert (answer.status, answer.body) == (200, body), headers


def test_an_overwrite_changes_the_etag(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(path, b"first")
    etag = one.admin.get(path).headers["ETag"]
    one.admin.put(path, b"second")
    assert one.admin.get(path, If_None_Match=etag).status == 200


# ---------------------------------------------------------------------- absence and rights


def test_absence_is_said_in_artifactorys_words(one: RunningCluster) -> None:
    assert errors_of(one.admin.get(new_path())) == (404, "File not found.")
    for path in ("/artifactory/no-such/a", "/artifactory/api/storage/no-such/a", "/artifactory/api/storage/no-such"):
        status, message = errors_of(one.admin.get(path))
        assert status == 404 and "Unable to find item" in message
    status, message = errors_of(one.admin.get(new_path().replace("/artifactory/", "/artifactory/api/storage/")))
    assert status == 404 and "Unable to find item" in message


def test_a_folder_is_not_a_file_and_a_file_no_folder(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(path, b"x")
    for wrong in (path.rpartition("/")[0], path.rpartition("/")[0] + "/", path + "/", "/artifactory/generic-local/"):
        status, message = errors_of(one.admin.get(wrong))
        assert status == 404 and "File not found" in message


def test_s7_without_credentials_nothing_is_told_of_what_exists(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(path, b"x")
    client = one.first.client()
    answers = [client.get(path), client.get(new_path()), client.get("/artifactory/no-such/a")]
    assert {(answer.status, answer.body) for answer in answers} == {(401, answers[0].body)}
    assert all(answer.headers["WWW-Authenticate"].startswith("Basic ") for answer in answers)
    wrong = one.first.client(basic("admin", "wrong")).get(path)
    assert wrong.status == 401 and "WWW-Authenticate" in wrong.headers


def test_a_token_without_the_right_is_403(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(path, b"x")
    answer = one.with_token("write").get(path)
    assert errors_of(answer)[0] == 403
    assert "WWW-Authenticate" not in answer.headers


# ---------------------------------------------------------------------- what a browser does with it


@pytest.mark.parametrize("name", ["x.html", "x.SVG", "x.js", "x.xml", "x.pdf", "x.css", "data:text%2Cx.html"])
def test_s21_active_content_is_an_attachment(one: RunningCluster, name: str) -> None:
    path = new_path(f"/{name}")
    assert one.admin.put(path, b"<script>alert(1)</script>").status == 201
    answer = one.admin.get(path)
    assert answer.headers["Content-Disposition"].startswith("attachment; filename*=UTF-8''")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"].startswith("sandbox")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jar", "application/java-archive"),
        ("a.tar.gz", "application/gzip"),
        ("a.json", "application/json"),
        ("a.whl", "application/zip"),
        ("a", "application/octet-stream"),
        ("data:text%2Fhtml", "400"),
        ("data:TEXT,x", "application/octet-stream"),
    ],
)
def test_the_media_type_is_the_one_the_name_suggests(one: RunningCluster, name: str, kind: str) -> None:
    path = new_path(f"/{name}")
    if kind == "400":
        assert one.admin.put(path, b"x").status == 400
        return
    assert one.admin.put(path, b"x").json()["mimeType"] == kind
    assert one.admin.get(path).headers["Content-Type"] == kind


@given(
    st.lists(st.sampled_from(["a", "gz", "tar", "TGZ", "svgz", "whl", "html", "", " ", "é"]), max_size=6).map(".".join)
)
def test_the_media_type_follows_from_the_last_suffixes(name: str) -> None:
    assert media_type(name) == type_by_suffixes.__wrapped__(name)


def test_s24_a_name_cannot_break_a_header(one: RunningCluster) -> None:
    path = new_path("/%22%3B%20x%3D%C3%A9.html")
    assert one.admin.put(path, b"x").status == 201
    answer = one.admin.get(path)
    assert answer.headers["Content-Disposition"] == "attachment; filename*=UTF-8''%22%3B%20x%3D%C3%A9.html"
    assert answer.headers["X-Artifactory-Filename"] == "%22%3B%20x%3D%C3%A9.html"


@pytest.mark.parametrize("host", ['evil"><script>', "a b", "[::1", "evil:port"])
def test_s24_a_senseless_host_is_not_repeated(one: RunningCluster, host: str) -> None:
    answer = one.admin.put(new_path(), b"x", Host=host)
    assert answer.status == 400 or answer.json()["downloadUri"].startswith(f"http://127.0.0.1:{one.first.port}/")


@pytest.mark.parametrize(
    "written", ["a%0d%0aX-Evil:1", "a%0aSet-Cookie:x=1", "a%0d%0a%0d%0a<html>", "a%E5%98%8A%E5%98%8DX:1"]
)
def test_s24_no_line_break_gets_into_a_head(one: RunningCluster, written: str) -> None:
    path = new_path()
    assert one.admin.put(path, b"x").status == 201
    source = path.removeprefix("/artifactory/")
    for method, target in (
        ("PUT", f"/artifactory/generic-local/{written}"),
        ("GET", f"/artifactory/generic-local/{written}"),
        ("PUT", f"{path};{written}={written}"),
        ("GET", f"{path}?properties={written}"),
        ("GET", f"/artifactory/api/archive/download/generic-local/{written}?archiveType=zip"),
        ("POST", f"/artifactory/api/copy/{source}?to=/generic-local/{written}"),
        ("GET", f"/artifactory/api/storage/generic-local/{written}?list"),
        ("PUT", f"/artifactory/api/repositories/{written}"),
    ):
        answer = one.admin.request(method, target, b"")
        assert answer.status < 500, (method, target)
        assert not {"x-evil", "set-cookie", "x"} & {name.lower() for name in answer.headers}
        assert b"X-Evil" not in str(answer.headers).encode()


def test_s24_urls_follow_the_configuration_whatever_host_a_client_names(ready_dsn: str, directory: Path) -> None:
    base = "https://artifacts.example/base"
    with run_nodes([configure(ready_dsn, directory, http={"public_url": base})]) as cluster:
        path = new_path()
        spoofed = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
        for method, target in (
            ("PUT", path),
            ("GET", path.replace("/artifactory/", "/artifactory/api/storage/")),
            ("GET", "/artifactory/api/repositories"),
            ("GET", "/artifactory/api/search/artifact?name=a"),
        ):
            answer = cluster.admin.request(method, target, b"", spoofed)
            told = str(answer.headers) + answer.body.decode()
            assert answer.status < 300 and f"{base}/artifactory/" in told and "evil" not in told, target


def test_a_request_without_host_is_answered(one: RunningCluster) -> None:
    with one.admin.raw() as raw:
        raw.send(
            f"GET /artifactory/api/repositories HTTP/1.0\r\nAuthorization: {one.admin.authorization}\r\n\r\n".encode()
        )
        status, _, body = raw.read_answer()
    assert status == 200 and f"http://127.0.0.1:{one.first.port}/artifactory/generic-local".encode() in body
