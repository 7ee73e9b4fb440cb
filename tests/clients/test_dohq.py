"""dohq-artifactory, unchanged, against a cluster."""

from __future__ import annotations

import hashlib
import io
import secrets
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from artifactory import ArtifactoryBuildManager, ArtifactoryException, ArtifactoryPath, walk  # type: ignore[import-untyped]
from dohq_artifactory import admin  # type: ignore[import-untyped]

from tests.clients.conftest import REPOSITORY, Front
from tests.clients.recorder import Recorder
from tests.cluster.processes import wait_until
from tests.repo_node.archive_files import packed

CLIENT = "dohq-artifactory"
ABOUT = "Methods of `ArtifactoryPath`, and of the classes that are named."


@pytest.fixture
def top(front: Front, folder: str) -> ArtifactoryPath:
    path = ArtifactoryPath(f"{front.base}/{folder}", auth=front.auth)
    path.mkdir()
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_bytes(b"content")
    return path


def test_folders(seen: Recorder, top: ArtifactoryPath) -> None:
    with seen.call("mkdir"):
        (top / "sub").mkdir()
        (top / "sub").mkdir(exist_ok=True)
        (top / "deep" / "er").mkdir(parents=True)
    with seen.call("touch"):
        (top / "sub" / "empty").touch()
    with seen.call("exists, is_dir, is_file"):
        assert top.exists() and top.is_dir() and not top.is_file()
        assert (top / "sub" / "empty").is_file() and not (top / "none").exists()
    with seen.call("iteration, glob, rglob"):
        assert sorted(path.name for path in top) == ["deep", "sub"]
        assert {str(path).removeprefix(f"{top}/") for path in top.glob("**/*")} >= {"sub/empty", "deep/er"}
        assert [path.name for path in top.rglob("em*")] == ["empty"]
    with seen.call("walk"):
        assert [(dirs, files) for _, dirs, files in walk(top / "sub")] == [([], ["empty"])]
    with seen.call("unlink, rmdir"):
        (top / "sub" / "empty").unlink()
        with pytest.raises(FileNotFoundError):
            (top / "sub" / "empty").unlink()
        (top / "deep").rmdir()
        assert [path.name for path in top] == ["sub"]


def test_files(seen: Recorder, top: ArtifactoryPath, source: Path, tmp_path: Path) -> None:
    path = top / "a.txt"
    with seen.call("deploy_file"):
        top.deploy_file(str(source), parameters={"qa": "done", "os": ["linux", "mac"]})
        assert path.read_bytes() == b"content"
        assert {key: sorted(values) for key, values in path.properties.items()} == {
            "qa": ["done"],
            "os": ["linux", "mac"],
        }
    with seen.call("deploy"):
        (top / "streamed").deploy(io.BytesIO(b"streamed"))
        with pytest.raises(ArtifactoryException, match="Checksum error"):
            (top / "wrong").deploy(io.BytesIO(b"streamed"), sha1=hashlib.sha1(b"other").hexdigest())
        assert (top / "streamed").read_bytes() == b"streamed" and not (top / "wrong").exists()
    with seen.call("deploy_by_checksum"):
        (top / "again").deploy_by_checksum(sha1=hashlib.sha1(b"content").hexdigest())
        (top / "again-256").deploy_by_checksum(checksum=hashlib.sha256(b"content").hexdigest())
        with pytest.raises(ArtifactoryException):
            (top / "unknown").deploy_by_checksum(sha1=secrets.token_hex(20))
        assert (top / "again").read_bytes() == (top / "again-256").read_bytes() == b"content"
    with seen.call("deploy_deb"):
        top.deploy_deb(str(source), "bookworm", "main", "amd64")
        assert path.properties["deb.distribution"] == ["bookworm"]
    with seen.call("read_bytes, read_text, write_bytes, write_text, open"):
        (top / "text").write_text("täxt")
        assert (top / "text").read_text(encoding="utf-8") == "täxt"
        (top / "bytes").write_bytes(b"\0\1")
        with (top / "bytes").open() as stream:
            assert stream.read() == b"\0\1"
    with seen.call("writeto"):
        path.writeto(tmp_path / "written", progress_func=None)
        assert (tmp_path / "written").read_bytes() == b"content"
    with seen.call("stat, owner, creator"):
        stat = path.stat()
        assert (stat.size, stat.sha256) == (7, hashlib.sha256(b"content").hexdigest())
        assert stat.ctime and stat.mtime and stat.created_by == path.owner() == path.creator() == "admin"
    with seen.call("download_stats"):
        wait_until(lambda: path.download_stats().download_count > 0, "downloads to be told", 30)
        assert path.download_stats().last_downloaded_by == "admin"


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_archives(seen: Recorder, top: ArtifactoryPath, tmp_path: Path, kind: str) -> None:
    archive, files = tmp_path / f"a.{kind}", {"x": b"x", "sub/y": b"y"}
    archive.write_bytes(packed(kind, files))
    for name, option in (("explode_archive", {}), ("explode_archive_atomic", {"explode_archive_atomic": True})):
        (top / name).mkdir()
        with seen.call(f"deploy_file, {name}"):
            (top / name).deploy_file(str(archive), explode_archive=True, **option)
            assert (top / name / "x").read_bytes() == b"x" and (top / name / "sub" / "y").read_bytes() == b"y"
            assert not (top / name / f"a.{kind}").exists()
    with seen.call("archive, download_folder_archive"):
        with (top / "explode_archive").download_folder_archive(check_sum=True) as stream:
            found = zipfile.ZipFile(io.BytesIO(stream.read()))
        assert found.read("sub/y") == b"y" and found.read("x.sha256").decode() == hashlib.sha256(b"x").hexdigest()


