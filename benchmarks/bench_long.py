"""What becomes of memory and latency under mixed load that lasts?

Starts a fresh cluster of ``holdfast up`` and holds small and large uploads and downloads side by side on it, every
downloaded byte verified, while it notes the memory of every process and the latencies of every few seconds.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.cells import KIB, MIB, Cell, Operation
from benchmarks.cluster import BenchCluster, ClusterFailed, open_cluster
from benchmarks.load import Load, LoadFailed, open_load
from benchmarks.measure import memory_mib, processes_below, rss_mib
from benchmarks.output import RESULTS, Output, add_output_option
from benchmarks.report import percentile, short
from benchmarks.stock import fill

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS = 600.0
SLICE_SECONDS, SAMPLE_SECONDS = 3.0, 1.0
STOCK = {4 * KIB: 5_000, MIB: 200, 32 * MIB: 8}

EXPLANATION = """\
figures
  p99 worst      the highest p99 of any few seconds; of few operations it is the slowest of them
  MiB at         the resident size of a process at the end of the first tenth, and at the end; Postgres is the memory
                 that its processes have to themselves, added up
  MiB/minute     the slope of a straight line through the second half: what a leak would show

examples
  python -m benchmarks.bench_long --seconds 60
  python -m benchmarks.bench_long --data /mnt/disk
