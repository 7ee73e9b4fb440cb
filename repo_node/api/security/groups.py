"""Groups (``/artifactory/api/security/groups``)."""

from __future__ import annotations

from typing import NotRequired

from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from repo_node.api.bodies import ArtifactoryDocument, PlainText, read_as
from repo_node.api.documents import json_response
from repo_node.api.security.requests import Named, check_group_name, forget, listed, name_in
from repo_node.auth.permissions import Permission
from repo_node.db import groups
from repo_node.errors import NotFound, RequestError
from repo_node.web.addresses import origin_of
from repo_node.web.descriptions import TEXT, Flag, described
from repo_node.web.queries import flag
from repo_node.web.routes import Routes
from repo_node.web.state import NODE

BASE = "/artifactory/api/security/groups"


class GroupDocument(ArtifactoryDocument):
    """What may be said of a group; the rest of what Artifactory's clients send means nothing here."""

    name: str | None = None
    description: PlainText | None = Field(None, max_length=2000)
    autoJoin: bool | None = None
    adminPrivileges: bool | None = None
    userNames: list[PlainText] | None = Field(None, max_length=10_000)


class GroupState(TypedDict):
    name: str
    description: str
    autoJoin: bool
    adminPrivileges: bool
    realm: str
    userNames: NotRequired[list[str]]


def add_routes(routes: Routes) -> None:
    routes.add("GET", BASE, list_all, Permission.ADMIN)
    routes.add("GET", f"{BASE}/{{name}}", read, Permission.ADMIN)
    routes.add("PUT", f"{BASE}/{{name}}", put, Permission.ADMIN)
    routes.add("POST", f"{BASE}/{{name}}", change, Permission.ADMIN)
    routes.add("DELETE", f"{BASE}/{{name}}", delete, Permission.ADMIN)


@described({200: list[Named]})
async def list_all(request: web.Request) -> web.StreamResponse:
    """List the groups."""
    return json_response(listed(request, "groups", await groups.list_names(request.app[NODE].database)))


@described({200: GroupState}, query={"includeUsers": Flag})
async def read(request: web.Request) -> web.StreamResponse:
    """Answer with a group; with ``includeUsers`` its members too."""
    name = name_in(request)
    group = await groups.find(request.app[NODE].database, name)
    if group is None:
        raise NotFound(f"There is no group {name}: Not Found.")
    document: GroupState = {
        "name": group.name,
        "description": group.description,
        "autoJoin": group.auto_join,
        "adminPrivileges": False,
        "realm": "internal",
    }
    if flag(request, "includeUsers", False):
        document["userNames"] = list(group.members)
    return json_response(document)


@described({200: None, 201: None}, body=GroupDocument, errors={409})
async def put(request: web.Request) -> web.StreamResponse:
    """Make a group, or say anew what one is: 201 and 200. Members that are not said stay."""
    made = await save(request, check_group_name(name_in(request)), is_new=None)
    return web.Response(status=201 if made else 200)


@described({200: None}, body=GroupDocument, errors={409})
async def change(request: web.Request) -> web.StreamResponse:
    """Change what is said of a group."""
    await save(request, name_in(request), is_new=False)
    return web.Response(status=200)


async def save(request: web.Request, name: str, *, is_new: bool | None) -> bool:
    document = await read_as(request, GroupDocument)
    if document.name not in (None, name):
        raise RequestError(f"The body names the group {document.name}, the URL {name}.")
    if document.adminPrivileges:
        raise RequestError("A group makes nobody an administrator: users are made that one by one.")
    try:
        return await groups.save(
            request.app[NODE].database,
            name,
            description=document.description,
            auto_join=document.autoJoin,
            members=document.userNames,
            is_new=is_new,
            by=origin_of(request),
        )
    finally:
        forget(request)


@described({200: TEXT})
async def delete(request: web.Request) -> web.StreamResponse:
    """Delete a group; its members lose what it gave them."""
    name = name_in(request)
    try:
        gone = await groups.delete(request.app[NODE].database, name, by=origin_of(request))
    finally:
        forget(request)
    if not gone:
        raise NotFound(f"There is no group {name}: Not Found.")
    return web.Response(text=f"Group '{name}' has been deleted successfully.")
