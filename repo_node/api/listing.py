"""What ``GET api/storage`` tells of a tree: ``?list``, ``?lastModified``, and an artifact's ``?stats``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, NotRequired

from aiohttp import web
from typing_extensions import TypedDict

from repo_node.api.documents import Sha256, Time, json_response, storage_uri, timestamp, to_json
from repo_node.db.artifacts import Item
from repo_node.db.trees import Entry
from repo_node.errors import NotFound, RequestError
from repo_node.paths import ArtifactPath, split_path
from repo_node.trees import Depth
from repo_node.web.context import SERVICES, base_url, principal_of
from repo_node.web.descriptions import Content
from repo_node.web.queries import flag, number

FILE_LIST = "application/vnd.org.jfrog.artifactory.storage.FileList+json"
LAST_MODIFIED = "application/vnd.org.jfrog.artifactory.storage.ItemLastModified+json"
STATISTICS = "application/vnd.org.jfrog.artifactory.storage.StatsInfo+json"


class Changed(TypedDict):
    properties: Time


class EntryDocument(TypedDict):
    """A file or, with size -1, a folder."""

    uri: str
    size: int
    lastModified: Time
    folder: bool
    sha1: NotRequired[str]
    sha2: NotRequired[Sha256]
    mdTimestamps: NotRequired[Changed]


class FileList(TypedDict):
    uri: str
    created: Time
    files: list[EntryDocument]


class LastModified(TypedDict):
    uri: str
    lastModified: Time


class Statistics(TypedDict):
    """An artifact's downloads; ``lastDownloaded`` is in milliseconds since 1970, 0 for never."""

    uri: str
    downloadCount: int
    lastDownloaded: int
    lastDownloadedBy: NotRequired[str]
    remoteDownloadCount: int
    remoteLastDownloaded: int


LISTINGS = (
    Content(FILE_LIST, FileList),
    Content(LAST_MODIFIED, LastModified),
    Content(STATISTICS, Statistics),
)


async def list_files(request: web.Request, at: ArtifactPath, modified_at: datetime) -> web.StreamResponse:
    """Answer with the files of a folder, as Postgres gives them; ``modified_at`` is the folder's own time."""
    levels = (number(request, "depth", 0) or None) if flag(request, "deep", False) else 1
    depth = Depth(levels, flag(request, "listFolders", False))
    with_times = flag(request, "mdTimestamps", False)
    base = {"uri": storage_uri(base_url(request), at), "created": timestamp(datetime.now(UTC))}
    root = [root_entry(modified_at)] if flag(request, "includeRootPath", False) else []

    async def documents() -> AsyncGenerator[list[EntryDocument], None]:
        async with aclosing(request.app[SERVICES].trees.list(at, depth, principal_of(request).readable())) as pages:
            async for page in pages:
                yield [entry_document(entry, at.path, with_times) for entry in page]

    return await send_list(request, base, root, documents())


async def send_list(
    request: web.Request,
    base: Mapping[str, Any],
    files: list[EntryDocument],
    pages: AsyncGenerator[list[EntryDocument], None],
) -> web.StreamResponse:
    """Answer with ``base`` and ``files``, to which pages are added; the head goes out with the first."""
    async with aclosing(pages):
        files += await anext(pages)
        response = web.StreamResponse(headers={"Content-Type": FILE_LIST})
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        await response.write(to_json({**base, "files": files}).removesuffix(b"]}"))
        begun = bool(files)
        async for page in pages:
            if page:
                await response.write((b", " if begun else b"") + to_json(page)[1:-1])
                begun = True
        await response.write(b"]}")
        return response


def root_entry(modified_at: datetime) -> EntryDocument:
    return {"uri": "/", "size": -1, "lastModified": timestamp(modified_at), "folder": True}


def entry_document(entry: Entry, below: str, with_times: bool) -> EntryDocument:
    document: EntryDocument = {
        "uri": "/" + entry.path[len(below) :].lstrip("/"),
        "size": -1 if entry.size is None else entry.size,
        "lastModified": timestamp(entry.modified_at),
        "folder": entry.is_folder,
    }
    if entry.sha1 is not None:
        document["sha1"] = entry.sha1.hex()
    if entry.sha256 is not None:
        document["sha2"] = entry.sha256.hex()
    if with_times and entry.has_properties:
        document["mdTimestamps"] = {"properties": timestamp(entry.updated_at)}
    return document


async def last_modified(request: web.Request, at: ArtifactPath, item: Item | None) -> web.StreamResponse:
    """Answer with what was modified last in a folder, or with an artifact's own time."""
    if item is not None and item.blob is not None:
        path, when = at.path, item.modified_at
    elif (found := await request.app[SERVICES].trees.last_modified(at, principal_of(request).readable())) is not None:
        path, when = found
    else:
        raise NotFound("File not found: the folder holds no artifact.")
    uri = storage_uri(base_url(request), ArtifactPath(at.repository, *split_path(path)))
    return json_response({"uri": uri, "lastModified": timestamp(when)}, kind=LAST_MODIFIED)


async def statistics(request: web.Request, at: ArtifactPath) -> web.StreamResponse:
    """Answer with an artifact's downloads; a folder has none. What was counted just now comes a little later."""
    found = await request.app[SERVICES].downloads.find(at)
    if found is None:
        raise NotFound("Unable to find item")
    document: Statistics = {
        "uri": storage_uri(base_url(request), at),
        "downloadCount": found.count,
        "lastDownloaded": 0 if found.last_at is None else int(found.last_at.timestamp() * 1000),
        "remoteDownloadCount": 0,
        "remoteLastDownloaded": 0,
    }
    if found.last_by is not None:
        document["lastDownloadedBy"] = found.last_by
    return json_response(document, kind=STATISTICS)


def refuse_artifact(item: Item | None) -> None:
    if item is not None and item.blob is not None:
        raise RequestError("Expected a folder, but this is a file.")
