"""``python -m tests.chaos --seed 1 --seconds 180``: a run, its report, and status 1 when something is wrong."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest

from tests.chaos.report import Report
from tests.chaos.run import run
from tests.chaos.scene import open_scene

REPORTS = Path(__file__).parents[2] / "chaos-reports"


def main() -> int:
    """Run and report; return the exit status: 0 nothing wrong, 1 violations, 2 no run, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="draws the faults and their order")
    parser.add_argument("--seconds", type=float, default=120, help="for how long faults are made")
    parser.add_argument("--only", default="", metavar="NAMES", help="faults whose names begin so, comma-separated")
    parser.add_argument("--report", type=Path, metavar="FILE", help=f"where the report goes [{REPORTS}/SEED.json]")
    parser.add_argument("--keep", action="store_true", help="keep the directories also when nothing is wrong")
    arguments = parser.parse_args()
    file = arguments.report or REPORTS / f"{arguments.seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    report, directory = Report(arguments.seed, arguments.seconds), None
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    try:
        with open_scene(arguments.seed) as scene:
            directory = scene.directory
            scene.say(f"seed {report.seed}: the scene is set in {directory}")
            asyncio.run(run(scene, report, seconds=arguments.seconds, only=arguments.only))
    except (pytest.skip.Exception, pytest.fail.Exception) as reason:
        print(f"no run is possible here: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; everything was ended. What is left lies in {directory}", file=sys.stderr)
        return 130
    report.write(file)
    print(report.text())
    print(f"report: {file}")
    if report.violations or arguments.keep:
        print(f"logs and files: {directory}")
    elif directory is not None:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if report.violations else 0


def leave(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
