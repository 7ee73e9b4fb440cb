"""The load generator: processes of their own, so that their CPU time is not the cluster's.

Each remembers what it uploaded with its digest, downloads that again, and verifies every byte.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from urllib.parse import urlsplit

import xxhash

from benchmarks.cells import Cell, Operation
from benchmarks.connection import Connection, ConnectionBroken
from benchmarks.content import Content

REQUEST_SECONDS_MAX = 300.0
PAUSE_AFTER_ERROR_SECONDS = 0.1
MESSAGE_CHARACTERS_MAX = 120
ROOT = "/artifactory/generic-local/bench"
PING = "/artifactory/api/system/ping"
WORKING_SET_BYTES = 1 << 30
WORKING_SET_OBJECTS_MAX = 1000
FILL_CONCURRENCY = 8


class Wrong(Exception):
    """An answer that is not what it should be."""


class LoadFailed(Exception):
    """The load could not be made."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the load goes and how it proves who it is."""

    url: str
    authorization: str


@dataclass(frozen=True, slots=True)
class Stored:
    """An object that was uploaded."""

    path: str
    size: int
    digest: bytes


@dataclass(slots=True)
class Outcome:
    """What a cell brought; times are those of ``time.monotonic``."""

    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    began: float = 0.0
    ended: float = 0.0
    cpu_seconds: float = 0.0


