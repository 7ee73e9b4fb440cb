"""One process of the load: it remembers what was stored with its digest, asks for it again, and verifies every byte."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import xxhash

from benchmarks.cells import SMALL_BYTES_MAX, Cell, Operation, Way
from benchmarks.connection import Connection, ConnectionBroken
from benchmarks.content import Content
from benchmarks.dialects import HOLDFAST, HOLDFAST_SHA256, Dialect, Wrong, expect

REQUEST_SECONDS_MAX = 300.0
PAUSE_AFTER_ERROR_SECONDS = 0.1
MESSAGE_CHARACTERS_MAX = 120
REMEMBERED_MAX = 1000
HOT_OBJECTS = 500
FAULTS = (Wrong, ConnectionBroken, OSError, TimeoutError)


class NothingLeft(Exception):
    """Everything that was there to be deleted is."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the load goes: an address that any node answers, those of the single nodes, and how to speak to them."""

    url: str
    authorization: str
    node_urls: tuple[str, ...] = ()
    dialect: Dialect = HOLDFAST


@dataclass(frozen=True, slots=True)
class Stored:
    """An object that is there; ``nodes`` are those with a copy, by their index, where that is known."""

    path: str
    size: int
    digest: bytes
    sha256: str = ""
    nodes: tuple[int, ...] = ()


@dataclass(slots=True)
class Outcome:
    """What a cell brought; times are those of ``time.monotonic``."""

    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    began: float = 0.0
    ended: float = 0.0
    cpu_seconds: float = 0.0


def arrivals(rate: float, seconds: float) -> Iterator[float]:
    """Yield the times at which independent clients would come, ``rate`` of them in a second."""
    at = random.expovariate(rate)
    while at < seconds:
        yield at
        at += random.expovariate(rate)


