"""How does one node scale with its worker processes, and how much memory does each of them take?

Starts a fresh cluster of one node for each number of workers, in turn and as often as told, and loads it through its
front port by 16 clients with a connection each. With 64 at once, the largest process is looked at.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.status import Status
from rich.table import Table

from benchmarks.bench_transfer import Round
from benchmarks.cells import Cell, parse_cells
from benchmarks.cluster import ClusterFailed, open_cluster
from benchmarks.load import LoadFailed, open_load
from benchmarks.output import RESULTS, Output, add_output_option, set_usual
from benchmarks.pace import Pace, open_pace
from benchmarks.report import Figures, best_of, plain, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORKERS = (1, 2, 4)
SPEED = "put:4KiB:16,get:4KiB:16,put:1MiB:16,get:1MiB:16"
MEMORY = "put:8MiB:64,get:8MiB:64"
CELL_SECONDS, QUICK_SECONDS = 4.0, 2.0
ROUNDS, QUICK_ROUNDS = 2, 1
PEAK_MIB_MAX = 150
NOT_SLOWER = 0.95
"""The share of another's speed from which on two runs count as equally fast."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """What was measured of one number of workers."""

    workers: int
    figures: Sequence[Figures]

    def speed(self, cell: Cell) -> float:
        """Return the operations per second of the fastest run."""
        return max(one.per_second for one in self.figures if one.cell == cell)

    @property
    def peak_mib(self) -> float:
        return max(one.peak_rss_mib for one in self.figures)


def parse_arguments() -> argparse.Namespace:
    """Return the options, checked."""
    parser = argparse.ArgumentParser(prog="bench_workers", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help=f"{QUICK_SECONDS:g} seconds a cell, {QUICK_ROUNDS} round")
    add("--workers", type=int, nargs="+", default=WORKERS, metavar="N", help="default 1 2 4")
    add("--seconds", type=float, metavar="S", help=f"length of a cell; default {CELL_SECONDS:g}")
    add("--best-of", type=int, metavar="N", help=f"how often each cell is measured; default {ROUNDS}")
    add("--cells", type=parse_cells, default=parse_cells(SPEED), metavar="LIST", help=f"default {SPEED}")
    add("--no-memory", action="store_true", help=f"leave out {MEMORY}")
    add("--processes", type=int, default=2, metavar="N", help="processes that make the load; default 2")
    add("--port", type=int, metavar="PORT", help="front port; default the first free one from 18080")
    add("--data", type=Path, default=RESULTS, metavar="DIR", help="the cluster's files go under DIR, on a real disk")
    add_output_option(parser)
    arguments = parser.parse_args()
    usual = (QUICK_SECONDS, QUICK_ROUNDS) if arguments.quick else (CELL_SECONDS, ROUNDS)
    set_usual(arguments, ("seconds", "best_of"), usual)
    return arguments


def run_round(
    arguments: argparse.Namespace, pace: Pace, status: Status, later: ExitStack, workers: int, *, memory: bool
) -> list[Figures]:
    """Measure every cell once on a fresh node of ``workers`` processes, on request with its memory."""
    status.update(f"starting a node of {workers}")
    with (
        open_cluster(arguments.data, arguments.port, "token", later, nodes=1, workers=workers) as cluster,
        open_load(cluster.target, arguments.processes) as load,
    ):
        run = Round(cluster, load, pace, status, arguments.seconds)
        run.warm_up()
        cells = [*arguments.cells, *(parse_cells(MEMORY) if memory else ())]
        run.measure(cells, f"{workers} workers")
    return run.measured


