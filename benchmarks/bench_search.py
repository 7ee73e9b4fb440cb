"""How long do searches and AQL queries take among a million artifacts?

Starts a fresh cluster of ``holdfast up``, loads artifacts by COPY that lie as in a Maven repository, one in ten with
properties, made over a year, few of them downloaded; and asks each search again and again, for another module each
time, one request after the other. What reads all rows by its nature (every name, every size) stands below a line.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import asyncpg
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.status import Status
from rich.table import Table

from benchmarks.bench_scale import QUIET_JOBS
from benchmarks.cluster import BenchCluster, ClusterFailed, open_cluster
from benchmarks.measure import cpu_seconds, peak_rss_mib, reset_peak_rss
from benchmarks.output import RESULTS, Output, add_output_option, set_usual
from benchmarks.stock import REPOSITORY, Stock, make_stock, open_loading, open_stock

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARTIFACTS, QUICK_ARTIFACTS = 1_000_000, 100_000
REQUESTS, QUICK_REQUESTS = 200, 50
RARE_REQUESTS = 10
"""Of a search that reads all rows each time."""

ROW_BYTES = 4_000
FILES_OF_VERSION, VERSIONS_OF_MODULE = 5, 20
P99_MS_MAX = 100.0
TOO_LONG = 400
"""Of a search that took longer than ``search_seconds_max``."""

BEGAN, APART = datetime.now(UTC) - timedelta(days=365), timedelta(seconds=30)
FOLDERS_SQL = """
    INSERT INTO artifacts (repo_id, folder, name, created_by, modified_by)
    SELECT DISTINCT a.repo_id, coalesce(substring(a.folder FROM '^(.*)/[^/]*$'), ''), substring(a.folder FROM '[^/]*$'),
           'bench', 'bench'
      FROM artifacts a WHERE a.folder <> '' ON CONFLICT DO NOTHING
"""
DEPTH = 4

EXPLANATION = """\
figures
  p50, p99     from the request to the last byte of its answer, one request at a time; aim: p99 of what an index finds
               at most 100 ms
  results      in an answer, on average
  ended        searches that took longer than search_seconds_max (4 s), and got an error instead
  CPU-s        user and system time of the nodes and Postgres with all their children for 1,000 requests
  everything   every artifact in one answer: how long it takes, and by how much the memory of the node grows meanwhile

examples
  python -m benchmarks.bench_search --quick
  python -m benchmarks.bench_search --artifacts 3000000 --data /mnt/disk
"""


@dataclass(frozen=True, slots=True)
class Module:
    """What artifacts of one module are called."""

    number: int

    @property
    def name(self) -> str:
        return f"lib{self.number}"

    @property
    def folder(self) -> str:
        return f"org/group{self.number % 97}/{self.name}"


def created_at(number: int) -> datetime:
    """Return when an artifact was made: rows of one time lie together, as uploads leave them."""
    return BEGAN + number * APART


class MavenStock(Stock):
    """Artifacts in Maven's layout: modules of 20 versions with five files each."""

    columns = (*Stock.columns, "created_at", "modified_at", "properties", "downloads", "downloaded_at")

    def artifact(self, path: str, blob: int) -> tuple[object, ...]:
        number = int(path.rpartition("/")[2].partition(".")[0])
        version_number, file = divmod(number, FILES_OF_VERSION)
        module_number, version = divmod(version_number, VERSIONS_OF_MODULE)
        module = Module(module_number)
        chance = random.Random(number)
        created = created_at(number)
        properties = {"build.name": [module.name], "stage": [chance.choice(("test", "released"))]}
        downloaded = None if chance.random() < 0.9 else created + timedelta(days=1)
        name = f"{module.name}-1.{version}{('.jar', '.pom', '-sources.jar', '-javadoc.jar', '.module')[file]}"
        base = super().artifact(f"/artifactory/{REPOSITORY}/{module.folder}/1.{version}/{name}", blob)
        kept = json.dumps(properties if number % 10 == 0 else {})
        return *base, created, created, kept, 0 if downloaded is None else 3, downloaded

    async def make_folders(self, connection: asyncpg.Connection, size: int, numbers: range) -> None:
        """Leave them to ``FOLDERS_SQL``."""


