"""How long gc takes over a million rows, and what its longest statement is.

Fills an embedded Postgres with blobs of two replicas each, all of them candidates, half of them referred to
again, and runs the job of the primary node over them. Aims: 60 s, and no statement above 1 s.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
from rich.console import Console
from rich.table import Table

from benchmarks.output import Output, add_output_option
from repo_node.config import DatabaseSection
from repo_node.db import migrate
from repo_node.db.garbage import GarbageRows
from repo_node.db.lease import Lease
from repo_node.db.pool import open_database
from repo_node.launch.postgres import EmbeddedPostgres
from repo_node.metrics import Metrics
from sharding.maintenance.gc import Gc, GcFeed, GcLimits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS_MAX = 60.0
STATEMENT_SECONDS_MAX = 1.0

CLUSTER_SQL = """
    INSERT INTO nodes (id, zone, url, internal_url, version, incarnation)
    SELECT 'n' || i, 'z' || i, '', '', '0', gen_random_uuid() FROM generate_series(1, 3) AS i;
    INSERT INTO shards (uid, node_id, path) SELECT gen_random_uuid(), n.id, '' FROM nodes n, generate_series(1, 2);
"""
BLOBS_SQL = """
    INSERT INTO blobs (uid, sha256, sha1, md5, size, redundancy, block_digests)
    SELECT gen_random_uuid(), sha256(i::text::bytea), substring(sha256(i::text::bytea) FOR 20),
           substring(sha256(i::text::bytea) FOR 16), 10, 2, '\\x0011223344556677'
      FROM generate_series($1::bigint, $2::bigint) AS i
"""
REPLICAS_SQL = """
    INSERT INTO replicas (shard_id, generation, blob_id)
    SELECT 1 + (b.id + 2 * k) % 6, gen_random_uuid(), b.id FROM blobs b, generate_series(1, 2) AS k
"""
ARTIFACTS_SQL = """
    INSERT INTO artifacts (repo_id, folder, name, blob_id, created_by, modified_by)
    SELECT r.id, 'd' || b.id % 1000, 'f' || b.id, b.id, 'x', 'x' FROM repositories r, blobs b WHERE b.id % 2 = 0
"""
CANDIDATES_SQL = "INSERT INTO gc_candidates (blob_id, since) SELECT id, now() - interval '2 days' FROM blobs"


@dataclass
class Statements:
    """Remembers the longest run of each statement."""

    longest: dict[str, float] = field(default_factory=dict)

    def observe_query(self, name: str, seconds: float, outcome: str) -> None:
        self.longest[name] = max(seconds, self.longest.get(name, 0.0))


@dataclass(frozen=True, slots=True)
class Result:
    candidates: int
    removed: int
    gc_seconds: float
    feed_seconds: float
    longest_statement: str
    longest_statement_seconds: float
    statements: dict[str, float]


async def fill(dsn: str, rows: int, status: Console) -> Lease:
    """Make the rows and become the primary."""
    await migrate.init_db(dsn)
    connection = await asyncpg.connect(dsn)
    await connection.execute(CLUSTER_SQL)
    for start in range(1, rows + 1, 100_000):
        await connection.execute(BLOBS_SQL, start, min(start + 99_999, rows))
    for statement in (REPLICAS_SQL, ARTIFACTS_SQL, CANDIDATES_SQL, "VACUUM ANALYZE"):
        status.print(f"  {statement.split('(')[0].strip()}", highlight=False)
        await connection.execute(statement)
    token = uuid4()
    epoch = await connection.fetchval("SELECT lease_acquire('n1', $1, 0, 86400)", token)
    await connection.close()
    return Lease(epoch, token)


async def run(job: Gc[Lease] | GcFeed[Lease]) -> tuple[int, float]:
    """Run a job to its end; return what it did and how long that took."""
    began, done = time.perf_counter(), 0
    while True:
        step = await job.step()
        done += step.done
        if step.idle:
            return done, time.perf_counter() - began


async def measure(dsn: str, rows: int, status: Console) -> Result:
    lease = await fill(dsn, rows, status)
    observer, limits = Statements(), GcLimits(86_400, 100, 1_000_000_000, 0)
    async with open_database(DatabaseSection(dsn=dsn, statement_timeout_seconds=60.0), observer) as database:
        garbage = GarbageRows(database)
        _, feed_seconds = await run(GcFeed(garbage, lambda: lease))
        removed, gc_seconds = await run(Gc(garbage, lambda: lease, lambda: limits, Metrics().deletion))
    name, seconds = max(observer.longest.items(), key=lambda item: item[1])
    return Result(rows, removed, gc_seconds, feed_seconds, name, seconds, observer.longest)


def print_table(console: Console, result: Result) -> bool:
    """Print the figures beside their aims; say whether both are met."""
    table = Table(title=f"gc over {result.candidates:,} candidates, {result.removed:,} removed")
    for heading in ("figure", "value", "aim"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    rows = (
        ("gc, seconds", result.gc_seconds, SECONDS_MAX),
        (f"longest statement ({result.longest_statement}), s", result.longest_statement_seconds, STATEMENT_SECONDS_MAX),
        ("search for missed garbage, seconds", result.feed_seconds, None),
    )
    met = True
    for name, value, aim in rows:
        good = aim is None or value <= aim
        met = met and good
        table.add_row(name, f"{value:.2f}", "" if aim is None else f"<= {aim:g}", style="none" if good else "bold red")
    console.print(table)
    return met


def draw(figure: Figure, result: Result) -> None:
    """Draw the longest run of each statement beside the limit."""
    axes, longest = figure.subplots(), sorted(result.statements.items(), key=lambda item: item[1])
    bars = axes.barh([name for name, _ in longest], [seconds * 1000 for _, seconds in longest])
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.axvline(STATEMENT_SECONDS_MAX * 1000, color="tab:green")
    title = f"{result.candidates:,} candidates, {result.removed:,} removed in {result.gc_seconds:.0f} s"
    axes.set(xlabel="longest run, ms (green: aim)", title=title)


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="blobs to fill in")
    add_output_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-gc-") as directory:
        if os.geteuid() == 0:
            os.chmod(directory, 0o755)
        postgres = EmbeddedPostgres(Path(directory) / "postgres")
        try:
            postgres.start()
            result = asyncio.run(measure(postgres.dsn("postgres"), arguments.rows, Console(stderr=True)))
        finally:
            postgres.stop()
            postgres.remove()
    output = Output("gc", arguments.results)
    print_table(output.console, result)
    output.write(asdict(result), lambda figure: draw(figure, result))


if __name__ == "__main__":
    main()
