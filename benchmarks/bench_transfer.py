"""What do uploads and downloads cost a three-node cluster, and how fast are they?

Starts a fresh cluster of ``holdfast up`` (redundancy 2, fsync on), loads it through its shared front
port from processes of their own, verifies every downloaded byte, and prints CPU time, throughput,
latency and memory beside the floor: what the same bytes cost a bare program on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from benchmarks.cells import JUDGED_CONCURRENCY, Cell, Operation, all_cells, parse_cells
from benchmarks.cluster import BenchCluster, ClusterFailed, is_in_memory, open_cluster, read_replicas
from benchmarks.floor import Floor, least
from benchmarks.load import WORKING_SET_BYTES, Load, LoadFailed, Outcome, Target, open_load
from benchmarks.measure import cpu_seconds, peak_rss_mib, reset_peak_rss
from benchmarks.pace import Pace, open_pace
from benchmarks.report import GB, Figures, best_of, print_aims, print_figures, print_floor, write_json, write_plot

RESULTS = Path(__file__).parent / "results"
CELL_SECONDS, QUICK_SECONDS = 8.0, 2.0
FLOOR_BYTES, QUICK_FLOOR_BYTES = 512 << 20, 128 << 20
SETTLE_SECONDS = 0.3
PLANNED_BYTES_PER_SECOND, PLANNED_OPERATIONS_PER_SECOND = 150e6, 1500
COPIES = 2
COLUMNS_MIN = 118

EXPLANATION = """\
columns
  ops/s, MB/s   what the clients got, from the first request to the end of the last answer
  p50, p99      latency of an operation in milliseconds; of few operations p99 is the slowest
  CPU-s         user and system time of the three nodes and Postgres with all their children, without
                the clients, for 1,000 operations and for 1 GB of bodies; Postgres' share in percent
  floor         CPU-s per GB of a bare program for the same bytes. PUT: received from loopback by
                recv_into, hashed by sha256, sha1 and md5, written and fdatasynced twice.
                GET: read from the page cache and sent
  RSS           highest resident size of each node during the cell
  slower        how much more CPU time than at its best a fixed piece of work took meanwhile: the
                processor's caches and pipelines are shared, with the load and with neighbours. From
                1.5 on it is marked: CPU-s are about as much too high, and better taken again

A cell is an operation, a size and the number of clients, each with one keep-alive connection. Clients
begin operations for --seconds and finish what they have begun. Each round begins with a fresh cluster
and a few seconds of unmeasured load. Downloads go in random order over the latest uploads of the size,
at most 1 GiB and 1,000 objects, which are read into the page cache before. Aims are judged at
concurrency 16, best of three.

examples
  python -m benchmarks.bench_transfer --quick
  python -m benchmarks.bench_transfer --best-of 3 --cells put:4KiB:16,get:4KiB:16,put:64MiB:16,get:64MiB:16
  python -m benchmarks.bench_transfer --cells put:64MiB:64 --seconds 30 --data /mnt/disk --keep