@dataclass(frozen=True, slots=True)
class Search:
    """One kind of search: ``ask`` gives, for a module, the query of a GET, or the text of an AQL query."""

    name: str
    ask: Callable[[Module], str]
    is_rare: bool = False


def find(criteria: str, rest: str = "") -> str:
    fields = '"name","repo","path","actual_md5","actual_sha1","sha256","size","type","modified","created","property"'
    return f"items.find({criteria}).include({fields}){rest}"


def matched(path: str, name: str) -> str:
    """Return what jf makes of a pattern."""
    inner = f'{{"$and":[{{"repo":"{REPOSITORY}","path":{path},"name":{name}}}]}}'
    return f'{{"path":{{"$ne":"."}},"$or":[{inner}]}}'


def made_with(one: Module) -> str:
    """Return a query for what was made in the same hour as a module."""
    began = created_at(one.number * FILES_OF_VERSION * VERSIONS_OF_MODULE)
    times = (began.isoformat(), (began + timedelta(hours=1)).isoformat())
    return find(f'{{"created":{{"$gte":"{times[0]}","$lt":"{times[1]}"}}}}')


def searches_of(sha1s: Sequence[str]) -> list[Search]:
    largest = '.sort({"$desc":["size"]}).limit(1000)'
    unused = f'{{"repo":"{REPOSITORY}","created":{{"$before":"11mo"}},"stat.downloaded":{{"$eq":null}}}}'
    return [
        Search("name", lambda one: f"artifact?name={one.name}-1.7.*"),
        Search("path", lambda one: f"pattern?pattern={REPOSITORY}:{one.folder}/**/*.jar"),
        Search("gavc", lambda one: f"gavc?g=org.group{one.number % 97}&a={one.name}"),
        Search("property", lambda one: f"prop?build.name={one.name}&stage=released"),
        Search("sha1", lambda one: f"checksum?sha1={sha1s[one.number % len(sha1s)]}"),
        Search("AQL: tree", lambda one: find(matched(f'{{"$match":"{one.folder}/*"}}', '{"$match":"*.jar"}'))),
        Search("AQL: folder", lambda one: find(matched(f'"{one.folder}/1.7"', '{"$match":"*"}'))),
        Search("AQL: name", lambda one: find(matched('{"$match":"*"}', f'{{"$match":"{one.name}-*"}}'))),
        Search("AQL: @key", lambda one: find(f'{{"@build.name":"{one.name}","@stage":"released"}}')),
        Search("AQL: sha1", lambda one: find(f'{{"actual_sha1":"{sha1s[one.number % len(sha1s)]}"}}')),
        Search("AQL: created in an hour", made_with),
        Search("AQL: never downloaded, 100", lambda _: find(unused, ".limit(100)")),
        Search("AQL: never downloaded, 1,000 largest", lambda _: find(unused, largest), True),
        Search("name, from its middle", lambda one: f"artifact?name=*{one.number}-1.7.p*", True),
        Search("AQL: name, from its middle", lambda one: find(f'{{"name":{{"$match":"*{one.number}-1.7.p*"}}}}'), True),
        Search("AQL: of a size", lambda _: find('{"size":{"$gt":1000000}}'), True),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timing:
    """What one kind of search takes."""

    name: str
    is_rare: bool
    requests: int
    results: float
    ended: int
    p50_ms: float
    p99_ms: float
    cpu_seconds_per_1000: float


@dataclass(frozen=True, slots=True)
class Whole:
    """What an answer with every artifact takes."""

    results: int
    seconds: float
    cpu_seconds: float
    first_byte_ms: float
    grown_mib: float


class Asker:
    """Asks one node, over one connection."""

    def __init__(self, cluster: BenchCluster) -> None:
        self._cluster = cluster
        parts = urlsplit(cluster.node_urls[0])
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)

    def send(self, asked: str) -> http.client.HTTPResponse:
        """Send a search; return its answer, of which nothing is read. Raises ``ClusterFailed``."""
        headers = {"Authorization": self._cluster.authorization}
        base = "/artifactory/api/search/"
        if asked.startswith("items."):
            self._connection.request("POST", f"{base}aql", asked.encode(), {**headers, "Content-Type": "text/plain"})
        else:
            self._connection.request("GET", base + quote(asked, safe="?&=*:/"), headers=headers)
        response = self._connection.getresponse()
        if response.status not in (200, TOO_LONG):
            raise ClusterFailed(f"{asked} answered {response.status}: {response.read()!r}")
        return response

    def measure(self, search: Search, modules: Sequence[Module]) -> Timing:
        """Ask a search for each of ``modules``."""
        seconds, results, ended = [], 0, 0
        self.send(search.ask(modules[0])).read()
        before = sum(cpu_seconds(self._cluster.pids).values())
        for module in modules:
            asked = search.ask(module)
            began = time.perf_counter()
            response = self.send(asked)
            body = response.read()
            seconds.append(time.perf_counter() - began)
            document = json.loads(body)
            ended += response.status == TOO_LONG
            results += len(document.get("results", document.get("files", ())))
        spent = sum(cpu_seconds(self._cluster.pids).values()) - before
        ordered = sorted(seconds)
        return Timing(
            name=search.name,
            is_rare=search.is_rare,
            requests=len(modules),
            results=results / len(modules),
            ended=ended,
            p50_ms=statistics.median(ordered) * 1e3,
            p99_ms=ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1e3,
            cpu_seconds_per_1000=spent / len(modules) * 1000,
        )

    def measure_whole(self) -> Whole:
        """Ask for every artifact at once."""
        pid = self._cluster.node_pids[0]
        reset_peak_rss([pid])
        before, first, tail = peak_rss_mib(pid), 0.0, b""
        spent, began = sum(cpu_seconds(self._cluster.pids).values()), time.perf_counter()
        response = self.send(find(f'{{"repo":"{REPOSITORY}"}}'))
        while piece := response.read1(1 << 20):
            first = first or time.perf_counter() - began
            tail = (tail + piece)[-200:]
        seconds = time.perf_counter() - began
        spent = sum(cpu_seconds(self._cluster.pids).values()) - spent
        count = json.loads(tail[tail.rindex(b'"range": ') + len(b'"range": ') : -1])["total"]
        return Whole(count, seconds, spent, first * 1e3, peak_rss_mib(pid) - before)


