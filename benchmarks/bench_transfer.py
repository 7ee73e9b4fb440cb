"""What do uploads and downloads cost a three-node cluster, and how fast are they?

Starts a fresh cluster of ``holdfast up`` (redundancy 2, fsync on), loads it through its shared front
port from processes of their own, verifies every downloaded byte, and prints CPU time, throughput,
latency and memory beside the floor: what the same work costs a bare program on this machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.status import Status

from benchmarks import report
from benchmarks.cells import AIMS, JUDGED_CONCURRENCY, Cell, Operation, Way, closed, parse_cells, phases, stock_objects
from benchmarks.cluster import BenchCluster, ClusterFailed, is_in_memory, open_cluster
from benchmarks.dialects import HOLDFAST, HOLDFAST_PROPERTIES, SHA256_REPOSITORY
from benchmarks.floor import GB, Floor, least
from benchmarks.generator import Stored
from benchmarks.load import Load, LoadFailed, open_load
from benchmarks.measure import cpu_seconds, peak_rss_mib, processes_below, reset_peak_rss
from benchmarks.output import RESULTS, Output, add_output_option, set_usual
from benchmarks.pace import Pace, open_pace
from benchmarks.report import Figures, Spent, best_of, figures_of
from benchmarks.stock import COPIES, fill

CELL_SECONDS, QUICK_SECONDS = 4.0, 2.0
ROUNDS, QUICK_ROUNDS = 3, 1
ARTIFACTS, QUICK_ARTIFACTS = 100_000, 2_000
FLOOR_BYTES, QUICK_FLOOR_BYTES = 512 << 20, 128 << 20
SETTLE_SECONDS = 0.3
PLANNED_BYTES_PER_SECOND, PLANNED_OPERATIONS_PER_SECOND = 150e6, 1500

EXPLANATION = """\
columns
  work          operation and size, by 16 clients with a keep-alive connection each where no other number stands
  objects       over how many different ones the requests go, each asked for once before any comes again
  ops/s, MB/s   what the clients got, from the first request to the end of the last answer
  p50, p99      latency of an operation in milliseconds; of few operations p99 is the slowest
  CPU-s         user and system time of the three nodes and Postgres with all their children, without the
                clients, for 1,000 operations up to 256 KiB, for 1 GB of bodies above; Postgres' share in percent.
                Read from /proc before and after; a process that ended in between is counted by its parent, which
                has waited for it
  floor         CPU-s of a bare program for the same work. PUT: received from loopback by recv_into, hashed by
                sha256, sha1 and md5, written and fdatasynced twice. GET: read from the page cache and sent.
                HEAD, 304, checksum deploy: a request answered by a head alone
  peak          highest resident size of the largest process of the nodes during the cell
  slower        how much more CPU time than at its best a fixed piece of work took meanwhile: the
                processor's caches and pipelines are shared, with the load and with neighbours. From
                1.5 on it is marked: CPU-s are about as much too high, and better taken again

A cell is OPERATION:SIZE:CLIENTS[:WAY]. Operations are put, put-sha256 (to a repository that wants this digest alone),
get, head, 304 (a GET that names the ETag) and checksum (a deploy of known content by its sha256). Ways:
  spread        (the default) any node, all stored objects: --artifacts up to 256 KiB, at most 1 GiB above
  hot           the same 500 objects again and again
  own, peer     asked of a node that has the object on its own disk; of one that must fetch it from a peer
  one           all clients at one node, which is what its memory is judged by
  open          requests arrive at half of the peak rate of the same cell by Poisson's law; a latency counts from
                the arrival on, whether a connection was free or not

Clients begin operations for --seconds and finish what they have begun. Each round begins with a fresh cluster and a
few seconds of unmeasured load, and measures the uploads. The last one is then stocked (files on the disks, rows by
COPY: what as many uploads would have left) and measures the downloads --best-of times, memory once.

