"""Repositories: list, read, create, change, delete (``/artifactory/api/repositories``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from aiohttp import web

from repo_node.api.documents import json_response
from repo_node.api.repository_documents import (
    BY_CLASS,
    RepositoryConfiguration,
    RepositoryDocument,
    RepositoryEntry,
    document_of,
    list_entry,
    read_document,
)
from repo_node.api.security.requests import forget
from repo_node.auth.permissions import Permission
from repo_node.db.repositories import LOCAL, Configuration, Repository
from repo_node.errors import RequestError
from repo_node.views import make_view
from repo_node.web.addresses import origin_of
from repo_node.web.body import read_json
from repo_node.web.context import SERVICES, TARGET, base_url, principal_of
from repo_node.web.descriptions import TEXT, described
from repo_node.web.routes import ANYWHERE, Place, Routes

BASE = "/artifactory/api/repositories"
RepositoryClass = Literal["local", "virtual", "remote", "federated", "distribution"]


def add_routes(routes: Routes) -> None:
    routes.add("GET", BASE, list_all, Permission.READ, at=ANYWHERE)
    # Before the one of a key: no repository is called so.
    routes.add("GET", f"{BASE}/configurations", configurations, Permission.ADMIN)
    routes.add("GET", f"{BASE}/{{key}}", read, Permission.READ, at=Place(3, below=True))
    routes.add("PUT", f"{BASE}/{{key}}", create, Permission.ADMIN)
    routes.add("POST", f"{BASE}/{{key}}", change, Permission.ADMIN)
    routes.add("DELETE", f"{BASE}/{{key}}", delete, Permission.ADMIN)


def key_of(request: web.Request) -> str:
    return request[TARGET].segments[3]


def narrowed(request: web.Request, every: Iterable[Repository], class_parameter: str) -> list[Repository]:
    """Return the repositories of the class and the package type that the query names, or of all."""
    rclass = request.query.get(class_parameter, "").lower()
    package = request.query.get("packageType", "").lower()
    return [
        repository
        for repository in every
        if rclass in ("", repository.rclass) and package in ("", repository.package_type)
    ]


@described({200: list[RepositoryEntry]}, query={"type": RepositoryClass, "packageType": str})
async def list_all(request: web.Request) -> web.StreamResponse:
    """List the repositories in which the caller may read something."""
    base = base_url(request)
    scope = principal_of(request).readable()
    every = await request.app[SERVICES].repositories.list_all()
    known = {one.key for one in every if scope.reaches(one.key)}
    known |= {one.key for one in every if one.is_virtual and make_view(one, every).reaches_any(known)}
    found = [one for one in narrowed(request, every, "type") if one.key in known]
    return json_response([list_entry(base, repository) for repository in found])


@described({200: dict[str, list[RepositoryConfiguration]]}, query={"repoType": RepositoryClass, "packageType": str})
async def configurations(request: web.Request) -> web.StreamResponse:
    """Answer with every repository's configuration, by class."""
    found: dict[str, list[dict[str, Any]]] = {rclass.upper(): [] for rclass in BY_CLASS}
    for repository in narrowed(request, await request.app[SERVICES].repositories.list_all(), "repoType"):
        found[repository.rclass.upper()].append(document_of(repository))
    return json_response({rclass: documents for rclass, documents in found.items() if documents})


@described({200: RepositoryConfiguration})
async def read(request: web.Request) -> web.StreamResponse:
    """Answer with a repository's configuration and, where it has a quota, with how much of that is used."""
    repositories = request.app[SERVICES].repositories
    repository = await repositories.get(key_of(request))
    document = document_of(repository)
    if repository.quota_bytes is not None:
        document["usedBytes"] = await repositories.used_bytes(repository)
    return json_response(document)


@described({200: TEXT}, errors={409}, body=RepositoryDocument)
async def create(request: web.Request) -> web.StreamResponse:
    """Make a repository."""
    key = key_of(request)
    document = read_document(key, await read_json(request))
    rclass = document.rclass or LOCAL
    await request.app[SERVICES].repositories.create(
        key,
        Configuration(**document.fields_for(rclass)),
        rclass=rclass,
        by=origin_of(request),
    )
    return web.Response(text=f"Successfully created repository '{key}'\n")


@described({200: TEXT}, body=RepositoryDocument)
async def change(request: web.Request) -> web.StreamResponse:
    """Change what the body names; what it does not name stays."""
    key, repositories = key_of(request), request.app[SERVICES].repositories
    document = read_document(key, await read_json(request))
    rclass = (await repositories.get(key)).rclass
    if document.rclass not in (None, rclass):
        raise RequestError(f"The repository {key} is {rclass}, and stays so.")
    await repositories.change(key, document.fields_for(rclass), by=origin_of(request))
    return web.Response(text=f"Repository {key} update successfully.\n")


@described({200: TEXT}, errors={409})
async def delete(request: web.Request) -> web.StreamResponse:
    """Delete a repository and all that lies in it."""
    key = key_of(request)
    try:
        await request.app[SERVICES].repositories.delete(key, by=origin_of(request))
    finally:
        # Permission targets have lost it.
        forget(request)
    return web.Response(text=f"Repository {key} and all its content have been removed successfully.\n")
