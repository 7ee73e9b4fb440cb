"""Access tokens as Artifactory's clients ask for them: ``access/api/v1/tokens`` and ``api/security/token``."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import NotRequired

from aiohttp import web
from typing_extensions import TypedDict

from repo_node.api.documents import json_response
from repo_node.api.security import token_documents as documents
from repo_node.api.security.refresh import brings_refresh_token, kept, refresh
from repo_node.api.security.requests import forget_tokens, is_admin, name_in
from repo_node.api.security.token_documents import (
    FORM,
    MadeToken,
    TokenDocument,
    TokenInfo,
    read_fields,
    read_token_document,
    words_of,
)
from repo_node.auth import tokens
from repo_node.auth.permissions import Permission
from repo_node.auth.scopes import UnknownScope, read_scope_words
from repo_node.db import principals, refresh_tokens, users
from repo_node.db.principals import GENERATIONS_MAX, Refreshable
from repo_node.errors import Forbidden, NotFound, RequestError
from repo_node.web.addresses import origin_of
from repo_node.web.context import SERVICES, principal_of
from repo_node.web.descriptions import JSON, TEXT, Body, Content, Digits, described
from repo_node.web.routes import Routes, WhileReadOnly
from repo_node.web.state import NODE

ACCESS = ("/artifactory/access/api/v1/tokens", "/access/api/v1/tokens")
V1 = "/artifactory/api/security/token"
V1_SECONDS = 3600
"""Lifetime of a token made by the first form of the API, unless another is asked for; 0 is for ever."""


class RevokedDocument(TypedDict):
    """The token itself, or its id."""

    token: NotRequired[str]
    token_id: NotRequired[str]


ASKED = Body((Content(JSON, TokenDocument), Content(FORM, TokenDocument)), required=False)
REVOKED = Body((Content(JSON, RevokedDocument), Content(FORM, RevokedDocument)))


class TokenList(TypedDict):
    tokens: list[TokenInfo]


def add_routes(routes: Routes) -> None:
    account, served = Permission.ACCOUNT, WhileReadOnly.SERVED
    for base in ACCESS:
        routes.add("POST", base, create, account, proved_by=brings_refresh_token)
        routes.add("GET", base, list_all, account)
        # Before the one that takes an id.
        routes.add("DELETE", f"{base}/revoke", revoke_by_secret, account, while_read_only=served)
        routes.add("GET", f"{base}/{{id}}", read, account)
        routes.add("DELETE", f"{base}/{{id}}", revoke_by_id, account, while_read_only=served)
    routes.add("POST", V1, create_v1, account, proved_by=brings_refresh_token)
    routes.add("GET", V1, list_all, account)
    routes.add("POST", f"{V1}/revoke", revoke_by_secret, account, while_read_only=served)


# ------------------------------------------------------------------ making tokens


@described({200: MadeToken}, body=ASKED)
async def create(request: web.Request) -> web.StreamResponse:
    """Make a token of the caller's or, for administrators, of another user, or refresh one (``grant_type``).

    Its secret is in this one answer. A refresh token needs no other credentials.
    """
    return await answer_request(request, request.app[SERVICES].settings.now.token_seconds_default)


@described({200: MadeToken}, body=ASKED)
async def create_v1(request: web.Request) -> web.StreamResponse:
    """Make a token that lives for an hour, unless ``expires_in`` says otherwise, or refresh one (``grant_type``)."""
    return await answer_request(request, V1_SECONDS)


async def answer_request(request: web.Request, seconds_default: int) -> web.StreamResponse:
    """Make a token, or refresh one, and answer with its secret, once."""
    document = await read_token_document(request)
    match document.grant_type:
        case "client_credentials":
            return await make(request, document, seconds_default)
        case documents.REFRESH:
            return await refresh(request, document)
        case _:
            raise RequestError("grant_type must be client_credentials or refresh_token.")


async def make(request: web.Request, document: TokenDocument, seconds_default: int) -> web.StreamResponse:
    words, asked = words_of(document.scope), document.expires_in
    require_shorter_life(request, asked)
    seconds = seconds_default if asked is None else asked
    if document.refreshable and not seconds:
        raise RequestError("A token that does not end is not refreshed: give expires_in.")
    owner = document.username or principal_of(request).name
    made = await record(request, owner, words, seconds or None, document.description, refreshable=document.refreshable)
    more = {} if made.refresh is None else {"refresh_token": made.refresh}
    if document.include_reference_token:
        more["reference_token"] = made.secret
    return documents.answer(made.secret, made.id, owner, words, made.expires_in_seconds, **more)


def require_shorter_life(request: web.Request, seconds: int | None) -> None:
    """Refuse a lifetime beyond the end of the token in use; 0 is for ever, None what is left. Raises ``Forbidden``."""
    left_seconds = principal_of(request).ends_at - time.monotonic()
    if seconds is not None and left_seconds < (seconds or math.inf):
        raise Forbidden(
            f"A token makes none that outlives it: this one ends in {max(0, int(left_seconds))} seconds (expires_in)."
        )


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token with its secrets. ``expires_in_seconds``: None where it does not end."""

    id: int
    secret: str
    refresh: str | None
    expires_in_seconds: int | None