examples
  python -m benchmarks.bench_transfer --quick
  python -m benchmarks.bench_transfer --cells put:4KiB:16,get:4KiB:16,get:64MiB:16:peer
  python -m benchmarks.bench_transfer --cells put:64MiB:64:one --seconds 30 --data /mnt/disk --keep

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
    quick = f"{QUICK_SECONDS:g} seconds a cell, {QUICK_ROUNDS} round, {QUICK_ARTIFACTS:,} artifacts: a minute or two"
    add("--quick", action="store_true", help=quick)
    add("--cells", type=cells_argument, default=list(AIMS), metavar="LIST", help="default: all that are judged")
    add("--seconds", type=float, metavar="S", help=f"length of a cell; default {CELL_SECONDS:g}")
    add("--best-of", type=int, metavar="N", help=f"how often each cell is measured; default {ROUNDS}")
    add("--artifacts", type=int, metavar="N", help=f"stock of each small size; default {ARTIFACTS:,}")
    who = "the administrator by a token (the default) or password, or a user with rights at some paths, by a token"
    add("--auth", choices=("token", "basic", "user"), default="token", help=who)
    add("--properties", action="store_true", help="PUT with two properties")
    add("--processes", type=int, default=2, metavar="N", help="processes that make the load; default 2")
    add("--no-floor", action="store_true", help="do not measure the floor")
    add("--port", type=int, metavar="PORT", help="front port; default the first free one from 18080")
    add("--data", type=Path, default=RESULTS, metavar="DIR", help="the cluster's files go under DIR, on a real disk")
    add("--keep", action="store_true", help="leave the last round's cluster running and its data in place")
    add_output_option(parser)
    arguments = parser.parse_args()
    usual = (QUICK_SECONDS, QUICK_ROUNDS, QUICK_ARTIFACTS) if arguments.quick else (CELL_SECONDS, ROUNDS, ARTIFACTS)
    set_usual(arguments, ("seconds", "best_of", "artifacts"), usual)
    if min(arguments.seconds, arguments.best_of, arguments.artifacts) <= 0 or not 1 <= arguments.processes <= 64:
        parser.error("--seconds, --best-of, --artifacts and --processes must be positive (at most 64 processes)")
    return arguments


