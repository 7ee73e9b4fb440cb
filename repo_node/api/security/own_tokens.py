"""Tokens over Holdfast's own API (``api/holdfast/tokens``): of all users, by the scopes that Holdfast knows."""

from __future__ import annotations

from aiohttp import web
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from repo_node.api.bodies import OwnDocument, PlainText, read_as
from repo_node.api.documents import Time, json_response, timestamp
from repo_node.api.security.token_documents import SCOPES_MAX
from repo_node.api.security.tokens import end_token, record, require_shorter_life
from repo_node.auth.permissions import Permission
from repo_node.db import principals
from repo_node.errors import NotFound
from repo_node.web.context import TARGET, principal_of
from repo_node.web.descriptions import Digits, described
from repo_node.web.routes import Routes, WhileReadOnly
from repo_node.web.state import NODE

BASE = "/artifactory/api/holdfast/tokens"


class NewTokenDocument(OwnDocument):
    """What may be said of a new token."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"scopes": ["read"]}]})
    description: PlainText = Field("", max_length=500)
    scopes: list[PlainText] = Field(min_length=1, max_length=SCOPES_MAX)
    user: PlainText | None = None
    expires_in_seconds: int | None = Field(None, ge=1, le=10 * 366 * 86_400)


class TokenState(TypedDict):
    id: int
    user: str
    ending: str
    description: str
    scopes: list[str]
    created_at: Time
    expires_at: Time | None


class Tokens(TypedDict):
    tokens: list[TokenState]


class NewToken(TypedDict):
    id: int
    token: str
    scopes: list[str]
    expires_in_seconds: int | None


def add_routes(routes: Routes) -> None:
    routes.add("GET", BASE, list_tokens, Permission.ADMIN)
    routes.add("POST", BASE, create_token, Permission.ADMIN)
    routes.add("DELETE", f"{BASE}/{{id}}", revoke_token, Permission.ADMIN, while_read_only=WhileReadOnly.SERVED)


@described({200: Tokens})
async def list_tokens(request: web.Request) -> web.StreamResponse:
    """List the valid tokens of all users, without their secrets."""
    found = await principals.list_tokens(request.app[NODE].database)
    return json_response({"tokens": [token_document(token) for token in found]})


def token_document(token: principals.Token) -> TokenState:
    return {
        "id": token.id,
        "user": token.user,
        "ending": token.ending,
        "description": token.description,
        "scopes": list(token.scopes),
        "created_at": timestamp(token.created_at),
        "expires_at": timestamp(token.expires_at) if token.expires_at else None,
    }


@described({201: NewToken}, body=NewTokenDocument)
async def create_token(request: web.Request) -> web.StreamResponse:
    """Make a token of the caller's, or of ``user``; its secret is in this one answer and nowhere else."""
    document = await read_as(request, NewTokenDocument)
    scopes, seconds = sorted(set(document.scopes)), document.expires_in_seconds
    require_shorter_life(request, seconds)
    made = await record(request, document.user or principal_of(request).name, scopes, seconds, document.description)
    answer = {"id": made.id, "token": made.secret, "scopes": scopes, "expires_in_seconds": made.expires_in_seconds}
    return json_response(answer, status=201, headers={"Cache-Control": "no-store"})


@described({204: None}, path={"id": Digits})
async def revoke_token(request: web.Request) -> web.StreamResponse:
    """Revoke a token at once."""
    text = request[TARGET].segments[4]
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise NotFound(f"There is no token {text}.")
    if not await end_token(request, int(text)):
        raise NotFound(f"There is no valid token {text}.")
    return web.Response(status=204)
