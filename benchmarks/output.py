"""Where a run's figures go: the table as text, JSON, and a plot, all of one name."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
COLUMNS_MIN = 124
DOTS_PER_INCH = 110


class Output:
    """The files of one run. ``name`` is the benchmark's, without ``bench_``."""

    def __init__(self, name: str, directory: Path = RESULTS) -> None:
        self._name = name
        self._directory = directory
        self.console = Console(record=True)
        self.console.width = max(self.console.width, COLUMNS_MIN)

    def write(self, document: dict[str, object], draw: Callable[[Figure], None]) -> None:
        """Write what the console has shown, ``document`` with how it came about, and the plot that ``draw`` makes."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._path("json").write_text(json.dumps(circumstances() | document, indent=2) + "\n")
        self._path("txt").write_text(self.console.export_text())
        self.console.print(f"Figures: {self._path('json')}", highlight=False)
        try:
            from matplotlib.figure import Figure
        except ImportError:
            self.console.print("No plot: matplotlib is missing; pip install 'holdfast[bench]' brings it.")
            return
        figure = Figure(figsize=(12, 7), layout="constrained")
        draw(figure)
        figure.savefig(self._path("png"), dpi=DOTS_PER_INCH)
        self.console.print(f"Plot: {self._path('png')}", highlight=False)

    def _path(self, suffix: str) -> Path:
        return self._directory / f"{self._name}.{suffix}"


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--results``, from which ``Output`` is made."""
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where figures and plot go")


def set_usual(arguments: argparse.Namespace, names: Sequence[str], values: Sequence[object]) -> None:
    """Give each of the options ``names`` that nobody set its usual value."""
    for name, value in zip(names, values, strict=True):
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)


def circumstances() -> dict[str, object]:
    """Return by which command, and on what kind of machine, this run came about."""
    module = Path(sys.argv[0]).stem
    command = shlex.join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]])
    return {"command": command, "python": platform.python_version(), "cores": os.cpu_count()}
