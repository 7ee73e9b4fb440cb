"""File and folder info (``/artifactory/api/storage``)."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from repo_node.api.documents import (
    FileInfo,
    FolderInfo,
    child_documents,
    file_info,
    folder_document,
    json_response,
    storage_uri,
    timestamp,
    to_json,
)
from repo_node.api.item_permissions import ITEM_PERMISSIONS, ItemPermissions, permissions
from repo_node.api.listing import LISTINGS, last_modified, list_files, refuse_artifact, statistics
from repo_node.auth.permissions import Permission
from repo_node.db.artifacts import Item, place_of
from repo_node.errors import NotFound, RequestError
from repo_node.merging import PAGE
from repo_node.paths import ArtifactPath
from repo_node.web.context import SERVICES, artifact_at, base_url, principal_of, require
from repo_node.web.descriptions import Content, Count, Flag, Present, described
from repo_node.web.routes import Place, Routes
from repo_node.web.streaming import media_type

FILE_INFO = "application/vnd.org.jfrog.artifactory.storage.FileInfo+json"
FOLDER_INFO = "application/vnd.org.jfrog.artifactory.storage.FolderInfo+json"
ITEM_PROPERTIES = "application/vnd.org.jfrog.artifactory.storage.ItemProperties+json"

NO_PROPERTIES = "No properties could be found."
QUESTIONS = frozenset({"list", "lastModified", "permissions", "properties", "stats"})
"""One of them at a time."""


class ItemProperties(TypedDict):
    uri: str
    properties: dict[str, list[str]]


INFOS = (
    Content(FILE_INFO, FileInfo),
    Content(FOLDER_INFO, FolderInfo),
    Content(ITEM_PROPERTIES, ItemProperties),
)


def add_routes(routes: Routes) -> None:
    at = Place(3, below=True, absent="Unable to find item")
    routes.add("GET", "/artifactory/api/storage/{item:.+}", info, Permission.READ, at=at)


@described(
    {200: (*INFOS, *LISTINGS, Content(ITEM_PERMISSIONS, ItemPermissions))},
    query={
        "list": Present,
        "deep": Flag,
        "depth": Count,
        "listFolders": Flag,
        "mdTimestamps": Flag,
        "includeRootPath": Flag,
        "lastModified": Present,
        "permissions": Present,
        "properties": Annotated[str, Field(description="Names, separated by commas; none: all.")],
        "stats": Present,
    },
    root=True,
)
async def info(request: web.Request) -> web.StreamResponse:
    """Answer with what is known of an artifact or a folder.

    Or with one thing that is asked for: the files in a folder (``list``, with what follows it), what was modified last
    in it, who may do what there (for who manages it), its properties, or an artifact's downloads.
    """
    at = artifact_at(request, skip=3)
    if len(asked := QUESTIONS & set(request.query)) > 1:
        raise RequestError(f"Ask one thing at a time: {', '.join(sorted(asked))}.")
    if not at.name:
        return await root_info(request, at)
    artifacts, base = request.app[SERVICES].artifacts, base_url(request)
    try:
        item = await artifacts.get(at, principal_of(request).readable())
    except NotFound:
        raise NotFound("Unable to find item") from None
    if item.blob is not None:
        # Through a virtual repository, it is told where it lies.
        at = place_of(item)
        require(request, Permission.READ, at)
    if "stats" in request.query:
        return await statistics(request, at)
    if "permissions" in request.query:
        return await permissions(request, at)
    if "properties" in request.query:
        # That a folder is there may be known to whoever reads something in it; what is said of it, may not.
        require(request, Permission.READ, place_of(item))
        return json_response(properties_document(base, at, item, request.query["properties"]), kind=ITEM_PROPERTIES)
    if "list" in request.query:
        refuse_artifact(item)
        return await list_files(request, at, item.modified_at)
    if "lastModified" in request.query:
        return await last_modified(request, at, item)
    if item.blob is not None:
        return json_response(file_info(base, at, item, media_type(at.name)), kind=FILE_INFO)
    return await send_folder(request, at, folder_document(base, at, item))


async def root_info(request: web.Request, at: ArtifactPath) -> web.StreamResponse:
    """Answer for the root of a repository, whose times are the repository's own."""
    services = request.app[SERVICES]
    repository = await services.repositories.get(at.repository)
    if "permissions" in request.query:
        return await permissions(request, at)
    if "properties" in request.query:
        raise NotFound(NO_PROPERTIES)
    if "list" in request.query:
        return await list_files(request, at, repository.created_at)
    if "lastModified" in request.query:
        return await last_modified(request, at, None)
    if "stats" in request.query:
        raise RequestError("A repository is not downloaded; ask for the stats of an artifact.")
    document = folder_document(base_url(request), at, None)
    created = timestamp(repository.created_at)
    document.update(created=created, lastModified=created, lastUpdated=created)
    return await send_folder(request, at, document)


async def send_folder(request: web.Request, at: ArtifactPath, document: dict[str, Any]) -> web.StreamResponse:
    """Answer with a folder's info. What is more than a page goes out as Postgres gives it, its end told by chunks."""
    async with aclosing(request.app[SERVICES].trees.children(at, principal_of(request).readable())) as pages:
        page = await anext(pages)
        first = child_documents(page)
        if len(page) < PAGE:
            return json_response(document | {"children": first}, kind=FOLDER_INFO)
        response = web.StreamResponse(headers={"Content-Type": FOLDER_INFO})
        await response.prepare(request)
        if request.method != "HEAD":
            await response.write(to_json(document | {"children": first}).removesuffix(b"]}"))
            async for page in pages:
                if page:
                    await response.write(b", " + to_json(child_documents(page))[1:-1])
            await response.write(b"]}")
        return response


def properties_document(base: str, at: ArtifactPath, item: Item, wanted: str) -> dict[str, Any]:
    """Return the properties named in ``wanted``, separated by commas, or all of them. Raises ``NotFound``."""
    names = set(wanted.split(",")) if wanted else set(item.properties)
    found = {name: values for name, values in item.properties.items() if name in names}
    if not found:
        raise NotFound(NO_PROPERTIES)
    return {"uri": storage_uri(base, at), "properties": found}
