"""The lock files pin everything that pyproject.toml asks for, each release by its hashes (S42)."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PINNED = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)(?: ; (.*?))?(?: \\)?$")
LOCKS = ("requirements.lock", "requirements-tools.lock")


def pinned(name: str) -> dict[str, list[str]]:
    """Return the releases of each package: more than one where Pythons need different ones."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / name).read_text().splitlines():
        if match := PINNED.match(line):
            found.setdefault(match[1], []).append(match[2])
    return found


def asked_for() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [
        Requirement(text) for text in (*project["dependencies"], *extras["embedded"], *extras["test"], *extras["build"])
    ]


@pytest.mark.parametrize("name", LOCKS)
def test_s42_every_release_has_hashes_and_none_is_taken_from_elsewhere(name: str) -> None:
    text = (ROOT / name).read_text()
    entries = [entry for entry in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE) if entry[0] != "#"]
    assert len(entries) > 20
    for entry in entries:
        assert PINNED.match(entry.splitlines()[0]), entry
        assert "--hash=sha256:" in entry, entry
    assert "://" not in text


def test_s42_the_lock_holds_what_the_project_asks_for() -> None:
    found = pinned("requirements.lock")
    for wanted in asked_for():
        releases = found.get(canonicalize_name(wanted.name), [])
        assert releases, f"{wanted}: run make lock"
        assert all(wanted.specifier.contains(release) for release in releases), f"{wanted}: run make lock"


def test_both_locks_fit_one_environment() -> None:
    mine, tools = pinned("requirements.lock"), pinned("requirements-tools.lock")
    both = mine.keys() & tools.keys()
    assert {name: mine[name] for name in both} == {name: tools[name] for name in both}
