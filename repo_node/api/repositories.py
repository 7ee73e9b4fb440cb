"""Repositories: list, read, create, delete (``/artifactory/api/repositories``)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from repo_node.api.documents import PlainText, first_fault, json_response
from repo_node.auth.permissions import Permission
from repo_node.db.repositories import Repository
from repo_node.errors import RequestError
from repo_node.web.addresses import origin_of
from repo_node.web.body import read_json
from repo_node.web.context import SERVICES, TARGET, base_url, principal_of
from repo_node.web.routes import ANYWHERE, Place, Routes

Digest = Literal["sha256", "sha1", "md5"]
DIGESTS: tuple[Digest, ...] = get_args(Digest)


def check_digests(names: list[Digest]) -> list[Digest]:
    """Return ``names``, each once, in their usual order. Raises ``ValueError``."""
    if "sha256" not in names:
        raise ValueError("sha256 is always computed: it names the content")
    return [name for name in DIGESTS if name in names]


Digests = Annotated[list[Digest], AfterValidator(check_digests)]


class RepositoryDocument(BaseModel):
    """What may be said of a new repository. Unknown fields are ignored, as clients send dozens of them."""

    model_config = ConfigDict(extra="ignore", strict=True)
    key: str | None = None
    rclass: str = "local"
    packageType: str = "generic"
    description: PlainText | None = Field(None, max_length=2000)
    redundancy: int | None = Field(None, ge=1, le=16)
    trash: bool = True
    digests: Digests = list(DIGESTS)


class ChangeDocument(BaseModel):
    """What of a repository can be changed."""

    model_config = ConfigDict(extra="forbid", strict=True)
    trash: bool | None = None
    digests: Digests | None = None

    @model_validator(mode="after")
    def check_said(self) -> ChangeDocument:
        if self.trash is None and self.digests is None:
            raise ValueError("nothing is to be changed")
        return self


def add_routes(routes: Routes) -> None:
    routes.add("GET", "/artifactory/api/repositories", list_all, Permission.READ, at=ANYWHERE)
    routes.add("GET", "/artifactory/api/repositories/{key}", read, Permission.READ, at=Place(3, below=True))
    routes.add("PUT", "/artifactory/api/repositories/{key}", create, Permission.ADMIN)
    routes.add("POST", "/artifactory/api/repositories/{key}", change, Permission.ADMIN)
    routes.add("DELETE", "/artifactory/api/repositories/{key}", delete, Permission.ADMIN)


def key_of(request: web.Request) -> str:
    return request[TARGET].segments[3]


async def list_all(request: web.Request) -> web.StreamResponse:
    base = base_url(request)
    kind, package = request.query.get("type", "").lower(), request.query.get("packageType", "").lower()
    found, scope = await request.app[SERVICES].repositories.list_all(), principal_of(request).readable()
    return json_response(
        [
            {
                "key": repository.key,
                "type": repository.rclass.upper(),
                "description": repository.description,
                "url": f"{base}/{repository.key}",
                "packageType": repository.package_type.capitalize(),
            }
            for repository in found
            if scope.reaches(repository.key)
            and kind in ("", repository.rclass)
            and package in ("", repository.package_type)
        ]
    )


async def read(request: web.Request) -> web.StreamResponse:
    return json_response(document_of(await request.app[SERVICES].repositories.get(key_of(request))))


def document_of(repository: Repository) -> dict[str, Any]:
    return {
        "key": repository.key,
        "rclass": repository.rclass,
        "packageType": repository.package_type,
        "description": repository.description,
        "repoLayoutRef": "simple-default",
        "redundancy": repository.redundancy,
        "trash": repository.trash,
        "digests": list(repository.digests),
    }


async def create(request: web.Request) -> web.StreamResponse:
    key = key_of(request)
    try:
        document = RepositoryDocument.model_validate(await read_json(request))
    except ValidationError as error:
        raise RequestError(f"The repository's description cannot be read: {first_fault(error)}") from None
    if document.key not in (None, key):
        raise RequestError(f"The body names the repository {document.key}, the URL {key}.")
    if document.rclass != "local" or document.packageType.lower() != "generic":
        raise RequestError("Only local generic repositories can be made: rclass local, packageType generic.")
    await request.app[SERVICES].repositories.create(
        key,
        description=document.description or "",
        redundancy=document.redundancy,
        trash=document.trash,
        digests=document.digests,
        by=origin_of(request),
    )
    return web.Response(text=f"Successfully created repository '{key}'\n")


async def change(request: web.Request) -> web.StreamResponse:
    key = key_of(request)
    try:
        document = ChangeDocument.model_validate(await read_json(request))
    except ValidationError as error:
        raise RequestError(f"Of a repository, only trash and digests can be changed: {first_fault(error)}") from None
    await request.app[SERVICES].repositories.change(
        key,
        trash=document.trash,
        digests=document.digests,
        by=origin_of(request),
    )
    return web.Response(text=f"Repository {key} update successfully.\n")


async def delete(request: web.Request) -> web.StreamResponse:
    key = key_of(request)
    await request.app[SERVICES].repositories.delete(key, by=origin_of(request))
    return web.Response(text=f"Repository {key} and all its content have been removed successfully.\n")
