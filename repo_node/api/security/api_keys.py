"""API keys (``/artifactory/api/security/apiKey``): one token of a user that carries all they may and never ends."""

from __future__ import annotations

import math
from typing import NotRequired

from aiohttp import web
from typing_extensions import TypedDict

from repo_node.api.documents import json_response
from repo_node.api.security.requests import forget_tokens, name_in
from repo_node.api.security.tokens import check_scopes
from repo_node.auth import tokens
from repo_node.auth.permissions import Permission
from repo_node.auth.scopes import OF_USER
from repo_node.db import api_keys
from repo_node.errors import Forbidden, NotFound, RequestError
from repo_node.web.addresses import origin_of
from repo_node.web.context import principal_of, require
from repo_node.web.descriptions import described
from repo_node.web.queries import flag
from repo_node.web.routes import Routes, WhileReadOnly
from repo_node.web.state import NODE

PATH = "/artifactory/api/security/apiKey"
KIND = api_keys.Kind("API key", OF_USER)


class KeyDocument(TypedDict):
    apiKey: NotRequired[str]


class KeyRevoked(TypedDict):
    info: str


def add_routes(routes: Routes) -> None:
    routes.add("GET", PATH, read, Permission.ACCOUNT)
    routes.add("POST", PATH, create, Permission.ACCOUNT)
    routes.add("PUT", PATH, regenerate, Permission.ACCOUNT)
    # One that leaked must not wait.
    routes.add("DELETE", PATH, revoke, Permission.ACCOUNT, while_read_only=WhileReadOnly.SERVED)
    routes.add("DELETE", f"{PATH}/{{name}}", revoke_named, Permission.ADMIN, while_read_only=WhileReadOnly.SERVED)


@described({200: KeyDocument})
async def read(request: web.Request) -> web.StreamResponse:
    """Say that there is a key, by its last characters: nobody but its owner has it. An empty object: there is none."""
    ending = await api_keys.find_ending(request.app[NODE].database, principal_of(request).name, KIND)
    return json_response({} if ending is None else {"apiKey": f"...{ending}"})


@described({201: KeyDocument}, errors={409})
async def create(request: web.Request) -> web.StreamResponse:
    """Make a key and answer with it, once."""
    secret = await make(request, replaces=False)
    if secret is None:
        raise RequestError("There is an API key already; PUT makes another one in its place.", status=409)
    return json_response({"apiKey": secret}, status=201, headers={"Cache-Control": "no-store"})


@described({200: KeyDocument})
async def regenerate(request: web.Request) -> web.StreamResponse:
    """Make another key, and end the one before."""
    return json_response({"apiKey": await make(request, replaces=True)}, headers={"Cache-Control": "no-store"})


async def make(request: web.Request, *, replaces: bool) -> str | None:
    """Make a key of the caller's and return its secret; None where there is one that it does not replace."""
    principal = principal_of(request)
    if principal.ends_at < math.inf:
        raise Forbidden("An API key does not end, and a token makes nothing that outlives it.")
    own = principal.name
    await check_scopes(request, own, [KIND.scope])
    secret = tokens.new_secret()
    key = api_keys.NewKey(tokens.digest(secret), secret[-4:], principal.token)
    try:
        made = await api_keys.make(request.app[NODE].database, own, KIND, key, replaces=replaces, by=origin_of(request))
    finally:
        forget_tokens(request)
    return secret if made else None


@described({200: KeyRevoked}, errors={404})
async def revoke(request: web.Request) -> web.StreamResponse:
    """End the caller's own key or, for administrators with ``deleteAll``, everybody's."""
    if not flag(request, "deleteAll", False):
        return await revoke_of(request, principal_of(request).name)
    require(request, Permission.ADMIN)
    try:
        count = await api_keys.revoke_all(request.app[NODE].database, KIND, by=origin_of(request))
    finally:
        forget_tokens(request)
    return json_response({"info": f"{count} API keys are revoked."})


@described({200: KeyRevoked}, errors={404})
async def revoke_named(request: web.Request) -> web.StreamResponse:
    """End the key of another user at once."""
    return await revoke_of(request, name_in(request))


async def revoke_of(request: web.Request, user: str) -> web.StreamResponse:
    try:
        revoked = await api_keys.revoke(request.app[NODE].database, user, KIND, by=origin_of(request))
    finally:
        forget_tokens(request)
    if not revoked:
        raise NotFound("There is no API key: Not Found.")
    return json_response({"info": "The API key is revoked."})
