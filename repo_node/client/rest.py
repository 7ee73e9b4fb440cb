"""A session with a cluster: one base URL, one set of credentials, errors as ``ClientError``."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from repo_node import __version__
from repo_node.client.errors import BadAnswer, ClientError, Refused, Unreachable
from repo_node.client.retry import OnWait, RetryPolicy, persist, read_retry_after

PIECE_BYTES = 1 << 20
ERROR_BYTES_MAX = 64 << 10
JSON_BYTES_MAX = 64 << 20
MESSAGE_CHARACTERS_MAX = 500
CONNECT_SECONDS_MAX = 10.0
SILENCE_SECONDS_MAX = 90.0
"""Longer than an upload's commit may wait for slow shards and for its outcome."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The value of the Authorization header, never shown, and where it came from, in words."""

    authorization: str = field(repr=False)
    source: str

    @classmethod
    def bearer(cls, token: str, source: str) -> Credentials:
        return cls(f"Bearer {token}", source)

    @classmethod
    def basic(cls, user: str, password: str, source: str) -> Credentials:
        return cls("Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii"), source)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A cluster (or one node of it) and the credentials for it."""

    url: str
    credentials: Credentials
    authority: ssl.SSLContext | None = None
    """Whom to believe who the cluster is; by default those whom the system believes."""

    @property
    def base(self) -> str:
        """The URL that every path follows; it ends in ``/artifactory``."""
        url = self.url.rstrip("/")
        return url if url.endswith("/artifactory") else f"{url}/artifactory"


class Patience:
    """Cuts an exchange on which nothing has moved for ``seconds``; ``renew`` says that something has."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> Patience:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._timeout.__aexit__(kind, error, trace)

    def renew(self) -> None:
        """Start the count of silent seconds anew."""
        if not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time() + self.seconds)


class Client:
    """Calls to one endpoint. An async context manager; bodies are never decompressed, redirects never followed."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        retry: RetryPolicy | None = None,
        connections_max: int = 4,
        on_wait: OnWait | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.retry = retry or RetryPolicy()
        self._on_wait = on_wait
        self._connections_max = connections_max
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections_max, ssl=self.endpoint.authority or True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS_MAX),
            headers={
                "Authorization": self.endpoint.credentials.authorization,
                "Accept-Encoding": "identity",
                "User-Agent": f"holdfast/{__version__}",
            },
            auto_decompress=False,
            read_bufsize=PIECE_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    def patience(self) -> Patience:
        """Return the patience of one exchange."""
        return Patience(SILENCE_SECONDS_MAX)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url_path: str,
        *,
        patience: Patience | None = None,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        expect100: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request and yield its good answer while the body can be read.

        ``url_path`` is percent-encoded and follows the base URL. Raises ``ClientError``, also for what
        breaks while the caller reads the body.
        """
        if self._session is None:
            raise RuntimeError("the client is used outside its context")
        url = URL(self.endpoint.base + url_path, encoded=True)
        try:
            async with (
                patience or self.patience(),
                self._session.request(
                    method, url, headers=headers, data=data, expect100=expect100, allow_redirects=False
                ) as response,
            ):
                if response.status >= 300:
                    raise await self._refusal(response)
                yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from error

    async def call(self, method: str, url_path: str, *, body: Any = None, idempotent: bool = True) -> Any:
        """Exchange JSON: send ``body`` where there is one, return the answer's (None for 204).

        Repeats what may succeed later; ``on_wait`` of the client hears of it. Raises ``ClientError``.
        """

        async def once(attempt: int) -> Any:
            headers = {} if body is None else {"Content-Type": "application/json"}
            data = None if body is None else json.dumps(body).encode()
            async with self.request(method, url_path, headers=headers, data=data) as response:
                return None if response.status == 204 else await self.read_json(response)

        return await persist(once, self.retry, idempotent=idempotent, on_wait=self._on_wait)

    async def read_json(self, response: aiohttp.ClientResponse) -> Any:
        """Return the answer's JSON body, of at most ``JSON_BYTES_MAX``. Raises ``BadAnswer``."""
        body = await read_bounded(response, JSON_BYTES_MAX + 1)
        try:
            if len(body) <= JSON_BYTES_MAX:
                return json.loads(body)
        except ValueError:
            pass
        raise BadAnswer(f"{self.endpoint.url} answered with something else than JSON; is it a Holdfast cluster?")

    async def _refusal(self, response: aiohttp.ClientResponse) -> ClientError:
        if response.status < 400:
            target = response.headers.get("Location", "another place")
            return BadAnswer(f"{self.endpoint.url} redirects to {target}; if you trust that, name it with --url")
        message = error_message(await read_bounded(response, ERROR_BYTES_MAX)) or response.reason or "refused"
        if response.status == 401:
            message = f"the credentials ({self.endpoint.credentials.source}) are not accepted: {message}"
        return Refused(
            response.status,
            message,
            request_id=response.headers.get("X-Request-Id"),
            retry_after_seconds=read_retry_after(response.headers.get("Retry-After")),
        )

    def _unreachable(self, error: Exception) -> Unreachable:
        where = f"{urlsplit(self.endpoint.url).scheme}://{urlsplit(self.endpoint.url).netloc}"
        match error:
            case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
                message = f"no trusted TLS connection to {where}: {error}; --ca-file can name your authority's file"
                return Unreachable(message, may_be_done=False, retryable=False)
            case aiohttp.ClientConnectorError():
                return Unreachable(f"{where} cannot be reached: {reason_of(error.os_error)}", may_be_done=False)
            case aiohttp.ConnectionTimeoutError():
                return Unreachable(f"{where} cannot be reached: no connection in time", may_be_done=False)
            case aiohttp.ClientPayloadError():
                return Unreachable(f"the connection to {where} broke before the whole answer had come")
            case TimeoutError():
                return Unreachable(f"nothing moved on the connection to {where} for {SILENCE_SECONDS_MAX:g} s")
            case _:
                return Unreachable(f"the connection to {where} broke: {error or type(error).__name__}")


def reason_of(error: OSError) -> str:
    """Return the reason in the system's words; asyncio's own repeat the address, and resolvers' numbers are below 0."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)


async def read_bounded(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """Return the first ``bytes_max`` bytes of the body, or all of a shorter one."""
    pieces: list[bytes] = []
    left = bytes_max
    while left > 0 and (piece := await response.content.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def error_message(body: bytes) -> str:
    """Return the server's words in an error body, or an empty text where there are none."""
    try:
        message = json.loads(body)["errors"][0]["message"]
    except (ValueError, LookupError, TypeError):
        return ""
    return str(message)[:MESSAGE_CHARACTERS_MAX]
