"""HTTP as clients speak it: a plain client that changes nothing of what it is given, and a raw socket."""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.canaries import WATCH

TIMEOUT_SECONDS = 30.0
LOOKED_AT_BYTES_MAX = 1 << 16
SHOWN_ONCE = re.compile(r"/(tokens?|apiKey)$")
"""Routes that make a token and answer with it."""


@dataclass(frozen=True)
class Answer:
    """A whole answer; ``headers`` are looked up whatever their case."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def head(self) -> dict[str, str]:
        """Return the headers without those that differ from answer to answer."""
        return {name: value for name, value in self.headers.items() if name not in ("Date", "X-Request-Id")}


@dataclass(frozen=True)
class Client:
    """Sends one request a connection to one address."""

    host: str
    port: int
    authorization: str | None = None

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request, an iterable body in chunks. Raises ``http.client.IncompleteRead`` when the answer is cut."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_SECONDS)
        sent = {"Authorization": self.authorization} if self.authorization else {}
        try:
            connection.request(method, path, body, {**sent, **(headers or {})})
            response = connection.getresponse()
            answer = Answer(response.status, response.msg, response.read())
            look_for_secrets(method, path, answer)
            return answer
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        """GET with headers whose names have underscores for dashes."""
        return self.request("GET", path, headers=named(headers))

    def head(self, path: str, **headers: str) -> Answer:
        return self.request("HEAD", path, headers=named(headers))

    def put(self, path: str, body: bytes | Iterable[bytes] = b"", **headers: str) -> Answer:
        return self.request("PUT", path, body, named(headers))

    def delete(self, path: str) -> Answer:
        return self.request("DELETE", path)

    def put_json(self, path: str, document: Any) -> Answer:
        return self.request("PUT", path, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def post_json(self, path: str, document: Any) -> Answer:
        return self.request("POST", path, json.dumps(document).encode(), {"Content-Type": "application/json"})

    @contextmanager
    def raw(self) -> Iterator[RawConnection]:
        """Open a connection on which the test writes every byte itself."""
        with socket.create_connection((self.host, self.port), timeout=TIMEOUT_SECONDS) as connection:
            raw = RawConnection(connection, self.authorization)
            try:
                yield raw
            finally:
                raw.close()


class RawConnection:
    """A socket, and the few things a test does with one."""

    def __init__(self, connection: socket.socket, authorization: str | None) -> None:
        self.socket = connection
        self._authorization = authorization
        self._file = connection.makefile("rb")

    def send_head(self, method: str, target: str | bytes, *headers: str, version: str = "HTTP/1.1") -> None:
        """Send a request line and headers, exactly as given."""
        target = target.encode() if isinstance(target, str) else target
        lines = ["Host: test", *headers]
        if self._authorization:
            lines.append(f"Authorization: {self._authorization}")
        self.send(method.encode() + b" " + target + f" {version}\r\n".encode() + "\r\n".join([*lines, "", ""]).encode())

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Return the next status and its headers, names in lower case; status 0 when the connection has ended."""
        status = self._file.readline()
        if not status:
            return 0, {}
        headers = {}
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return int(status.split()[1]), headers

    def read_answer(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = self.read_head()
        return status, headers, self._file.read(int(headers.get("content-length", 0)))

    def read(self, count: int) -> bytes:
        return self._file.read(count)

    def is_silent(self, seconds: float) -> bool:
        """Say whether nothing comes for ``seconds``."""
        self.socket.settimeout(seconds)
        try:
            self.socket.recv(1, socket.MSG_PEEK)
            return False
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(TIMEOUT_SECONDS)

    def ends_within(self, seconds: float) -> bool:
        """Read and drop what comes; say whether the connection ends within ``seconds``."""
        self.socket.settimeout(seconds)
        try:
            while self.socket.recv(1 << 16):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True

    def reset(self) -> None:
        """End the connection as a client does that dies: with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """End the connection; may be called twice."""
        self._file.close()  # it holds the socket open
        self.socket.close()


def look_for_secrets(method: str, path: str, answer: Answer) -> None:
    """Find secrets in an answer of the API, but for those that it shows once."""
    where = f"{answer.status} to {method} {path}"
    WATCH.look(where, str(answer.headers))
    shows = method in ("POST", "PUT") and answer.status < 300 and SHOWN_ONCE.search(path)
    if answer.headers.get_content_type() == "application/json" and not shows:
        WATCH.look(where, answer.body[:LOOKED_AT_BYTES_MAX].decode(errors="replace"))


def named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
