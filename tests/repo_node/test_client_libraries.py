"""The Python clients of Artifactory that people use, unchanged, against a running node."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

import pytest
from artifactory import ArtifactoryPath  # type: ignore[import-untyped]
from pyartifactory import Artifactory  # type: ignore[import-untyped]

from tests.repo_node.nodes import PASSWORD, RunningCluster, wait_until


@pytest.fixture
def base(one: RunningCluster) -> str:
    return f"http://127.0.0.1:{one.first.port}/artifactory"


@pytest.fixture
def folder() -> str:
    return f"generic-local/{secrets.token_hex(6)}"


# ---------------------------------------------------------------- dohq-artifactory


@pytest.fixture
def top(base: str, folder: str) -> ArtifactoryPath:
    path = ArtifactoryPath(f"{base}/{folder}", auth=("admin", PASSWORD))
    path.mkdir()
    return path


def test_dohq_deploys_reads_and_lists(top: ArtifactoryPath, tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_bytes(b"content")
    top.deploy_file(str(source), parameters={"qa": "done", "os": ["linux", "mac"]})
    (top / "sub").mkdir()
    (top / "sub" / "empty").touch()
    assert sorted(path.name for path in top) == ["a.txt", "sub"]
    path = top / "a.txt"
    assert path.exists() and path.is_file() and top.is_dir() and not (top / "none").exists()
    assert path.read_bytes() == b"content"
    assert path.properties["qa"] == ["done"] and sorted(path.properties["os"]) == ["linux", "mac"]
    stat = path.stat()
    assert (stat.size, stat.sha256) == (7, hashlib.sha256(b"content").hexdigest())
    assert stat.ctime and stat.mtime and stat.created_by == "admin"
    assert {str(one).rpartition("/")[2] for one in top.glob("**/*")} >= {"a.txt", "empty"}
    with path.open() as stream:
        assert stream.read() == b"content"


def test_dohq_deploys_by_checksum(top: ArtifactoryPath, tmp_path: Path) -> None:
    source = tmp_path / "known"
    source.write_bytes(secrets.token_bytes(20_000))
    top.deploy_file(str(source))
    (top / "again").deploy_by_checksum(sha1=hashlib.sha1(source.read_bytes()).hexdigest())
    assert (top / "again").read_bytes() == source.read_bytes()


def test_dohq_changes_properties(top: ArtifactoryPath) -> None:
    path = top / "a"
    path.touch()
    assert path.properties == {}
    path.properties = {"a": "1", "b": ["2", "3"]}
    assert path.properties == {"a": ["1"], "b": ["2", "3"]}
    path.set_properties({"c": "4"})
    path.del_properties("a", recursive=False)
    assert path.properties == {"b": ["2", "3"], "c": ["4"]}
    path.update_properties({"b": "x"})
    assert path.properties["b"] == ["x"]
    path.properties = {"only": "this"}
    assert path.properties == {"only": ["this"]}


def test_dohq_copies_moves_and_deletes(top: ArtifactoryPath) -> None:
    for name in ("src/a", "src/sub/b"):
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).touch()
    (top / "src").copy(top / "copy")
    assert (top / "copy" / "sub" / "b").exists() and (top / "src" / "a").exists()
    (top / "src").copy(top / "dry", dry_run=True)
    assert not (top / "dry").exists()
    (top / "copy").move(top / "moved")
    assert (top / "moved" / "sub" / "b").exists() and not (top / "copy").exists()
    (top / "moved" / "a").unlink()
    (top / "moved").rmdir()
    assert not (top / "moved").exists()


# ---------------------------------------------------------------- pyartifactory


@pytest.fixture
def client(base: str) -> Artifactory:
    return Artifactory(url=base, auth=("admin", PASSWORD))


def test_pyartifactory_walks_through_an_artifacts_life(
    one: RunningCluster, client: Artifactory, folder: str, tmp_path: Path
) -> None:
    source = tmp_path / "a.txt"
    source.write_bytes(b"content")
    artifacts = client.artifacts
    deployed = artifacts.deploy(source, f"{folder}/a.txt", {"qa": ["done"]})
    assert deployed.checksums.sha256 == hashlib.sha256(b"content").hexdigest()
    assert [child.uri for child in artifacts.info(folder).children] == ["/a.txt"]
    assert artifacts.properties(f"{folder}/a.txt").properties == {"qa": ["done"]}
    assert artifacts.set_properties(f"{folder}/a.txt", {"os": ["linux", "mac"]}).properties["os"] == ["linux", "mac"]
    updated = artifacts.update_properties(f"{folder}/a.txt", {"qa": ["again"]})
    assert updated.properties == {"qa": ["again"], "os": ["linux", "mac"]}
    artifacts.copy(f"{folder}/a.txt", f"{folder}/copy.txt")
    artifacts.move(f"{folder}/a.txt", f"{folder}/sub/moved.txt")
    listed = artifacts.list(folder, list_folders=True, recursive=True)
    assert sorted(file.uri for file in listed.files) == ["/copy.txt", "/sub", "/sub/moved.txt"]
    with one.settings(downloads_flush_seconds=0.05):
        target = artifacts.download(f"{folder}/copy.txt", str(tmp_path / "down"))
        assert Path(target).read_bytes() == b"content"
        wait_until(lambda: artifacts.stats(f"{folder}/copy.txt").downloadCount == 1)
    artifacts.delete(f"{folder}/sub")
    assert [child.uri for child in artifacts.info(folder).children] == ["/copy.txt"]