Exit status 1 means that requests failed or that the cluster did not start; a missed aim is only printed.
"""


def parse_arguments() -> argparse.Namespace:
    """Return the options, checked."""
    parser = argparse.ArgumentParser(
        prog="bench_transfer",
        description=__doc__,
        epilog=EXPLANATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="only concurrency 16, 2 seconds a cell, the floor once: under a minute")
    add("--cells", type=cells_argument, metavar="LIST", help="for example put:4KiB:16,get:64MiB:1; default all 24")
    add(
        "--seconds",
        type=float,
        metavar="S",
        help=f"length of a cell; default {CELL_SECONDS:g}, quick {QUICK_SECONDS:g}",
    )
    add("--best-of", type=int, default=1, metavar="N", help="N rounds, each on a fresh cluster; report the cheapest")
    add("--auth", choices=("token", "basic"), default="token", help="how the clients authenticate; default token")
    add("--processes", type=int, default=2, metavar="N", help="processes that make the load; default 2")
    add("--no-floor", action="store_true", help="do not measure the floor")
    add("--port", type=int, metavar="PORT", help="front port; default the first free one from 18080")
    add("--data", type=Path, default=RESULTS, metavar="DIR", help="the cluster's files go under DIR, on a real disk")
    add("--keep", action="store_true", help="leave the last round's cluster running and its data in place")
    add("--json", type=Path, default=RESULTS / "transfer.json", metavar="FILE", help="where the figures go")
    add("--plot", type=Path, default=RESULTS / "transfer.png", metavar="FILE", help="where the plot goes")
    arguments = parser.parse_args()
    if arguments.cells is None:
        arguments.cells = all_cells((JUDGED_CONCURRENCY,)) if arguments.quick else all_cells()
    if arguments.seconds is None:
        arguments.seconds = QUICK_SECONDS if arguments.quick else CELL_SECONDS
    if arguments.seconds <= 0 or arguments.best_of < 1 or not 1 <= arguments.processes <= 64:
        parser.error("--seconds, --best-of and --processes must be positive (at most 64 processes)")
    return arguments


def cells_argument(text: str) -> list[Cell]:
    try:
        return parse_cells(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_disk(console: Console, arguments: argparse.Namespace) -> None:
    """Exit when the uploads may not fit; warn where fsync costs nothing."""
    arguments.data.mkdir(parents=True, exist_ok=True)
    needed = arguments.best_of * sum(planned_bytes(cell, arguments.seconds) for cell in arguments.cells)
    free = shutil.disk_usage(arguments.data).free
    if needed > free:
        sys.exit(
            f"bench_transfer: {arguments.data} has {free / GB:.0f} GB free and this may write {needed / GB:.0f} GB; "
            "choose another --data, fewer --cells or fewer --seconds"
        )
    if is_in_memory(arguments.data):
        console.print(f"{arguments.data} lies in memory: fsync costs nothing there, nor do these figures count.")


def planned_bytes(cell: Cell, seconds: float) -> float:
    """Return an upper estimate of what a cell writes."""
    rate = min(PLANNED_BYTES_PER_SECOND, PLANNED_OPERATIONS_PER_SECOND * cell.size)
    return COPIES * (cell.concurrency * cell.size + seconds * rate) * (cell.operation is Operation.PUT)


def find_floor(console: Console, arguments: argparse.Namespace, doing: str) -> list[Floor]:
    """Measure the floor, if it is wanted, in a process of its own."""
    if arguments.no_floor:
        return []
    sizes = sorted({str(cell.size) for cell in arguments.cells}, key=int)
    volume = QUICK_FLOOR_BYTES if arguments.quick else FLOOR_BYTES
    command = [sys.executable, "-m", "benchmarks.floor", "--directory", str(arguments.data), "--volume", str(volume)]
    with console.status(doing):
        done = subprocess.run([*command, "--sizes", *sizes], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    put, get = ({int(size): seconds for size, seconds in found[name].items()} for name in ("put", "get"))
    return [Floor(found["parts"], found["growing_file_write"], put, get)]


def run_round(
    console: Console, arguments: argparse.Namespace, pace: Pace, later: ExitStack, number: int
) -> list[Figures]:
    """Measure every cell once on a fresh cluster."""
    figures = []
    keep = arguments.keep and number == arguments.best_of
    with (
        console.status("starting a cluster") as status,
        open_cluster(arguments.data, arguments.port, arguments.auth, later, keep=keep) as cluster,
        open_load(Target(cluster.url, cluster.authorization), arguments.processes) as load,
    ):
        status.update("warming up")
        warm_up(load, arguments.seconds)
        for cell in arguments.cells:
            status.update(f"round {number} of {arguments.best_of}: {cell}")
            if cell.operation is Operation.GET:
                load.fill(cell)
                read_replicas(cluster.directory, cell.size, COPIES * WORKING_SET_BYTES)
            figures.append(measure(cluster, load, pace, cell, arguments.seconds))
        if keep:
            console.print(f"The cluster runs on at {cluster.url}; holdfast down --data {cluster.directory} stops it.")
    return figures


def warm_up(load: Load, seconds: float) -> None:
    """Let the nodes open connections and make the directories that the first uploads of a fresh shard need."""
    load.run(Cell(Operation.PUT, 4 << 10, 16), seconds / 2)
    load.run(Cell(Operation.PUT, 2 << 20, 16), seconds / 8)
    load.run(Cell(Operation.GET, 4 << 10, 16), seconds / 8)


def measure(cluster: BenchCluster, load: Load, pace: Pace, cell: Cell, seconds: float) -> Figures:
    """Run one cell and return what it cost."""
    time.sleep(SETTLE_SECONDS)
    reset_peak_rss(cluster.node_pids)
    pace.begin()
    before = cpu_seconds(cluster.pids)
    outcome = load.run(cell, seconds)
    slowdown = pace.slowdown()
    # What an operation leaves behind for later belongs to it.
    time.sleep(SETTLE_SECONDS)
    after = cpu_seconds(cluster.pids)
    spent = {pid: after[pid] - before[pid] for pid in cluster.pids}
    peaks = tuple(peak_rss_mib(pid) for pid in cluster.node_pids)
    postgres = spent.pop(cluster.postgres_pid)
    return figures_of(cell, outcome, sum(spent.values()), postgres, peaks, slowdown)


def figures_of(
    cell: Cell, outcome: Outcome, nodes: float, postgres: float, peaks: tuple[float, ...], slowdown: float
) -> Figures:
    count, seconds = len(outcome.latencies), outcome.ended - outcome.began
    volume = max(count, 1) * cell.size
    return Figures(
        cell=cell,
        operations=count,
        errors=dict(outcome.errors),
        seconds=seconds,
        per_second=count / seconds,
        mb_per_second=count * cell.size / seconds / 1e6,
        p50_ms=percentile(outcome.latencies, 50) * 1e3,
        p99_ms=percentile(outcome.latencies, 99) * 1e3,
        cpu_seconds_per_1000=(postgres + nodes) / max(count, 1) * 1000,
        cpu_seconds_per_gb=(postgres + nodes) / volume * GB,
        node_cpu_seconds=nodes,
        postgres_cpu_seconds=postgres,
        client_cpu_seconds=outcome.cpu_seconds,
        peaks_rss_mib=peaks,
        slowdown=slowdown,
    )


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the smallest value that ``percent`` of the values do not exceed; 0 when there is none."""
    return ordered[-(-len(ordered) * percent // 100) - 1] if ordered else 0.0


def main() -> None:
    """Run every round, print the tables, write the files."""
    arguments = parse_arguments()
    console = Console()
    console.width = max(console.width, COLUMNS_MIN)
    # Whoever stops it, by Ctrl-C or otherwise, wants the cluster stopped and removed, and no traceback.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda number, _: sys.exit(128 + number))
    check_disk(console, arguments)
    floors: list[Floor] = []
    rounds: list[list[Figures]] = []
    try:
        with ExitStack() as later, open_pace() as pace:
            floors += find_floor(console, arguments, "measuring the floor")
            for number in range(1, arguments.best_of + 1):
                rounds.append(run_round(console, arguments, pace, later, number))
        if not arguments.quick:
            floors += find_floor(console, arguments, "measuring the floor again")
    except (ClusterFailed, LoadFailed, ProcessLookupError, FileNotFoundError) as error:
        sys.exit(f"bench_transfer: {error}")
    best = best_of(rounds)
    floor = least(floors) if floors else None
    print_figures(console, best, floor)
    if floors:
        print_floor(console, floors)
    print_aims(console, best, len(rounds))
    facts = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "seconds": arguments.seconds,
        "auth": arguments.auth,
    }
    write_json(arguments.json, facts, rounds, floors)
    console.print(f"Figures: {arguments.json}")
    try:
        write_plot(arguments.plot, best, floor)
        console.print(f"Plot: {arguments.plot}")
    except ImportError:
        console.print("No plot: matplotlib is missing; pip install 'holdfast[bench]' brings it.")
    if any(one.errors for one in best):
        sys.exit(1)


if __name__ == "__main__":
    main()
