"""What a node does not run with."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from repo_node import libraries
from repo_node.libraries import RELEASES_MIN, UnfitLibrary, check_libraries

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_s42_what_is_installed_is_fit() -> None:
    check_libraries()


@pytest.mark.parametrize(("name", "old"), [("aiohttp", "3.14.4"), ("aiohttp", "3.9.0b1"), ("asyncpg", "0.31.2")])
def test_s42_an_older_release_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, old: str) -> None:
    version = libraries.version
    monkeypatch.setattr(libraries, "version", lambda asked: old if asked == name else version(asked))
    with pytest.raises(UnfitLibrary, match=f"{name} {old} is too old"):
        check_libraries()


def test_s42_the_project_asks_for_no_older_release_than_a_node_takes() -> None:
    asked = {one.name: one for one in map(Requirement, tomllib.loads(PROJECT.read_text())["project"]["dependencies"])}
    for name, least in RELEASES_MIN.items():
        assert f">={'.'.join(map(str, least))}" in str(asked[name].specifier)


def test_s15_a_node_does_not_start_with_a_lenient_parser(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from repo_node.libraries import check_libraries; check_libraries()"],
        env={**os.environ, "AIOHTTP_NO_EXTENSIONS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and "has no C parser here" in done.stderr
