"""The files of config/ say what the code does."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from repo_node import config, keys

CONFIG = Path(__file__).parents[1] / "config"


def loaded(name: str, tmp_path: Path) -> config.NodeConfig:
    key = tmp_path / "cluster.key"
    key.touch(0o600)
    key.write_text(keys.new_cluster_key())
    copy = tmp_path / name
    copy.write_text((CONFIG / name).read_text().replace("/etc/holdfast/cluster.key", str(key)))
    return config.load(copy)


@pytest.mark.parametrize("name", ["node.example.toml", "node.minimal.toml"])
def test_shipped_configuration_is_valid(name: str, tmp_path: Path) -> None:
    assert loaded(name, tmp_path).node.id == "node-1"


def test_minimal_configuration_has_under_15_lines() -> None:
    assert len((CONFIG / "node.minimal.toml").read_text().splitlines()) < 15


def test_example_names_every_key_with_its_default() -> None:
    document = tomllib.loads((CONFIG / "node.example.toml").read_text())
    sections: dict[str, type[BaseModel]] = {
        "node": config.NodeSection,
        "database": config.DatabaseSection,
        "http": config.HttpSection,
        "internal": config.InternalSection,
        "log": config.LogSection,
    }
    assert set(document) == {*sections, "shards"}
    for name, section in sections.items():
        check_section(document[name], section)
    check_section(document["shards"][0], config.ShardSection)
    check_section(document["http"]["tls"], config.TlsSection)
    check_section(document["internal"]["tls"], config.PeerTlsSection)


def check_section(found: dict[str, Any], section: type[BaseModel]) -> None:
    assert set(found) == set(section.model_fields)
    for key, field in section.model_fields.items():
        if not field.is_required() and field.default is not None:
            assert found[key] == field.default, key