async def load(cluster: BenchCluster, artifacts: int) -> list[str]:
    """Load the artifacts and return the sha1 of some."""
    connection = await open_loading(cluster.dsn)
    stock = await open_stock(connection, cluster, "bench/search", MavenStock)
    await make_stock(connection, stock, ROW_BYTES, range(artifacts), files=False)
    for _ in range(DEPTH):
        await connection.execute(FOLDERS_SQL)
    await connection.execute("VACUUM ANALYZE")
    await connection.execute("CHECKPOINT")
    rows = await connection.fetch("SELECT encode(sha1, 'hex') FROM blobs WHERE id % 997 = 0 LIMIT 1000")
    await connection.close()
    return [row[0] for row in rows]


def measure_all(arguments: argparse.Namespace, status: Status, later: ExitStack) -> tuple[list[Timing], Whole]:
    with open_cluster(arguments.data, arguments.port, "token", later, nodes=2) as cluster:
        cluster.set(**QUIET_JOBS, aql_results_max=max(1_000_000, 2 * arguments.artifacts))
        status.update(f"loading {arguments.artifacts:,} artifacts")
        sha1s = asyncio.run(load(cluster, arguments.artifacts))
        modules = max(1, arguments.artifacts // (FILES_OF_VERSION * VERSIONS_OF_MODULE))
        asker, timings = Asker(cluster), []
        for search in searches_of(sha1s):
            status.update(f"asking: {search.name}")
            count = min(arguments.requests, RARE_REQUESTS) if search.is_rare else arguments.requests
            timings.append(asker.measure(search, [Module(random.randrange(modules)) for _ in range(count)]))
        status.update("asking for everything")
        return timings, asker.measure_whole()


def print_table(console: Console, artifacts: int, timings: Sequence[Timing], whole: Whole) -> None:
    """Print a row for each search, red where its aim is missed."""
    table = Table(
        title=f"Searches among {artifacts:,} artifacts",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("search", no_wrap=True)
    for name in ("requests", "results", "ended", "p50, ms", "p99, ms", "CPU-s per 1,000"):
        table.add_column(name, justify="right", no_wrap=True)
    for is_rare in (False, True):
        for one in timings:
            if one.is_rare is is_rare:
                slow = not is_rare and one.p99_ms > P99_MS_MAX
                p99 = f"[bold red]{one.p99_ms:.1f}[/]" if slow else f"{one.p99_ms:.1f}"
                ended = f"[bold red]{one.ended}[/]" if one.ended else "0"
                figures = (f"{one.results:,.1f}", ended, f"{one.p50_ms:.1f}", p99, f"{one.cpu_seconds_per_1000:.1f}")
                table.add_row(one.name, str(one.requests), *figures)
        table.add_section()
    console.print(table)
    rate = whole.results / whole.seconds
    console.print(
        f"Everything: {whole.results:,} results in {whole.seconds:.1f} s ({rate:,.0f} per second, "
        f"{whole.cpu_seconds:.1f} CPU-s).\nThe first byte came after {whole.first_byte_ms:.0f} ms, and the node's "
        f"memory grew by {whole.grown_mib:.0f} MiB.",
        highlight=False,
    )


def draw(figure: Figure, timings: Sequence[Timing]) -> None:
    """Draw p50 and p99 of each search."""
    axes = figure.subplots()
    names = [one.name for one in timings][::-1]
    rows = range(len(names))
    axes.barh(rows, [one.p99_ms for one in timings][::-1], height=0.7, color="tab:orange", label="p99")
    axes.barh(rows, [one.p50_ms for one in timings][::-1], height=0.7, color="tab:blue", label="p50")
    axes.axvline(P99_MS_MAX, color="black", lw=1, ls=":")
    axes.set(xscale="log", xlabel="ms (dotted: aim for the p99 of what an index finds)", yticks=rows, yticklabels=names)
    axes.legend()


def main() -> None:
    """Measure, print the table, write the files."""
    parser = argparse.ArgumentParser(
        prog="bench_search",
        description=__doc__,
        epilog=EXPLANATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help=f"{QUICK_ARTIFACTS:,} artifacts, {QUICK_REQUESTS} requests")
    add("--artifacts", type=int, metavar="N", help=f"how many there are; default {ARTIFACTS:,}")
    add("--requests", type=int, metavar="N", help=f"requests of each search; default {REQUESTS}")
    add("--port", type=int, metavar="PORT", help="front port; default the first free one from 18080")
    add("--data", type=Path, default=RESULTS, metavar="DIR", help="the cluster's files go under DIR, on a real disk")
    add_output_option(parser)
    arguments = parser.parse_args()
    usual = (QUICK_ARTIFACTS, QUICK_REQUESTS) if arguments.quick else (ARTIFACTS, REQUESTS)
    set_usual(arguments, ("artifacts", "requests"), usual)
    output = Output("search", arguments.results)
    try:
        with ExitStack() as later, output.console.status("starting a cluster") as status:
            timings, whole = measure_all(arguments, status, later)
    except ClusterFailed as error:
        sys.exit(f"bench_search: {error}")
    print_table(output.console, arguments.artifacts, timings, whole)
    document = {"artifacts": arguments.artifacts, "searches": [asdict(one) for one in timings], "whole": asdict(whole)}
    output.write(document, lambda figure: draw(figure, timings))


if __name__ == "__main__":
    main()
