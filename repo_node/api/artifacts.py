"""Artifacts by their path: deploy, retrieve, delete, make folders (``/artifactory/{repo}/{path}``)."""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import Field

from repo_node.api.archives import ATOMIC, EXPLODE, Unpacked, explode, is_exploded
from repo_node.api.documents import FileDocument, FolderInfo, file_document, folder_document, json_response
from repo_node.artifacts import Deployed, DeployRequest
from repo_node.auth.permissions import Permission
from repo_node.checksum_deploy import SendTheBody
from repo_node.checksums import CHECKSUM_HEADERS, DeclaredDigests, checksums_of
from repo_node.db.artifacts import Blob, Item, place_of
from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.properties import Changes
from repo_node.errors import ChecksumMismatch, NotFound, RequestError
from repo_node.paths import ArtifactPath, Target
from repo_node.web.addresses import origin_of
from repo_node.web.body import leave_unread, read_body, receive_upload, refuse_large
from repo_node.web.context import SERVICES, TARGET, artifact_at, base_url, principal_of, require
from repo_node.web.descriptions import BYTES, Body, described
from repo_node.web.dispatch import ARTIFACTS
from repo_node.web.queries import header_flag
from repo_node.web.routes import Place, Routes, WhileReadOnly
from repo_node.web.streaming import media_type, send_artifact

DIGEST_BYTES = {"sha256": 32, "sha1": 20, "md5": 16}
MISMATCH = "X-Holdfast-Checksum-Mismatch"
"""Names the digests that the client declared otherwise than they are, where that refuses nothing."""

NAME_BY_DIGITS = {64: "sha256", 40: "sha1", 32: "md5"}


CONDITIONS = dict.fromkeys(("Range", "If-Range", "If-None-Match", "If-Modified-Since"), str)
Truth = Literal["true", "false"]
DECLARED: Mapping[str, Any] = {
    **{
        header: Annotated[str, Field(pattern=f"^[0-9A-Fa-f]{{{2 * DIGEST_BYTES[name]}}}$")]
        for name, header in CHECKSUM_HEADERS.items()
    },
    "X-Checksum": Annotated[str, Field(description="A sha256, sha1 or md5, which its length tells.")],
    "X-Checksum-Deploy": Annotated[Truth, Field(description="Store content that is known, without a body.")],
    EXPLODE: Annotated[Truth, Field(description="Store what is in the archive.")],
    ATOMIC: Annotated[Truth, Field(description="Store all that is in the archive, or nothing.")],
}


def add_routes(routes: Routes) -> None:
    """Must come last: its pattern matches whatever no other route did."""
    by_postgres = WhileReadOnly.REFUSED_BY_POSTGRES
    at = Place(1)
    routes.add("GET", ARTIFACTS, retrieve, Permission.READ, at=at)
    routes.add("PUT", ARTIFACTS, deploy, Permission.WRITE, at=at, while_read_only=by_postgres)
    routes.add("DELETE", ARTIFACTS, delete, Permission.DELETE, at=at, while_read_only=by_postgres)


@described({200: BYTES, 206: BYTES, 304: None}, errors={416}, headers=CONDITIONS)
async def retrieve(request: web.Request) -> web.StreamResponse:
    """Send an artifact: all of it or, with ``Range``, parts."""
    services, at = request.app[SERVICES], artifact_at(request)
    if not at.name:
        raise NotFound("File not found.")
    found = await services.artifacts.get_lately(at, principal_of(request).readable())
    try:
        blob = blob_asked_for(request, found.item)
    except NotFound as error:
        if found.stale_seconds is not None:
            # What is absent is told by Postgres alone.
            raise CatalogueUnavailable(str(error)) from error
        raise
    response = await send_artifact(request, found, blob)
    if is_download(request, response):
        services.downloads.count(place_of(found.item), principal_of(request).name)
    return response


def is_download(request: web.Request, response: web.StreamResponse) -> bool:
    """Say whether a GET counts as a download: of several that get a part each, the one with the first byte does."""
    if request.method != "GET":
        return False
    return response.status == 200 or response.headers.get("Content-Range", "").startswith("bytes 0-")


def blob_asked_for(request: web.Request, item: Item) -> Blob:
    """Return the blob of an item when that is what the request means. Raises ``NotFound``."""
    if item.blob is None:
        raise NotFound("File not found: this is a folder; api/storage lists it.")
    if request[TARGET].is_folder:
        raise NotFound("File not found.")
    if not matches(request[TARGET], item.properties):
        raise NotFound("File not found: its properties are not those asked for.")
    return item.blob


def matches(target: Target, properties: Mapping[str, Sequence[str]]) -> bool:
    """Say whether an artifact is what the matrix parameters ask for.

    A property that it has must have every value asked for; one that it lacks may be lacking, unless it is mandatory.
    """
    return all(
        set(values) <= set(properties[key]) if key in properties else key not in target.mandatory
        for key, values in target.properties.items()
    )