def test_properties(seen: Recorder, top: ArtifactoryPath) -> None:
    path = top / "a"
    path.touch()
    with seen.call("properties"):
        assert path.properties == {}
        path.properties = {"a": "1", "b": ["2", "3"]}
        assert path.properties == {"a": ["1"], "b": ["2", "3"]}
        path.properties = {"b": ["2", "3"], "odd": "a,b;c=d|e"}
        assert path.properties == {"b": ["2", "3"], "odd": ["a,b;c=d|e"]}
    with seen.call("set_properties, update_properties, del_properties"):
        path.set_properties({"c": "4"})
        path.del_properties(["odd"], recursive=False)
        path.update_properties({"b": "x", "c": None})
        assert path.properties == {"b": ["x"]}
        top.set_properties({"all": "1"}, recursive=True)
        assert path.properties["all"] == ["1"]


def test_copies_and_moves(seen: Recorder, top: ArtifactoryPath) -> None:
    for name in ("src/a", "src/sub/b"):
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).touch()
    with seen.call("copy"):
        (top / "src").copy(top / "copy")
        (top / "src" / "a").copy(top / "file", suppress_layouts=True, fail_fast=True)
        assert (top / "copy" / "sub" / "b").exists() and (top / "src" / "a").exists() and (top / "file").is_file()
    with seen.call("copy, dry_run"):
        assert (top / "src").copy(top / "dry", dry_run=True)["messages"][0]["level"] == "INFO"
        assert not (top / "dry").exists()
    with seen.call("move"):
        (top / "copy").move(top / "moved")
        assert (top / "moved" / "sub" / "b").exists() and not (top / "copy").exists()
        with pytest.raises(ArtifactoryException):
            (top / "none").move(top / "x")


def test_searches_and_lists(seen: Recorder, top: ArtifactoryPath, front: Front) -> None:
    (top / "found.txt").touch()
    with seen.attempt("aql, from_aql", "no `api/search/aql`"):
        rows = top.aql(
            "items.find",
            {"repo": REPOSITORY, "path": top.path_in_repo.strip("/")},
            ".include",
            ["name", "repo", "path", "type"],
        )
        assert [top.from_aql(row) for row in rows] == [top / "found.txt"]
    root = ArtifactoryPath(front.base, auth=front.auth)
    with seen.call("get_repositories, find_repository_local"):
        assert REPOSITORY in {repository.name for repository in root.get_repositories(lazy=True)}
        found = root.find_repository_local(REPOSITORY)
        assert found is not None and found.name == REPOSITORY
    with seen.attempt("get_users, find_user", "users over REST"):
        assert "admin" in {user.name for user in root.get_users(lazy=True)}
        assert root.find_user("admin").name == "admin"
    with seen.attempt("get_groups, find_group", "groups over REST"):
        root.get_groups(lazy=True)
    with seen.attempt("get_permissions, find_permission_target", "permission targets over REST"):
        root.get_permissions(lazy=True)
    with seen.attempt("get_projects, find_project", "projects"):
        root.get_projects(lazy=True)
    with seen.attempt("replication_status", "replication"):
        assert top.replication_status
    with seen.attempt("promote_docker_image", "docker repositories"):
        root.promote_docker_image("a", "b", "image", "tag")
    with seen.attempt("ArtifactoryBuildManager: builds, runs, info, promote", "builds"):
        assert ArtifactoryBuildManager(front.base, auth=front.auth).builds is not None


