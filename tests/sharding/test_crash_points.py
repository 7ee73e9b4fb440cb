"""Crash points: off unless allowed, and each of them is passed somewhere."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from sharding import crash_points
from sharding.crash_points import ALLOWED, AT, NAMES, CrashPointRefused

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os
from sharding.crash_points import arm, crash_point
arm(os.environ)
for turn in range(3):
    crash_point("upload.synced")
    crash_point("upload.renamed")
    print(turn, flush=True)
"""


@pytest.mark.parametrize(
    "environment",
    [
        {AT: "upload.staged"},
        {AT: "upload.staged", ALLOWED: "yes"},
        {AT: "elsewhere", ALLOWED: "1"},
        {AT: "upload.staged:soon", ALLOWED: "1"},
    ],
)
def test_crash_point_is_refused_unless_it_is_allowed_and_known(environment: dict[str, str]) -> None:
    with pytest.raises(CrashPointRefused):
        crash_points.arm(environment)
    crash_points.crash_point("upload.staged")


def test_every_place_has_a_name_and_every_name_a_place() -> None:
    sources = [*ROOT.glob("sharding/**/*.py"), *ROOT.glob("repo_node/**/*.py")]
    used = Counter(name for file in sources for name in re.findall(r'crash_point\("(.+?)"\)', file.read_text()))
    assert set(used) == NAMES
    assert set(used.values()) == {1}


@pytest.mark.parametrize(
    ("environment", "printed", "status"),
    [
        ({}, "0\n1\n2\n", 0),
        ({ALLOWED: "1"}, "0\n1\n2\n", 0),
        ({ALLOWED: "1", AT: "upload.renamed"}, "", -signal.SIGKILL),
        ({ALLOWED: "1", AT: "upload.renamed:3"}, "0\n1\n", -signal.SIGKILL),
    ],
)
def test_armed_process_dies_at_the_place_when_its_turn_has_come(
    environment: dict[str, str], printed: str, status: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={"PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == (printed, status), done.stderr
