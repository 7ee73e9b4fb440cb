"""What does an operation cost with so many artifacts in the database: a thousand, and a million?

Starts a fresh cluster of ``holdfast up``, loads artifacts, blobs and replicas by COPY, and measures the same operations
at each size: uploads, downloads of artifacts with real files, HEAD and deletions spread over all rows, and a folder of
10,000 entries. The rows that are loaded have no files; the jobs that would look for these are slowed down before.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.status import Status
from rich.table import Table

from benchmarks.bench_transfer import Round
from benchmarks.cells import JUDGED_CONCURRENCY, Cell, Operation
from benchmarks.cluster import BenchCluster, ClusterFailed, open_cluster
from benchmarks.generator import Stored
from benchmarks.load import LoadFailed, open_load
from benchmarks.measure import cpu_seconds
from benchmarks.output import RESULTS, Output, add_output_option, set_usual
from benchmarks.pace import open_pace
from benchmarks.report import best_of
from benchmarks.stock import REPOSITORY, Stock, make_stock, open_loading, open_stock

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES, QUICK_SIZES = (1_000, 10_000, 100_000, 1_000_000), (1_000, 30_000)
SECONDS, QUICK_SECONDS = 2.0, 1.0
ROUNDS, QUICK_ROUNDS = 2, 1
REAL_BYTES, ROW_BYTES = 4 << 10, 4_000
"""What has files and what has none is told apart by its size."""

REAL_OBJECTS = 500
SAMPLE_MAX, DELETIONS = 20_000, 2_000
ENTRIES, LISTINGS = 10_000, 15
IDLE_SECONDS = 3.0
RATIO_MAX, FIRST_BYTE_MS_MAX = 1.2, 50.0
QUIET_JOBS = {
    "presence_interval_seconds": 3600,
    "scrub_interval_seconds": 86_400,
    "reconcile_interval_seconds": 3600,
    "census_idle_seconds": 3600,
    "rebalance_idle_seconds": 3600,
    "backup_idle_seconds": 86_400,
}
LARGE = ("artifacts", "blobs", "replicas", "events", "trash")
# Postgres counts as a scan, too, each few pages that autovacuum sums up for a BRIN index: rows tell them apart.
READ_SQL = "SELECT relname, seq_tup_read, n_live_tup FROM pg_stat_user_tables WHERE relname = ANY ($1)"
SUM_UP_SQL = "SELECT brin_summarize_new_values('artifacts_by_time')"
OPERATIONS = (Operation.PUT, Operation.GET, Operation.HEAD, Operation.DELETE)

EXPLANATION = """\
figures
  CPU-s        user and system time of the nodes and Postgres with all their children for 1,000 operations, the
               cheapest of --best-of times, by 16 clients; x what it is over the smallest database's, aim <= 1.2
  no ANALYZE   measured right after the rows were loaded, before Postgres has any statistics of them
  first byte   from the request for a folder of 10,000 entries to the first byte of its body, median; aim <= 50 ms
  idle         how much of one processor the cluster uses with nothing to do: heartbeats and jobs that look for work
  scans        how often a large table was read whole during the measurements, which should be never

examples
  python -m benchmarks.bench_scale --quick
  python -m benchmarks.bench_scale --sizes 1000,3000000 --data /mnt/disk
"""


@dataclass(frozen=True, slots=True)
class Listing:
    """A folder of ``ENTRIES`` entries, asked for again and again."""

    first_byte_ms: float
    whole_ms: float
    cpu_seconds_per_1000: float


@dataclass(frozen=True, slots=True)
class Point:
    """What one size of the database costs: CPU seconds per 1,000 of each operation."""

    artifacts: int
    is_analyzed: bool
    costs: dict[str, float]
    p50_ms: dict[str, float]
    errors: dict[str, int]
    listing: Listing | None
    idle_percent: float
    scans: int

    @property
    def name(self) -> str:
        return f"{self.artifacts:,}" + ("" if self.is_analyzed else ", no ANALYZE")


class Database:
    """The cluster's database as it grows."""

    def __init__(self, connection: asyncpg.Connection, stock: Stock, runner: asyncio.Runner) -> None:
        self._connection = connection
        self._stock = stock
        self._runner = runner
        self._next = 0
        self.artifacts = 0
        """How many there are, but for what measurements have added and deleted."""
        self.sample: list[Stored] = []

    def load(self, count: int, *, files: bool = False) -> list[Stored]:
        """Load ``count`` artifacts and return them."""
        numbers = range(self._next, self._next + count)
        self._next += count
        size = REAL_BYTES if files else ROW_BYTES
        return self._runner.run(make_stock(self._connection, self._stock, size, numbers, files=files))

    def grow(self, artifacts: int) -> None:
        """Load rows until there are so many artifacts, and keep a sample of all of them."""
        made = self.load(artifacts - self.artifacts)
        self.artifacts = artifacts
        kept = len(self.sample) * (artifacts - len(made)) // artifacts
        fresh = min(len(made), SAMPLE_MAX - kept)
        self.execute(SUM_UP_SQL)
        self.sample = random.sample(self.sample, kept) + random.sample(made, fresh)

    def analyze(self) -> None:
        self.execute("VACUUM ANALYZE")
        self.execute("CHECKPOINT")

    def rows_read(self) -> dict[str, tuple[int, int]]:
        """Return how many rows of each large table have been read in scans, and how many it has."""
        rows = self._runner.run(self._connection.fetch(READ_SQL, LARGE))
        return {row["relname"]: (row["seq_tup_read"], row["n_live_tup"]) for row in rows}

    def execute(self, sql: str) -> None:
        self._runner.run(self._connection.execute(sql))

    def make_folder_of_entries(self) -> str:
        """Load a folder of ``ENTRIES`` entries and return the path of its info."""
        folder = "bench/listing"
        self.artifacts += ENTRIES
        self.execute(f"SELECT ensure_folder(id, '{folder}', 'x') FROM repositories WHERE key = '{REPOSITORY}'")
        self.execute(
            "INSERT INTO artifacts (repo_id, folder, name, created_by, modified_by) "
            f"SELECT id, '{folder}', 'entry-' || i, 'x', 'x' FROM repositories, generate_series(1, {ENTRIES}) AS i "
            f"WHERE key = '{REPOSITORY}'"
        )
        return f"/artifactory/api/storage/{REPOSITORY}/{folder}"


