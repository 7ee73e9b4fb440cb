"""``holdfast support``."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from repo_node.cli import support as command
from tests.repo_node.cli.conftest import Holdfast
from tests.repo_node.cli.fake_node import FakeNode

BUNDLES = "/api/system/support/bundles"
BUNDLE = "/api/system/support/bundle"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "POLL_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)


def bundle(**changes: Any) -> dict[str, Any]:
    return {
        "id": "b-1",
        "name": "mine",
        "created": "2026-01-01T00:00:00.000Z",
        "created_by": "admin",
        "status": "success",
        "doing": "",
        "done": 2,
        "total": 2,
        "bytes": 2048,
    } | changes


class InTurn(dict[tuple[str, str], Any]):
    """Answers to one request one after another, the last one for ever."""

    def __init__(self, key: tuple[str, str], *documents: dict[str, Any]) -> None:
        super().__init__()
        self._key, self._documents = key, list(documents)

    def get(self, key: Any, default: Any = None) -> Any:
        if key != self._key:
            return super().get(key, default)
        return 200, self._documents.pop(0) if len(self._documents) > 1 else self._documents[0]


ARCHIVE = b"PK and so on" * 1000


def test_a_bundle_is_made_waited_for_and_fetched_in_one_go(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    steps = [bundle(status="in progress", doing=doing, done=n) for n, doing in enumerate(("asking n-1", "asking n-2"))]
    node.json_answers = InTurn(("GET", f"{BUNDLE}/b-1"), *steps, bundle())
    node.json_answers["POST", BUNDLE] = (201, bundle(status="in progress"))
    node.archives[f"{BUNDLE}/b-1/archive"] = ARCHIVE
    result = holdfast("support", "bundle", "--name", "mine", "--since", "2026-01-01", "--dumps", "3")
    assert result.exit_code == 0, result.output
    assert "asking n-1 (0 of 2 nodes reported)" in result.stderr and "asking n-2 (1 of 2" in result.stderr
    file = tmp_path / "holdfast-support-b-1.zip"
    assert str(file.name) in result.stdout and file.read_bytes() == ARCHIVE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == [file.name], "no part of a file stays"
    [order] = node.bodies
    assert order["name"] == "mine" and order["parameters"]["thread_dump"]["count"] == 3
    assert order["parameters"]["logs"] == {"include": True, "start_date": "2026-01-01"}


def test_a_bundle_that_failed_says_why(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    node.json_answers["GET", f"{BUNDLE}/b-1"] = (200, bundle(status="failed", doing="\x1b[2Jno database"))
    result = holdfast("support", "download", "b-1")
    assert result.exit_code == 1 and "no database" in result.output and "\x1b" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_said(holdfast: Holdfast, node: FakeNode, tmp_path: Path) -> None:
    node.json_answers["GET", f"{BUNDLE}/b-1"] = (200, bundle())
    node.archives[f"{BUNDLE}/b-1/archive"] = ARCHIVE
    (tmp_path / "b.zip").mkdir()
    result = holdfast("support", "download", "b-1", "-o", str(tmp_path / "b.zip"))
    assert result.exit_code == 1 and "cannot be written" in result.output


def test_no_bundle_is_made_for_a_directory_that_is_not_there(
    holdfast: Holdfast, node: FakeNode, tmp_path: Path
) -> None:
    result = holdfast("support", "bundle", "-o", str(tmp_path / "none" / "b.zip"))
    assert result.exit_code == 1 and "There is no directory" in result.output
    assert not node.seen


def test_bundles_are_listed_and_deleted(holdfast: Holdfast, node: FakeNode) -> None:
    long = "20260101-000000-2e297b"
    listed = {"count": 2, "bundles": [bundle(), bundle(id=long, name="n" * 60, status="in progress", bytes=None)]}
    node.json_answers["GET", BUNDLES] = (200, listed)
    result = holdfast("support", "list")
    assert result.exit_code == 0, result.output
    assert "b-1" in result.stdout and "2.0 KiB" in result.stdout and "in progress" in result.stdout
    assert long in result.stdout, "an id in two lines can be given to no command"
    assert json.loads(holdfast("support", "list", "--json").stdout) == listed
    node.json_answers["DELETE", f"{BUNDLE}/b-1"] = (204, None)
    assert holdfast("support", "delete", "b-1").stdout == "Deleted b-1.\n"
