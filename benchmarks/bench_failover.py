"""What do clients feel when a node is killed, frozen or drained, or Postgres fails over?

Starts three nodes with their default settings, a Postgres with a synchronous standby and the shipped HAProxy
file in front, and loads them with small uploads and downloads. One thing after another befalls the cluster.
Each client sends a request that failed once more, after the time it was told to wait.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.output import Output, add_output_option
from tests.cluster.balancers import haproxy
from tests.cluster.processes import PASSWORD, Cluster, NodeProcess, is_ready, set_password
from tests.cluster.standby import PostgresPair
from tests.postgres import run_apart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BODY_BYTES = 4 << 10
CLIENTS = 12
PAUSE_SECONDS = 0.02
BEFORE_SECONDS, AFTER_SECONDS = 4.0, 8.0
AWAY_SECONDS = 15.0
RETRY_SECONDS = 1.0
REQUEST_SECONDS_MAX = 60.0
ELECTION_SECONDS_MAX = 60.0
GONE = (aiohttp.ClientError, TimeoutError, OSError)

EXPLANATION = """\
figures
  requests      uploads and downloads of 4 KiB by 12 clients, from 4 s before to 8 s after
  failed once   requests whose first attempt failed
  failed twice  requests whose second attempt failed too: what a client sees as an error
  stall         the longest time that a client waited for the end of one request, its retry included
  aim           no request that fails twice, and no longer stall than this
  primary after from the fault until another node held the lease
"""


@dataclass(frozen=True, slots=True)
class Event:
    """One request; ``at`` is when it ended, by the monotonic clock."""

    at: float
    seconds: float
    attempts: int
    is_done: bool


@dataclass
class Figures:
    """What one fault cost the clients."""

    name: str
    stall_seconds_max: float
    events: list[Event] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    new_primary_seconds: float | None = None
    fault_at: float = 0.0

    @property
    def failed_once(self) -> int:
        return sum(event.attempts > 1 for event in self.events)

    @property
    def failed_twice(self) -> int:
        return sum(not event.is_done for event in self.events)

    @property
    def stall_seconds(self) -> float:
        return max((event.seconds for event in self.events), default=0.0)

    @property
    def reaches_its_aim(self) -> bool:
        return self.failed_twice == 0 and self.stall_seconds <= self.stall_seconds_max


class Hall:
    """The cluster, its database and the clients' way to it."""

    def __init__(self, cluster: Cluster, pair: PostgresPair, url: str) -> None:
        self.cluster = cluster
        self.pair = pair
        self.url = url

    def holder(self) -> tuple[str, int]:
        """Return who holds a lease that is valid, and its epoch."""
        rows = self.cluster.query("SELECT holder, epoch FROM lease WHERE expires_at > clock_timestamp()")
        return (rows[0][0], rows[0][1]) if rows else ("", 0)

    async def primary(self) -> NodeProcess:
        while not (holder := (await asyncio.to_thread(self.holder))[0]):
            await asyncio.sleep(0.1)
        return next(node for node in self.cluster.nodes if node.id == holder)

    async def other(self) -> NodeProcess:
        """Return a node that is not the primary."""
        primary = await self.primary()
        return next(node for node in self.cluster.nodes if node is not primary)

    async def settle(self) -> None:
        """Start what does not run, and wait until the cluster is whole."""
        await asyncio.to_thread(self.cluster.start)