def print_scaling(console: Console, found: Sequence[Scaling], cells: Sequence[Cell]) -> None:
    """Print a row for each work and number of workers: speed, what it is of the first one's, and what it costs."""
    table = Table(title="One node by its processes", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("work", no_wrap=True)
    for name in ("workers", "ops/s", "x first", "p50 ms", "p99 ms", "CPU-s", "Pg %", "peak MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        for one in found:
            best = next(each for each in best_of(one.figures) if each.cell == cell)
            spent = best.spent
            table.add_row(
                cell.title,
                str(one.workers),
                short(one.speed(cell)),
                f"{one.speed(cell) / found[0].speed(cell):.2f}",
                short(best.p50_ms),
                short(best.p99_ms),
                short(best.cost),
                f"{100 * spent.postgres_cpu_seconds / spent.cpu_seconds:.0f}" if spent.cpu_seconds else "",
                f"{best.peak_rss_mib:.0f}",
                style="red" if best.errors else None,
            )
    console.print(table)


def print_verdicts(console: Console, found: Sequence[Scaling], cells: Sequence[Cell]) -> None:
    """Print whether more workers are faster where there are cores for them, not slower beyond, and each small."""
    cores = os.cpu_count() or 1
    for before, after in pairwise(found):
        wanted = min(after.workers, cores) / min(before.workers, cores)
        for cell in cells:
            ratio = after.speed(cell) / before.speed(cell)
            good = ratio > 1 if wanted > 1 else ratio >= NOT_SLOWER
            aim = "faster" if wanted > 1 else "not slower"
            text = f"{cell.title}: {after.workers} workers are {ratio:.2f} x as fast as {before.workers}; aim: {aim}"
            console.print(text, style="green" if good else "yellow", highlight=False)
    for one in found:
        good = one.peak_mib <= PEAK_MIB_MAX
        text = f"largest process of {one.workers}: {one.peak_mib:.0f} MiB; aim: <= {PEAK_MIB_MAX}"
        console.print(text, style="green" if good else "yellow", highlight=False)


def draw(figure: Figure, found: Sequence[Scaling], cells: Sequence[Cell]) -> None:
    """Draw speed and memory against the number of workers."""
    speed, memory = figure.subplots(1, 2)
    workers = [one.workers for one in found]
    for cell in cells:
        speeds = [one.speed(cell) / found[0].speed(cell) for one in found]
        speed.plot(workers, speeds, marker="o", label=cell.title)
    speed.set(xlabel="workers", ylabel="operations per second, x the first", xticks=workers)
    speed.set_ylim(bottom=0)
    speed.legend(fontsize=8)
    memory.bar([str(count) for count in workers], [one.peak_mib for one in found], color="tab:blue", width=0.5)
    memory.axhline(PEAK_MIB_MAX, color="tab:green")
    memory.set(xlabel="workers", ylabel="peak resident MiB of the largest process")


def main() -> None:
    """Run every round, print the table, write the files."""
    arguments = parse_arguments()
    output = Output("workers", arguments.results)
    console = output.console
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda number, _: sys.exit(128 + number))
    measured: dict[int, list[Figures]] = {count: [] for count in arguments.workers}
    try:
        with ExitStack() as later, open_pace() as pace, console.status("beginning") as status:
            for number in range(arguments.best_of):
                is_last = number == arguments.best_of - 1
                for count in arguments.workers:
                    memory = is_last and not arguments.no_memory
                    measured[count] += run_round(arguments, pace, status, later, count, memory=memory)
    except (ClusterFailed, LoadFailed, ProcessLookupError, FileNotFoundError) as error:
        sys.exit(f"bench_workers: {error}")
    found = [Scaling(count, figures) for count, figures in measured.items()]
    print_scaling(console, found, arguments.cells)
    print_verdicts(console, found, arguments.cells)
    document = {
        "seconds": arguments.seconds,
        "best_of": arguments.best_of,
        "measured": [{"workers": one.workers, **plain(each, None)} for one in found for each in one.figures],
    }
    output.write(document, lambda figure: draw(figure, found, arguments.cells))
    if any(each.errors for one in found for each in one.figures):
        sys.exit(1)


if __name__ == "__main__":
    main()
