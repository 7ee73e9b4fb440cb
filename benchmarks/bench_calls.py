"""What does a call of one node to another's shard cost, on each side, beside the same bytes echoed and beside no wire?

Two processes on one machine: the owner of a shard in DIR with the internal listener of a node, and a caller that
reaches it through a guarded remote shard. Prints CPU-us per call of each side, the kernel's share and all threads
included:

    caller, owner   the call over the internal listener
    local           the same work on the owner's guarded shard in its own process: what is left without a wire
    echo            a bare protocol that takes as many bytes and gives back as many, caller and owner together

So caller + owner - local is the price of the wire, and echo the least it could be. The best of the rounds counts.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import uvloop
from aiohttp import web
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.output import Output, add_output_option
from repo_node import keys, memory
from repo_node.api.internal import internal_app
from repo_node.logs import request_id
from repo_node.metrics import Metrics
from sharding import identity, wire
from sharding.digests import block_digests
from sharding.guarded import Guarded, GuardLimits
from sharding.identifiers import mint_generation
from sharding.local import open_local_shard
from sharding.model import BLOCK_BYTES, BlobName, NodeId, ShardId
from sharding.peer import Peer, open_peer_session
from sharding.remote import RemoteShard
from sharding.shard import Shard

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY = bytes(32)
CLUSTER, SHARD_UID = uuid4(), uuid4()
SHARD = ShardId(1)
REQUEST_BYTES = 128
"""About what a request has beside its data."""

BLOBS = 256
"""Different blobs that the reads go through."""

SIZES = {"4 KiB": 4 << 10, "64 KiB": 64 << 10, "1 MiB": BLOCK_BYTES}
PARTS = ("caller", "owner", "local", "wire", "echo")
WORK = (("put", "4 KiB"), ("put", "64 KiB"), ("read", "4 KiB"), ("read", "64 KiB"), ("read", "1 MiB"))


@dataclass(frozen=True, slots=True)
class Line:
    """What one kind of call cost, in CPU microseconds."""

    work: str
    calls_per_second: float
    caller: float
    owner: float
    local: float
    echo: float

    @property
    def wire(self) -> float:
        return self.caller + self.owner - self.local


class Work:
    """Makes calls to ``shard``, each of them one of ``WORK``; reads are of blobs it stored before."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._data = {size: os.urandom(size) for size in SIZES.values()}
        self._digests = {size: hashlib.sha256(data).digest() for size, data in self._data.items()}
        self._blocks = {size: block_digests(data) for size, data in self._data.items()}
        self._stored: dict[int, list[BlobName]] = {}
        self._turn = count()

    async def prepare(self, sizes: Iterable[int]) -> None:
        """Store what will be read."""
        for size in sizes:
            self._stored[size] = [await self._put(size) for _ in range(BLOBS)]

    def of(self, kind: str, size: int) -> Callable[[], Awaitable[object]]:
        """Return what makes one call."""
        return (lambda: self._put(size)) if kind == "put" else (lambda: self._read(size))

    async def _put(self, size: int) -> BlobName:
        name = BlobName(self._digests[size], mint_generation())
        await self._shard.put(name, self._data[size])
        return name

    async def _read(self, size: int) -> None:
        name = self._stored[size][next(self._turn) % BLOBS]
        data = await self._shard.read(name, size=size, offset=0, length=size)
        assert block_digests(data) == self._blocks[size]


async def repeat(call: Callable[[], Awaitable[object]], concurrency: int, seconds: float) -> int:
    """Make calls for so long, so many at once, and return how many ended."""
    end, made = time.monotonic() + seconds, 0

    async def caller() -> None:
        nonlocal made
        request_id.set(uuid4().hex)
        while time.monotonic() < end:
            await call()
            made += 1

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return made


class Echo(asyncio.BufferedProtocol):
    """Takes ``taken`` bytes for every ``given`` it has to give; a caller's ``call`` waits for these."""

    def __init__(self, taken: int, given: int) -> None:
        self._buffer = memoryview(bytearray(1 << 20))
        self._taken, self._given = taken, bytes(given)
        self._received = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._received += nbytes
        assert self._transport is not None
        while self._received >= self._taken:
            self._received -= self._taken
            if self._waiting:
                self._waiting.pop(0).set_result(None)
            else:
                self._transport.write(self._given)

    async def call(self) -> None:
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        assert self._transport is not None
        self._transport.write(self._given)
        await answer


def echoed(kind: str, size: int) -> tuple[int, int]:
    """Return how many bytes such a call sends and gets."""
    return (REQUEST_BYTES + size, 9) if kind == "put" else (REQUEST_BYTES, 9 + size)


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        listener.setblocking(False)
        yield listener


async def own(pipe: Pipe, directory: Path, concurrency: int, seconds: float) -> None:
    """Be the owner: serve a shard, and do what the other end of ``pipe`` asks."""
    loop = asyncio.get_running_loop()
    made = identity.create(directory / "shard", uuid4(), SHARD_UID)
    with listening() as listener:
        async with open_local_shard(SHARD, directory / "shard", made, reserve_bytes=0) as opened:
            app = internal_app(
                shards=lambda uid: opened if uid == SHARD_UID else None,
                node_id=NodeId("owner"),
                incarnation=uuid4(),
                cluster_id=lambda: CLUSTER,
                accepted=[KEY],
            )
            runner = web.AppRunner(app, shutdown_timeout=1.0)
            await runner.setup()
            await web.SockSite(runner, listener).start()
            pipe.send(listener.getsockname()[1])
            local = Work(Guarded(opened, limits=GuardLimits(), observer=Metrics()))
            while asked := await loop.run_in_executor(None, pipe.recv):
                match asked:
                    case ("prepare", sizes):
                        await local.prepare(sizes)
                        pipe.send(0.0)
                    case ("cpu",):
                        pipe.send(time.process_time())
                    case ("echo", kind, size):
                        sent, got = echoed(kind, size)
                        server = await loop.create_server(partial(Echo, sent, got), "127.0.0.1", 0)
                        pipe.send(server.sockets[0].getsockname()[1])
                    case ("local", kind, size):
                        began = time.process_time()
                        calls = await repeat(local.of(kind, size), concurrency, seconds)
                        pipe.send((time.process_time() - began) / calls * 1e6)
            await runner.cleanup()


