"""How fast does a wiped shard become whole again, and what do clients feel of it?

Fills a fresh cluster of ``holdfast up`` (three nodes, redundancy 2, default settings), removes every blob of
one shard, and watches the disks until every blob has two copies again: once on an idle cluster, once
under downloads. Beside it stands a bare program that writes the same files as durably.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.cells import Cell, Operation
from benchmarks.cluster import BenchCluster, ClusterFailed, open_cluster
from benchmarks.load import Load, LoadFailed, open_load
from benchmarks.output import RESULTS, Output, add_output_option
from benchmarks.report import percentile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARDS, COPIES = 6, 2
BLOBS, QUICK_BLOBS = 10_000, 1_000
BLOB_BYTES = (1 << 30) // BLOBS
WRITERS = 24
"""As many files as all nodes repair at once."""

READ = Cell(Operation.GET, 64 << 10, 4)
LOAD_SECONDS, POLL_SECONDS, WHOLE_SECONDS_MAX = 5.0, 0.25, 600.0
SPEED_MIN, SLOWER_MAX = 0.5, 1.5

EXPLANATION = """\
figures
  noticed after   from the removal to the first copy made anew: the presence check samples every few seconds
  repaired in     from the first copy made anew to the last
  bare program    the same number of files of the same size, written by as many threads as all nodes repair at
                  once: written, fdatasynced, renamed, their directory synced
  p99             of downloads of 64 KiB by 4 clients, without a repair and while one runs

examples
  python -m benchmarks.bench_repair --quick
  python -m benchmarks.bench_repair --data /mnt/disk