def measure(run: Round, cluster: BenchCluster, data: Database, folder: str, rounds: int, *, is_analyzed: bool) -> Point:
    """Measure every operation ``rounds`` times and return the best."""
    before = data.rows_read()
    for _ in range(rounds):
        for operation in OPERATIONS:
            size = REAL_BYTES if operation in (Operation.PUT, Operation.GET) else ROW_BYTES
            if operation is Operation.HEAD:
                run.adopt(data.sample)
            elif operation is Operation.DELETE:
                run.adopt(data.load(DELETIONS))
            run.measure([Cell(operation, size, JUDGED_CONCURRENCY)], f"{data.artifacts:,} artifacts")
    best = best_of(run.measured)
    run.measured.clear()
    listing = measure_listing(cluster, folder) if folder else None
    return Point(
        artifacts=data.artifacts,
        is_analyzed=is_analyzed,
        costs={one.cell.operation.value: one.cost for one in best},
        p50_ms={one.cell.operation.value: one.p50_ms for one in best},
        errors={message: count for one in best for message, count in one.errors.items()},
        listing=listing,
        idle_percent=measure_idle(cluster),
        scans=whole_scans(before, data.rows_read()),
    )


def whole_scans(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> int:
    """Return how often large tables were read whole, as far as the rows that were read go."""
    return sum((read - before[name][0]) // max(rows, 1) for name, (read, rows) in after.items())


def measure_idle(cluster: BenchCluster) -> float:
    """Return which part of one processor the cluster uses with nothing to do, in percent."""
    before = sum(cpu_seconds(cluster.pids).values())
    time.sleep(IDLE_SECONDS)
    return (sum(cpu_seconds(cluster.pids).values()) - before) / IDLE_SECONDS * 100


def measure_listing(cluster: BenchCluster, path: str) -> Listing:
    """Ask for a folder's info one time after another. Raises ``ClusterFailed`` for an answer that is not whole."""
    parts, firsts, wholes = urlsplit(cluster.url), [], []
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    before = sum(cpu_seconds(cluster.pids).values())
    for _ in range(LISTINGS):
        began = time.perf_counter()
        connection.request("GET", path, headers={"Authorization": cluster.authorization})
        response = connection.getresponse()
        body = response.read(1)
        firsts.append(time.perf_counter() - began)
        body += response.read()
        wholes.append(time.perf_counter() - began)
        if response.status != 200 or body.count(b'"uri": "/entry-') != ENTRIES:
            raise ClusterFailed(f"the listing of {path} answered {response.status} and {len(body):,} bytes")
    connection.close()
    spent = sum(cpu_seconds(cluster.pids).values()) - before
    return Listing(statistics.median(firsts) * 1e3, statistics.median(wholes) * 1e3, spent / LISTINGS * 1000)


def measure_all(arguments: argparse.Namespace, status: Status, later: ExitStack) -> list[Point]:
    """Grow one cluster's database from size to size, and measure it at each."""
    points: list[Point] = []
    with (
        open_cluster(arguments.data, arguments.port, "token", later) as cluster,
        open_load(cluster.target, 2) as load,
        open_pace() as pace,
        asyncio.Runner() as runner,
    ):
        cluster.set(**QUIET_JOBS)
        connection = runner.run(open_loading(cluster.dsn))
        data = Database(connection, runner.run(open_stock(connection, cluster, "bench/scale")), runner)
        run, folder = Round(cluster, load, pace, status, arguments.seconds), ""
        run.adopt(data.load(REAL_OBJECTS, files=True))
        data.artifacts = REAL_OBJECTS
        run.warm_up()
        for artifacts in arguments.sizes:
            status.update(f"loading {artifacts:,} artifacts")
            if not folder and artifacts >= 2 * ENTRIES:
                folder = data.make_folder_of_entries()
            data.grow(artifacts)
            if artifacts == arguments.sizes[-1]:
                points.append(measure(run, cluster, data, folder, 1, is_analyzed=False))
            status.update(f"vacuuming {artifacts:,} artifacts")
            data.analyze()
            points.append(measure(run, cluster, data, folder, arguments.best_of, is_analyzed=True))
        runner.run(connection.close())
    return points


def print_table(console: Console, points: Sequence[Point]) -> None:
    """Print a row for each size, red where an aim is missed."""
    table = Table(
        title="Cost against the number of artifacts, CPU-s per 1,000 (x what the smallest database costs)",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("artifacts", justify="right", no_wrap=True)
    for name in (
        *(operation.words for operation in OPERATIONS),
        "listing",
        "first byte\nms",
        "whole\nms",
        "idle\n%",
        "scans",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    smallest = points[0]
    for point in points:
        cells = []
        for operation in OPERATIONS:
            cost = point.costs[operation]
            ratio = cost / smallest.costs[operation]
            cells.append(coloured(f"{cost:.2f} ({ratio:.2f} x)", ratio <= RATIO_MAX))
        listing = point.listing
        if listing is None:
            cells += ["", "", ""]
        else:
            cells += [f"{listing.cpu_seconds_per_1000:.0f}"]
            cells += [coloured(f"{listing.first_byte_ms:.0f}", listing.first_byte_ms <= FIRST_BYTE_MS_MAX)]
            cells += [f"{listing.whole_ms:.0f}"]
        table.add_row(point.name, *cells, f"{point.idle_percent:.1f}", str(point.scans))
    console.print(table)
    for point in points:
        for message, count in point.errors.items():
            console.print(f"  {point.name}: {count} failed: {message}", style="red", markup=False)


def coloured(text: str, is_good: bool) -> str:
    return text if is_good else f"[bold red]{text}[/]"


def draw(figure: Figure, points: Sequence[Point]) -> None:
    """Draw cost and latency over the number of artifacts."""
    chosen = [point for point in points if point.is_analyzed]
    sizes = [point.artifacts for point in chosen]
    costs, latencies = figure.subplots(1, 2)
    for operation in OPERATIONS:
        costs.plot(sizes, [point.costs[operation] for point in chosen], marker="o", label=operation.words)
        latencies.plot(sizes, [point.p50_ms[operation] for point in chosen], marker="o", label=operation.words)
    listed = [(point.artifacts, point.listing.first_byte_ms) for point in chosen if point.listing]
    if listed:
        latencies.plot(*zip(*listed, strict=True), marker="s", label=f"first byte of {ENTRIES:,} entries")
    for axes, label in ((costs, "CPU-s per 1,000"), (latencies, "p50, ms")):
        axes.set(xlabel="artifacts in the database", ylabel=label, xscale="log", ylim=(0, None))
        axes.legend()


def sizes_argument(text: str) -> tuple[int, ...]:
    sizes = tuple(sorted(int(part) for part in text.split(",")))
    if sizes[0] <= REAL_OBJECTS:
        raise argparse.ArgumentTypeError(f"sizes are above {REAL_OBJECTS}")
    return sizes


def main() -> None:
    """Measure, print the table, write the files."""
    parser = argparse.ArgumentParser(
        prog="bench_scale",
        description=__doc__,
        epilog=EXPLANATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help=f"up to {QUICK_SIZES[-1]:,} artifacts")
    add("--sizes", type=sizes_argument, metavar="LIST", help="numbers of artifacts, for example 1000,100000")
    add("--seconds", type=float, metavar="S", help=f"length of a measurement; default {SECONDS:g}")
    add("--best-of", type=int, metavar="N", help=f"how often each is measured; default {ROUNDS}")
    add("--port", type=int, metavar="PORT", help="front port; default the first free one from 18080")
    add("--data", type=Path, default=RESULTS, metavar="DIR", help="the cluster's files go under DIR, on a real disk")
    add_output_option(parser)
    arguments = parser.parse_args()
    usual = (QUICK_SIZES, QUICK_SECONDS, QUICK_ROUNDS) if arguments.quick else (SIZES, SECONDS, ROUNDS)
    set_usual(arguments, ("sizes", "seconds", "best_of"), usual)
    output = Output("scale", arguments.results)
    try:
        with ExitStack() as later, output.console.status("starting a cluster") as status:
            points = measure_all(arguments, status, later)
    except (ClusterFailed, LoadFailed) as error:
        sys.exit(f"bench_scale: {error}")
    print_table(output.console, points)
    output.write({"points": [asdict(point) for point in points]}, lambda figure: draw(figure, points))
    if any(point.errors for point in points):
        sys.exit(1)


if __name__ == "__main__":
    main()
