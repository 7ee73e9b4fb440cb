"""The clients: uploads, overwrites, deletions and reads through the load balancer, each of them in the ledger.

A request that fails is tried once more, as a client would. Some clients are odd: they send a PUT twice at once, or
leave in the middle of a body.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import time
from collections.abc import Callable
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp

from tests.chaos.ledger import Ledger, Operation, Outcome, Version
from tests.cluster.ledger import GONE
from tests.cluster.processes import PASSWORD

SIZES = (100, 4_000, 90_000, 1_300_000)
SIZE_WEIGHTS = (6, 6, 4, 1)
SHARED_BODIES = 16
LIVE_PATHS_MAX = 40
ATTEMPTS_MAX = 2
RETRY_SECONDS = 0.5
REQUEST_SECONDS_MAX = 40.0
DONE = {"put": (201,), "delete": (204,)}
STALE_HEADER = "X-Holdfast-Stale"
"""On what a node knew so many seconds ago, while Postgres is away."""

STALE_MARGIN_SECONDS = 3.0
HOLDFAST_HEADER = "X-Request-Id"
"""Told from answers of the load balancer's own by what every answer of a node carries."""


class Load:
    """Some workers, each with paths of its own, against one URL."""

    def __init__(self, url: str, ledger: Ledger, seed: int, *, workers: int, pause_seconds: float) -> None:
        self.url = url
        self.ledger = ledger
        self.paused = asyncio.Event()
        self._workers = [Worker(self, number, seed, pause_seconds) for number in range(workers)]
        self.shared = [random.Random(f"{seed}/{number}").randbytes(20_000 + number) for number in range(SHARED_BODIES)]
        self.session: aiohttp.ClientSession

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set."""
        async with open_session() as self.session:
            await asyncio.gather(*(worker.run(stop) for worker in self._workers))


def open_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers={"Authorization": aiohttp.encode_basic_auth("admin", PASSWORD)},
        timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS_MAX, sock_connect=5),
        # Over a connection that it has used before, aiohttp sends a request again without telling anybody.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
    )


class Worker:
    """One client."""

    def __init__(self, load: Load, number: int, seed: int, pause_seconds: float) -> None:
        self._load = load
        self._ledger = load.ledger
        self._folder = f"generic-local/worker-{number}"
        self._random = random.Random(f"{seed}/worker/{number}")
        self._pause_seconds = pause_seconds
        self._count = 0
        self._paths: list[str] = []

    async def run(self, stop: asyncio.Event) -> None:
        deeds: list[Callable[[], object]] = [self._put_new, self._overwrite, self._delete, self._read]
        deeds += [self._put_twice, self._leave]
        while not stop.is_set():
            crowded = len(self._paths) >= LIVE_PATHS_MAX
            [deed] = self._random.choices(deeds, (0 if crowded else 6, 2, 9 if crowded else 3, 8, 1, 1))
            result = deed()
            assert asyncio.iscoroutine(result)
            await result
            await asyncio.sleep(self._pause_seconds * self._random.uniform(0.5, 1.5))

    # ------------------------------------------------------------------ what a client does

    async def _put_new(self) -> None:
        await self._put(self._new_path(), self._body())

    async def _overwrite(self) -> None:
        if path := self._writable():
            await self._put(path, self._body())

    async def _put(self, path: str, body: bytes) -> None:
        operation = self._ledger.begin(path, "put", sha256(body), time.time())
        operation.end(await self._attempts(operation, "put", path, body), time.time())

    async def _delete(self) -> None:
        if path := self._writable():
            operation = self._ledger.begin(path, "delete", None, time.time())
            operation.end(await self._attempts(operation, "delete", path, None), time.time())
            self._paths.remove(path)

    async def _put_twice(self) -> None:
        """As a proxy may deliver it."""
        path, body = self._new_path(), self._body()
        operation = self._ledger.begin(path, "put", sha256(body), time.time())
        outcomes = await asyncio.gather(*(self._attempt(operation, "put", path, body) for _ in range(2)))
        is_done = Outcome.ACKNOWLEDGED in outcomes
        operation.end(Outcome.ACKNOWLEDGED if is_done else Outcome.UNKNOWN, time.time())

    async def _leave(self) -> None:
        """Leave before the last byte of a body: nothing may come of it."""
        path = self._writable() or self._new_path()
        body = self._random.randbytes(self._random.choice(SIZES))
        operation = self._ledger.begin(path, "put", sha256(body), time.time())
        try:
            await send_part(self._load.url, path, body, self._random.randrange(len(body)))
        except GONE:
            self._ledger.outcomes["put unsent"] += 1
        operation.note(Outcome.REFUSED)
        operation.end(Outcome.REFUSED, time.time())

    async def _read(self) -> None:
        """Read anything, but mostly what is there."""
        live = [path for path, _ in self._ledger.live()] if self._random.random() < 0.8 else []
        if paths := live or [*self._ledger.paths]:
            await read(self._load.session, self._load.url, self._ledger, self._random.choice(paths))

    # ------------------------------------------------------------------ attempts

    async def _attempts(self, operation: Operation, verb: str, path: str, body: bytes | None) -> Outcome:
        outcome = Outcome.UNKNOWN
        for number in range(ATTEMPTS_MAX):
            if number:
                self._ledger.outcomes[f"{verb} retried"] += 1
                await asyncio.sleep(RETRY_SECONDS)
            outcome = await self._attempt(operation, verb, path, body)
            if outcome is not Outcome.UNKNOWN:
                return outcome
        return outcome

    async def _attempt(self, operation: Operation, verb: str, path: str, body: bytes | None) -> Outcome:
        identity = f"chaos-{uuid4().hex}"
        headers = {"X-Request-Id": identity} | ({} if body is None else {"X-Checksum-Sha256": sha256(body)})
        url = f"{self._load.url}/artifactory/{path}"
        moment = self._ledger.moment(path)
        outcome, is_counted = Outcome.UNKNOWN, True
        try:
            async with self._load.session.request(verb.upper(), url, data=body, headers=headers) as response:
                await response.read()
                check_honesty(self._ledger, response, f"{verb} {path} ({identity})")
                if response.status in DONE[verb]:
                    outcome = Outcome.ACKNOWLEDGED
                elif verb == "delete" and response.status == 404:
                    # It is not there, so it is as good as deleted; but then it must have been possible that it is not.
                    self._ledger.saw(path, moment, None, f"DELETE ({identity})")
                    outcome, is_counted = Outcome.ACKNOWLEDGED, False
                elif response.status not in (408, 429) and response.status < 500:
                    self._ledger.violate("I14", f"{verb} {path} ({identity}) was answered with {response.status}")
                self._ledger.outcomes[f"{verb} {response.status}"] += 1
        except GONE as error:
            self._ledger.outcomes[f"{verb} {type(error).__name__}"] += 1
        if is_counted:
            operation.note(outcome)
        return outcome

    # ------------------------------------------------------------------ choices

    def _new_path(self) -> str:
        self._count += 1
        path = f"{self._folder}/{self._count % 8}/{self._count}.bin"
        self._paths.append(path)
        return path

    def _writable(self) -> str | None:
        """Return a path of this worker's that may be written."""
        paths = self._ledger.paths
        self._paths = [path for path in self._paths if path in paths and not paths[path].retired]
        return self._random.choice(self._paths) if self._paths else None

    def _body(self) -> bytes:
        if self._random.random() < 0.35:
            return self._random.choice(self._load.shared)
        return self._random.randbytes(self._random.choices(SIZES, SIZE_WEIGHTS)[0])