"""


@dataclass(frozen=True, slots=True)
class Healing:
    """One wiped shard, seconds from its removal."""

    blobs: int
    noticed_seconds: float
    whole_seconds: float

    @property
    def mb_per_second(self) -> float:
        return self.blobs * BLOB_BYTES / 1e6 / max(self.whole_seconds - self.noticed_seconds, 1e-3)


def replica_counts(directory: Path) -> Counter[str]:
    """Return on how many shards each digest has a file."""
    counts: Counter[str] = Counter()
    for blobs in directory.glob("nodes/*/shard-*/blobs"):
        counts.update({entry.name[:64] for folder in os.scandir(blobs) for entry in os.scandir(folder.path)})
    return counts


def wipe(cluster: BenchCluster) -> int:
    """Remove every blob of one shard, as a careless hand would; return how many went."""
    blobs = next(iter(sorted(cluster.directory.glob("nodes/node-1/shard-*/blobs"))))
    files = [path for path in blobs.glob("*/*") if path.is_file()]
    for path in files:
        path.unlink()
    return len(files)


def watch(cluster: BenchCluster, began: float) -> Healing:
    """Return when every blob has all its copies again. Raises ``ClusterFailed``."""
    missing = most = sum(count < COPIES for count in replica_counts(cluster.directory).values())
    noticed = 0.0
    while missing:
        if time.monotonic() - began > WHOLE_SECONDS_MAX:
            raise ClusterFailed(f"{missing} of {most} blobs still lack a copy after {WHOLE_SECONDS_MAX:.0f} s")
        time.sleep(POLL_SECONDS)
        missing = sum(count < COPIES for count in replica_counts(cluster.directory).values())
        if missing < most and not noticed:
            noticed = time.monotonic() - began
    return Healing(most, noticed, time.monotonic() - began)


@contextmanager
def downloads(load: Load) -> Iterator[list[float]]:
    """Download without a pause for the length of the block; the latencies gather in what is yielded."""
    latencies: list[float] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            latencies.extend(load.run(READ, 1.0).latencies)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield latencies
    finally:
        stop.set()
        thread.join()


def write_bare(directory: Path, count: int) -> float:
    """Return the seconds it takes to write ``count`` files durably by ``WRITERS`` threads."""
    with tempfile.TemporaryDirectory(dir=directory) as root:
        data = os.urandom(BLOB_BYTES)
        folders = [Path(root, f"{number:02x}") for number in range(WRITERS)]
        for folder in folders:
            folder.mkdir()

        def write(number: int) -> None:
            folder = folders[number % len(folders)]
            staged = Path(root, f"{number}.tmp")
            with staged.open("wb", buffering=0) as file:
                file.write(data)
                os.fdatasync(file.fileno())
            staged.rename(folder / str(number))
            opened = os.open(folder, os.O_RDONLY)
            os.fsync(opened)
            os.close(opened)

        began = time.monotonic()
        with ThreadPoolExecutor(WRITERS) as threads:
            for _ in threads.map(write, range(count)):
                pass
        return time.monotonic() - began


def measure(console: Console, arguments: argparse.Namespace, later: ExitStack) -> dict[str, object]:
    """Run everything once on a fresh cluster and return the figures."""
    blobs = QUICK_BLOBS if arguments.quick else BLOBS
    with (
        console.status("starting a cluster") as status,
        open_cluster(arguments.data, arguments.port, "token", later) as cluster,
        open_load(cluster.target, 2) as load,
    ):
        wanted, stored = blobs * SHARDS // COPIES, 0
        while stored < wanted:
            status.update(f"uploading: {stored:,} of {wanted:,} blobs")
            stored += len(load.run(Cell(Operation.PUT, BLOB_BYTES, 16), LOAD_SECONDS).latencies)
        load.run(Cell(Operation.PUT, READ.size, READ.concurrency), LOAD_SECONDS)
        status.update("downloading, nothing else to do")
        quiet = load.run(READ, 2 * LOAD_SECONDS).latencies
        status.update("one shard wiped, no clients")
        began, _ = time.monotonic(), wipe(cluster)
        idle = watch(cluster, began)
        status.update("one shard wiped, clients download")
        began, _ = time.monotonic(), wipe(cluster)
        with downloads(load) as latencies:
            busy = watch(cluster, began)
        status.update("the bare program")
        bare = statistics.median(write_bare(arguments.data, blobs) for _ in range(3))
    return {
        "blob_bytes": BLOB_BYTES,
        "idle": {**asdict(idle), "mb_per_second": idle.mb_per_second},
        "busy": {**asdict(busy), "mb_per_second": busy.mb_per_second},
        "bare_mb_per_second": blobs * BLOB_BYTES / 1e6 / bare,
        "speed_ratio": idle.mb_per_second / (blobs * BLOB_BYTES / 1e6 / bare),
        "p99_ms": percentile(sorted(quiet), 99) * 1e3,
        "p99_ms_during_repair": percentile(sorted(latencies), 99) * 1e3,
        "p99_ratio": percentile(sorted(latencies), 99) / percentile(sorted(quiet), 99),
    }


def print_figures(console: Console, figures: dict[str, object]) -> None:
    """Print the table, with the aims."""
    table = Table(title=f"One shard wiped, blobs of {BLOB_BYTES:,} bytes")
    for name in ("", "blobs", "noticed after", "repaired in", "MB/s"):
        table.add_column(name, justify="right" if name else "left")
    for name in ("idle", "busy"):
        row = figures[name]
        assert isinstance(row, dict)
        seconds = row["whole_seconds"] - row["noticed_seconds"]
        table.add_row(
            f"{name} cluster",
            f"{row['blobs']:,}",
            f"{row['noticed_seconds']:.1f} s",
            f"{seconds:.1f} s",
            f"{row['mb_per_second']:.0f}",
        )
    table.add_row("bare program", "", "", "", f"{figures['bare_mb_per_second']:.0f}")
    console.print(table)
    speed, slower = figures["speed_ratio"], figures["p99_ratio"]
    assert isinstance(speed, float) and isinstance(slower, float)
    console.print(f"speed of the bare program: {speed:.2f} x (aim >= {SPEED_MIN})")
    console.print(
        f"p99 of downloads: {figures['p99_ms']:.0f} ms, during the repair {figures['p99_ms_during_repair']:.0f} ms: "
        f"{slower:.2f} x (aim <= {SLOWER_MAX})"
    )


def draw(figure: Figure, figures: dict[str, Any]) -> None:
    """Draw how fast a shard is repaired, and how long downloads take meanwhile."""
    speeds = {name: figures[name]["mb_per_second"] for name in ("idle", "busy")}
    speeds["bare program"] = figures["bare_mb_per_second"]
    latencies = {"no repair": figures["p99_ms"], "repair": figures["p99_ms_during_repair"]}
    panels = ((speeds, "MB/s of repairs"), (latencies, "p99 of downloads, ms"))
    for axes, (bars, label) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.bar_label(axes.bar(list(bars), list(bars.values()), width=0.5), fmt="%.0f")
        axes.set(ylabel=label)


def main() -> None:
    """Measure, print, write the file."""
    parser = argparse.ArgumentParser(
        prog="bench_repair",
        description=__doc__,
        epilog=EXPLANATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help=f"a shard of {QUICK_BLOBS:,} blobs instead of {BLOBS:,}")
    parser.add_argument("--port", type=int, help="front port; default the first free one from 18080")
    parser.add_argument("--data", type=Path, default=RESULTS, metavar="DIR", help="the cluster's files go under DIR")
    add_output_option(parser)
    arguments = parser.parse_args()
    output = Output("repair", arguments.results)
    console = output.console
    needed = 5 * SHARDS * (QUICK_BLOBS if arguments.quick else BLOBS) * BLOB_BYTES
    arguments.data.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(arguments.data).free < needed:
        sys.exit(f"bench_repair: {arguments.data} needs {needed / 1e9:.0f} GB free; choose another --data, or --quick")
    try:
        with ExitStack() as later:
            figures = measure(console, arguments, later)
    except (ClusterFailed, LoadFailed) as error:
        sys.exit(f"bench_repair: {error}")
    print_figures(console, figures)
    output.write(figures, lambda figure: draw(figure, figures))


if __name__ == "__main__":
    main()
