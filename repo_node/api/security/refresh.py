"""Refreshing tokens: whoever brings a refresh token gets another access token, and another refresh token, once."""

from __future__ import annotations

from datetime import timedelta

from aiohttp import web

from repo_node.api.security import token_documents as documents
from repo_node.api.security.requests import forget_tokens
from repo_node.api.security.token_documents import TokenDocument, read_fields
from repo_node.auth import tokens
from repo_node.auth.tokens import Kind
from repo_node.db import refresh_tokens
from repo_node.db.refresh_tokens import NewSecrets, Refreshed
from repo_node.errors import RequestError, Unauthenticated
from repo_node.web.addresses import origin_of
from repo_node.web.context import SERVICES
from repo_node.web.state import NODE

WRONG = "The refresh token is wrong, was used before, or has ended: log in again."


async def brings_refresh_token(request: web.Request) -> bool:
    """Say whether a request proves by its body who sends it: the token in use may have ended."""
    try:
        fields = await read_fields(request)
    except RequestError:
        return False
    return fields.get("grant_type") == documents.REFRESH and "refresh_token" in fields


def kept(request: web.Request) -> timedelta:
    """Return how long a refresh token is good beyond the end of its token."""
    return timedelta(days=request.app[SERVICES].settings.now.refresh_token_days)


async def refresh(request: web.Request, document: TokenDocument) -> web.StreamResponse:
    """Give a token other secrets and a new end; what else is asked for means nothing: it stays what it was."""
    brought, access = document.refresh_token, document.access_token
    if brought is None:
        raise RequestError("Say which token to refresh: refresh_token=...")
    secret, refresh_secret = tokens.new_secret(), tokens.new_secret(Kind.REFRESH)
    new = NewSecrets(tokens.digest(secret), secret[-4:], tokens.digest(refresh_secret), kept(request))
    try:
        found = await exchange(request, brought, access, new)
    finally:
        # Refreshed, revoked or not known to be: either way it has to be proved anew.
        forget_tokens(request)
    if found is None:
        request.app[SERVICES].metrics.auth_failures.labels("wrong_credentials").inc()
        raise Unauthenticated(WRONG)
    more = {"refresh_token": refresh_secret}
    if document.include_reference_token:
        more["reference_token"] = secret
    return documents.answer(secret, found.id, found.user, found.scopes, found.expires_in_seconds, **more)


async def exchange(request: web.Request, brought: str, access: str | None, new: NewSecrets) -> Refreshed | None:
    """Let a refresh token be used; one that was used before ends its token, for whoever else has it."""
    bare = None if access is None else tokens.secret_in(access)
    if not tokens.looks_like_token(brought, Kind.REFRESH) or (access is not None and bare is None):
        return None
    database, sha256, by = request.app[NODE].database, tokens.digest(brought), origin_of(request)
    of = None if bare is None else tokens.digest(bare)
    found = await refresh_tokens.refresh(database, sha256, new, secret_sha256=of, by=by)
    if found is None:
        await refresh_tokens.revoke_used(database, sha256, by=by)
    return found
