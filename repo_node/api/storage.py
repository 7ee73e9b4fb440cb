"""File and folder info (``/artifactory/api/storage``)."""

from __future__ import annotations

from aiohttp import web

from repo_node.api.documents import file_info, folder_document, json_response, timestamp
from repo_node.auth.permissions import Permission
from repo_node.errors import NotFound
from repo_node.paths import ArtifactPath
from repo_node.web.context import SERVICES, artifact_at, base_url
from repo_node.web.routes import Routes
from repo_node.web.streaming import media_type

FILE_INFO = "application/vnd.org.jfrog.artifactory.storage.FileInfo+json"
FOLDER_INFO = "application/vnd.org.jfrog.artifactory.storage.FolderInfo+json"


def add_routes(routes: Routes) -> None:
    routes.add("GET", "/artifactory/api/storage/{item:.+}", info, Permission.READ)


async def info(request: web.Request) -> web.StreamResponse:
    at = artifact_at(request, skip=3)
    if not at.name:
        return await root_info(request, at)
    artifacts = request.app[SERVICES].artifacts
    try:
        item = await artifacts.get(at)
    except NotFound:
        raise NotFound("Unable to find item") from None
    base = base_url(request)
    if item.blob is not None:
        return json_response(file_info(base, at, item, media_type(at.name)), kind=FILE_INFO)
    children = await artifacts.children(at.repository, at.path)
    return json_response(folder_document(base, at, item, children), kind=FOLDER_INFO)


async def root_info(request: web.Request, at: ArtifactPath) -> web.StreamResponse:
    """Answer for the root of a repository, whose times are the repository's own."""
    services = request.app[SERVICES]
    repository = await services.repositories.get(at.repository)
    children = await services.artifacts.children(at.repository, "")
    document = folder_document(base_url(request), at, None, children)
    created = timestamp(repository.created_at)
    document.update(created=created, lastModified=created, lastUpdated=created)
    return json_response(document, kind=FOLDER_INFO)
