"""Where does the time of an upload and of a download go? A flame graph of each, by py-spy.

Starts a fresh cluster of ``holdfast up`` and loads it with small requests through its shared front port, while py-spy
samples one node: its own requests, and what its peers ask it for. Threads that wait are left out.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from benchmarks.cells import JUDGED_CONCURRENCY, KIB, Cell, Operation, parse_cells
from benchmarks.cluster import ClusterFailed, open_cluster
from benchmarks.load import Load, LoadFailed, open_load
from benchmarks.output import RESULTS, add_output_option
from benchmarks.stock import fill

SECONDS, RATE = 10.0, 200
ARTIFACTS = 10_000
START_SECONDS = 3.0
"""py-spy reads the symbols of a process before it takes the first sample."""

CELLS = [Cell(operation, 4 * KIB, JUDGED_CONCURRENCY) for operation in (Operation.PUT, Operation.GET)]

EXPLANATION = """\
examples
  python -m benchmarks.flame
  python -m benchmarks.flame --cells put:64MiB:16,get:64MiB:16 --native
"""


def find_sampler() -> str | None:
    """Return the path of py-spy, from this environment or the system."""
    own = Path(sys.executable).with_name("py-spy")
    return str(own) if own.exists() else shutil.which("py-spy")


def record(sampler: str, pid: int, load: Load, cell: Cell, seconds: float, file: Path, *, native: bool) -> int:
    """Sample a node and its workers under load; return py-spy's exit status."""
    command = [sampler, "record", "--pid", str(pid), "--output", str(file), "--format", "flamegraph"]
    command += ["--duration", f"{seconds:.0f}", "--rate", str(RATE), "--subprocesses", "--nonblocking"]
    command += ["--native"] if native else []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as sampling:
        load.run(cell, seconds + START_SECONDS)
        _, complaint = sampling.communicate()
    if sampling.returncode:
        print(complaint, file=sys.stderr)
    else:
        file.write_text(named(file.read_text(), cell.title))
    return sampling.returncode


def named(graph: str, title: str) -> str:
    """Return a flame graph that is called ``title``, and in which processes are not told by their command lines."""
    graph = re.sub(r'(<text id="title"[^>]*>)[^<]*', lambda match: match[1] + title, graph)
    return re.sub(r"process (\d+):&quot;.*?(&quot;|(?=[<(]))", r"process \1 ", graph)


def main() -> None:
    """Write a flame graph for each cell."""
    parser = argparse.ArgumentParser(
        prog="flame", description=__doc__, epilog=EXPLANATION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cells", type=parse_cells, default=CELLS, metavar="LIST", help="default put:4KiB:16,get:4KiB:16")
    add("--seconds", type=float, default=SECONDS, metavar="S", help=f"length of a sampling; default {SECONDS:g}")
    add("--native", action="store_true", help="show the frames of C libraries too")
    add("--port", type=int, metavar="PORT", help="front port; default the first free one from 18080")
    add("--data", type=Path, default=RESULTS, metavar="DIR", help="the cluster's files go under DIR, on a real disk")
    add_output_option(parser)
    arguments = parser.parse_args()
    console, sampler = Console(), find_sampler()
    if sampler is None:
        console.print("No flame graphs: py-spy is missing; pip install 'holdfast[bench]' brings it.")
        return
    arguments.results.mkdir(parents=True, exist_ok=True)
    failed = False
    try:
        with (
            ExitStack() as later,
            console.status("starting a cluster") as status,
            open_cluster(arguments.data, arguments.port, "token", later) as cluster,
            open_load(cluster.target, 2) as load,
        ):
            for cell in arguments.cells:
                if not cell.is_upload:
                    load.adopt(fill(cluster, cell.size, min(ARTIFACTS, (1 << 30) // cell.size)))
                load.run(cell, START_SECONDS)
                status.update(f"sampling {cell.title}")
                file = arguments.results / f"flame-{str(cell).replace(':', '-')}.svg"
                pid = cluster.node_pids[0]
                if record(sampler, pid, load, cell, arguments.seconds, file, native=arguments.native):
                    failed = True
                else:
                    console.print(f"Flame graph: {file}", highlight=False)
    except (ClusterFailed, LoadFailed) as error:
        sys.exit(f"flame: {error}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
