"""API keys (``/artifactory/api/security/apiKey``): one token of a user that carries all they may and never ends."""

from __future__ import annotations

from aiohttp import web

from repo_node.api.documents import json_response
from repo_node.api.security.requests import forget
from repo_node.api.security.tokens import record
from repo_node.auth.permissions import Permission
from repo_node.auth.scopes import OF_USER
from repo_node.db import principals
from repo_node.errors import NotFound, RequestError
from repo_node.web.addresses import origin_of
from repo_node.web.context import principal_of
from repo_node.web.routes import Routes
from repo_node.web.state import NODE

PATH = "/artifactory/api/security/apiKey"
DESCRIPTION = "API key"


def add_routes(routes: Routes) -> None:
    routes.add("GET", PATH, read, Permission.ACCOUNT)
    routes.add("POST", PATH, create, Permission.ACCOUNT)
    routes.add("PUT", PATH, regenerate, Permission.ACCOUNT)
    routes.add("DELETE", PATH, revoke, Permission.ACCOUNT)


async def keys_of(request: web.Request) -> list[principals.Token]:
    found = await principals.list_tokens(request.app[NODE].database)
    own = principal_of(request).name
    return [one for one in found if one.user == own and one.description == DESCRIPTION and one.scopes == (OF_USER,)]


async def read(request: web.Request) -> web.StreamResponse:
    """Say that there is a key, by its last characters: nobody but its owner has it. An empty object: there is none."""
    keys = await keys_of(request)
    return json_response({"apiKey": f"...{keys[-1].ending}"} if keys else {})


async def create(request: web.Request) -> web.StreamResponse:
    """Make a key and answer with it, once."""
    if await keys_of(request):
        raise RequestError("There is an API key already; PUT makes another one in its place.", status=409)
    made = await record(request, None, [OF_USER], None, DESCRIPTION)
    return json_response({"apiKey": made.secret}, status=201, headers={"Cache-Control": "no-store"})


async def regenerate(request: web.Request) -> web.StreamResponse:
    """Make another key, and end those before."""
    before = await keys_of(request)
    made = await record(request, None, [OF_USER], None, DESCRIPTION)
    await revoke_all(request, before)
    return json_response({"apiKey": made.secret}, headers={"Cache-Control": "no-store"})


async def revoke(request: web.Request) -> web.StreamResponse:
    keys = await keys_of(request)
    if not keys:
        raise NotFound("There is no API key: Not Found.")
    await revoke_all(request, keys)
    return json_response({"info": "The API key is revoked."})


async def revoke_all(request: web.Request, keys: list[principals.Token]) -> None:
    try:
        for key in keys:
            await principals.revoke_token(request.app[NODE].database, key.id, by=origin_of(request))
    finally:
        forget(request)
