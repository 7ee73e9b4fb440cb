"""Sends an artifact: whole or in ranges, every block verified before it leaves."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import lru_cache
from typing import cast
from urllib.parse import quote

from aiohttp import web

from repo_node.artifacts import Artifacts
from repo_node.checksums import CHECKSUM_HEADERS, checksums_of
from repo_node.db.artifacts import Blob, Item
from repo_node.recent import Found
from repo_node.web.context import SERVICES, Services
from repo_node.web.ranges import (
    ByteRange,
    Unsatisfiable,
    Validators,
    is_not_modified,
    parse_ranges,
    range_applies,
)
from sharding.identifiers import uuid7
from sharding.model import Buffer

ACTIVE_TYPES = frozenset(
    {
        "application/ecmascript",
        "application/javascript",
        "application/pdf",
        "application/x-shockwave-flash",
        "application/xhtml+xml",
        "application/xml",
        "image/svg+xml",
        "text/css",
        "text/html",
        "text/javascript",
        "text/xml",
    }
)
"""What a browser might run: served as an attachment."""

WHOLE_BYTES_MAX = 256 << 10
"""Up to this an artifact is read at once, and its memory is not counted."""

ENCODED_TYPES = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
ARTIFACT_TYPES = {
    ".deb": "application/vnd.debian.binary-package",
    ".iso": "application/x-iso9660-image",
    ".jar": "application/java-archive",
    ".rpm": "application/x-rpm",
    ".war": "application/java-archive",
    ".whl": "application/zip",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}
"""What Python's own table lacks. The machine's tables are not asked: they differ from node to node."""


TYPES_KNOWN_MAX = 1024
SAFE_NAME = re.compile(r"[A-Za-z0-9._~-]+")
"""Names that need no percent-encoding."""

STALE_HEADER = "X-Holdfast-Stale"
"""How many seconds old the answer may be, because Postgres, which told of the artifact then, is away now."""


def known_types() -> mimetypes.MimeTypes:
    types = mimetypes.MimeTypes()
    for suffix, kind in ARTIFACT_TYPES.items():
        types.add_type(kind, suffix)
    return types


TYPES = known_types()


def media_type(name: str) -> str:
    """Return the media type that ``name`` suggests."""
    start, *suffixes = name.rsplit(".", 2)
    # More than the last two suffixes decides nothing, and they are few; a name of dots alone has none.
    return type_by_suffixes(".".join(("x", *suffixes)) if start.strip(".") else name)


@lru_cache(TYPES_KNOWN_MAX)
def type_by_suffixes(name: str) -> str:
    # Behind a slash no name is taken for a data: URL, which could name any type.
    kind, encoding = TYPES.guess_type(f"/{name}", strict=False)
    if encoding is not None:
        return ENCODED_TYPES.get(encoding, "application/octet-stream")
    return kind or "application/octet-stream"


def artifact_headers(item: Item, blob: Blob, have: Validators) -> dict[str, str]:
    """Return the headers that GET and HEAD of an artifact share."""
    kind = media_type(item.name)
    headers = {
        "Content-Type": kind,
        "ETag": have.etag,
        "Last-Modified": have.last_modified,
        "Accept-Ranges": "bytes",
        **{CHECKSUM_HEADERS[name]: value for name, value in checksums_of(blob).items()},
        "X-Artifactory-Filename": item.name if SAFE_NAME.fullmatch(item.name) else quote(item.name),
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    if kind in ACTIVE_TYPES:
        headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(item.name, safe='')}"
    return headers


class WholeResponse(web.StreamResponse):
    """An answer whose bytes are there already: they leave in one write with its head."""

    _send_headers_immediately = False

    def __init__(self, body: Buffer, headers: Mapping[str, str]) -> None:
        super().__init__(headers=headers)
        self.content_length = len(body)
        self._whole = body

    async def write_eof(self, data: Buffer = b"") -> None:
        await super().write_eof(cast(bytes, self._whole))  # any buffer will do


async def send_artifact(request: web.Request, found: Found, blob: Blob) -> web.StreamResponse:
    """Answer GET or HEAD of an artifact. Raises ``BlobUnavailable`` while nothing has been sent."""
    have = Validators(f'"{blob.sha256.hex()}"', found.item.modified_at)
    headers = artifact_headers(found.item, blob, have)
    if found.stale_seconds is not None:
        headers[STALE_HEADER] = str(int(found.stale_seconds))
    if is_not_modified(request.headers, have):
        return web.Response(status=304, headers=headers)
    services = request.app[SERVICES]
    asked = request.headers.get("Range") if range_applies(request.headers, have) else None
    try:
        ranges = parse_ranges(asked, blob.size, ranges_max=services.settings.now.ranges_max)
    except Unsatisfiable:
        raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{blob.size}"}) from None
    if not ranges:
        return await send_whole(request, services, blob, headers)
    if len(ranges) == 1:
        headers["Content-Range"] = ranges[0].content_range(blob.size)
        return await send_part(request, services.artifacts, blob, ranges[0], 206, headers)
    return await send_parts(request, services.artifacts, blob, ranges, headers)


async def send_whole(
    request: web.Request, services: Services, blob: Blob, headers: dict[str, str]
) -> web.StreamResponse:
    if request.method == "HEAD" or blob.size > WHOLE_BYTES_MAX:
        return await send_part(request, services.artifacts, blob, ByteRange(0, blob.size - 1), 200, headers)
    data = await services.artifacts.open(blob).read_small()
    services.metrics.sent_bytes.inc(len(data))
    return WholeResponse(data, headers)


async def send_part(
    request: web.Request, artifacts: Artifacts, blob: Blob, part: ByteRange, status: int, headers: dict[str, str]
) -> web.StreamResponse:
    """Send one range, or the whole. The head goes out when the first block is proved."""
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = part.length
    if request.method == "HEAD" or part.length == 0:
        await response.prepare(request)
        return response
    async with aclosing(artifacts.open(blob).stream(part.first, part.last)) as pieces:
        await send_pieces(request, response, pieces)
    return response


async def send_parts(
    request: web.Request, artifacts: Artifacts, blob: Blob, ranges: list[ByteRange], headers: dict[str, str]
) -> web.StreamResponse:
    """Send several ranges as multipart/byteranges (RFC 9110, section 14.6)."""
    boundary = f"holdfast-{uuid7().hex}"
    heads = [
        f"\r\n--{boundary}\r\nContent-Type: {headers['Content-Type']}\r\n"
        f"Content-Range: {part.content_range(blob.size)}\r\n\r\n".encode()
        for part in ranges
    ]
    tail = f"\r\n--{boundary}--\r\n".encode()
    response = web.StreamResponse(status=206, headers=headers)
    response.headers["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
    response.content_length = sum(map(len, heads)) + sum(part.length for part in ranges) + len(tail)
    if request.method == "HEAD":
        await response.prepare(request)
        return response
    async with aclosing(parts_of(artifacts, blob, ranges, heads, tail)) as pieces:
        await send_pieces(request, response, pieces)
    return response


async def send_pieces(
    request: web.Request, response: web.StreamResponse, pieces: AsyncGenerator[bytes | memoryview, None]
) -> None:
    """Send ``pieces``, the head with the first one. Raises ``BlobUnavailable``, ``ConnectionError``.

    A client that does not read is cut by its connection (``connections.py``).
    """
    sent = request.app[SERVICES].metrics.sent_bytes
    first = await anext(pieces)
    await response.prepare(request)
    await response.write(first)
    sent.inc(len(first))
    del first
    async for piece in pieces:
        await response.write(piece)
        sent.inc(len(piece))
        # The next one is waited for without it.
        del piece
    await response.write_eof()


async def parts_of(
    artifacts: Artifacts, blob: Blob, ranges: list[ByteRange], heads: list[bytes], tail: bytes
) -> AsyncGenerator[bytes | memoryview, None]:
    """Yield each part's head, joined with its first bytes, and the rest of it; in the end ``tail``."""
    for part, head in zip(ranges, heads, strict=True):
        async with aclosing(artifacts.open(blob).stream(part.first, part.last)) as pieces:
            yield head + bytes(await anext(pieces))
            async for piece in pieces:
                yield piece
    yield tail
