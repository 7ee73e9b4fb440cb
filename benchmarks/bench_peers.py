"""What do the same transfers cost Holdfast and other stores, side by side on one machine?

Runs nginx as a WebDAV server, the Go container registry, and a cluster of ``holdfast up`` reached directly and through
HAProxy, all at once and all but one idle at a time: each cell is measured at one after another, then again. What is not
installed from the system's packages is left out with a sentence. Every downloaded byte is verified.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.cells import JUDGED_CONCURRENCY, KIB, MIB, Cell, Operation
from benchmarks.cluster import ClusterFailed
from benchmarks.floor import GB
from benchmarks.load import Load, LoadFailed, open_load
from benchmarks.measure import cpu_seconds
from benchmarks.output import RESULTS, Output, add_output_option, set_usual
from benchmarks.peers import Peer, open_peers
from benchmarks.report import percentile, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS, QUICK_SECONDS = 4.0, 1.5
ROUNDS, QUICK_ROUNDS = 3, 1
SETTLE_SECONDS = 0.3
CELLS = tuple(
    Cell(operation, size, JUDGED_CONCURRENCY)
    for size in (4 * KIB, 64 * KIB, MIB, 64 * MIB)
    for operation in (Operation.PUT, Operation.GET)
)

EXPLANATION = """\
figures
  CPU-s        user and system time of all processes of a store with their children, clients excluded: for 1,000
               operations up to 256 KiB, for 1 GB above; the cheapest of --best-of alternating times
  keeps        what a store does for an upload, by which its cost is to be read

Downloads ask for what the uploads before them have left: up to 1,000 objects of each size, most of them in the page
cache; large uploads leave it at Holdfast.

examples
  python -m benchmarks.bench_peers --quick
"""


@dataclass(frozen=True, slots=True)
class PeerFigures:
    """One cell at one peer, measured once."""

    peer: str
    cell: Cell
    operations: int
    errors: dict[str, int]
    per_second: float
    p50_ms: float
    p99_ms: float
    cost: float


def measure(peer: Peer, load: Load, cell: Cell, seconds: float) -> PeerFigures:
    """Run a cell at one peer."""
    time.sleep(SETTLE_SECONDS)
    before = sum(cpu_seconds(peer.pids).values())
    outcome = load.run(cell, seconds)
    time.sleep(SETTLE_SECONDS)
    spent = sum(cpu_seconds(peer.pids).values()) - before
    count = len(outcome.latencies)
    return PeerFigures(
        peer=peer.name,
        cell=cell,
        operations=count,
        errors=dict(outcome.errors),
        per_second=count / (outcome.ended - outcome.began),
        p50_ms=percentile(outcome.latencies, 50) * 1e3,
        p99_ms=percentile(outcome.latencies, 99) * 1e3,
        cost=spent / max(count, 1) * (1000 if cell.is_small else GB / cell.size),
    )


def cheapest(measured: Sequence[PeerFigures]) -> dict[tuple[str, Cell], PeerFigures]:
    """Return of each cell at each peer the time without errors, if any, that cost the least."""
    best: dict[tuple[str, Cell], PeerFigures] = {}
    for one in measured:
        known = best.get((one.peer, one.cell))
        if known is None or (bool(one.errors), one.cost) < (bool(known.errors), known.cost):
            best[one.peer, one.cell] = one
    return best


def print_figures(console: Console, peers: Sequence[Peer], best: dict[tuple[str, Cell], PeerFigures]) -> None:
    """Print a row for each peer."""
    for title, metric in (
        ("CPU-s per 1,000 operations up to 256 KiB, per GB above", "cost"),
        ("operations a second", "per_second"),
        ("p99, ms", "p99_ms"),
    ):
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("store", no_wrap=True)
        for cell in CELLS:
            table.add_column(cell.title.replace(" ", "\n", 1), justify="right", no_wrap=True)
        table.add_column("keeps", no_wrap=True)
        for peer in peers:
            values = (short(getattr(best[peer.name, cell], metric)) for cell in CELLS)
            table.add_row(peer.name, *values, peer.keeps)
        console.print(table)
    for one in best.values():
        for message, count in one.errors.items():
            console.print(f"  {one.peer}, {one.cell}: {count} failed: {message}", style="red", markup=False)


def draw(figure: Figure, peers: Sequence[Peer], best: dict[tuple[str, Cell], PeerFigures]) -> None:
    """Draw the cost of each cell at each peer."""
    panels = figure.subplots(1, 2)
    for axes, is_small, unit in zip(panels, (True, False), ("1,000 operations", "GB"), strict=True):
        cells = [cell for cell in CELLS if cell.is_small is is_small]
        width = 0.8 / len(peers)
        for number, peer in enumerate(peers):
            places = [index + number * width for index in range(len(cells))]
            axes.bar(places, [best[peer.name, cell].cost for cell in cells], width, label=peer.name)
        axes.set_xticks([index + 0.4 - width / 2 for index in range(len(cells))], [cell.title for cell in cells])
        axes.set(ylabel=f"CPU-s per {unit}", yscale="log")
        axes.legend()


def measure_all(console: Console, arguments: argparse.Namespace) -> tuple[list[Peer], list[PeerFigures]]:
    """Measure every cell at every peer, one peer after another, and again."""
    measured = []
    with (
        ExitStack() as later,
        console.status("starting the stores") as status,
        open_peers(arguments.data, arguments.port, later) as (peers, missing),
        ExitStack() as loads,
    ):
        for sentence in missing:
            console.print(sentence, style="yellow", markup=False, highlight=False)
        opened = [(peer, loads.enter_context(open_load(peer.target, 2))) for peer in peers]
        for peer, load in opened:
            status.update(f"warming up {peer.name}")
            load.run(Cell(Operation.PUT, 4 * KIB, JUDGED_CONCURRENCY), arguments.seconds / 2)
        for number in range(1, arguments.best_of + 1):
            for cell in CELLS:
                for peer, load in opened:
                    status.update(f"time {number} of {arguments.best_of}: {cell.title}, {peer.name}")
                    measured.append(measure(peer, load, cell, arguments.seconds))
    return peers, measured


def main() -> None:
    """Measure, print the tables, write the files."""
    parser = argparse.ArgumentParser(
        prog="bench_peers",
        description=__doc__,
        epilog=EXPLANATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help=f"{QUICK_SECONDS:g} seconds a cell, once")
    add("--seconds", type=float, metavar="S", help=f"length of a cell; default {SECONDS:g}")
    add("--best-of", type=int, metavar="N", help=f"how often each cell is measured; default {ROUNDS}")
    add("--port", type=int, metavar="PORT", help="Holdfast's front port; default the first free one from 18080")
    add("--data", type=Path, default=RESULTS, metavar="DIR", help="all files go under DIR, on a real disk")
    add_output_option(parser)
    arguments = parser.parse_args()
    usual = (QUICK_SECONDS, QUICK_ROUNDS) if arguments.quick else (SECONDS, ROUNDS)
    set_usual(arguments, ("seconds", "best_of"), usual)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    output = Output("peers", arguments.results)
    try:
        peers, measured = measure_all(output.console, arguments)
    except (ClusterFailed, LoadFailed, ProcessLookupError) as error:
        sys.exit(f"bench_peers: {error}")
    best = cheapest(measured)
    print_figures(output.console, peers, best)
    document = [asdict(one) | {"cell": str(one.cell)} for one in measured]
    output.write({"seconds": arguments.seconds, "measured": document}, lambda figure: draw(figure, peers, best))
    if any(one.errors for one in best.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
