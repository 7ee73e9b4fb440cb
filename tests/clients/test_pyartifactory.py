"""pyartifactory, unchanged, against a cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from pyartifactory import Artifactory  # type: ignore[import-untyped]
from pyartifactory.exception import ArtifactNotFoundError, PropertyNotFoundError  # type: ignore[import-untyped]
from pyartifactory.models import (  # type: ignore[import-untyped]
    Group,
    LocalRepository,
    NewUser,
    Permission,
    PermissionV2,
    VirtualRepository,
)
from pyartifactory.models.permission import PrincipalsPermissionV2, RepoV2  # type: ignore[import-untyped]
from pydantic import ValidationError

from tests import canaries
from tests.clients.conftest import REPOSITORY, Front
from tests.clients.recorder import Recorder
from tests.cluster.processes import wait_until

CLIENT = "pyartifactory"


@pytest.fixture
def client(front: Front) -> Artifactory:
    return Artifactory(url=front.base, auth=front.auth)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_bytes(b"content")
    return path


def test_artifacts(seen: Recorder, client: Artifactory, folder: str, source: Path, tmp_path: Path) -> None:
    artifacts = client.artifacts
    with seen.call("artifacts.deploy"):
        deployed = artifacts.deploy(source, f"{folder}/a.txt", {"qa": ["done", "twice"]})
        assert deployed.checksums.sha256 == hashlib.sha256(b"content").hexdigest()
    with seen.call("artifacts.deploy of a directory"):
        (tmp_path / "tree" / "sub").mkdir(parents=True)
        for name in ("1", "sub/2"):
            (tmp_path / "tree" / name).write_text(name)
        artifacts.deploy(tmp_path / "tree", f"{folder}/tree")
        assert artifacts.info(f"{folder}/tree/sub/2").size == 5
    with seen.call("artifacts.deploy, checksum_enabled"):
        artifacts.deploy(source, f"{folder}/again.txt", checksum_enabled=True)
        (tmp_path / "unknown").write_text(uuid4().hex)
        with pytest.raises(ArtifactNotFoundError):
            artifacts.deploy(tmp_path / "unknown", f"{folder}/unknown", checksum_enabled=True)
    with seen.call("artifacts.info"):
        assert {child.uri for child in artifacts.info(folder).children} == {"/a.txt", "/again.txt", "/tree"}
        assert artifacts.info(REPOSITORY).children
        with pytest.raises(ArtifactNotFoundError):
            artifacts.info(f"{folder}/none")
    with seen.call("artifacts.list"):
        found = artifacts.list(folder, list_folders=True, recursive=True).files
        assert sorted(file.uri for file in found) == [
            "/a.txt",
            "/again.txt",
            "/tree",
            "/tree/1",
            "/tree/sub",
            "/tree/sub/2",
        ]
        assert len(artifacts.list(folder, depth=1, list_folders=False).files) == 2
    with seen.call("artifacts.download, stream"):
        (tmp_path / "down").mkdir()
        target = artifacts.download(f"{folder}/tree", str(tmp_path / "down"))
        assert (Path(target) / "sub" / "2").read_text() == "sub/2"
        assert b"".join(artifacts.stream(f"{folder}/a.txt")) == b"content"
    with seen.call("artifacts.stats"):
        wait_until(lambda: artifacts.stats(f"{folder}/a.txt").downloadCount > 0, "downloads to be told", 30)
    with seen.call("artifacts.copy, move"):
        artifacts.copy(f"{folder}/a.txt", f"{folder}/copy.txt")
        artifacts.move(f"{folder}/copy.txt", f"{folder}/sub/moved.txt")
        assert artifacts.info(f"{folder}/sub/moved.txt").size == 7
        # Which asks, after it, for what it has not made.
        with pytest.raises(ArtifactNotFoundError):
            artifacts.copy(f"{folder}/a.txt", f"{folder}/dry.txt", dryrun=True)
    with seen.call("artifacts.delete"):
        artifacts.delete(f"{folder}/sub")
        with pytest.raises(ArtifactNotFoundError):
            artifacts.info(f"{folder}/sub/moved.txt")


def test_properties(seen: Recorder, client: Artifactory, folder: str, source: Path) -> None:
    artifacts, path = client.artifacts, f"{folder}/a.txt"
    artifacts.deploy(source, path)
    with seen.call("artifacts.properties"):
        with pytest.raises(PropertyNotFoundError):
            artifacts.properties(path)
        artifacts.set_properties(path, {"a": ["1"], "b": ["2", "3"]})
        assert artifacts.properties(path, ["b"]).properties == {"b": ["2", "3"]}
    with seen.call("artifacts.set_properties, update_properties"):
        assert artifacts.set_properties(path, {"os": ["linux", "mac"]}).properties["os"] == ["linux", "mac"]
        assert artifacts.update_properties(path, {"a": ["again"]}).properties["a"] == ["again"]
        artifacts.set_properties(folder, {"all": ["1"]}, recursive=True)
        assert artifacts.properties(path, ["all"]).properties == {"all": ["1"]}


def test_repositories(seen: Recorder, client: Artifactory) -> None:
    key, repositories = f"py-{uuid4().hex[:8]}", client.repositories
    with seen.call("repositories.list"):
        assert REPOSITORY in {repository.key for repository in repositories.list()}
    with seen.call("repositories.create_repo, get_repo, of class local"):
        repositories.create_repo(LocalRepository(key=key, packageType="generic", description="made by a client"))
        assert repositories.get_repo(key).description == "made by a client"
    with seen.attempt("repositories.update_repo", "repositories are not changed as clients do it"):
        changed = repositories.get_repo(key)
        changed.description = "changed"
        repositories.update_repo(changed)
        assert repositories.get_repo(key).description == "changed"
    with seen.call("repositories.delete"):
        repositories.delete(key)
        assert key not in {repository.key for repository in repositories.list()}
    with seen.attempt("repositories.create_repo, of class virtual", "virtual repositories"):
        repositories.create_repo(VirtualRepository(key=f"{key}-v", packageType="generic", repositories=[REPOSITORY]))
        repositories.delete(f"{key}-v")


def test_people(seen: Recorder, client: Artifactory, front: Front) -> None:
    name = f"py-{uuid4().hex[:8]}"
    with seen.attempt("users.create, get, list, update, delete", "users over REST"):
        client.users.create(NewUser(name=name, password=canaries.password("Of-1-user"), email=f"{name}@example.org"))
        user = client.users.get(name)
        assert user.email == f"{name}@example.org" and name in {one.name for one in client.users.list()}
        user.email = f"{name}@example.com"
        client.users.update(user)
        client.users.delete(name)
    with seen.attempt("users.unlock", "users over REST"):
        client.users.unlock("admin")
    with seen.attempt("groups.create, get, list, update, delete", "groups over REST"):
        client.groups.create(Group(name=name, description="made by a client"))
        group = client.groups.get(name)
        group.description = "changed"
        client.groups.update(group)
        assert name in {one.name for one in client.groups.list()}
        client.groups.delete(name)
    with seen.attempt("permissions.create, get, list, update, delete", "permission targets over REST"):
        permission = Permission(
            name=name, repositories=[REPOSITORY], principals={"users": {"admin": ["r", "w"]}, "groups": {}}
        )
        client.permissions.create(permission)
        assert name in {one.name for one in client.permissions.list()}
        client.permissions.update(client.permissions.get(name))
        client.permissions.delete(name)
    with seen.call("permissions.*, of the second form"):
        second = Artifactory(url=front.base, auth=front.auth, api_version=2).permissions
        repo = RepoV2(repositories=[REPOSITORY], actions=PrincipalsPermissionV2(users={"admin": ["read", "write"]}))
        assert second.create(PermissionV2(name=f"{name}-2", repo=repo)).repo.actions.users["admin"] == ["read", "write"]
        assert f"{name}-2" in {one.name for one in second.list()}
        second.update(second.get(f"{name}-2"))
        second.delete(f"{name}-2")
    with seen.call("security.create_access_token, revoke_access_token"):
        token = client.security.create_access_token(user_name="admin", expires_in=60, refreshable=True)
        bearer = Artifactory(url=front.base, access_token=token.access_token)
        assert bearer.repositories.list()
        assert client.security.revoke_access_token(token.access_token)
    with seen.call("security.create_api_key, get_api_key, regenerate_api_key, revoke_api_key"):
        made = client.security.create_api_key()
        assert client.security.regenerate_api_key().apiKey != made.apiKey
        assert client.security.get_api_key()
        client.security.revoke_api_key()
    with seen.call("security.revoke_user_api_key"):
        client.security.create_api_key()
        client.security.revoke_user_api_key("admin")
        with pytest.raises(ValidationError, match="apiKey"):
            client.security.get_api_key()
    with seen.attempt("security.get_encrypted_password", "encrypted passwords"):
        assert client.security.get_encrypted_password()


def test_builds(seen: Recorder, client: Artifactory) -> None:
    with seen.attempt("builds.*", "builds"):
        client.builds.list()


def test_the_table_is_what_was_seen(settle: Callable[[], None]) -> None:
    settle()
