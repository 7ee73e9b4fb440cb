"""Paths and digests stay in one piece, be the terminal as narrow as it may."""

from __future__ import annotations

from typing import Any

import pytest

from repo_node.cli import fsck, trash
from tests.repo_node.cli.conftest import Holdfast
from tests.repo_node.cli.fake_node import FakeNode

DIGEST = "0123456789abcdef" * 4
LONG_PATH = "a folder with spaces/" + "deep/" * 30 + "artifact.tgz"


def trashed(path: str) -> dict[str, Any]:
    return {
        "repository": "generic-local",
        "path": path,
        "size": 12,
        "sha256": DIGEST,
        "reason": "deleted",
        "trashed_at": "2031-01-02T03:04:05Z",
        "trashed_by": "admin",
    }


@pytest.mark.parametrize("columns", ["20", "80", "300"])
def test_path_in_the_trash_is_on_one_line(holdfast: Holdfast, node: FakeNode, columns: str) -> None:
    page = {"items": [trashed("short"), trashed(LONG_PATH)], "next": None}
    node.json_answers["GET", f"{trash.LIST_PATH}"] = (200, page)
    holdfast.environment["COLUMNS"] = columns
    shown = holdfast("trash", "list").stdout.splitlines()
    assert sum(f"generic-local/{LONG_PATH} " in line for line in shown) == 1


def test_narrow_table_stays_narrow_where_its_paths_are_short(holdfast: Holdfast, node: FakeNode) -> None:
    node.json_answers["GET", f"{trash.LIST_PATH}"] = (200, {"items": [trashed("short")], "next": None})
    holdfast.environment["COLUMNS"] = "80"
    assert max(map(len, holdfast("trash", "list").stdout.splitlines())) <= 80


def test_file_that_a_check_found_is_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{DIGEST}.0190a6c2-0000-7000-8000-000000000000"
    report = {
        "files": 7,
        "findings": {"stray": {"found": 1, "acted": 0, "waiting": 1}},
        "examples": [{"finding": "stray", "what": name}],
    }
    row = {"shard": 1, "node": "node-1", "finished_at": "now", "error": None, "report": report}
    fsck.show(fsck.table_of([row], dry_run=False))
    assert sum(f"  stray: {name}" in line for line in capsys.readouterr().out.splitlines()) == 1
