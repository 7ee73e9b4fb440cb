"""Changing properties: ``PUT`` and ``DELETE api/storage/...?properties=``, ``PATCH api/metadata/...``."""

from __future__ import annotations

from typing import Annotated, Required

from aiohttp import web
from pydantic import Field

from repo_node.api.bodies import ArtifactoryDocument, read_as
from repo_node.auth.permissions import Permission
from repo_node.db.properties import Changes
from repo_node.errors import RequestError
from repo_node.paths import PROPERTIES_MAX
from repo_node.properties import Value, parse_properties, read_patch, without
from repo_node.web.addresses import origin_of
from repo_node.web.context import SERVICES, artifact_at, principal_of, require_throughout
from repo_node.web.descriptions import Flag, described
from repo_node.web.queries import flag
from repo_node.web.routes import Place, Routes, WhileReadOnly

Listed = Annotated[
    str,
    Field(
        min_length=1,
        description="name=value,value;name=value, a backslash before , ; | = itself.",
        examples=["a=1,2;b=3"],
    ),
]
Names = Annotated[str, Field(min_length=1, description="Names, separated by commas.", examples=["a,b"])]


class PatchDocument(ArtifactoryDocument):
    """What each property is to be; null drops it."""

    props: dict[str, Value] = Field(min_length=1, max_length=PROPERTIES_MAX, examples=[{"a": ["1", "2"], "b": None}])


def add_routes(routes: Routes) -> None:
    by_postgres = WhileReadOnly.REFUSED_BY_POSTGRES
    storage, metadata = "/artifactory/api/storage/{item:.+}", "/artifactory/api/metadata/{item:.+}"
    needed, at = Permission.ANNOTATE, Place(3, absent="Unable to find item")
    routes.add("PUT", storage, set_properties, needed, at=at, while_read_only=by_postgres)
    routes.add("DELETE", storage, drop_properties, needed, at=at, while_read_only=by_postgres)
    routes.add("PATCH", metadata, patch_properties, needed, at=at, while_read_only=by_postgres)


@described({204: None}, query={"properties": Required[Listed], "recursive": Flag}, root=True)
async def set_properties(request: web.Request) -> web.StreamResponse:
    """Set properties of an artifact, or of a folder and all that lies in it."""
    changes = Changes(parse_properties(asked_for(request)))
    return await change(request, changes, recursive=flag(request, "recursive", True))


@described({204: None}, query={"properties": Required[Names], "recursive": Flag}, root=True)
async def drop_properties(request: web.Request) -> web.StreamResponse:
    """Drop properties of an artifact, or of a folder and all that lies in it."""
    names = asked_for(request).split(",")
    return await change(request, without(names), recursive=flag(request, "recursive", True))


@described(
    {204: None},
    body=PatchDocument,
    query={"recursiveProperties": Flag, "recursive": Flag, "atomicProperties": Flag},
    root=True,
)
async def patch_properties(request: web.Request) -> web.StreamResponse:
    """Set and drop in one go. Each step is atomic whatever ``atomicProperties`` says."""
    name = "recursiveProperties" if "recursiveProperties" in request.query else "recursive"
    props = (await read_as(request, PatchDocument)).props
    return await change(request, read_patch(props), recursive=flag(request, name, True))


def asked_for(request: web.Request) -> str:
    if not (text := request.query.get("properties", "")):
        raise RequestError("Say which properties: ?properties=...")
    return text


async def change(request: web.Request, changes: Changes, *, recursive: bool) -> web.StreamResponse:
    """Change properties; those of all in a folder, for whoever may ``annotate`` all that may lie in it."""
    at = artifact_at(request, skip=3)
    if recursive and not principal_of(request).may_throughout(Permission.ANNOTATE, at):
        if not at.name or (await request.app[SERVICES].artifacts.get(at)).blob is None:
            require_throughout(request, Permission.ANNOTATE, at)
        recursive = False
    await request.app[SERVICES].properties.change(at, changes, recursive=recursive, by=origin_of(request))
    return web.Response(status=204)