@described(
    {201: FileDocument | FolderInfo | Unpacked},
    errors={409, 507},
    body=Body((BYTES,), required=False),
    headers=DECLARED,
)
async def deploy(request: web.Request) -> web.StreamResponse:
    """Store an artifact. With properties it needs ``annotate`` too, and over another artifact ``delete``.

    Who may not delete overwrites nothing but what is the same, content and properties: the commit itself sees to that.
    """
    services, at = request.app[SERVICES], artifact_at(request)
    if not at.name:
        raise RequestError("To make a repository, use PUT api/repositories/{key}.")
    at = await services.repositories.deploy_place(at)
    # Whether the repository is a virtual one may have changed since the route's permission was looked at.
    require(request, Permission.WRITE, at)
    if request[TARGET].is_folder:
        return await make_folder(request, at)
    refuse_large(request)
    declared, may_overwrite = declared_digests(request), principal_of(request).may(Permission.DELETE, at)
    asked = DeployRequest(at, origin_of(request), request[TARGET].properties, declared, may_overwrite)
    if is_exploded(request):
        return await explode(request, asked)
    if request[TARGET].properties:
        require(request, Permission.ANNOTATE, at)
    if header_flag(request, "X-Checksum-Deploy"):
        deployed = await deploy_known(request, asked)
    else:
        with services.memory.lease() as lease:
            async with aclosing(receive_upload(request, lease, services.artifacts.heed_silence)) as body:
                deployed = await services.artifacts.deploy(asked, body, length=request.content_length)
    checksums = checksums_of(deployed.content)
    document = file_document(
        base_url(request),
        at,
        created_at=deployed.created_at,
        created_by=deployed.created_by,
        size=deployed.content.size,
        media_type=media_type(at.name),
        checksums=checksums,
        original=original_checksums(declared, checksums),
    )
    response = json_response(document, status=201, headers={"Location": document["downloadUri"]})
    if deployed.mismatched:
        response.headers[MISMATCH] = ", ".join(deployed.mismatched)
    leave_unread(request, response)
    return response


async def deploy_known(request: web.Request, asked: DeployRequest) -> Deployed:
    """Deploy by checksum: a body, which nobody expects, is ignored. Raises ``NotFound`` when the bytes are wanted."""
    principal = principal_of(request)
    if not principal.may(Permission.READ):
        raise SendTheBody
    return await request.app[SERVICES].checksum_deploy.deploy(asked, principal.readable())


def original_checksums(declared: DeclaredDigests, computed: dict[str, str]) -> dict[str, str]:
    """Return the checksums as the client declared them; the sha256 always, as Artifactory does."""
    told = {name: getattr(declared, name).hex() for name in declared.names}
    return {name: told.get(name, value) for name, value in computed.items() if name == "sha256" or name in told}


async def make_folder(request: web.Request, at: ArtifactPath) -> web.StreamResponse:
    if request[TARGET].properties:
        require(request, Permission.ANNOTATE, at)
    async for _ in read_body(request):
        raise RequestError("A folder has no body; leave out the trailing slash to deploy a file.")
    services, by = request.app[SERVICES], origin_of(request)
    item = await services.artifacts.make_folder(at, by=by)
    if properties := request[TARGET].properties:
        await services.properties.change(at, Changes(properties), recursive=False, by=by)
    document = folder_document(base_url(request), at, item) | {"children": []}
    return json_response(document, status=201, headers={"Location": document["uri"]})


@described({204: None}, errors={409})
async def delete(request: web.Request) -> web.StreamResponse:
    """Delete an artifact or, for whoever may delete all that may lie in it, a folder."""
    services, at = request.app[SERVICES], artifact_at(request)
    if not at.name:
        raise RequestError("To delete a repository, use DELETE api/repositories/{key}.")
    if request[TARGET].properties:
        raise RequestError("DELETE takes no matrix parameters: it would delete whatever the properties are.")
    folders = principal_of(request).may_throughout(Permission.DELETE, at)
    await services.artifacts.delete(at, by=origin_of(request), folders=folders)
    return web.Response(status=204)


def declared_digests(request: web.Request) -> DeclaredDigests:
    """Return the checksums a client declared. ``X-Checksum`` is told by its length. Raises ``RequestError``."""
    declared: dict[str, bytes] = {}
    for name, header in CHECKSUM_HEADERS.items():
        if (text := request.headers.get(header)) is not None:
            declared[name] = parse_digest(header, name, text)
    if (text := request.headers.get("X-Checksum")) is not None:
        named = NAME_BY_DIGITS.get(len(text.strip()))
        if named is None:
            raise RequestError("X-Checksum must be a sha256, sha1 or md5 in hex digits.")
        value = parse_digest("X-Checksum", named, text)
        if declared.setdefault(named, value) != value:
            raise ChecksumMismatch(f"X-Checksum and X-Checksum-{named.capitalize()} declare different digests.")
    return DeclaredDigests(**declared)


def parse_digest(header: str, name: str, text: str) -> bytes:
    try:
        value = binascii.unhexlify(text.strip())
    except ValueError:
        value = b""
    if len(value) != DIGEST_BYTES[name]:
        raise RequestError(f"{header} must be {2 * DIGEST_BYTES[name]} hex digits.")
    return value
