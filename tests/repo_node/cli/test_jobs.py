"""``holdfast jobs`` and ``holdfast run-once``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from repo_node.cli import jobs as command
from tests.repo_node.cli.conftest import Holdfast
from tests.repo_node.cli.fake_node import FakeNode

PATH = "/api/holdfast/jobs"
ASKED_AT = "2026-01-01T00:00:05.000000Z"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(command, "LINE_SECONDS", 0.02)


def row(node: str = "node-1", **changes: Any) -> dict[str, Any]:
    return {
        "job": "repair",
        "node": node,
        "node_up": True,
        "state": "idle",
        "done": 1200,
        "total": None,
        "moved_bytes": 1 << 30,
        "seconds_left": None,
        "last_error": None,
        "started_at": None,
        "finished_at": None,
        "finished_age_seconds": 12.0,
        "requested_at": None,
        "answered_at": None,
    } | changes


def answer(node: FakeNode, *rows: dict[str, Any]) -> None:
    node.json_answers["GET", PATH] = (200, {"jobs": list(rows)})


def accept(node: FakeNode, *names: str) -> None:
    asked = [{"node": name, "requested_at": ASKED_AT} for name in names]
    node.json_answers["POST", f"{PATH}/repair/run"] = (202, {"job": "repair", "nodes": asked})


def test_jobs_are_shown_with_their_progress_and_errors(holdfast: Holdfast, node: FakeNode) -> None:
    answer(
        node,
        row(),
        row("node-2", state="running", done=5, total=2000, seconds_left=200.0),
        row("node-3", state="failed", last_error="\x1b[2Jno luck", finished_age_seconds=None),
        row("node-4", node_up=False),
    )
    result = holdfast("jobs")
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "repair node-1 idle 1,200 1.0 GiB 12 s ago" in lines
    assert any("5 of 2,000," in line for line in lines) and any("3 min 20 s" in line for line in lines)
    assert any("node-3 failed" in line and "never" in line for line in lines)
    assert "\x1b" not in result.stdout and "no luck" in " ".join(lines)
    assert any("node-4 down" in line for line in lines)
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert json.loads(holdfast("jobs", "--json").stdout)["jobs"][0] == row()


def test_run_once_waits_until_every_node_asked_has_answered(holdfast: Holdfast, node: FakeNode) -> None:
    accept(node, "node-1", "node-2")
    early, late = "2026-01-01T00:00:04.999999Z", "2026-01-01T00:00:06.000000Z"
    answers = iter(
        [
            [row(answered_at=early), row("node-2"), row("node-3", state="failed")],
            [row(answered_at=late), row("node-2", state="running", done=7)],
            [row(answered_at=late), row("node-2", answered_at=ASKED_AT)],
        ]
    )

    class Turning(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            return (200, {"jobs": next(answers)}) if key == ("GET", PATH) else super().get(key, default)

    node.json_answers = Turning(node.json_answers)
    result = holdfast("run-once", "repair")
    assert result.exit_code == 0, result.output
    assert node.bodies == [{"node": None}]
    assert next(answers, None) is None
    assert "node-2: repair running, 7" in result.stderr
    assert "node-3" not in result.stdout


@pytest.mark.parametrize("changes", [{"state": "failed", "answered_at": ASKED_AT}, {"node_up": False}])
def test_run_once_ends_with_status_1_when_a_run_failed_or_its_node_went_down(
    holdfast: Holdfast, node: FakeNode, changes: dict[str, Any]
) -> None:
    accept(node, "node-1")
    answer(node, row(**changes))
    result = holdfast("run-once", "repair", "--node", "node-1", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["jobs"] == [row(**changes)]
    assert node.bodies == [{"node": "node-1"}]


def test_run_once_of_an_unknown_job_says_so(holdfast: Holdfast, node: FakeNode) -> None:
    result = holdfast("run-once", "no/such")
    assert result.exit_code == 1
    assert "there is no /api/holdfast/jobs/no%2Fsuch/run" in result.stderr