class Clients:
    """The load, and what becomes of each request."""

    def __init__(self, url: str, figures: Figures) -> None:
        self._url = url
        self._figures = figures
        self._stored: list[str] = []
        self._count = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Send requests until ``stop`` is set."""
        async with aiohttp.ClientSession(
            headers={"Authorization": aiohttp.encode_basic_auth("admin", PASSWORD)},
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS_MAX),
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
        ) as session:
            await asyncio.gather(*(self._work(session, stop) for _ in range(CLIENTS)))

    async def _work(self, session: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if self._stored and random.random() < 0.5:
                await self._request(session, "GET", random.choice(self._stored))
            else:
                self._count += 1
                path = f"generic-local/failover/{id(self)}/{self._count}"
                if await self._request(session, "PUT", path, random.randbytes(BODY_BYTES)):
                    self._stored.append(path)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _request(self, session: aiohttp.ClientSession, method: str, path: str, body: bytes | None = None) -> bool:
        began, attempts, is_done, wait_seconds = time.monotonic(), 0, False, 0.0
        while attempts < 2 and not is_done:
            await asyncio.sleep(wait_seconds)
            attempts += 1
            is_done, wait_seconds = await self._attempt(session, method, path, body)
        ended = time.monotonic()
        self._figures.events.append(Event(ended, ended - began, attempts, is_done))
        return is_done

    async def _attempt(
        self, session: aiohttp.ClientSession, method: str, path: str, body: bytes | None
    ) -> tuple[bool, float]:
        """Send once; return whether it was done, and otherwise how long to wait."""
        try:
            async with session.request(method, f"{self._url}/artifactory/{path}", data=body) as response:
                await response.read()
                if response.status in (200, 201):
                    return True, 0
                self._figures.failures[f"{method} {response.status}"] += 1
                return False, float(response.headers.get("Retry-After", RETRY_SECONDS))
        except GONE as error:
            self._figures.failures[f"{method} {type(error).__name__}"] += 1
            return False, RETRY_SECONDS


# ---------------------------------------------------------------- what befalls the cluster


async def kill(hall: Hall) -> None:
    node = await hall.other()
    await asyncio.to_thread(node.kill)


async def freeze(hall: Hall) -> None:
    node = await hall.other()
    node.freeze()
    try:
        await asyncio.sleep(AWAY_SECONDS)
    finally:
        node.thaw()


async def drain(hall: Hall) -> None:
    node = await hall.other()
    await asyncio.to_thread(node.stop, 60)
    node.start()
    while not await asyncio.to_thread(is_ready, node):
        await asyncio.sleep(0.2)


async def kill_primary(hall: Hall) -> None:
    await asyncio.to_thread((await hall.primary()).kill)


async def freeze_primary(hall: Hall) -> None:
    node = await hall.primary()
    node.freeze()
    try:
        await asyncio.sleep(AWAY_SECONDS)
    finally:
        node.thaw()


async def fail_over(hall: Hall) -> None:
    await asyncio.to_thread(hall.pair.primary.kill)
    await asyncio.to_thread(hall.pair.promote)


@dataclass(frozen=True, slots=True)
class Scenario:
    """``is_election``: another node has to become the primary, and how soon is measured."""

    name: str
    deed: Callable[[Hall], Awaitable[None]]
    stall_seconds_max: float
    is_election: bool = False


SCENARIOS = (
    Scenario("node killed", kill, 3),
    Scenario("node frozen", freeze, 12),
    Scenario("node drained", drain, 3),
    Scenario("primary node killed", kill_primary, 3, is_election=True),
    Scenario("primary node frozen", freeze_primary, 12, is_election=True),
    Scenario("Postgres failed over", fail_over, 30),
)


async def measure(hall: Hall, scenario: Scenario) -> Figures:
    """Load the cluster, let it befall, and return what it cost."""
    figures = Figures(scenario.name, scenario.stall_seconds_max)
    clients, stop = Clients(hall.url, figures), asyncio.Event()
    load = asyncio.create_task(clients.run(stop))
    try:
        await asyncio.sleep(BEFORE_SECONDS)
        epoch = (await asyncio.to_thread(hall.holder))[1]
        figures.fault_at = began = time.monotonic()
        deed = asyncio.ensure_future(scenario.deed(hall))
        if scenario.is_election:
            figures.new_primary_seconds = await watch_election(hall, epoch, began)
        await deed
        await asyncio.sleep(AFTER_SECONDS)
    finally:
        stop.set()
        await load
    return figures


async def watch_election(hall: Hall, epoch: int, began: float) -> float | None:
    """Return after how many seconds a later epoch than ``epoch`` began; None when none did in time."""
    while (seconds := time.monotonic() - began) < ELECTION_SECONDS_MAX:
        if (await asyncio.to_thread(hall.holder))[1] > epoch:
            return seconds
        await asyncio.sleep(0.1)
    return None


@contextmanager
def open_hall(directory: Path) -> Iterator[Hall]:
    """Start everything under ``directory``, and end it."""
    pair = PostgresPair(directory / "postgres")
    cluster: Cluster | None = None
    try:
        pair.start()
        run_apart(set_password(pair.dsn))
        cluster = Cluster(directory / "cluster", pair.dsn)
        for _ in range(3):
            cluster.add_node()
        cluster.start()
        with haproxy(cluster, directory) as url:
            yield Hall(cluster, pair, url)
    finally:
        if cluster is not None:
            cluster.stop()
        pair.stop()


# ---------------------------------------------------------------- the report


def print_figures(console: Console, found: list[Figures]) -> None:
    """Print a row for each fault, with its aims."""
    table = Table(title="Failover behind HAProxy", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("fault", "requests", "failed\nonce", "failed\ntwice", "stall\ns", "aim", "primary\nafter s"):
        table.add_column(heading, justify="left" if heading in ("fault", "aim") else "right", no_wrap=True)
    for one in found:
        elected = "" if one.new_primary_seconds is None else f"{one.new_primary_seconds:.1f}"
        aim = f"<= {one.stall_seconds_max:g} {'ok' if one.reaches_its_aim else 'MISSED'}"
        cells = (f"{len(one.events):,}", str(one.failed_once), str(one.failed_twice), f"{one.stall_seconds:.1f}")
        table.add_row(one.name, *cells, aim, elected, style="none" if one.reaches_its_aim else "bold red")
    console.print(table)
    for one in found:
        if one.failures:
            console.print(f"{one.name}: " + ", ".join(f"{what} {count}" for what, count in one.failures.items()))


def draw(figure: Figure, found: list[Figures]) -> None:
    """Draw how long requests took, by when they ended."""
    figure.set_size_inches(10, 2.2 * len(found))
    panels = figure.subplots(len(found), sharex=True, squeeze=False)
    for axes, one in zip(panels[:, 0], found, strict=True):
        for is_done, colour in ((True, "tab:blue"), (False, "tab:red")):
            chosen = [event for event in one.events if event.is_done == is_done]
            times = [event.at - one.fault_at for event in chosen]
            axes.plot(times, [event.seconds for event in chosen], ".", ms=2, color=colour)
        axes.axvline(0, color="black", lw=0.8)
        axes.set(title=one.name, ylabel="seconds", yscale="log")
    panels[-1, 0].set_xlabel("seconds since the fault")


def summary(one: Figures) -> dict[str, object]:
    return {
        "fault": one.name,
        "requests": len(one.events),
        "failed_once": one.failed_once,
        "failed_twice": one.failed_twice,
        "stall_seconds": one.stall_seconds,
        "stall_seconds_max": one.stall_seconds_max,
        "new_primary_seconds": one.new_primary_seconds,
        "failures": dict(one.failures),
        "events": [
            asdict(event) | {"at": event.at - one.fault_at}
            for event in one.events
            if event.seconds > 0.5 or event.attempts > 1
        ],
    }


async def measure_all(hall: Hall, scenarios: list[Scenario], console: Console) -> list[Figures]:
    found = []
    for scenario in scenarios:
        await hall.settle()
        console.print(f"  {scenario.name}", highlight=False)
        found.append(await measure(hall, scenario))
    return found


def main() -> None:
    """Measure, print the table, write the file and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXPLANATION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="WORDS", default="", help="faults whose names have these words in them")
    add_output_option(parser)
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="bench-failover-"))
    directory.chmod(0o755)
    scenarios = [one for one in SCENARIOS if arguments.only in one.name]
    try:
        with open_hall(directory) as hall:
            found = asyncio.run(measure_all(hall, scenarios, Console(stderr=True)))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    output = Output("failover", arguments.results)
    print_figures(output.console, found)
    output.write({"faults": [summary(one) for one in found]}, lambda figure: draw(figure, found))


if __name__ == "__main__":
    main()
