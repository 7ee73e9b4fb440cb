"""A client that keeps books: what was acknowledged, and whether it can be read back byte for byte."""

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.cluster.processes import PASSWORD

RETRYABLE = (408, 429, 500, 502, 503, 504)
SIZES = (100, 5_000, 200_000, 3_000_000)
GONE = (aiohttp.ClientError, TimeoutError, OSError)


@dataclass
class Ledger:
    """Every acknowledged upload by path with its sha256, what was deleted since, and what went wrong otherwise."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    failures: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    reads: int = 0


class LedgerClient:
    """Uploads and downloads against one or several base URLs; each request is retried once elsewhere."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        seed: int = 1,
        retries: int = 1,
        timeout_seconds: float = 30,
        folder: str = "load",
        keep_alive: bool = False,
        authority: Path | None = None,
    ) -> None:
        self.ledger = Ledger()
        self.urls = list(urls)
        self._folder = folder
        self._random = random.Random(seed)
        self._retries = retries
        self._keep_alive = keep_alive
        self._tls = ssl.create_default_context(cafile=authority) if authority else True
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=3)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> LedgerClient:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": aiohttp.encode_basic_auth("admin", PASSWORD)},
            timeout=self._timeout,
            connector=aiohttp.TCPConnector(limit=0, force_close=not self._keep_alive, ssl=self._tls),
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def put(self, path: str, body: bytes) -> bool:
        """Upload; True when it was acknowledged, at once or at the retry."""
        digest = hashlib.sha256(body).hexdigest()
        headers = {"X-Checksum-Sha256": digest}

        async def attempt(session: aiohttp.ClientSession, url: str) -> bool:
            async with session.put(f"{url}/artifactory/{path}", data=body, headers=headers) as response:
                await response.read()
                self._note(f"put {response.status}", response.status == 201)
                return response.status == 201

        self.ledger.deleted.discard(path)
        if await self._try(attempt, "put"):
            self.ledger.acknowledged[path] = digest
            return True
        return False

    async def delete(self, path: str) -> bool:
        """Delete an artifact; True when that was acknowledged, at once or at the retry."""

        async def attempt(session: aiohttp.ClientSession, url: str) -> bool:
            async with session.delete(f"{url}/artifactory/{path}") as response:
                await response.read()
                self._note(f"delete {response.status}", response.status == 204)
                return response.status == 204

        del self.ledger.acknowledged[path]
        if await self._try(attempt, "delete"):
            self.ledger.deleted.add(path)
            return True
        return False

    async def is_absent(self, path: str) -> bool:
        """Say whether a node answers that there is nothing at ``path``."""
        assert self._session is not None
        async with self._session.get(f"{self._random.choice(self.urls)}/artifactory/{path}") as response:
            return response.status == 404

    async def get(self, path: str) -> bool:
        """Download an acknowledged artifact and compare; True when it came, right, at once or at the retry."""

        async def attempt(session: aiohttp.ClientSession, url: str) -> bool:
            async with session.get(f"{url}/artifactory/{path}") as response:
                body = await response.read()
                self._note(f"get {response.status}", response.status == 200)
                if response.status == 404:
                    self.ledger.wrong.append(f"{path}: 404")
                if response.status != 200:
                    return False
                if hashlib.sha256(body).hexdigest() != self.ledger.acknowledged[path]:
                    self.ledger.wrong.append(f"{path}: wrong bytes")
                return True

        self.ledger.reads += 1
        return await self._try(attempt, "get")

    def _note(self, outcome: str, is_success: bool) -> None:
        if not is_success:
            self.ledger.failures[outcome] += 1

    async def _try(self, attempt: Callable[[aiohttp.ClientSession, str], Awaitable[bool]], verb: str) -> bool:
        assert self._session is not None
        for number in range(self._retries + 1):
            try:
                if await attempt(self._session, self._random.choice(self.urls)):
                    return True
            except GONE as error:
                self.ledger.failures[f"{verb} {type(error).__name__}"] += 1
            if number < self._retries:
                await asyncio.sleep(0.3)
        return False

    async def mixed_load(
        self, stop: asyncio.Event, *, workers: int = 8, sizes: Sequence[int] = SIZES, pause_seconds: float = 0
    ) -> None:
        """Upload new artifacts and read acknowledged ones until ``stop`` is set."""

        async def work(number: int) -> None:
            count = 0
            while not stop.is_set():
                count += 1
                body = self._random.randbytes(self._random.choice(sizes))
                await self.put(f"generic-local/{self._folder}/{number}/{count}", body)
                if self.ledger.acknowledged:
                    await self.get(self._random.choice(list(self.ledger.acknowledged)))
                await asyncio.sleep(pause_seconds)

        await asyncio.gather(*(work(number) for number in range(workers)))

    async def verify(self) -> None:
        """Read everything acknowledged; what cannot be read, is wrong, or came back, is listed in the ledger."""
        limit = asyncio.Semaphore(16)

        async def check(path: str) -> None:
            async with limit:
                if not await self.get(path):
                    self.ledger.wrong.append(f"{path}: lost")

        async def check_absent(path: str) -> None:
            async with limit:
                if not await self.is_absent(path):
                    self.ledger.wrong.append(f"{path}: came back")

        await asyncio.gather(*map(check, list(self.ledger.acknowledged)), *map(check_absent, list(self.ledger.deleted)))


async def under_load(client: LedgerClient, during: Callable[[], Awaitable[None]], *, workers: int = 8) -> None:
    """Run ``during`` while the client loads the cluster."""
    stop = asyncio.Event()
    load = asyncio.create_task(client.mixed_load(stop, workers=workers))
    try:
        await during()
    finally:
        stop.set()
        with suppress(asyncio.CancelledError):
            await load
