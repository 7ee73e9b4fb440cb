"""What the API is, for people and for generators of clients: ``api/openapi.json``."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from repo_node import __version__
from repo_node.auth.permissions import Permission
from repo_node.web.descriptions import described
from repo_node.web.openapi import openapi_of
from repo_node.web.ranges import is_named
from repo_node.web.routes import Routes


@dataclass(frozen=True, slots=True)
class Page:
    body: bytes
    etag: str


class ApiDocument:
    """The document, made when it is first asked for and then kept: a thread takes some tenths of a second for it."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._making = asyncio.Lock()
        self._page: Page | None = None

    async def page(self) -> Page:
        async with self._making:
            if self._page is None:
                self._page = await asyncio.to_thread(render, self._app)
        return self._page


API_DOCUMENT = web.AppKey("api_document", ApiDocument)


def render(app: web.Application) -> Page:
    body = json.dumps(openapi_of(app, __version__), ensure_ascii=False, separators=(",", ":")).encode()
    return Page(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def add_routes(routes: Routes) -> None:
    # It tells what every node of this release has, and nothing of this one.
    routes.add("GET", "/artifactory/api/openapi.json", read, Permission.PUBLIC)


@described({200: dict[str, Any], 304: None}, headers={"If-None-Match": str})
async def read(request: web.Request) -> web.StreamResponse:
    """Describe every route: what it takes, what it answers, and which permission it needs."""
    page = await request.app[API_DOCUMENT].page()
    headers = {"ETag": page.etag, "Cache-Control": "no-cache"}
    if is_named(page.etag, request.headers.get("If-None-Match", "")):
        return web.Response(status=304, headers=headers)
    return web.Response(body=page.body, headers=headers, content_type="application/json")
