"""One user's requests through the load balancer, each of them in the ledger, and what no answer may be."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp

from tests.chaos.acts import Outcome
from tests.chaos.ledger import Ledger, Operation, Properties
from tests.chaos.places import ADMIN
from tests.cluster.ledger import GONE
from tests.cluster.processes import PASSWORD

ATTEMPTS_MAX = 2
RETRY_SECONDS = 0.5
REQUEST_SECONDS_MAX = 40.0
STALE_HEADER = "X-Holdfast-Stale"
"""On what a node knew so many seconds ago, while Postgres is away."""

STALE_MARGIN_SECONDS = 3.0
HOLDFAST_HEADER = "X-Request-Id"
"""Told from answers of the load balancer's own by what every answer of a node carries."""

SHA256_HEADER = "X-Checksum-Sha256"
NO_PROPERTIES = "No properties could be found"


@dataclass(frozen=True, slots=True)
class Request:
    """A write: what its answer may be when it was done, and when it was refused, as it has to be.

    404 to a further attempt says that the first one did it, where ``leaves_nothing``.
    """

    verb: str
    method: str
    url: str
    done: tuple[int, ...]
    refused: tuple[int, ...] = ()
    leaves_nothing: bool = False
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)


class Client:
    """One user, by their token or, without one, the administrator by their password."""

    def __init__(self, url: str, ledger: Ledger, token: str = "", *, name: str = ADMIN) -> None:
        self.url = url
        self.ledger = ledger
        self.name = name
        self.credentials = bearer(token) if token else aiohttp.encode_basic_auth(ADMIN, PASSWORD)
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Client:
        self._session = open_session(self.credentials)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    # ------------------------------------------------------------------ writes

    async def perform(self, operation: Operation, request: Request) -> Outcome:
        """Send a write, once more when it is not known what became of it, and end the operation."""
        outcome = Outcome.UNKNOWN
        for number in range(ATTEMPTS_MAX):
            if number:
                self.ledger.outcomes[f"{request.verb} retried"] += 1
                await asyncio.sleep(RETRY_SECONDS)
            outcome = await self.attempt(operation, request)
            if outcome is not Outcome.UNKNOWN:
                break
        operation.end(outcome, time.time())
        return outcome

    async def attempt(self, operation: Operation, request: Request) -> Outcome:
        """Send a write once."""
        identity = f"chaos-{uuid4().hex}"
        what = f"{request.verb} {request.url} ({identity})"
        act = operation.attempt(identity, time.time())
        headers = {"X-Request-Id": identity, **request.headers}
        outcome = Outcome.UNKNOWN
        try:
            async with self._session.request(
                request.method,
                f"{self.url}/artifactory/{request.url}",
                params=request.query,
                data=request.body,
                headers=headers,
            ) as response:
                text = await response.text()
                check_honesty(self.ledger, response, what)
                self.ledger.outcomes[f"{request.verb} {response.status}"] += 1
                if response.status in request.done:
                    outcome = Outcome.ACKNOWLEDGED
                elif response.status == 404 and request.leaves_nothing and operation.is_doubtful:
                    # It is not there, so it is as good as done; but this attempt has done nothing.
                    operation.note(act, Outcome.REFUSED, time.time())
                    return Outcome.ACKNOWLEDGED
                elif response.status in request.refused:
                    outcome = Outcome.REFUSED
                elif response.status not in (408, 429) and response.status < 500:
                    invariant = "I1" if response.status == 404 else "I14"
                    self.ledger.violate(invariant, f"{what} was answered with {response.status}: {text[:200]}")
        except GONE as error:
            self.ledger.outcomes[f"{request.verb} {type(error).__name__}"] += 1
        operation.note(act, outcome, time.time())
        return outcome

    # ------------------------------------------------------------------ reads

    async def read(
        self,
        path: str,
        url: str | None = None,
        *,
        method: str = "GET",
        refused: bool = False,
        counted: bool = True,
    ) -> tuple[int, str | None]:
        """Download and compare; return the status, 0 where the connection broke, and what was there.

        ``url`` is another way to the same path; by HEAD, the digest is what is told. ``refused``: this user may not
        read it.
        """
        identity = f"chaos-{uuid4().hex}"
        url = url or path
        moment = self.ledger.moment(path)
        what = f"{method} {url} ({identity})"
        outcome, found, status = "", None, 0
        try:
            headers = {"X-Request-Id": identity}
            async with self._session.request(method, f"{self.url}/artifactory/{url}", headers=headers) as response:
                body = await response.read()
                status = response.status
                check_honesty(self.ledger, response, what)
                outcome = f"get {status}"
                if status == 200:
                    found = sha256(body) if method == "GET" else response.headers.get(SHA256_HEADER)
                    check_advertised(self.ledger, response, found, what)
                if refused and status in (200, 404):
                    self.ledger.violate("I10", f"{what} by {self.name}, who may not read it, was answered: {status}")
                elif status in (200, 404):
                    self.ledger.saw(path, self._since(path, moment, response), found, what)
        except GONE as error:
            outcome, status = f"get {type(error).__name__}", 0
        if counted:
            self.ledger.outcomes[outcome] += 1
        return status, found

    async def read_properties(self, path: str, url: str) -> None:
        """Ask for the properties of what is at a path, and compare."""
        moment = self.ledger.moment(path)
        response = await self.ask("properties", f"api/storage/{url}", query={"properties": ""})
        if response is None or response.status not in (200, 404):
            return
        told = response.document.get("properties", {}) if response.status == 200 else {}
        found: Properties = frozenset((key, ",".join(values)) for key, values in told.items())
        if response.status == 404 and NO_PROPERTIES not in json.dumps(response.document):
            self.ledger.saw(path, self._since(path, moment, response), None, response.what)
        else:
            self.ledger.saw_properties(path, self._since(path, moment, response), found, response.what)

    async def ask(
        self, verb: str, url: str, *, query: Mapping[str, str] | None = None, body: str | None = None
    ) -> Answer | None:
        """Ask for a document and return the answer, None where there was none that can be read."""
        identity = f"chaos-{uuid4().hex}"
        what = f"{verb} {url} {dict(query or {}) or ''}{body or ''} by {self.name} ({identity})"
        method, headers = "GET" if body is None else "POST", {"X-Request-Id": identity}
        try:
            async with self._session.request(
                method, f"{self.url}/artifactory/{url}", params=query, data=body, headers=headers
            ) as response:
                text = await response.text()
                check_honesty(self.ledger, response, what)
                self.ledger.outcomes[f"{verb} {response.status}"] += 1
                answer = Answer(response.status, what, {}, response.headers)
                if response.status in (200, 404) and text:
                    answer.document = json.loads(text)
                elif response.status not in (404, 408, 429) and response.status < 500:
                    self.ledger.violate("I14", f"{what} was answered with {response.status}: {text[:200]}")
                return answer
        except ValueError:
            self.ledger.violate("I2", f"{what} ended well, and is not whole")
        except GONE as error:
            self.ledger.outcomes[f"{verb} {type(error).__name__}"] += 1
        return None

    def _since(self, path: str, moment: int, response: aiohttp.ClientResponse | Answer) -> int:
        """Return since when what was told may be true: what owns to be old, may be as old as it says."""
        if STALE_HEADER not in response.headers:
            return moment
        self.ledger.outcomes["get stale"] += 1
        age_seconds = float(response.headers[STALE_HEADER]) + STALE_MARGIN_SECONDS
        return min(moment, self.ledger.moment_at(path, time.time() - age_seconds))