def cells_argument(text: str) -> list[Cell]:
    try:
        return parse_cells(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_disk(console: Console, arguments: argparse.Namespace) -> None:
    """Exit when the uploads may not fit; warn where fsync costs nothing."""
    arguments.data.mkdir(parents=True, exist_ok=True)
    needed = planned_bytes(arguments.cells, arguments.seconds, arguments.best_of, arguments.artifacts)
    free = shutil.disk_usage(arguments.data).free
    if needed > free:
        sys.exit(
            f"bench_transfer: {arguments.data} has {free / GB:.0f} GB free and this may write {needed / GB:.0f} GB; "
            "choose another --data, fewer --cells, --artifacts or --seconds"
        )
    if is_in_memory(arguments.data):
        console.print(f"{arguments.data} lies in memory: fsync costs nothing there, nor do these figures count.")


def planned_bytes(cells: Sequence[Cell], seconds: float, rounds: int, artifacts: int) -> float:
    """Return an upper estimate of what a run writes."""
    uploads, downloads, memory = phases(cells)
    written = rounds * sum(uploaded_bytes(cell, seconds) for cell in uploads)
    written += sum(uploaded_bytes(cell, seconds) for cell in memory if cell.is_upload)
    sizes = {cell.size for cell in (*downloads, *memory) if not cell.is_upload}
    return COPIES * (written + sum(size * stock_objects(size, artifacts) for size in sizes))


def uploaded_bytes(cell: Cell, seconds: float) -> float:
    rate = min(PLANNED_BYTES_PER_SECOND, PLANNED_OPERATIONS_PER_SECOND * cell.size)
    return cell.concurrency * cell.size + seconds * rate


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
    for name in ("put", "get"):
        found[name] = {int(size): seconds for size, seconds in found[name].items()}
    return [Floor(**found)]


class Round:
    """The measurements on one fresh cluster."""

    def __init__(self, cluster: BenchCluster, load: Load, pace: Pace, status: Status, seconds: float) -> None:
        self._cluster = cluster
        self._load = load
        self._pace = pace
        self._status = status
        self._seconds = seconds
        self._objects: dict[int, int] = {}
        self.measured: list[Figures] = []

    def warm_up(self) -> None:
        """Let the nodes open connections and make the directories that the first uploads of a fresh shard need."""
        self._status.update("warming up")
        for size, share in ((4 << 10, 2), (2 << 20, 8)):
            self._load.run(Cell(Operation.PUT, size, JUDGED_CONCURRENCY), self._seconds / share)
        self._load.run(Cell(Operation.GET, 4 << 10, JUDGED_CONCURRENCY), self._seconds / 8)

    def stock(self, sizes: set[int], artifacts: int) -> None:
        """Make what the downloads ask for."""
        for size in sorted(sizes):
            count = stock_objects(size, artifacts)
            self._status.update(f"stocking {count:,} objects of {size:,} bytes")
            self.adopt(fill(self._cluster, size, count))

    def adopt(self, stored: Sequence[Stored]) -> None:
        """Ask for ``stored``, objects of one size, from now on."""
        self._load.adopt(stored)
        self._objects[stored[0].size] = len(stored)

    def measure(self, cells: Sequence[Cell], doing: str) -> None:
        """Run ``cells`` once each."""
        for cell in cells:
            self._status.update(f"{doing}: {cell.title}")
            rate = self._peak(closed(cell)) / 2 if cell.way is Way.OPEN else None
            self.measured.append(self._measure(cell, rate))

    def _peak(self, cell: Cell) -> float:
        """Return the highest rate at which ``cell``'s operation was served, whatever the number of clients."""
        same = [one for one in self.measured if closed(one.cell) == one.cell]
        rates = [one.per_second for one in same if (one.cell.operation, one.cell.size) == (cell.operation, cell.size)]
        return max(rates) if rates else self._measure(cell, None).per_second

    def _measure(self, cell: Cell, rate: float | None) -> Figures:
        cluster = self._cluster
        time.sleep(SETTLE_SECONDS)
        processes = processes_below(cluster.node_pids)
        reset_peak_rss(processes)
        self._pace.begin()
        before = cpu_seconds(cluster.pids)
        outcome = self._load.run(cell, self._seconds, rate)
        slowdown = self._pace.slowdown()
        # What an operation leaves behind for later belongs to it.
        time.sleep(SETTLE_SECONDS)
        after = cpu_seconds(cluster.pids)
        spent = {pid: after[pid] - before[pid] for pid in cluster.pids}
        postgres = spent.pop(cluster.postgres_pid)
        peaks = tuple(peak_rss_mib(pid) for pid in processes)
        objects = 0 if cell.is_upload else self._objects.get(cell.size, 0)
        return figures_of(cell, objects, outcome, Spent(sum(spent.values()), postgres, peaks, slowdown))


def run_round(
    console: Console, arguments: argparse.Namespace, pace: Pace, later: ExitStack, number: int
) -> list[Figures]:
    """Measure the uploads on a fresh cluster, on the last one everything else too."""
    uploads, downloads, memory = phases(arguments.cells)
    is_last = number == arguments.best_of
    keep = arguments.keep and is_last
    dialect = HOLDFAST_PROPERTIES if arguments.properties else HOLDFAST
    with (
        console.status("starting a cluster") as status,
        open_cluster(arguments.data, arguments.port, arguments.auth, later, keep=keep) as cluster,
        open_load(replace(cluster.target, dialect=dialect), arguments.processes) as load,
    ):
        cluster.make_repository(SHA256_REPOSITORY, digests=["sha256"])
        run = Round(cluster, load, pace, status, arguments.seconds)
        run.warm_up()
        run.measure(uploads, f"round {number} of {arguments.best_of}")
        if is_last:
            run.stock({cell.size for cell in (*downloads, *memory) if not cell.is_upload}, arguments.artifacts)
            for again in range(1, arguments.best_of + 1):
                run.measure(downloads, f"time {again} of {arguments.best_of}")
            run.measure(memory, "memory")
        if keep:
            console.print(f"The cluster runs on at {cluster.url}; holdfast down --data {cluster.directory} stops it.")
    return run.measured


def main() -> None:
    """Run every round, print the tables, write the files."""
    arguments = parse_arguments()
    output = Output("transfer", arguments.results)
    console = output.console
    # Whoever stops it, by Ctrl-C or otherwise, wants the cluster stopped and removed, and no traceback.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, lambda number, _: sys.exit(128 + number))
    check_disk(console, arguments)
    floors: list[Floor] = []
    measured: list[Figures] = []
    rounds = range(1, arguments.best_of + 1) if phases(arguments.cells)[0] else [arguments.best_of]
    try:
        with ExitStack() as later, open_pace() as pace:
            floors += find_floor(console, arguments, "measuring the floor")
            for number in rounds:
                measured += run_round(console, arguments, pace, later, number)
            if not arguments.quick:
                floors += find_floor(console, arguments, "measuring the floor again")
    except (ClusterFailed, LoadFailed, ProcessLookupError, FileNotFoundError) as error:
        sys.exit(f"bench_transfer: {error}")
    best, floor = best_of(measured), least(floors) if floors else None
    report.print_figures(console, best, floor)
    if floors:
        report.print_floor(console, floors)
    report.print_aims(console, best, floor)
    facts = {name: getattr(arguments, name) for name in ("seconds", "best_of", "artifacts", "auth")}
    output.write(facts | report.document_of(measured, floors, floor), lambda figure: report.draw(figure, best, floor))
    if any(one.errors for one in best):
        sys.exit(1)


if __name__ == "__main__":
    main()
