"""What a request carries from the middleware to its handler, and what the application carries to both."""

from __future__ import annotations

import re
from dataclasses import dataclass

from aiohttp import web

from repo_node.archive_deploy import ArchiveDeploy
from repo_node.artifacts import Artifacts
from repo_node.auth.authenticator import Authenticator
from repo_node.auth.permissions import ANONYMOUS, Permission, Principal
from repo_node.checksum_deploy import ChecksumDeploy
from repo_node.config import HttpSection
from repo_node.downloads import DownloadCounts
from repo_node.errors import Forbidden
from repo_node.folder_download import FolderDownload
from repo_node.item_permissions import WhoMay
from repo_node.item_queries import ItemQueries
from repo_node.metrics import Metrics
from repo_node.paths import ArtifactPath, Target, artifact_path, check_segment
from repo_node.properties import Properties
from repo_node.repositories import Repositories
from repo_node.searches import Searches
from repo_node.settings import LiveSettings
from repo_node.support.bundles import SupportBundles
from repo_node.transfers import Transfers
from repo_node.trash import Trash
from repo_node.trees import Trees
from repo_node.web.admission import Admission
from sharding.transfer_memory import TransferMemory


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers call."""

    artifacts: Artifacts
    checksum_deploy: ChecksumDeploy
    archive_deploy: ArchiveDeploy
    repositories: Repositories
    properties: Properties
    transfers: Transfers
    downloads: DownloadCounts
    trees: Trees
    searches: Searches
    item_queries: ItemQueries
    folder_download: FolderDownload
    trash: Trash
    who_may: WhoMay
    support: SupportBundles
    authenticator: Authenticator
    settings: LiveSettings
    admission: Admission
    metrics: Metrics
    http: HttpSection
    memory: TransferMemory


SERVICES = web.AppKey("services", Services)

TARGET = web.RequestKey("target", Target)
PRINCIPAL = web.RequestKey("principal", Principal)
REQUEST_ID = web.RequestKey("request_id", str)
CONTINUE_DUE = web.RequestKey("continue_due", bool)
"""Whether the client waits for a 100 before it sends the body."""
REFUSED = web.RequestKey("refused", Exception)
"""Why the request cannot be served whoever sent it."""

HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?")

NOBODY = Principal(ANONYMOUS, is_admin=False, scopes=frozenset())


def principal_of(request: web.Request) -> Principal:
    principal: Principal = request.get(PRINCIPAL, NOBODY)
    return principal


def require(request: web.Request, permission: Permission, at: ArtifactPath | None = None) -> None:
    """Refuse who has not ``permission`` at a path, or anywhere, besides the one of the route. Raises ``Forbidden``."""
    if not principal_of(request).may(permission, at):
        raise refusal(request, permission, at)


def require_below(request: web.Request, permission: Permission, at: ArtifactPath) -> None:
    """Refuse who has ``permission`` neither at a path nor at one that may lie below it. Raises ``Forbidden``."""
    if not principal_of(request).may_below(permission, at):
        raise refusal(request, permission, at)


def require_throughout(request: web.Request, permission: Permission, at: ArtifactPath) -> None:
    """Refuse who has not ``permission`` at a folder and all that may lie in it. Raises ``Forbidden``."""
    if not principal_of(request).may_throughout(permission, at):
        raise refusal(request, permission, at, " throughout the folder")


def refusal(request: web.Request, permission: Permission, at: ArtifactPath | None = None, how: str = "") -> Forbidden:
    where = f" at {at.repository}:{at.path}" if at is not None else ""
    name = principal_of(request).name
    return Forbidden(f"{name} may not do this: it needs the permission {permission.value}{where}{how}.", at)


def artifact_at(request: web.Request, skip: int = 1) -> ArtifactPath:
    """Return the repository and path of a request, after its first ``skip`` segments. Raises ``BadPath``."""
    services = request.app[SERVICES]
    return artifact_path(request[TARGET].segments[skip:], path_bytes_max=services.settings.now.path_bytes_max)


def artifact_in(request: web.Request, parameter: str) -> ArtifactPath:
    """Return the repository and path in a query parameter. Raises ``BadPath``."""
    segments = tuple(check_segment(segment) for segment in request.query[parameter].strip("/").split("/"))
    return artifact_path(segments, path_bytes_max=request.app[SERVICES].settings.now.path_bytes_max)


def base_url(request: web.Request) -> str:
    """Return the URL under which this client reaches Artifactory's tree: configured, else as it was addressed."""
    http = request.app[SERVICES].http
    if http.public_url is not None:
        return f"{http.public_url}/artifactory"
    # Not request.host: without the header that asks the resolver, and blocks.
    host = request.headers.get("Host", "")
    return f"{request.scheme}://{host if HOST.fullmatch(host) else http.listen}/artifactory"
