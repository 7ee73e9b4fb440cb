"""A folder as one archive (``GET api/archive/download/{repo}/{dir}``)."""

from __future__ import annotations

from typing import Literal, Required
from urllib.parse import quote

from aiohttp import web

from repo_node.archives import archive_writer
from repo_node.auth.permissions import Permission
from repo_node.errors import RequestError
from repo_node.web.context import SERVICES, artifact_at, principal_of
from repo_node.web.descriptions import Content, Flag, described
from repo_node.web.queries import flag
from repo_node.web.routes import Place, Routes
from repo_node.web.streaming import send_pieces

MEDIA_TYPES = {
    "zip": "application/zip",
    "tar": "application/x-tar",
    "tar.gz": "application/gzip",
    "tgz": "application/gzip",
}


def add_routes(routes: Routes) -> None:
    routes.add("GET", "/artifactory/api/archive/download/{item:.+}", download, Permission.READ, at=Place(4, below=True))


@described(
    {200: tuple(Content(kind) for kind in dict.fromkeys(MEDIA_TYPES.values()))},
    query={"archiveType": Required[Literal[tuple(MEDIA_TYPES)]], "includeChecksumFiles": Flag},
    root=True,
)
async def download(request: web.Request) -> web.StreamResponse:
    """Send a folder; refused before the first byte when it is larger than may be."""
    service, at = request.app[SERVICES].folder_download, artifact_at(request, skip=4)
    kind = request.query.get("archiveType", "").lower()
    if kind not in MEDIA_TYPES:
        raise RequestError(f"archiveType must be one of {', '.join(MEDIA_TYPES)}.")
    with_checksums = flag(request, "includeChecksumFiles", False)
    with service.admitted():
        scope = principal_of(request).readable()
        await service.check(at, scope)
        name = quote(f"{at.name or at.repository}.{kind}", safe="")
        headers = {
            "Content-Type": MEDIA_TYPES[kind],
            "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
        }
        response = web.StreamResponse(headers=headers)
        if request.method == "HEAD":
            await response.prepare(request)
            return response
        pieces = service.stream(at, scope, archive_writer(kind), with_checksums=with_checksums)
        await send_pieces(request, response, pieces)
        return response