def own_process(pipe: Pipe, cluster: UUID, uid: UUID, directory: Path, concurrency: int, seconds: float) -> None:
    global CLUSTER, SHARD_UID
    CLUSTER, SHARD_UID = cluster, uid
    memory.tune()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(own(pipe, directory, concurrency, seconds))


@asynccontextmanager
async def remote_shard(port: int) -> AsyncIterator[Shard]:
    """Reach the owner's shard as a node does."""
    token = keys.derive(KEY, wire.TOKEN_PURPOSE)
    async with open_peer_session() as session:
        headers = lambda: {"X-Request-Id": request_id.get()}  # noqa: E731
        peer = Peer(f"http://127.0.0.1:{port}", session, token, CLUSTER, headers=headers)
        yield Guarded(RemoteShard(SHARD, SHARD_UID, peer), limits=GuardLimits(), observer=Metrics())


class Measurement:
    """Asks the owner for its share of what was spent."""

    def __init__(self, pipe: Pipe, concurrency: int, seconds: float) -> None:
        self._pipe = pipe
        self._concurrency = concurrency
        self._seconds = seconds

    def ask(self, *what: object) -> float:
        self._pipe.send(what)
        return self._pipe.recv()  # type: ignore[no-any-return]

    async def spent(self, call: Callable[[], Awaitable[object]]) -> tuple[float, float, float]:
        """Make calls and return their rate, and what one cost the caller and the owner."""
        owner, caller = self.ask("cpu"), time.process_time()
        calls = await repeat(call, self._concurrency, self._seconds)
        caller, owner = time.process_time() - caller, self.ask("cpu") - owner
        return calls / self._seconds, caller / calls * 1e6, owner / calls * 1e6

    async def echo(self, kind: str, size: int) -> float:
        sent, got = echoed(kind, size)
        port = int(self.ask("echo", kind, size))
        transport, echo = await asyncio.get_running_loop().create_connection(lambda: Echo(got, sent), "127.0.0.1", port)
        _, caller, owner = await self.spent(echo.call)
        transport.close()
        return caller + owner

    async def line(self, work: Work, kind: str, label: str) -> Line:
        """Measure one kind of call in every way."""
        size = SIZES[label]
        rate, caller, owner = await self.spent(work.of(kind, size))
        return Line(f"{kind} {label}", rate, caller, owner, self.ask("local", kind, size), await self.echo(kind, size))


async def measure(pipe: Pipe, concurrency: int, seconds: float, rounds: int, only: str) -> list[Line]:
    measurement = Measurement(pipe, concurrency, seconds)
    chosen = [(kind, label) for kind, label in WORK if only in f"{kind} {label}"]
    read = [SIZES[label] for kind, label in chosen if kind == "read"]
    async with remote_shard(pipe.recv()) as shard:
        work = Work(shard)
        await work.prepare(read)
        measurement.ask("prepare", read)
        return [best_of([await measurement.line(work, kind, label) for _ in range(rounds)]) for kind, label in chosen]


def best_of(lines: list[Line]) -> Line:
    """Return the least of each figure, and the highest rate."""
    first = lines[0]
    rate = max(line.calls_per_second for line in lines)
    return Line(
        first.work,
        rate,
        *(min(getattr(line, field) for line in lines) for field in ("caller", "owner", "local", "echo")),
    )


def print_table(console: Console, lines: Sequence[Line]) -> None:
    table = Table(title="CPU-us per call", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("call", "calls/s", *PARTS):
        table.add_column(name, justify="left" if name == "call" else "right")
    for line in lines:
        parts = (f"{getattr(line, part):.0f}" for part in PARTS)
        table.add_row(line.work, f"{line.calls_per_second:,.0f}", *parts)
    console.print(table)


def draw(figure: Figure, lines: Sequence[Line]) -> None:
    """Draw what each call costs on either side, beside its work without a wire and its bytes echoed."""
    axes, width = figure.subplots(), 0.8 / len(PARTS)
    for number, part in enumerate(PARTS):
        places = [index + number * width for index in range(len(lines))]
        axes.bar(places, [getattr(line, part) for line in lines], width, label=part)
    axes.set_xticks([index + 0.4 - width / 2 for index in range(len(lines))], [line.work for line in lines])
    axes.set(ylabel="CPU-us per call")
    axes.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="where the shard is made; a temporary directory by default")
    parser.add_argument("--concurrency", type=int, default=16, help="calls at once")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each kind of call is made, per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="a part of the names of the lines to measure, such as 'read 4'")
    add_output_option(parser)
    given = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="bench-calls-", dir=given.directory) as directory:
        arguments = (theirs, CLUSTER, SHARD_UID, Path(directory), given.concurrency, given.seconds)
        owner = spawn.Process(target=own_process, args=arguments)
        owner.start()
        memory.tune()
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                lines = runner.run(measure(ours, given.concurrency, given.seconds, given.rounds, given.only))
            ours.send(None)
            owner.join(5.0)
        finally:
            owner.kill()
    output = Output("calls", given.results)
    print_table(output.console, lines)
    output.write({"lines": [{**asdict(line), "wire": line.wire} for line in lines]}, lambda figure: draw(figure, lines))


if __name__ == "__main__":
    main()
