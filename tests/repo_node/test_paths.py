"""Request targets: one canonical form for the router, the permissions, storage and the log, or 400."""

from __future__ import annotations

import logging
import re
import unicodedata
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node import paths
from repo_node.paths import BadPath, Target, artifact_path, check_repository_key, parse_target
from tests.repo_node.nodes import RunningCluster

REFUSED = [
    b"/artifactory/generic-local/a/../b",
    b"/artifactory/generic-local/a/%2e%2e/b",
    b"/artifactory/generic-local/a/..%2fb",
    b"/artifactory/generic-local/a%2fb",
    b"/artifactory/generic-local/a%2Fb",
    b"//etc/passwd",
    b"/artifactory//generic-local/a",
    b"/artifactory/generic-local/a//b",
    b"/artifactory/generic-local/a/./b",
    b"/artifactory/generic-local/a%00b",
    b"/artifactory/generic-local/a\\..\\b",
    b"/artifactory/generic-local/a%5c..%5cb",
    b"/artifactory/generic-local/cafe%CC%81",
    b"/artifactory/generic-local/a%0d%0aX:1",
    b"/artifactory/generic-local/a%1b[31m",
    b"/artifactory/generic-local/a%7f",
    b"/artifactory/generic-local/a%c2%85",
    b"/artifactory/generic-local/%ff",
    b"/artifactory/generic-local/%c0%ae%c0%ae/b",
    b"/artifactory/generic-local/%ed%a0%80",
    b"/artifactory/generic-local/a/%2F%2F..%2F..%2Fetc/passwd",
    b"/artifactory/generic-local/a?x=%ff",
    b"/artifactory/generic-local/a?%ed%a0%80=x",
    b"/artifactory/generic-local/a/%zz",
    b"/artifactory/generic-local/a/%",
    b"/artifactory/generic-local/" + b"x" * 256,
    b"/artifactory/generic-local/" + b"/".join([b"x" * 200] * 6),
    b"/artifactory/generic-local/a;=1",
    b"/artifactory/generic-local/a;k=%00",
    b"/artifactory/generic-local/..;/b",
    b"/artifactory/..;x=1/generic-local/b",
    "/artifactory/generic-local/\u00fcber".encode(),
    b"http://evil/artifactory/generic-local/a",
    b"*",
]

EQUAL = [
    b"/artifactory/generic-local/dir/file.txt",
    b"/artifactory/generic%2Dlocal/dir/file.txt",
    b"/%61rtifactory/generic-local/d%69r/file%2Etxt",
    b"/artifactory;x=1/generic-local;y=2/dir;z/file.txt",
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
@pytest.mark.parametrize("target", REFUSED)
def test_s1_a_bad_target_is_400_for_every_method(one: RunningCluster, method: str, target: bytes) -> None:
    with one.admin.raw() as raw:
        raw.send_head(method, target, "Content-Length: 0")
        status, headers = raw.read_head()
    assert status == 400
    assert headers["server"] == "Holdfast"


@pytest.mark.parametrize("target", [target for target in REFUSED if target.startswith(b"/artifactory/generic-local")])
def test_s1_a_bad_target_is_400_under_api_storage(one: RunningCluster, target: bytes) -> None:
    with one.admin.raw() as raw:
        raw.send_head("GET", target.replace(b"/artifactory/", b"/artifactory/api/storage/"))
        assert raw.read_head()[0] == 400


def test_s1_a_bad_target_is_400_without_credentials_too(one: RunningCluster) -> None:
    with one.first.client().raw() as raw:
        raw.send_head("GET", "/artifactory/generic-local/a/../b")
        assert raw.read_head()[0] == 400


@pytest.mark.parametrize("target", EQUAL)
def test_s1_a_target_names_the_same_artifact_however_it_is_written(one: RunningCluster, target: bytes) -> None:
    content = target + b" is stored"
    with one.admin.raw() as raw:
        raw.send_head("PUT", target, f"Content-Length: {len(content)}")
        raw.send(content)
        assert raw.read_head()[0] == 201
    assert one.admin.get("/artifactory/generic-local/dir/file.txt").body == content
    assert one.admin.get("/artifactory/api/storage/generic-local/dir/file.txt").json()["path"] == "/dir/file.txt"


@pytest.mark.parametrize(
    "name",
    ["caf\u00e9.txt", "a b.txt", " a", "a+b", "100%25", "\u65e5\u672c\u8a9e", "#x", "a?b", "q=1&r=2", "data:text"],
)
def test_an_unusual_name_is_stored_and_found_under_itself(one: RunningCluster, name: str) -> None:
    path = f"/artifactory/generic-local/names/{quote(name, safe='')}"
    assert one.admin.put(path, name.encode()).status == 201
    assert one.admin.get(path).body == name.encode()
    info = one.admin.get(path.replace("/artifactory/", "/artifactory/api/storage/")).json()
    assert info["path"] == f"/names/{name}"
    children = one.admin.get("/artifactory/api/storage/generic-local/names").json()["children"]
    assert {"uri": f"/{name}", "folder": False} in children


@pytest.mark.parametrize(
    "mutated",
    [
        "/artifactory/api/holdfast/settings/",
        "/artifactory/api/holdfast/settings;x=1",
        "/artifactory/api;x=1/holdfast/settings",
        "/artifactory/%61pi/holdfast/settings",
        "/artifactory;/api/holdfast/settings",
        "/artifactory/api/holdfast/settings?x=1",
        "/artifactory/API/holdfast/settings",
    ],
)
def test_s3_no_way_of_writing_a_path_changes_who_may(one: RunningCluster, mutated: str) -> None:
    for client in (one.first.client(), one.with_token("read"), one.with_token("metrics")):
        wanted = client.get("/artifactory/api/holdfast/settings").status
        found = client.get(mutated).status
        assert found == wanted or (found in (400, 404) and b"settings" not in client.get(mutated).body)


def test_s1_a_path_in_the_log_is_the_canonical_one(one: RunningCluster, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "holdfast.requests"):
        one.admin.get("/artifactory;secret=1/generic%2Dlocal/nothing%20here;k=v?token=hidden")
        one.admin.get("/artifactory/generic-local/%0aforged")
    paths = [record.facts["path"] for record in caplog.records if record.message == "request"]  # type: ignore[attr-defined]
    assert "/artifactory/generic-local/nothing here" in paths
    assert "(refused)" in paths
    assert not any("forged" in path or "hidden" in path or "secret" in path for path in paths)


SEGMENTS = st.lists(
    st.text(
        st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="/\\"), min_size=1, max_size=40
    )
    .map(lambda text: unicodedata.normalize("NFC", text))
    .filter(lambda text: text not in (".", "..") and "/" not in text and "\\" not in text),
    min_size=1,
    max_size=5,
)


