"""Repositories by the Python clients of Artifactory that people use, unchanged, against a running node."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from artifactory import ArtifactoryPath  # type: ignore[import-untyped]
from dohq_artifactory.admin import RepositoryLocal, RepositoryVirtual  # type: ignore[import-untyped]
from pyartifactory import Artifactory  # type: ignore[import-untyped]
from pyartifactory.models.repository import LocalRepository, VirtualRepository  # type: ignore[import-untyped]

from tests.repo_node.nodes import PASSWORD, RunningCluster, remove_repositories


@pytest.fixture
def base(one: RunningCluster) -> Iterator[str]:
    yield f"http://127.0.0.1:{one.first.port}/artifactory"
    remove_repositories(one.admin, "c-")


@pytest.fixture
def key() -> str:
    return f"c-{secrets.token_hex(4)}"


def test_pyartifactory_makes_reads_changes_lists_and_deletes_repositories(base: str, key: str) -> None:
    repositories = Artifactory(url=base, auth=("admin", PASSWORD)).repositories
    made = repositories.create_repo(LocalRepository(key=key, packageType="generic", description="first"))
    assert (made.key, made.rclass, made.description) == (key, "local", "first")
    virtual = VirtualRepository(key=f"{key}-v", packageType="generic", repositories=[key], defaultDeploymentRepo=key)
    assert repositories.create_repo(virtual).repositories == [key]
    changed = repositories.update_repo(LocalRepository(key=key, packageType="generic", excludesPattern="**/*.exe"))
    assert changed.excludesPattern == "**/*.exe"
    assert repositories.get_repo(f"{key}-v").defaultDeploymentRepo == key
    assert {key, f"{key}-v"} <= {one.key for one in repositories.list()}
    repositories.delete(f"{key}-v")
    assert f"{key}-v" not in {one.key for one in repositories.list()}


def test_dohq_makes_reads_and_deletes_repositories(base: str, key: str) -> None:
    top = ArtifactoryPath(base, auth=("admin", PASSWORD))
    local = RepositoryLocal(top, key, package_type=RepositoryLocal.GENERIC)
    local.create()
    assert local.read()
    virtual = RepositoryVirtual(top, f"{key}-v", repositories=[key], default_deployment_repo_name=key)
    virtual.create()
    found = top.find_repository_virtual(f"{key}-v")
    assert found is not None and found.default_deployment_repo_name == key
    (top / f"{key}-v" / "a").touch()
    assert (top / key / "a").exists()
    virtual.delete()
    assert top.find_repository_virtual(f"{key}-v") is None