class Generator:
    """The part of the load that one process of ``processes`` makes."""

    def __init__(self, number: int, processes: int, target: Target) -> None:
        parts = urlsplit(target.url)
        self._address = parts.hostname or "127.0.0.1", parts.port or 80
        self._authorization = target.authorization
        self._root = f"{ROOT}/{number}"
        self._content = Content()
        self._count = 0
        self._processes = processes
        self._stored: dict[int, deque[Stored]] = {}
        self._turn: Iterator[Stored] = iter(())

    async def run(self, cell: Cell, seconds: float) -> Outcome:
        """Begin operations for ``seconds`` and finish those that have begun, at least one by every client."""
        outcome = Outcome(began=time.monotonic())
        cpu = time.process_time()
        deadline = outcome.began + seconds
        await asyncio.gather(*(self._client(cell, deadline, outcome) for _ in range(cell.concurrency)))
        outcome.ended = time.monotonic()
        outcome.cpu_seconds = time.process_time() - cpu
        return outcome

    async def fill(self, cell: Cell) -> Outcome:
        """Upload what a download cell needs and no upload cell has left behind."""
        outcome = Outcome()
        stored = self._stored_of(cell.size)
        assert stored.maxlen is not None
        missing = iter(range(stored.maxlen - len(stored)))

        async def work() -> None:
            async with self._connect() as connection:
                for _ in missing:
                    await self._put(connection, cell.size)

        await asyncio.gather(*(work() for _ in range(FILL_CONCURRENCY)))
        return outcome

    async def _client(self, cell: Cell, deadline: float, outcome: Outcome) -> None:
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(self._connect())
            while True:
                began = time.monotonic()
                try:
                    async with asyncio.timeout(REQUEST_SECONDS_MAX):
                        await self._operate(connection, cell)
                    outcome.latencies.append(time.monotonic() - began)
                except (Wrong, ConnectionBroken, OSError, TimeoutError) as error:
                    outcome.errors[f"{type(error).__name__}: {error}"[:MESSAGE_CHARACTERS_MAX]] += 1
                    await asyncio.sleep(PAUSE_AFTER_ERROR_SECONDS)
                    await stack.aclose()
                    with suppress(OSError):
                        connection = await stack.enter_async_context(self._connect())
                if time.monotonic() >= deadline:
                    return

    def _connect(self) -> Connection:
        return Connection(*self._address, self._authorization)

    async def _operate(self, connection: Connection, cell: Cell) -> None:
        if cell.operation is Operation.PUT:
            await self._put(connection, cell.size)
        else:
            await self._get(connection, self._next(cell.size))

    async def _put(self, connection: Connection, size: int) -> None:
        self._count += 1
        path = f"{self._root}/{self._count // 1000:03}/{self._count:06}.bin"
        digest = xxhash.xxh3_128()

        def blocks() -> Iterator[bytes]:
            for block in self._content.blocks(size):
                digest.update(block)
                yield block

        status = await connection.put(path, size, blocks())
        if status != 201:
            raise Wrong(f"PUT answered {status}")
        self._stored_of(size).append(Stored(path, size, digest.digest()))

    async def _get(self, connection: Connection, stored: Stored) -> None:
        digest = xxhash.xxh3_128()
        status = await connection.get(stored.path, digest.update)
        if status != 200:
            raise Wrong(f"GET answered {status}")
        if digest.digest() != stored.digest:
            raise Wrong("GET brought other bytes than were uploaded")

    def _next(self, size: int) -> Stored:
        """Return the next object to download: the working set of this size in random order, then again."""
        stored = next(self._turn, None)
        if stored is None or stored.size != size:
            self._turn = iter(random.sample(self._stored_of(size), len(self._stored_of(size))))
            stored = next(self._turn)
        return stored

    def _stored_of(self, size: int) -> deque[Stored]:
        """Return the latest uploads of one size, this process's share of the working set."""
        if size not in self._stored:
            objects = min(WORKING_SET_BYTES // size, WORKING_SET_OBJECTS_MAX) // self._processes
            self._stored[size] = deque(maxlen=max(objects, 1))
        return self._stored[size]


def serve(number: int, processes: int, target: Target, pipe: Pipe) -> None:
    """Run what comes through ``pipe``, (cell, seconds) or (cell, None) to fill, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    generator = Generator(number, processes, target)
    with suppress(EOFError, OSError), asyncio.Runner() as runner:
        while True:
            cell, seconds = pipe.recv()
            work = generator.fill(cell) if seconds is None else generator.run(cell, seconds)
            try:
                answer: Outcome | LoadFailed = runner.run(work)
            except (Wrong, ConnectionBroken, OSError) as error:
                answer = LoadFailed(f"{cell}: {type(error).__name__}: {error}")
            pipe.send(answer)


class Load:
    """All generators together. Made by ``open_load``."""

    def __init__(self, pipes: Sequence[Pipe]) -> None:
        self._pipes = pipes

    def run(self, cell: Cell, seconds: float) -> Outcome:
        """Run one cell. Raises ``LoadFailed``."""
        whole, extra = divmod(cell.concurrency, len(self._pipes))
        shares = [whole + (number < extra) for number in range(len(self._pipes))]
        return self._ask([(Cell(cell.operation, cell.size, share), seconds) for share in shares if share])

    def fill(self, cell: Cell) -> None:
        """Make the objects that a download cell wants. Raises ``LoadFailed``."""
        self._ask([(cell, None)] * min(cell.concurrency, len(self._pipes)))

    def _ask(self, orders: Sequence[tuple[Cell, float | None]]) -> Outcome:
        try:
            for pipe, order in zip(self._pipes, orders, strict=False):
                pipe.send(order)
            answers = [pipe.recv() for pipe, _ in zip(self._pipes, orders, strict=False)]
        except (EOFError, OSError) as error:
            raise LoadFailed("a process of the load generator has ended") from error
        for answer in answers:
            if isinstance(answer, LoadFailed):
                raise answer
        return merge(answers)


def merge(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome of several processes as one."""
    return Outcome(
        latencies=sorted(latency for outcome in outcomes for latency in outcome.latencies),
        errors=sum((outcome.errors for outcome in outcomes), Counter()),
        began=min(outcome.began for outcome in outcomes),
        ended=max(outcome.ended for outcome in outcomes),
        cpu_seconds=sum(outcome.cpu_seconds for outcome in outcomes),
    )


@contextmanager
def open_load(target: Target, processes: int) -> Iterator[Load]:
    """Start the generators; they end with the block."""
    context = multiprocessing.get_context("spawn")
    pipes, children = [], []
    try:
        for number in range(processes):
            ours, theirs = context.Pipe()
            child = context.Process(target=serve, args=(number, processes, target, theirs), daemon=True)
            child.start()
            theirs.close()
            pipes.append(ours)
            children.append(child)
        yield Load(pipes)
    finally:
        for pipe in pipes:
            pipe.close()
        for child in children:
            child.join(5)
            child.kill()