@dataclass(slots=True)
class Answer:
    status: int
    what: str
    document: Any
    headers: Mapping[str, str]


def open_session(credentials: str | None = None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers={"Authorization": credentials or aiohttp.encode_basic_auth(ADMIN, PASSWORD)},
        timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS_MAX, sock_connect=5),
        # Over a connection that it has used before, aiohttp sends a request again without telling anybody.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
    )


def bearer(token: str) -> str:
    return f"Bearer {token}"


def check_honesty(ledger: Ledger, response: aiohttp.ClientResponse, what: str) -> None:
    """503 says when to come again, and a node never answers that it failed in an unexpected way."""
    if HOLDFAST_HEADER not in response.headers:
        return
    if response.status == 503 and "Retry-After" not in response.headers:
        ledger.violate("I14", f"{what} was answered with 503 without Retry-After")
    if response.status == 500:
        ledger.violate("I14", f"{what} was answered with 500")


def check_advertised(ledger: Ledger, response: aiohttp.ClientResponse, found: str, what: str) -> None:
    advertised = response.headers.get(SHA256_HEADER)
    if advertised != found:
        ledger.violate("I2", f"{what} advertised {advertised} and brought {found}")


async def send_part(url: str, path: str, body: bytes, count: int, identity: str) -> None:
    """Begin a PUT of ``body`` and leave after ``count`` bytes of it."""
    parts = urlsplit(url)
    credentials = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
    head = (
        f"PUT /artifactory/{path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Basic {credentials}\r\n"
        f"X-Request-Id: {identity}\r\nContent-Length: {len(body)}\r\n\r\n"
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