async def record(
    request: web.Request,
    owner: str,
    words: list[str],
    seconds: int | None,
    description: str,
    *,
    refreshable: bool = False,
) -> NewToken:
    """Make a token of ``owner``, which ends with the token in use, if not before.

    Raises ``RequestError``, ``Forbidden``.
    """
    await check_scopes(request, owner, words)
    secret, refresh_secret = tokens.new_secret(), tokens.new_secret(tokens.Kind.REFRESH) if refreshable else None
    made = await principals.create_token(
        request.app[NODE].database,
        owner,
        secret_sha256=tokens.digest(secret),
        ending=secret[-4:],
        description=description,
        scopes=words,
        expires_in=None if seconds is None else timedelta(seconds=seconds),
        parent=principal_of(request).token,
        refresh=None if refresh_secret is None else Refreshable(tokens.digest(refresh_secret), kept(request)),
        by=origin_of(request),
    )
    return NewToken(made.id, secret, refresh_secret, made.expires_in_seconds)


async def check_scopes(request: web.Request, owner: str, words: list[str]) -> None:
    """Refuse scopes that there are not, and a token that could do more than who asks for it.

    Only administrators make tokens for others, and with an administrator's rights. A token for groups carries what the
    user, as a member, has by them, or what they have where its user is an administrator.
    """
    try:
        scope = read_scope_words(words)
    except UnknownScope as error:
        raise RequestError(f"There is no scope {error}.") from None
    if not is_admin(request):
        if owner != principal_of(request).name:
            raise Forbidden("Only an administrator may make a token for another user.")
        if scope.wants_admin or Permission.ADMIN in (scope.permissions or ()):
            raise Forbidden("Only an administrator may make a token with an administrator's rights.")
    own = principal_of(request).scopes
    if own is not None and Permission.ADMIN not in own and not (scope.permissions and scope.permissions <= own):
        raise Forbidden("A token with scopes makes none that has more of them.")
    await require_fewer_generations(request)
    account = await users.find(request.app[NODE].database, owner)
    if account is None or not account.is_enabled:
        raise RequestError(f"There is no enabled user {owner}.")
    if scope.groups and not account.is_admin and (others := set(scope.groups) - set(account.groups)):
        raise Forbidden(f"{owner} is no member of {', '.join(sorted(others))}.")


async def require_fewer_generations(request: web.Request) -> None:
    """Refuse a token below too many others, all of which end with the first. Raises ``Forbidden``."""
    token = principal_of(request).token
    if token is None or await principals.find_generation(request.app[NODE].database, token) < GENERATIONS_MAX:
        return
    raise Forbidden(
        f"The token in use is the last of {GENERATIONS_MAX} that made one another, and makes none. Log in with another."
    )


# ------------------------------------------------------------------ listing, revoking


@described({200: TokenList})
async def list_all(request: web.Request) -> web.StreamResponse:
    """Answer with one's own tokens or, for administrators, with all."""
    owner = None if is_admin(request) else principal_of(request).name
    found = await principals.list_tokens(request.app[NODE].database, owner)
    return json_response({"tokens": [documents.document_of(token) for token in found]})


@described({200: TokenInfo}, path={"id": Digits})
async def read(request: web.Request) -> web.StreamResponse:
    """Answer with a token, without its secret."""
    text = name_in(request, -1)
    token = await principals.find_token_by_id(request.app[NODE].database, token_number(text))
    if token is None or not (is_admin(request) or token.user == principal_of(request).name):
        raise NotFound(f"There is no valid token {text}: Not Found.")
    return json_response(documents.document_of(token))


def token_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise NotFound(f"There is no valid token {text}: Not Found.")
    return int(text)


@described({200: TEXT}, path={"id": Digits})
async def revoke_by_id(request: web.Request) -> web.StreamResponse:
    """Revoke one's own token or, for administrators, any."""
    return await revoke(request, token_number(name_in(request, -1)))


@described({200: TEXT}, body=REVOKED, errors={404})
async def revoke_by_secret(request: web.Request) -> web.StreamResponse:
    """Revoke the token in the body's ``token``, or of that refresh token, or the one of ``token_id``."""
    fields = await read_fields(request)
    secret, text = fields.get("token"), fields.get("token_id")
    if isinstance(secret, str) and (bare := any_secret_in(secret)):
        found = await refresh_tokens.find_token_id(request.app[NODE].database, tokens.digest(bare))
        return await revoke(request, found or 0)
    if isinstance(text, str):
        return await revoke(request, token_number(text))
    if secret is None:
        raise RequestError("Say which token: token=... or token_id=...")
    return await revoke(request, 0)


def any_secret_in(text: str) -> str | None:
    """Return the secret of an access token, or a refresh token; None where it can be neither."""
    return text if tokens.looks_like_token(text, tokens.Kind.REFRESH) else tokens.secret_in(text)


async def revoke(request: web.Request, token: int) -> web.StreamResponse:
    """Revoke one's own token or, for administrators, any; and what it has made."""
    if not await end_token(request, token, owner=None if is_admin(request) else principal_of(request).name):
        raise NotFound("There is no such valid token: Not Found.")
    return web.Response(text="Token revoked")


async def end_token(request: web.Request, token: int, *, owner: str | None = None) -> bool:
    """Revoke a token, of ``owner`` or of anybody, and what it has made; False: there is none."""
    try:
        return await principals.revoke_token(request.app[NODE].database, token, owner=owner, by=origin_of(request))
    finally:
        # Revoked or not known to be: either way it has to be proved anew.
        forget_tokens(request)
