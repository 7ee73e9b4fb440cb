"""File lists, what was modified last, and the statistics of downloads, as clients of Artifactory read them."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

import pytest

from repo_node.db import downloads as rows
from repo_node.db.errors import CatalogueUnavailable, OutcomeUnknown
from tests.repo_node.http import Answer
from tests.repo_node.nodes import RunningCluster, errors_of, new_path, wait_until
from tests.repo_node.test_properties import storage

TREE = ("a", "sub/b", "sub/deep/c", "sub-beside/d")


@pytest.fixture(scope="module")
def top(one: RunningCluster) -> str:
    """The URL path of a folder with a tree in it."""
    path = f"/artifactory/generic-local/{secrets.token_hex(6)}/top"
    for name in TREE:
        assert one.admin.put(f"{path}/{name}", name.encode()).status == 201
    one.admin.put(f"{path}/empty/")
    one.admin.put(f"{path}-beside/no", b"")
    return path


def listed(one: RunningCluster, path: str, query: str = "") -> list[dict[str, Any]]:
    answer = one.admin.get(f"{storage(path)}?list{query}")
    assert answer.status == 200, answer
    document = answer.json()
    assert document["uri"].endswith(storage(path)) and document["created"]
    files: list[dict[str, Any]] = document["files"]
    return files


def uris(files: list[dict[str, Any]]) -> list[str]:
    return [file["uri"] for file in files]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["/a"]),
        ("&deep=0&listFolders=1", ["/a", "/empty", "/sub", "/sub-beside"]),
        ("&deep=1", ["/a", "/sub-beside/d", "/sub/b", "/sub/deep/c"]),
        ("&deep=1&depth=2", ["/a", "/sub-beside/d", "/sub/b"]),
        ("&deep=1&depth=1&listFolders=1", ["/a", "/empty", "/sub", "/sub-beside"]),
        (
            "&deep=1&depth=2&listFolders=1",
            ["/a", "/empty", "/sub", "/sub-beside", "/sub-beside/d", "/sub/b", "/sub/deep"],
        ),
        ("&includeRootPath=1", ["/", "/a"]),
    ],
)
def test_a_list_is_as_deep_as_asked_for(one: RunningCluster, top: str, query: str, expected: list[str]) -> None:
    assert sorted(uris(listed(one, top, query))) == expected


def test_entries_have_the_types_that_clients_insist_on(one: RunningCluster, top: str) -> None:
    one.admin.put(f"{storage(top)}/a?properties=k=v")
    found = {file["uri"]: file for file in listed(one, top, "&deep=1&listFolders=1&mdTimestamps=1")}
    info = one.admin.get(f"{storage(top)}/a").json()
    assert found["/a"] == {
        "uri": "/a",
        "size": 1,
        "lastModified": info["lastModified"],
        "folder": False,
        "sha1": hashlib.sha1(b"a").hexdigest(),
        "sha2": hashlib.sha256(b"a").hexdigest(),
        "mdTimestamps": {"properties": info["lastUpdated"]},
    }
    assert (found["/sub"]["folder"], found["/sub"]["size"]) == (True, -1)
    assert "sha1" not in found["/sub"] and "mdTimestamps" not in found["/sub/b"]


def test_a_list_of_more_than_a_page_is_whole(one: RunningCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repo_node.db.paging.FIRST_PAGE", 2)
    monkeypatch.setattr("repo_node.db.paging.PAGE", 3)
    path = f"/artifactory/generic-local/{secrets.token_hex(6)}"
    names = [f"{folder}/{name}" for folder in ("x", "x-y", "x/y") for name in "abcde"]
    for name in names:
        one.admin.put(f"{path}/{name}", b"")
    assert sorted(uris(listed(one, path, "&deep=1"))) == sorted(f"/{name}" for name in names)
    assert uris(listed(one, f"{path}/x")) == [f"/{name}" for name in "abcde"]
    for depth in (1, 2, 3):
        assert len(listed(one, path, f"&deep=1&depth={depth}")) == (0, 10, 15)[depth - 1]


def test_the_root_an_empty_folder_and_a_file_are_listed_or_refused(one: RunningCluster, top: str) -> None:
    assert listed(one, f"{top}/empty") == []
    assert uris(listed(one, f"{top}/empty", "&includeRootPath=1&deep=1")) == ["/"]
    one.admin.put_json("/artifactory/api/repositories/list-root", {})
    one.admin.put("/artifactory/list-root/f/g", b"")
    assert uris(listed(one, "/artifactory/list-root", "&deep=1&listFolders=1")) == ["/f", "/f/g"]
    assert errors_of(one.admin.get(f"{storage(top)}/a?list"))[0] == 400
    assert errors_of(one.admin.get(f"{storage(top)}/none?list"))[0] == 404
    assert errors_of(one.admin.get(f"{storage(top)}?list&deep=x"))[0] == 400
    assert errors_of(one.admin.get(f"{storage(top)}?list&deep=1&depth=-1"))[0] == 400
    assert one.admin.head(f"{storage(top)}?list").status == 200


def test_what_was_modified_last(one: RunningCluster, top: str) -> None:
    one.admin.put(f"{top}/sub/deep/new", b"new")
    for path, latest in ((top, "/sub/deep/new"), (f"{top}/sub-beside", "/d"), (f"{top}/a", "")):
        document = one.admin.get(f"{storage(path)}?lastModified").json()
        assert document["uri"].endswith(storage(path) + latest)
        assert document["lastModified"] == one.admin.get(storage(path) + latest).json()["lastModified"]
    assert errors_of(one.admin.get(f"{storage(top)}/empty?lastModified"))[0] == 404
    assert one.admin.get("/artifactory/api/storage/generic-local?lastModified").status == 200
    one.admin.delete(f"{top}/sub/deep/new")


# ---------------------------------------------------------------- statistics


def stats(one: RunningCluster, path: str) -> dict[str, Any]:
    answer: Answer = one.admin.get(f"{storage(path)}?stats")
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json()
    return found


def test_downloads_are_counted_and_nothing_else(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(path, b"0123456789")
    assert stats(one, path)["downloadCount"] == 0 and stats(one, path)["lastDownloaded"] == 0
    with one.settings(downloads_flush_seconds=0.1):
        etag = one.admin.get(path).headers["ETag"]
        for headers in ({"Range": "bytes=0-3"}, {"Range": "bytes=4-"}, {"If_None_Match": etag}, {"Range": "bytes=99-"}):
            one.admin.get(path, **headers)
        one.admin.head(path)
        one.with_token("read").get(path)
        wait_until(lambda: stats(one, path)["downloadCount"] == 3)
    found = stats(one, path)
    assert found["lastDownloadedBy"] == "admin"
    assert abs(found["lastDownloaded"] / 1000 - one.sql("SELECT extract(epoch FROM now())")[0][0].__float__()) < 60
    assert found["remoteDownloadCount"] == found["remoteLastDownloaded"] == 0
    assert errors_of(one.admin.get(f"{storage(path)}x?stats"))[0] == 404


def test_counts_go_with_a_move_and_not_with_a_copy(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(path, b"x")
    one.sql("UPDATE artifacts SET downloads = 7 WHERE folder || '/' || name = $1", path.split("/", 3)[3])
    place = path.removeprefix("/artifactory")
    assert one.admin.request("POST", f"/artifactory/api/copy{place}?to={place}-copy").status == 200
    assert one.admin.request("POST", f"/artifactory/api/move{place}?to={place}-moved").status == 200
    assert (stats(one, f"{path}-copy")["downloadCount"], stats(one, f"{path}-moved")["downloadCount"]) == (0, 7)
    one.admin.put(f"{path}-moved", b"new content")
    assert stats(one, f"{path}-moved")["downloadCount"] == 7


@pytest.mark.parametrize(("error", "counted"), [(CatalogueUnavailable("away"), 1), (OutcomeUnknown("?"), 0)])
def test_a_count_that_postgres_did_not_take_is_kept_and_none_is_counted_twice(
    one: RunningCluster, error: Exception, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, add, failed = new_path(), rows.add, False

    async def fail_once(database: Any, batch: Any) -> None:
        nonlocal failed
        # What other tests have downloaded may be told of before.
        if failed or not any(f"/artifactory/{at.repository}/{at.path}" == path for at, _ in batch):
            return await add(database, batch)
        failed = True
        raise error

    one.admin.put(path, b"x")
    before = one.first.metric("holdfast_downloads_uncounted_total")
    monkeypatch.setattr(rows, "add", fail_once)
    with one.settings(downloads_flush_seconds=0.05):
        one.admin.get(path)
        wait_until(lambda: failed)
        other = new_path()
        one.admin.put(other, b"x")
        one.admin.get(other)
        wait_until(lambda: stats(one, other)["downloadCount"] == 1)
    assert stats(one, path)["downloadCount"] == counted
    assert one.first.metric("holdfast_downloads_uncounted_total") - before == 1 - counted


def test_memory_of_counts_is_bounded(one: RunningCluster) -> None:
    before = one.first.metric("holdfast_downloads_uncounted_total")
    with one.settings(downloads_counted_max=1, downloads_flush_seconds=3600.0):
        paths = [new_path() for _ in range(3)]
        for path in paths:
            one.admin.put(path, b"x")
            one.admin.get(path)
        assert one.first.metric("holdfast_downloads_uncounted_total") - before >= 2


def test_two_questions_at_once_are_refused(one: RunningCluster, top: str) -> None:
    for query in ("list&stats", "properties&stats", "list&lastModified"):
        assert one.admin.get(f"/artifactory/api/storage/{top}?{query}").status == 400
