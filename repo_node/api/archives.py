"""Archives that are unpacked as they are deployed (``X-Explode-Archive``, ``X-Explode-Archive-Atomic``)."""

from __future__ import annotations

from contextlib import aclosing

from aiohttp import web
from typing_extensions import TypedDict

from repo_node.api.documents import Checksums, json_response, storage_uri
from repo_node.archive_deploy import KINDS, ArchiveRequest, kind_of
from repo_node.artifacts import DeployRequest
from repo_node.auth.permissions import Permission
from repo_node.checksum_deploy import SendTheBody
from repo_node.checksums import checksums_of
from repo_node.errors import RequestError
from repo_node.paths import ArtifactPath, split_path
from repo_node.web.body import leave_unread, receive_upload
from repo_node.web.context import SERVICES, base_url, principal_of, require
from repo_node.web.queries import header_flag

EXPLODE, ATOMIC = "X-Explode-Archive", "X-Explode-Archive-Atomic"


class Unpacked(TypedDict):
    """The folder that an archive was unpacked into, and how much that was; the checksums are the archive's."""

    repo: str
    path: str
    uri: str
    artifacts: int
    size: str
    checksums: Checksums


def is_exploded(request: web.Request) -> bool:
    """Say whether the body is to be unpacked. Raises ``RequestError``."""
    return header_flag(request, EXPLODE) or header_flag(request, ATOMIC)


async def explode(request: web.Request, asked: DeployRequest) -> web.StreamResponse:
    """Deploy what is in the archive, beside where it would lie itself; the answer tells of the folder.

    JFrog's clients read ``checksums.sha256``: those are the archive's.
    """
    services, at = request.app[SERVICES], asked.at
    if (kind := kind_of(at.name)) is None:
        raise RequestError(f"An archive to be unpacked must be named {', '.join(KINDS)}. Nothing was stored.")
    if header_flag(request, "X-Checksum-Deploy"):
        raise SendTheBody

    def check(member: ArtifactPath) -> bool:
        require(request, Permission.WRITE, member)
        if asked.properties:
            require(request, Permission.ANNOTATE, member)
        return principal_of(request).may(Permission.DELETE, member)

    archive = ArchiveRequest(asked, kind, header_flag(request, ATOMIC), check)
    with services.archive_deploy.admitted(), services.memory.lease() as lease:
        async with aclosing(receive_upload(request, lease, services.artifacts.heed_silence)) as body:
            done = await services.archive_deploy.deploy(archive, body, length=request.content_length)
    folder = ArtifactPath(at.repository, *split_path(at.folder))
    uri = storage_uri(base_url(request), folder)
    document = {
        "repo": at.repository,
        "path": f"/{folder.path}",
        "uri": uri,
        "artifacts": done.artifacts,
        "size": str(done.bytes),
        "checksums": checksums_of(done.digests),
    }
    response = json_response(document, status=201, headers={"Location": uri})
    leave_unread(request, response)
    return response
