"""A node that keeps its files in memory, answers as the REST of a node does, and fails when it is told to."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from repo_node.paths import BadPath, parse_target

PASSWORD = "canary-password-5f1c"
TOKEN = "canary-token-93ab"
PIECE_BYTES = 64 << 10


@dataclass
class Fault:
    """What happens to one request. ``before`` runs first; then the first of the others that is set decides."""

    before: Callable[[], None] | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "as the test wants it"
    cut_after_bytes: int | None = None
    is_silent: bool = False
    flip_byte: int | None = None
    answer: Any = None


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    method: str
    raw_path: str
    headers: dict[str, str]


class FakeNode:
    """``files`` maps ``repo/path`` to bytes; ``faults`` maps a method to what befalls its next requests.

    A PUT by checksum alone has the method CHECKSUM here.
    """

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.seen: list[Seen] = []
        self.json_answers: dict[tuple[str, str], Any] = {}
        self.archives: dict[str, bytes] = {}
        self.bodies: list[Any] = []
        self.in_flight = 0
        self.in_flight_max = 0
        self.closing = asyncio.Event()

    def fail(self, method: str, *faults: Fault) -> None:
        self.faults.setdefault(method, []).extend(faults)

    def requests(self, method: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == method]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        by_checksum = request.headers.get("X-Checksum-Deploy") == "true"
        method = "CHECKSUM" if by_checksum else request.method
        self.seen.append(Seen(method, request.raw_path, dict(request.headers)))
        if not is_authorised(request):
            return error(401, "Bad credentials")
        path = request.raw_path.removeprefix("/artifactory")
        if not request.raw_path.startswith("/artifactory/"):
            return error(404, "not here")
        if request.method == "GET" and path in self.archives:
            return web.Response(body=self.archives[path], content_type="application/zip")
        if path.startswith(
            ("/api/holdfast/", "/api/system/", "/api/repositories", "/api/security/", "/api/v2/security/")
        ):
            return await self.handle_json(request, path)
        waiting = self.faults.get("LIST" if path.startswith("/api/storage/") else method, [])
        fault = waiting.pop(0) if waiting else Fault()
        if fault.before is not None:
            fault.before()
        if fault.status is not None:
            return error(fault.status, fault.message, fault.headers)
        if fault.is_silent:
            await self.closing.wait()
        try:
            listed = path.startswith("/api/storage/")
            name = "/".join(parse_target(path.removeprefix("/api/storage") if listed else path).segments)
        except BadPath as bad:
            return error(400, str(bad))
        if listed:
            return self.list(name, fault)
        if by_checksum:
            return self.link(request, name, fault)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            return await (self.put(request, name, fault) if request.method == "PUT" else self.get(request, name, fault))
        finally:
            self.in_flight -= 1

    async def handle_json(self, request: web.Request, path: str) -> web.StreamResponse:
        waiting = self.faults.get(request.method, [])
        fault = waiting.pop(0) if waiting else Fault()
        if fault.cut_after_bytes is not None:
            return cut(request)
        if fault.status is not None:
            return error(fault.status, fault.message, fault.headers)
        if request.can_read_body:
            self.bodies.append(await request.json())
        answer = self.json_answers.get((request.method, path))
        if answer is None:
            return error(404, f"there is no {path}")
        status, document = answer
        return web.Response(status=204) if status == 204 else web.json_response(document, status=status)

    async def put(self, request: web.Request, name: str, fault: Fault) -> web.StreamResponse:
        body = bytearray()
        async for piece in request.content.iter_chunked(PIECE_BYTES):
            body += piece
            if fault.cut_after_bytes is not None and len(body) >= fault.cut_after_bytes:
                return cut(request)
        content = bytes(body)
        for kind, value in checksums(content).items():
            if request.headers.get(f"X-Checksum-{kind.capitalize()}", value) != value:
                return error(409, f"the {kind} does not match")
        return self.store(name, content, fault)

    def link(self, request: web.Request, name: str, fault: Fault) -> web.StreamResponse:
        """Deploy by checksum what some file has."""
        asked = request.headers["X-Checksum-Sha256"]
        for content in self.files.values():
            if checksums(content)["sha256"] == asked:
                return self.store(name, content, fault)
        return error(404, "send the body")

    def store(self, name: str, content: bytes, fault: Fault) -> web.StreamResponse:
        self.files[name] = content
        repo, _, path = name.partition("/")
        uri = f"{self.url}/artifactory/{name}"
        answer = {
            "repo": repo,
            "path": f"/{path}",
            "size": str(len(content)),
            "checksums": checksums(content),
            "uri": uri,
        }
        return web.json_response(answer | (fault.answer or {}), status=201)

    async def get(self, request: web.Request, name: str, fault: Fault) -> web.StreamResponse:
        content = self.files.get(name)
        if content is None:
            return error(404, "File not found.")
        etag = f'"{checksums(content)["sha256"]}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        headers |= {f"X-Checksum-{kind.capitalize()}": value for kind, value in checksums(content).items()}
        start, status = 0, 200
        match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if match and request.headers.get("If-Range", etag) == etag:
            start, status = int(match[1]), 206
            if start >= len(content):
                return error(416, "no such range")
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = bytearray(content[start:])
        response = web.StreamResponse(status=status, headers=headers | fault.headers)
        response.content_length = len(body)
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        if fault.flip_byte is not None:
            body[fault.flip_byte] ^= 1
        if fault.cut_after_bytes is not None:
            await response.write(bytes(body[: fault.cut_after_bytes]))
            # The client should have these bytes before the connection breaks.
            await asyncio.sleep(0.05)
            return cut(request)
        await response.write(bytes(body))
        return response

    def list(self, name: str, fault: Fault) -> web.StreamResponse:
        if fault.answer is not None:
            return web.json_response(fault.answer)
        repo, _, path = name.partition("/")
        info = {"repo": repo, "path": f"/{path}", "uri": f"{self.url}/artifactory/api/storage/{name}"}
        if name in self.files:
            return web.json_response(info | {"size": str(len(self.files[name]))})
        below = [file.removeprefix(f"{name}/") for file in self.files if file.startswith(f"{name}/")]
        if not below:
            return error(404, "Unable to find item")
        folders = {rest.split("/")[0] for rest in below if "/" in rest}
        children = [{"uri": f"/{rest}", "folder": False} for rest in below if "/" not in rest]
        return web.json_response(info | {"children": [*children, *({"uri": f"/{f}", "folder": True} for f in folders)]})


def is_authorised(request: web.Request) -> bool:
    basic = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
    return request.headers.get("Authorization") in (f"Bearer {TOKEN}", f"Basic {basic}")


def checksums(content: bytes) -> dict[str, str]:
    return {kind: hashlib.new(kind, content).hexdigest() for kind in ("sha256", "sha1", "md5")}


def error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = json.dumps({"errors": [{"status": status, "message": message}]})
    return web.Response(
        status=status,
        text=body,
        content_type="application/json",
        headers={"X-Request-Id": "request-77", **(headers or {})},
    )


def cut(request: web.Request) -> web.Response:
    """Break the connection without an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@contextmanager
def run_fake_node() -> Iterator[FakeNode]:
    """Run a fake node in a thread of its own: the commands under test run event loops themselves."""
    node = FakeNode()
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", node.handle)
        runner = web.AppRunner(app, auto_decompress=False, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        node.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await stop.wait()
        node.closing.set()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield node
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