async def read(
    session: aiohttp.ClientSession, url: str, ledger: Ledger, path: str, *, counted: bool = True
) -> tuple[int, Version]:
    """Download and compare; return the status, 0 where the connection broke, and what was there."""
    identity = f"chaos-{uuid4().hex}"
    moment = ledger.moment(path)
    outcome, found, status = "", None, 0
    try:
        headers = {"X-Request-Id": identity}
        async with session.get(f"{url}/artifactory/{path}", headers=headers) as response:
            body = await response.read()
            status = response.status
            check_honesty(ledger, response, f"GET {path} ({identity})")
            outcome = f"get {status}"
            if status == 200:
                found = sha256(body)
                check_advertised(ledger, response, found, f"GET {path} ({identity})")
            if status in (200, 404):
                if STALE_HEADER in response.headers:
                    age_seconds = float(response.headers[STALE_HEADER]) + STALE_MARGIN_SECONDS
                    moment = min(moment, ledger.moment_at(path, time.time() - age_seconds))
                    ledger.outcomes["get stale"] += 1
                ledger.saw(path, moment, found, f"GET ({identity})")
    except GONE as error:
        outcome, status = f"get {type(error).__name__}", 0
    if counted:
        ledger.outcomes[outcome] += 1
    return status, found


def check_honesty(ledger: Ledger, response: aiohttp.ClientResponse, what: str) -> None:
    """503 says when to come again, and a node never answers that it failed in an unexpected way."""
    if HOLDFAST_HEADER not in response.headers:
        return
    if response.status == 503 and "Retry-After" not in response.headers:
        ledger.violate("I14", f"{what} was answered with 503 without Retry-After")
    if response.status == 500:
        ledger.violate("I14", f"{what} was answered with 500")


def check_advertised(ledger: Ledger, response: aiohttp.ClientResponse, found: str, what: str) -> None:
    advertised = response.headers.get("X-Checksum-Sha256")
    if advertised != found:
        ledger.violate("I2", f"{what} advertised {advertised} and brought {found}")


async def send_part(url: str, path: str, body: bytes, count: int) -> None:
    """Begin a PUT of ``body`` and leave after ``count`` bytes of it."""
    parts = urlsplit(url)
    credentials = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
    head = (
        f"PUT /artifactory/{path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Basic {credentials}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    async with asyncio.timeout(REQUEST_SECONDS_MAX):
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            writer.write(head.encode() + body[:count])
            await writer.drain()
        finally:
            writer.close()


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
