from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from repo_node.config import NodeConfig, ShardSection
from repo_node.keys import new_cluster_key
from tests.repo_node.cli.conftest import Holdfast

TOML = """
[node]
id = "node1"
zone = "east"
cluster_key_file = "cluster.key"
[database]
dsn = "postgresql://holdfast:canary-secret@db.example:5432/metadata"
[http]
listen = "0.0.0.0:8081"
[internal]
listen = "10.0.0.5:8181"
[[shards]]
path = "shards/a"
weight = 2
[[shards]]
path = "/srv/b"
"""


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    key = tmp_path / "cluster.key"
    key.write_text(new_cluster_key())
    key.chmod(0o600)
    path = tmp_path / "node.toml"
    path.write_text(TOML)
    return path


def test_check_config_says_what_a_good_file_amounts_to(nowhere: Holdfast, config_path: Path) -> None:
    result = nowhere("check-config", str(config_path))
    assert result.exit_code == 0, result.output
    assert f"{config_path} is right." in result.stdout
    assert "node1 in zone east" in result.stdout
    assert "db.example:5432, database metadata" in result.stdout
    assert "10.0.0.5:8181, reached at http://10.0.0.5:8181" in result.stdout
    assert f"{config_path.parent}/shards/a, weight 2, keeps 1.0 GiB free" in result.stdout
    assert "/srv/b, weight by capacity" in result.stdout
    assert "canary-secret" not in result.output
    assert (config_path.parent / "cluster.key").read_text() not in result.output


def test_check_config_names_every_server_of_the_database(nowhere: Holdfast, config_path: Path) -> None:
    config_path.write_text(TOML.replace("db.example:5432", "db-1.example,db-2.example:6432"))
    result = nowhere("check-config", str(config_path))
    assert "db-1.example:5432, db-2.example:6432, database metadata" in result.stdout
    config_path.write_text(TOML.replace("/metadata", "/metadata?target_session_attrs=any"))
    result = nowhere("check-config", str(config_path))
    assert result.exit_code == 2
    assert "database.dsn: target_session_attrs=any can lead to a standby" in result.output
    assert "canary-secret" not in result.output


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('zone = "east"', 'zoen = "east"', "node.zoen: is not a known key"),
        ('zone = "east"', "", "node.zone: is required and missing"),
        ('"0.0.0.0:8081"', '"8081"', "http.listen"),
        ("[node]", "[node", "is not valid TOML"),
        ('"cluster.key"', '"other.key"', "node.cluster_key_file: there is no file"),
    ],
)
@pytest.mark.parametrize("command", [["check-config"], ["node", "--config"], ["init-db", "--config"]])
def test_a_bad_config_is_named_and_ends_with_status_2(
    nowhere: Holdfast, config_path: Path, command: list[str], old: str, new: str, words: str
) -> None:
    config_path.write_text(TOML.replace(old, new))
    result = nowhere(*command, str(config_path))
    assert result.exit_code == 2
    assert str(config_path) in result.stderr
    assert words in result.stderr
    assert "canary-secret" not in result.output


def test_a_missing_config_ends_with_status_2(nowhere: Holdfast) -> None:
    result = nowhere("node", "--config", "none.toml")
    assert result.exit_code == 2
    assert "none.toml: there is no such file" in result.stderr


@pytest.mark.parametrize("status", [0, 1])
def test_node_runs_the_application_and_ends_with_its_status(
    nowhere: Holdfast, config_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    ran: list[NodeConfig] = []

    def run(config: NodeConfig, reread: Callable[[], Sequence[ShardSection]]) -> int:
        ran.append(config)
        assert reread() == config.shards
        config_path.write_text(config_path.read_text() + '\n[[shards]]\npath = "more"\n')
        assert [shard.path.name for shard in reread()][len(config.shards) :] == ["more"]
        return status

    app = ModuleType("repo_node.app")
    app.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "repo_node.app", app)
    monkeypatch.setattr("repo_node.app", app, raising=False)
    assert nowhere("node", "--config", str(config_path)).exit_code == status
    assert [config.node.id for config in ran] == ["node1"]
