"""File and folder info, with the fields and types that clients of Artifactory parse."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator
from http.client import IncompleteRead
from typing import Any

import pytest

from repo_node.api.storage import FOLDER_INFO
from repo_node.db import artifacts as rows
from repo_node.db.artifacts import Child
from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.paging import FIRST_PAGE
from tests.repo_node.nodes import RunningCluster, errors_of, new_path

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def info_path(path: str) -> str:
    return path.replace("/artifactory/", "/artifactory/api/storage/", 1)


def test_file_info_has_every_field_in_its_type(one: RunningCluster) -> None:
    path, body = new_path(".tgz"), b"content"
    one.admin.put(path, body)
    answer = one.admin.get(info_path(path))
    document = answer.json()
    assert answer.headers["Content-Type"] == "application/vnd.org.jfrog.artifactory.storage.FileInfo+json"
    base = f"http://127.0.0.1:{one.first.port}"
    times = {name: document.pop(name) for name in ("created", "lastModified", "lastUpdated")}
    assert all(TIMESTAMP.fullmatch(value) for value in times.values())
    assert times["lastModified"] <= times["created"] <= times["lastUpdated"]
    checksums = {name: hashlib.new(name, body).hexdigest() for name in ("sha1", "md5", "sha256")}
    assert document == {
        "repo": "generic-local",
        "path": path.removeprefix("/artifactory/generic-local"),
        "uri": base + info_path(path),
        "downloadUri": base + path,
        "createdBy": "admin",
        "modifiedBy": "admin",
        "size": "7",
        "mimeType": "application/gzip",
        "checksums": checksums,
        "originalChecksums": checksums,
    }


def test_folder_info_lists_children_with_real_booleans(one: RunningCluster) -> None:
    folder = new_path().rpartition("/")[0]
    one.admin.put(f"{folder}/b", b"x")
    one.admin.put(f"{folder}/a/deep", b"x")
    one.admin.put(f"{folder}/empty/")
    answer = one.admin.get(info_path(folder))
    document = answer.json()
    assert answer.headers["Content-Type"] == "application/vnd.org.jfrog.artifactory.storage.FolderInfo+json"
    assert document["children"] == [
        {"uri": "/a", "folder": True},
        {"uri": "/b", "folder": False},
        {"uri": "/empty", "folder": True},
    ]
    assert document["repo"] == "generic-local"
    assert document["path"] == folder.removeprefix("/artifactory/generic-local")
    assert document["uri"] == f"http://127.0.0.1:{one.first.port}{info_path(folder)}"
    assert all(TIMESTAMP.fullmatch(document[name]) for name in ("created", "lastModified", "lastUpdated"))
    assert (document["createdBy"], document["modifiedBy"]) == ("admin", "admin")
    assert "size" not in document
    assert one.admin.get(f"{info_path(folder)}/").json() == document


def test_the_root_of_a_repository_is_a_folder(one: RunningCluster) -> None:
    one.admin.put(new_path(), b"x")
    for path in ("/artifactory/api/storage/generic-local", "/artifactory/api/storage/generic-local/"):
        document = one.admin.get(path).json()
        assert (document["repo"], document["path"]) == ("generic-local", "/")
        assert all(TIMESTAMP.fullmatch(document[name]) for name in ("created", "lastModified", "lastUpdated"))
        assert document["children"] and all(type(child["folder"]) is bool for child in document["children"])


def folder_of(one: RunningCluster, count: int) -> str:
    """Return the path of the info of a folder with ``count`` children, the last of them called zz."""
    folder = new_path().rpartition("/")[0]
    one.admin.put(f"{folder}/zz", b"x")
    one.sql(
        """
        INSERT INTO artifacts (repo_id, folder, name, created_by, modified_by)
        SELECT repo_id, folder, 'n' || i, 'x', 'x' FROM artifacts, generate_series(2, $2) AS i
         WHERE folder = $1 AND name = 'zz'
        """,
        folder.removeprefix("/artifactory/generic-local/"),
        count,
    )
    return info_path(folder)


@pytest.mark.parametrize("count", [FIRST_PAGE - 1, FIRST_PAGE, 7_001])
def test_a_folder_is_listed_whole_however_many_children_it_has(one: RunningCluster, count: int) -> None:
    path = folder_of(one, count)
    answer = one.admin.get(path)
    document = answer.json()
    assert answer.headers["Content-Type"] == FOLDER_INFO
    assert list(document)[-1] == "children"
    assert [child["uri"] for child in document["children"]] == sorted(child["uri"] for child in document["children"])
    assert len(document["children"]) == count
    assert document["children"][-1] == {"uri": "/zz", "folder": False}


def test_the_head_of_a_large_folder_has_no_body(one: RunningCluster) -> None:
    answer = one.admin.request("HEAD", folder_of(one, 2 * FIRST_PAGE))
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, FOLDER_INFO, b"")


def test_a_large_listing_that_breaks_off_is_no_whole_answer(
    one: RunningCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, children = folder_of(one, 2 * FIRST_PAGE), rows.children

    async def first_page(*given: Any, **more: Any) -> AsyncGenerator[list[Child], None]:
        async for page in children(*given, **more):
            yield page
            raise CatalogueUnavailable("away")

    monkeypatch.setattr(rows, "children", first_page)
    with pytest.raises(IncompleteRead):
        one.admin.get(path)


def test_a_question_that_is_not_answered_is_refused(one: RunningCluster) -> None:
    assert errors_of(one.admin.get("/artifactory/api/storage/generic-local?stats"))[0] == 400


def test_an_artifact_without_properties_says_so_in_artifactorys_words(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(path, b"x")
    for asked in (info_path(path), "/artifactory/api/storage/generic-local"):
        status, message = errors_of(one.admin.get(f"{asked}?properties"))
        assert status == 404 and "No properties could be found" in message


def test_uris_follow_the_address_the_client_used(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(path, b"x")
    document = one.admin.get(info_path(path), Host="artifacts.example:8443").json()
    assert document["downloadUri"] == f"http://artifacts.example:8443{path}"