class Generator:
    """The part of the load that one process makes, the ``number``th."""

    def __init__(self, number: int, processes: int, target: Target) -> None:
        self._front = address_of(target.url)
        self._nodes = [address_of(url) for url in target.node_urls]
        self._authorization = target.authorization
        self._dialect = target.dialect
        self._content = Content()
        # Other loads may be made beside this one, and must not overwrite what it stores.
        self._root = f"{os.urandom(4).hex()}/{number}"
        self._processes = processes
        self._count = 0
        self._stored: dict[int, deque[Stored]] = defaultdict(lambda: deque(maxlen=REMEMBERED_MAX // processes))
        self._turns: dict[object, Iterator[Stored]] = {}

    def adopt(self, stored: Sequence[Stored]) -> Outcome:
        """From now on ask for ``stored`` instead of what was stored before in these sizes."""
        self._turns.clear()
        for size in {one.size for one in stored}:
            chosen = [one for one in stored if one.size == size]
            self._stored[size] = deque(chosen, maxlen=len(chosen))
        return Outcome()

    async def run(self, cell: Cell, seconds: float, rate: float | None = None) -> Outcome:
        """Begin operations for ``seconds``, with ``rate`` at times of their own, and finish those that have begun."""
        outcome = Outcome(began=time.monotonic())
        cpu = time.process_time()
        if rate is None:
            deadline = outcome.began + seconds
            await asyncio.gather(*(self._client(cell, n, deadline, outcome) for n in range(cell.concurrency)))
        else:
            await self._open_loop(cell, seconds, rate, outcome)
        outcome.ended = time.monotonic()
        outcome.cpu_seconds = time.process_time() - cpu
        return outcome

    async def _client(self, cell: Cell, number: int, deadline: float, outcome: Outcome) -> None:
        """Send one request after another until ``deadline``, but at least one where there is anything to ask for."""
        async with AsyncExitStack() as stack:
            client = await self._enter(stack, cell, number)
            while True:
                try:
                    is_done = await self._measure(client, time.monotonic(), outcome)
                except NothingLeft:
                    return
                if not is_done:
                    await asyncio.sleep(PAUSE_AFTER_ERROR_SECONDS)
                    await stack.aclose()
                    with suppress(OSError):
                        client = await self._enter(stack, cell, number)
                if time.monotonic() >= deadline:
                    return

    async def _open_loop(self, cell: Cell, seconds: float, rate: float, outcome: Outcome) -> None:
        """Let requests arrive at ``rate``. Each counts from its arrival on, whether a connection was free or not."""
        due: asyncio.Queue[float | None] = asyncio.Queue()

        async def serve(number: int) -> None:
            async with AsyncExitStack() as stack:
                client = await self._enter(stack, cell, number)
                while (arrived := await due.get()) is not None:
                    if not await self._measure(client, arrived, outcome):
                        await stack.aclose()
                        client = await self._enter(stack, cell, number)

        servers = [asyncio.ensure_future(serve(number)) for number in range(cell.concurrency)]
        began = time.monotonic()
        for at in arrivals(rate, seconds):
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            due.put_nowait(began + at)
        for _ in servers:
            due.put_nowait(None)
        await asyncio.gather(*servers)

    async def _enter(self, stack: AsyncExitStack, cell: Cell, number: int) -> Callable[[], Awaitable[None]]:
        """Return what sends the next request of client ``number``, over a new connection."""
        node = None
        if cell.way is Way.ONE:
            node = 0
        elif cell.way in (Way.OWN, Way.PEER):
            node = number % len(self._nodes)
        address = self._front if node is None else self._nodes[node]
        connection = await stack.enter_async_context(Connection(*address, self._authorization))
        return lambda: self._operate(connection, cell, node)

    async def _measure(self, client: Callable[[], Awaitable[None]], began: float, outcome: Outcome) -> bool:
        try:
            async with asyncio.timeout(REQUEST_SECONDS_MAX):
                await client()
        except FAULTS as error:
            outcome.errors[f"{type(error).__name__}: {error}"[:MESSAGE_CHARACTERS_MAX]] += 1
            return False
        outcome.latencies.append(time.monotonic() - began)
        return True

    # ------------------------------------------------------------------ the operations

    async def _operate(self, connection: Connection, cell: Cell, node: int | None) -> None:
        match cell.operation:
            case Operation.PUT:
                await self._put(connection, cell.size, self._dialect)
            case Operation.PUT_SHA256:
                await self._put(connection, cell.size, HOLDFAST_SHA256)
            case Operation.GET:
                await self._get(connection, self._next(cell, node))
            case Operation.HEAD:
                stored = self._next(cell, node)
                if expect(await connection.ask("HEAD", stored.path), 200).length != stored.size:
                    raise Wrong("HEAD told another length than was uploaded")
            case Operation.NOT_MODIFIED:
                stored = self._next(cell, node)
                known = f'If-None-Match: "{stored.sha256}"\r\n'
                expect(await connection.ask("GET", stored.path, headers=known), 304)
            case Operation.CHECKSUM:
                known = f"X-Checksum-Deploy: true\r\nX-Checksum-Sha256: {self._next(cell, node).sha256}\r\n"
                expect(await connection.send("PUT", f"{HOLDFAST.root}/{self._name()}", 0, (), known), 201)
            case Operation.DELETE:
                if not (stored_here := self._stored[cell.size]):
                    raise NothingLeft
                expect(await connection.ask("DELETE", stored_here.pop().path), 204)

    def _name(self) -> str:
        """Return a path that nothing is stored at."""
        self._count += 1
        return f"{self._root}/{self._count // 1000:03}/{self._count:06}.bin"

    async def _put(self, connection: Connection, size: int, dialect: Dialect) -> None:
        digest = xxhash.xxh3_128()
        sha256 = hashlib.sha256() if size <= SMALL_BYTES_MAX else None

        def blocks() -> Iterator[bytes]:
            for block in self._content.blocks(size):
                digest.update(block)
                if sha256 is not None:
                    sha256.update(block)
                yield block

        path = await dialect.put(connection, self._name(), size, blocks())
        stored = Stored(path, size, digest.digest(), sha256.hexdigest() if sha256 else "")
        self._stored[size].append(stored)

    async def _get(self, connection: Connection, stored: Stored) -> None:
        digest = xxhash.xxh3_128()
        expect(await connection.ask("GET", stored.path, digest.update), 200)
        if digest.digest() != stored.digest:
            raise Wrong("GET brought other bytes than were uploaded")

    def _next(self, cell: Cell, node: int | None) -> Stored:
        """Return the next object to ask for: those of the cell's way in random order, then again."""
        key = (cell.size, cell.way, node)
        stored = next(self._turns.get(key, iter(())), None)
        if stored is None:
            known = self._chosen(cell, node)
            if not known:
                raise Wrong(f"nothing is stored for {cell}")
            self._turns[key] = iter(random.sample(known, len(known)))
            stored = next(self._turns[key])
        return stored

    def _chosen(self, cell: Cell, node: int | None) -> list[Stored]:
        known = list(self._stored[cell.size])
        match cell.way:
            case Way.HOT:
                return known[: max(1, HOT_OBJECTS // self._processes)]
            case Way.OWN:
                return [one for one in known if node in one.nodes]
            case Way.PEER:
                return [one for one in known if one.nodes and node not in one.nodes]
        return known


def address_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80
