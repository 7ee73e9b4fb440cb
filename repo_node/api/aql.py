"""AQL (``POST api/search/aql``): the text of a query in, its results out, page by page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NotRequired

from aiohttp import web
from typing_extensions import TypedDict

from repo_node.api.documents import timestamp, to_json
from repo_node.aql.conditions import ItemQuery, Shown
from repo_node.aql.tree import AqlError
from repo_node.auth.permissions import Permission
from repo_node.db.searches import Hit
from repo_node.web.body import read_document
from repo_node.web.context import SERVICES, principal_of
from repo_node.web.descriptions import TEXT, described
from repo_node.web.routes import ANYWHERE, Routes, WhileReadOnly
from repo_node.web.streaming import send_pieces

SLICE = 250
"""Results made into JSON at once: some four milliseconds."""


class Bounds(TypedDict):
    start_pos: int
    end_pos: int
    total: int
    limit: NotRequired[int]


class AqlResults(TypedDict):
    """What was found, with the fields that the query asks for."""

    results: list[dict[str, Any]]
    range: Bounds


def add_routes(routes: Routes) -> None:
    served = WhileReadOnly.SERVED
    routes.add("POST", "/artifactory/api/search/aql", answer, Permission.READ, at=ANYWHERE, while_read_only=served)


@described({200: AqlResults}, body=TEXT)
async def answer(request: web.Request) -> web.StreamResponse:
    """Answer a query. Whatever is wrong with it is told before the first result."""
    queries, principal = request.app[SERVICES].item_queries, principal_of(request)
    try:
        text = (await read_document(request)).decode()
    except UnicodeDecodeError:
        raise AqlError("The query is not UTF-8.") from None
    query = await queries.read(text, principal)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    async with aclosing(documents(queries.find(query, principal.readable()), query.shown)) as parts:
        await send_pieces(request, response, pieces(query, parts))
    return response


async def documents(
    pages: AsyncGenerator[Sequence[Hit], None], shown: Shown
) -> AsyncGenerator[tuple[int, bytes], None]:
    """Yield results as JSON, so many at once that nobody else waits long, and how many; once at least."""
    async with aclosing(pages):
        async for page in pages:
            for start in range(0, len(page) or 1, SLICE):
                part = [document(hit, shown) for hit in page[start : start + SLICE]]
                yield len(part), to_json(part)[1:-1]
                await asyncio.sleep(0)


async def pieces(query: ItemQuery, parts: AsyncGenerator[tuple[int, bytes], None]) -> AsyncGenerator[bytes, None]:
    """Yield the answer as its results come, and behind them how many they were."""
    head, count = b'{"results": [', 0
    async for more, part in parts:
        if text := head + (b", " if count and more else b"") + part:
            yield text
        head, count = b"", count + more
    bounds = {"start_pos": query.offset, "end_pos": query.offset + count, "total": count}
    if query.limit is not None:
        bounds["limit"] = query.limit
    yield b'], "range": ' + to_json(bounds) + b"}"


# ------------------------------------------------------------------ one result

ITEM: Mapping[str, Callable[[Hit], Any]] = {
    "repo": lambda hit: hit.item.repository,
    "path": lambda hit: hit.item.folder or ".",
    "name": lambda hit: hit.item.name,
    "type": lambda hit: "folder" if hit.item.blob is None else "file",
    "size": lambda hit: 0 if hit.item.blob is None else hit.item.blob.size,
    "depth": lambda hit: hit.item.path.count("/") + 1,
    "created": lambda hit: timestamp(hit.item.created_at),
    "created_by": lambda hit: hit.item.created_by,
    "modified": lambda hit: timestamp(hit.item.modified_at),
    "modified_by": lambda hit: hit.item.modified_by,
    "updated": lambda hit: timestamp(hit.item.updated_at),
    "original_md5": lambda hit: digest(hit, "md5"),
    "actual_md5": lambda hit: digest(hit, "md5"),
    "original_sha1": lambda hit: digest(hit, "sha1"),
    "actual_sha1": lambda hit: digest(hit, "sha1"),
    "sha256": lambda hit: digest(hit, "sha256"),
}
STAT: Mapping[str, Callable[[Hit], Any]] = {
    "downloads": lambda hit: hit.downloads.count,
    "downloaded": lambda hit: None if hit.downloads.last_at is None else timestamp(hit.downloads.last_at),
    "downloaded_by": lambda hit: hit.downloads.last_by,
    "remote_downloads": lambda hit: 0,
}


def digest(hit: Hit, name: str) -> str | None:
    value: bytes | None = None if hit.item.blob is None else getattr(hit.item.blob, name)
    return None if value is None else value.hex()


def document(hit: Hit, shown: Shown) -> dict[str, Any]:
    """Return a result. What an item lacks is left out: a folder's digests, a download that never was."""
    result = {name: value for name in shown.fields if (value := ITEM[name](hit)) is not None}
    if shown.property_parts:
        result["properties"] = properties(hit, shown)
    if shown.stats:
        names = [name.removeprefix("stat.") for name in shown.stats]
        stats = {name: value for name in names if name in STAT and (value := STAT[name](hit)) is not None}
        result["stats"] = [stats]
    return result


def properties(hit: Hit, shown: Shown) -> list[dict[str, str]]:
    """Return a part for each value of each property, as it is asked for."""
    parts = [
        {"key": key, "value": value}
        for key, values in hit.item.properties.items()
        if shown.properties is None or key in shown.properties
        for value in values
    ]
    if len(shown.property_parts) == 2:
        return parts
    return [{name: part[name] for name in shown.property_parts} for part in parts]