"""


@dataclass(frozen=True, slots=True)
class Stream:
    """One kind of request without a pause, or with ``rate`` so many in a second."""

    cell: Cell
    rate: float | None = None


STREAMS = (
    Stream(Cell(Operation.PUT, 4 * KIB, 4)),
    Stream(Cell(Operation.GET, 4 * KIB, 8)),
    Stream(Cell(Operation.GET, MIB, 2)),
    Stream(Cell(Operation.PUT, 32 * MIB, 2), rate=0.25),
    Stream(Cell(Operation.GET, 32 * MIB, 2), rate=1.0),
)


@dataclass(frozen=True, slots=True)
class Slice:
    """A few seconds of one stream in which anything ended; ``at`` is their end, in seconds from the start."""

    at: float
    operations: int
    p50_ms: float
    p99_ms: float


@dataclass
class Course:
    """How everything went, over time."""

    began: float = 0.0
    slices: dict[str, list[Slice]] = field(default_factory=dict)
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line through ``points``; 0 where there is none."""
    if len({x for x, _ in points}) < 2:
        return 0.0
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def growth_per_minute(samples: Sequence[tuple[float, float]]) -> float:
    """Return how much the second half of ``samples`` grows in a minute."""
    return slope(samples[len(samples) // 2 :]) * 60


def hold(load: Load, stream: Stream, course: Course, stop: threading.Event) -> None:
    """Run one stream in slices until ``stop``. Ends everything when its load fails."""
    slices = course.slices.setdefault(stream.cell.title, [])
    try:
        while not stop.is_set():
            outcome = load.run(stream.cell, SLICE_SECONDS, stream.rate)
            latencies = outcome.latencies
            course.errors.update(outcome.errors)
            at = time.monotonic() - course.began
            if latencies:
                figures = (percentile(latencies, 50) * 1e3, percentile(latencies, 99) * 1e3)
                slices.append(Slice(at, len(latencies), *figures))
    except LoadFailed as error:
        course.errors[str(error)] += 1
        stop.set()


def memory_of(cluster: BenchCluster) -> Iterator[tuple[str, float]]:
    """Yield the MiB that each process of a node has, and what those of Postgres have to themselves."""
    for node, root in zip(cluster.node_ids, cluster.node_pids, strict=True):
        for pid in processes_below([root]):
            # A process may end at any time.
            with suppress(FileNotFoundError, IndexError):
                yield (node if pid == root else f"{node}, process {pid}"), rss_mib(pid)
    total = 0.0
    for pid in processes_below([cluster.postgres_pid]):
        with suppress(FileNotFoundError, IndexError):
            total += memory_mib(pid, "RssAnon")
    yield "Postgres", total


@contextmanager
def streams(cluster: BenchCluster, course: Course, stop: threading.Event) -> Iterator[None]:
    """Hold every stream for the length of the block."""
    with ExitStack() as stack:
        threads = []
        for stream in STREAMS:
            load = stack.enter_context(open_load(cluster.target, 1))
            if stream.cell.operation is Operation.GET:
                load.adopt(fill(cluster, stream.cell.size, STOCK[stream.cell.size]))
            threads.append(threading.Thread(target=hold, args=(load, stream, course, stop)))
        course.began = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def measure(console: Console, arguments: argparse.Namespace, later: ExitStack) -> Course:
    """Hold the load for so long and return how it went."""
    course, stop = Course(), threading.Event()
    with (
        console.status("starting a cluster") as status,
        open_cluster(arguments.data, arguments.port, "token", later) as cluster,
    ):
        status.update("stocking")
        with streams(cluster, course, stop):
            while not stop.is_set() and (now := time.monotonic() - course.began) < arguments.seconds:
                status.update(f"{now:.0f} of {arguments.seconds:.0f} seconds")
                for name, mib in memory_of(cluster):
                    course.memory.setdefault(name, []).append((now, mib))
                stop.wait(SAMPLE_SECONDS)
    return course


def print_course(console: Console, course: Course) -> None:
    """Print a row for each stream and for each process."""
    table = Table(title="Mixed load", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("requests", "operations", "p50 ms", "p99 ms, median", "p99 ms, worst"):
        table.add_column(name, justify="left" if name == "requests" else "right")
    for title, slices in course.slices.items():
        p99s = [one.p99_ms for one in slices]
        figures = (statistics.median(one.p50_ms for one in slices), statistics.median(p99s), max(p99s)) if p99s else ()
        table.add_row(title, f"{sum(one.operations for one in slices):,}", *map(short, figures))
    console.print(table)
    table = Table(title="Memory", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("process", "MiB at a tenth", "MiB at the end", "MiB at most", "MiB/minute"):
        table.add_column(name, justify="left" if name == "process" else "right")
    for name, samples in course.memory.items():
        sizes = [mib for _, mib in samples]
        figures = (sizes[len(sizes) // 10], sizes[-1], max(sizes))
        table.add_row(name, *(f"{mib:.0f}" for mib in figures), f"{growth_per_minute(samples):+.2f}")
    console.print(table)
    for message, count in course.errors.items():
        console.print(f"  {count} failed: {message}", style="red", markup=False)


def draw(figure: Figure, course: Course) -> None:
    """Draw memory and p99 over time."""
    memory, latency = figure.subplots(2, sharex=True)
    for name, samples in course.memory.items():
        memory.plot(*zip(*samples, strict=True), label=name)
    for title, slices in course.slices.items():
        latency.plot([one.at for one in slices], [one.p99_ms for one in slices], label=f"{title}, p99", lw=0.8)
    memory.set(ylabel="MiB", ylim=(0, None))
    latency.set(ylabel="ms", yscale="log", xlabel="seconds")
    for axes in (memory, latency):
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def main() -> None:
    """Measure, print the tables, write the files."""
    parser = argparse.ArgumentParser(
        prog="bench_long",
        description=__doc__,
        epilog=EXPLANATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seconds", type=float, default=SECONDS, metavar="S", help=f"how long; default {SECONDS:g}")
    add("--port", type=int, metavar="PORT", help="front port; default the first free one from 18080")
    add("--data", type=Path, default=RESULTS, metavar="DIR", help="the cluster's files go under DIR, on a real disk")
    add_output_option(parser)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    output = Output("long", arguments.results)
    try:
        with ExitStack() as later:
            course = measure(output.console, arguments, later)
    except (ClusterFailed, LoadFailed) as error:
        sys.exit(f"bench_long: {error}")
    print_course(output.console, course)
    output.write({"seconds": arguments.seconds, **asdict(course)}, lambda figure: draw(figure, course))
    if course.errors:
        sys.exit(1)


if __name__ == "__main__":
    main()