@given(SEGMENTS)
def test_s1_every_encoding_of_a_path_has_one_canonical_form(segments: list[str]) -> None:
    fully = "/" + "/".join("".join(f"%{byte:02x}" for byte in segment.encode()) for segment in segments)
    target = parse_target(fully)
    assert target.segments == tuple(segments)
    assert parse_target(target.encoded).segments == target.segments
    assert parse_target(target.encoded + ";a=b").encoded == target.encoded


@given(st.text("a.-/", max_size=12))
def test_a_plain_path_is_read_as_its_encoding_is(raw: str) -> None:
    def read(path: str) -> object:
        try:
            return parse_target(path)
        except BadPath as error:
            return str(error)

    assert read(f"/{raw}") == read("/" + "".join(c if c == "/" else f"%{ord(c):02x}" for c in raw))


@given(st.text(max_size=80))
def test_s1_a_target_is_refused_or_has_only_harmless_segments(raw: str) -> None:
    try:
        target = parse_target("/" + raw.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape"))
    except BadPath:
        return
    for segment in target.segments:
        assert segment not in ("", ".", "..")
        assert not set(segment) & set("/\\\0\r\n")
        assert len(segment.encode()) <= 255


@given(st.text("/.-_a%;=", min_size=1).map("/{}".format) | st.text("a.", min_size=250, max_size=260).map("/{}".format))
def test_a_plain_target_is_read_as_any_other(raw: str) -> None:
    def read() -> Target | None:
        try:
            return parse_target(raw)
        except BadPath:
            return None

    quickly = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "PLAIN", re.compile("(?!)"))
        assert read() == quickly


def test_matrix_parameters_are_gathered_from_every_segment() -> None:
    target = parse_target("/artifactory/repo;a=1/dir;b=2,3/file;a=4;flag")
    assert target.segments == ("artifactory", "repo", "dir", "file")
    assert target.properties == {"a": ("1", "4"), "b": ("2", "3"), "flag": ("",)}


def test_a_path_longer_than_its_limit_is_refused() -> None:
    segments = ("repo", *["x" * 99] * 10)
    assert artifact_path(segments, path_bytes_max=999).folder.count("/") == 8
    with pytest.raises(BadPath, match="998"):
        artifact_path(segments, path_bytes_max=998)


@pytest.mark.parametrize("key", ["", "a/b", "-a", ".a", "a b", "api", "API", "ui", "x" * 65, "a\n", "caf\u00e9"])
def test_a_repository_key_that_would_shadow_or_confuse_is_refused(key: str) -> None:
    with pytest.raises(BadPath):
        check_repository_key(key)


def test_text_in_a_query_that_is_not_utf_8_becomes_no_name(one: RunningCluster) -> None:
    """It would be read as U+FFFD, under which the copy would lie."""
    one.admin.put("/artifactory/generic-local/utf/a", b"a")
    answer = one.admin.request("POST", "/artifactory/api/copy/generic-local/utf/a?to=/generic-local/utf/%FF")
    assert answer.status == 400 and b"UTF-8" in answer.body
    listed = one.admin.get("/artifactory/api/storage/generic-local/utf").json()["children"]
    assert [child["uri"] for child in listed] == ["/a"]
    assert one.admin.get("/artifactory/api/search/artifact?name=%C3%A9%F0%9F%98%80&repos=generic-local").status == 200