def test_repositories(seen: Recorder, front: Front) -> None:
    root, name = ArtifactoryPath(front.base, auth=front.auth), f"dohq-{secrets.token_hex(4)}"
    local, virtual = admin.RepositoryLocal(root, name), admin.RepositoryVirtual(root, f"{name}-all", [name])
    with seen.call("RepositoryLocal: create, read, update"):
        local.create()
        local.description = "of tests"
        local.update()
        assert root.find_repository_local(name).description == "of tests"
    with seen.call("RepositoryVirtual: create; find_repository_virtual"):
        virtual.create()
        found = root.find_repository_virtual(virtual.name)
        assert [repository.name for repository in found.repositories] == [name]
        assert root.find_repository_virtual(f"{name}-none") is None
    with seen.call("RepositoryVirtual, RepositoryLocal: delete"):
        virtual.delete()
        local.delete()
        assert root.find_repository_local(name) is None


def test_people(seen: Recorder, front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    # Half a second after each change.
    monkeypatch.setattr(admin, "rest_delay", lambda: None)
    root, name = ArtifactoryPath(front.base, auth=front.auth), f"dohq-{secrets.token_hex(4)}"
    password = "Canary-password-5dd1"
    user = admin.User(root, name, f"{name}@example.org", password)
    with seen.call("User: create, read, update"):
        user.create()
        user.email = f"{name}@example.com"
        user.update()
        assert root.find_user(name).email == f"{name}@example.com"
    group = admin.Group(root, name)
    with seen.call("Group: create, read, update"):
        group.users = [name]
        group.create()
        group.description = "changed"
        group.update()
        assert root.find_group(name).description == "changed"
    with seen.call("User: add_to_group, remove_from_group"):
        assert user.read() and [one.name for one in user.groups] == [name]
        user.remove_from_group(name)
        user.update()
        assert user.groups == []
    with seen.call("PermissionTarget: create, read, update, delete"):
        target = admin.PermissionTarget(root, name, [REPOSITORY], {name: admin.PermissionTarget.ROLE_DEPLOY})
        target.create()
        target.add_group(group, admin.PermissionTarget.ROLE_READ)
        target.update()
        found = root.find_permission_target(name)
        assert {one.name: sorted(letters) for one, letters in found.users.items()} == {name: ["n", "r", "w"]}
        found.delete()
        assert root.find_permission_target(name) is None
    with seen.call("User.api_key: create, regenerate, revoke"):
        user.password = password
        first = user.api_key.create()
        assert user.api_key.regenerate() != first
        user.api_key.revoke()
    with seen.call("User.api_key: get", differs="a key is shown once; this tells its last characters"):
        made = user.api_key.create()
        assert user.api_key.get() == f"...{made[-4:]}"
    with seen.call("Token: create, read, delete"):
        token = admin.Token(root, username=name, scope="api:* member-of-groups:*", expires_in=60, refreshable=True)
        token.create()
        token.read()
        assert token.tokens[token.token_id]["subject"] == f"users/{name}"
        own = admin.User(ArtifactoryPath(front.base, token=token.jwt_token), name)
        assert own.read()
        token.delete()
        with pytest.raises(ArtifactoryException):
            own.read()
    with seen.call("User, Group: delete"):
        user.delete()
        group.delete()
        assert root.find_user(name) is None and root.find_group(name) is None


def test_the_table_is_what_was_seen(settle: Callable[[], None]) -> None:
    settle()
