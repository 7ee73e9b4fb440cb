"""How tokens are asked for, as JSON or a form, and told of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NotRequired
from urllib.parse import parse_qsl

from aiohttp import web
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from repo_node.api.bodies import ArtifactoryDocument, PlainText, validated
from repo_node.api.documents import json_response
from repo_node.auth import tokens
from repo_node.auth.scopes import OF_GROUPS, OF_USER, split_groups
from repo_node.db.principals import Token
from repo_node.errors import RequestError
from repo_node.web.body import read_document, read_json

ISSUER = "holdfast"
FORM = "application/x-www-form-urlencoded"
REFRESH = "refresh_token"
"""The ``grant_type`` of who brings a refresh token."""

MEMBER_OF = "member-of-groups:"
SCOPES_MAX = 50

SCOPE_TOLD_MAX = 500
"""Characters of a scope that an access token tells: it has to fit into a header."""

FIELDS = web.RequestKey("fields", dict[str, Any])
"""The fields of a body that has been read."""


class TokenDocument(ArtifactoryDocument):
    """What may be asked for, as JSON or as texts of a form."""

    model_config = ConfigDict(strict=False)
    grant_type: str = "client_credentials"
    username: PlainText | None = None
    scope: PlainText | None = Field(None, max_length=5000)
    expires_in: int | None = Field(None, ge=0, le=316_224_000)
    description: PlainText = Field("", max_length=500)
    refreshable: bool = False
    refresh_token: str | None = None
    access_token: str | None = None
    include_reference_token: bool = False


class MadeToken(TypedDict):
    token_id: str
    access_token: str
    scope: str
    token_type: str
    expires_in: NotRequired[int]
    refresh_token: NotRequired[str]
    reference_token: NotRequired[str]


class TokenInfo(TypedDict):
    token_id: str
    subject: str
    issuer: str
    scope: str
    description: str
    issued_at: int
    expiry: NotRequired[int]
    refreshable: bool


async def read_fields(request: web.Request) -> dict[str, Any]:
    """Return the body, JSON or a form, as a document; it is read once. Raises ``RequestError``."""
    if FIELDS not in request:
        request[FIELDS] = await (read_form(request) if request.content_type == FORM else read_json(request))
    fields: dict[str, Any] = request[FIELDS]
    return fields


async def read_form(request: web.Request) -> dict[str, Any]:
    try:
        pairs = parse_qsl((await read_document(request)).decode(), keep_blank_values=True, max_num_fields=50)
    except ValueError:
        raise RequestError("The form in the body cannot be read.") from None
    return {key: value for key, value in pairs if value}


async def read_token_document(request: web.Request) -> TokenDocument:
    return validated(await read_fields(request), TokenDocument)


def words_of(scope: str | None) -> list[str]:
    """Return the words of a scope: ``api:*`` says nothing, ``member-of-groups`` is the older word for groups."""
    text, words = (scope or "").strip(), []
    # Names of groups may have spaces, in quotation marks; nothing else of a scope does.
    for word in split_words(text):
        if word.startswith(MEMBER_OF):
            named = split_groups(word.removeprefix(MEMBER_OF))
            words.append(OF_USER if named <= {"*"} else OF_GROUPS + ",".join(sorted(named)))
        elif not word.startswith("api:"):
            words.append(word)
    if len(words) > SCOPES_MAX:
        raise RequestError(f"A token has at most {SCOPES_MAX} scopes.")
    return words or [OF_USER]


def split_words(text: str) -> list[str]:
    """Split at spaces that are not between quotation marks."""
    words, quoted = [""], False
    for character in text:
        quoted ^= character == '"'
        if character == " " and not quoted:
            words.append("")
        else:
            words[-1] += character
    return [word for word in words if word]


def answer(
    secret: str, token: int, user: str, scopes: Sequence[str], seconds: int | None, **more: str
) -> web.StreamResponse:
    """Answer with a token's secret, once. ``seconds``: how long it is valid; None: it does not end."""
    scope, now = " ".join(scopes), int(time.time())
    claims: dict[str, Any] = {"iss": ISSUER, "sub": f"{ISSUER}/users/{user}", "jti": str(token), "iat": now}
    if len(scope) <= SCOPE_TOLD_MAX:
        claims["scp"] = scope
    ends = {} if seconds is None else {"expires_in": seconds}
    if seconds is not None:
        claims["exp"] = now + seconds
    document = {
        "token_id": str(token),
        "access_token": tokens.wrapped(secret, claims),
        "scope": scope,
        "token_type": "Bearer",
        **ends,
        **more,
    }
    return json_response(document, headers={"Cache-Control": "no-store"})


def document_of(token: Token) -> TokenInfo:
    """Return what lists tell of a token."""
    document: TokenInfo = {
        "token_id": str(token.id),
        "subject": f"users/{token.user}",
        "issuer": ISSUER,
        "scope": " ".join(token.scopes),
        "description": token.description,
        "issued_at": int(token.created_at.timestamp()),
        "refreshable": token.is_refreshable,
    }
    if token.expires_at is not None:
        document["expiry"] = int(token.expires_at.timestamp())
    return document
