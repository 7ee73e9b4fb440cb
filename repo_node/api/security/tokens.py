"""Access tokens as Artifactory's clients ask for them: ``access/api/v1/tokens`` and ``api/security/token``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NotRequired
from urllib.parse import parse_qsl

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from repo_node.api.documents import PlainText, json_response
from repo_node.api.security.requests import forget, is_admin, name_in, validated
from repo_node.auth import tokens
from repo_node.auth.permissions import Permission
from repo_node.auth.scopes import OF_GROUPS, OF_USER, UnknownScope, read_scope_words, split_groups
from repo_node.db import principals, users
from repo_node.db.principals import Token
from repo_node.errors import Forbidden, NotFound, RequestError
from repo_node.web.addresses import origin_of
from repo_node.web.body import read_document, read_json
from repo_node.web.context import SERVICES, principal_of
from repo_node.web.descriptions import JSON, TEXT, Body, Content, Digits, described
from repo_node.web.routes import Routes, WhileReadOnly
from repo_node.web.state import NODE

ACCESS = ("/artifactory/access/api/v1/tokens", "/access/api/v1/tokens")
V1 = "/artifactory/api/security/token"
V1_SECONDS = 3600
"""Lifetime of a token made by the first form of the API, unless another is asked for; 0 is for ever."""

FORM = "application/x-www-form-urlencoded"
MEMBER_OF = "member-of-groups:"
SCOPES_MAX = 50


class TokenDocument(BaseModel):
    """What may be asked for; the rest of what Artifactory's clients send means nothing here."""

    model_config = ConfigDict(extra="ignore")
    grant_type: str = "client_credentials"
    username: PlainText | None = None
    scope: PlainText | None = Field(None, max_length=5000)
    expires_in: int | None = Field(None, ge=0, le=316_224_000)
    description: PlainText = Field("", max_length=500)
    include_reference_token: bool = False


class RevokedDocument(TypedDict):
    """The token itself, or its id."""

    token: NotRequired[str]
    token_id: NotRequired[str]


ASKED = Body((Content(JSON, TokenDocument), Content(FORM, TokenDocument)), required=False)
REVOKED = Body((Content(JSON, RevokedDocument), Content(FORM, RevokedDocument)))


class MadeToken(TypedDict):
    token_id: str
    access_token: str
    scope: str
    token_type: str
    expires_in: NotRequired[int]
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


class TokenList(TypedDict):
    tokens: list[TokenInfo]


def add_routes(routes: Routes) -> None:
    account, served = Permission.ACCOUNT, WhileReadOnly.SERVED
    for base in ACCESS:
        routes.add("POST", base, create, account)
        routes.add("GET", base, list_all, account)
        # Before the one that takes an id.
        routes.add("DELETE", f"{base}/revoke", revoke_by_secret, account, while_read_only=served)
        routes.add("GET", f"{base}/{{id}}", read, account)
        routes.add("DELETE", f"{base}/{{id}}", revoke_by_id, account, while_read_only=served)
    routes.add("POST", V1, create_v1, account)
    routes.add("GET", V1, list_all, account)
    routes.add("POST", f"{V1}/revoke", revoke_by_secret, account, while_read_only=served)


async def read_fields(request: web.Request) -> dict[str, Any]:
    """Return the body, JSON or a form, as a document. Raises ``RequestError``."""
    if request.content_type != FORM:
        return await read_json(request)
    try:
        pairs = parse_qsl((await read_document(request)).decode(), keep_blank_values=True, max_num_fields=50)
    except ValueError:
        raise RequestError("The form in the body cannot be read.") from None
    return {key: value for key, value in pairs if value}


# ------------------------------------------------------------------ making tokens


@described({200: MadeToken}, body=ASKED)
async def create(request: web.Request) -> web.StreamResponse:
    """Make a token of the caller's or, for administrators, of another user; its secret is in this one answer."""
    document = validated(await read_fields(request), TokenDocument, "token")
    seconds = document.expires_in
    if seconds is None:
        seconds = request.app[SERVICES].settings.now.token_seconds_default
    return await make(request, document, words_of(document.scope), seconds)


@described({200: MadeToken}, body=ASKED)
async def create_v1(request: web.Request) -> web.StreamResponse:
    """Make a token that lives for an hour, unless ``expires_in`` says otherwise."""
    document = validated(await read_fields(request), TokenDocument, "token")
    seconds = V1_SECONDS if document.expires_in is None else document.expires_in
    return await make(request, document, words_of(document.scope), seconds)


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


@dataclass(frozen=True, slots=True)
class NewToken:
    id: int
    secret: str


async def make(request: web.Request, document: TokenDocument, words: list[str], seconds: int) -> web.StreamResponse:
    """Make a token and answer with its secret, once. ``seconds`` 0: it does not expire."""
    if document.grant_type != "client_credentials":
        raise RequestError("Tokens are not refreshed here: make a new one (grant_type=client_credentials).")
    made = await record(request, document.username, words, seconds or None, document.description)
    answer: MadeToken = {
        "token_id": str(made.id),
        "access_token": made.secret,
        "scope": " ".join(words),
        "token_type": "Bearer",
    }
    if seconds:
        answer["expires_in"] = seconds
    if document.include_reference_token:
        answer["reference_token"] = made.secret
    return json_response(answer, headers={"Cache-Control": "no-store"})


async def record(
    request: web.Request, user: str | None, words: list[str], seconds: int | None, description: str
) -> NewToken:
    """Make a token of ``user``, or the caller's own. Raises ``RequestError``, ``Forbidden``."""
    own, database = principal_of(request).name, request.app[NODE].database
    owner = user or own
    await check_scopes(request, owner, words)
    secret = tokens.new_secret()
    identity = await principals.create_token(
        database,
        owner,
        secret_sha256=tokens.digest(secret),
        ending=secret[-4:],
        description=description,
        scopes=words,
        expires_in=None if seconds is None else timedelta(seconds=seconds),
        by=origin_of(request),
    )
    return NewToken(identity, secret)


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
    account = await users.find(request.app[NODE].database, owner)
    if account is None or not account.is_enabled:
        raise RequestError(f"There is no enabled user {owner}.")
    if scope.groups and not account.is_admin and (others := set(scope.groups) - set(account.groups)):
        raise Forbidden(f"{owner} is no member of {', '.join(sorted(others))}.")


# ------------------------------------------------------------------ listing, revoking


def document_of(token: Token) -> TokenInfo:
    document: TokenInfo = {
        "token_id": str(token.id),
        "subject": f"users/{token.user}",
        "issuer": "holdfast",
        "scope": " ".join(token.scopes),
        "description": token.description,
        "issued_at": int(token.created_at.timestamp()),
        "refreshable": False,
    }
    if token.expires_at is not None:
        document["expiry"] = int(token.expires_at.timestamp())
    return document


@described({200: TokenList})
async def list_all(request: web.Request) -> web.StreamResponse:
    """Answer with one's own tokens or, for administrators, with all."""
    owner = None if is_admin(request) else principal_of(request).name
    found = await principals.list_tokens(request.app[NODE].database, owner)
    return json_response({"tokens": [document_of(token) for token in found]})


@described({200: TokenInfo}, path={"id": Digits})
async def read(request: web.Request) -> web.StreamResponse:
    """Answer with a token, without its secret."""
    text = name_in(request, -1)
    token = await principals.find_token_by_id(request.app[NODE].database, token_number(text))
    if token is None or not (is_admin(request) or token.user == principal_of(request).name):
        raise NotFound(f"There is no valid token {text}: Not Found.")
    return json_response(document_of(token))


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
    """Revoke the token in the body's ``token``, or the one of ``token_id``."""
    fields = await read_fields(request)
    secret, text = fields.get("token"), fields.get("token_id")
    if isinstance(secret, str) and tokens.looks_like_token(secret):
        found = await principals.find_token(request.app[NODE].database, tokens.digest(secret))
        return await revoke(request, 0 if found is None else found.id)
    if isinstance(text, str):
        return await revoke(request, token_number(text))
    if secret is None:
        raise RequestError("Say which token: token=... or token_id=...")
    return await revoke(request, 0)


async def revoke(request: web.Request, token: int) -> web.StreamResponse:
    """Revoke one's own token or, for administrators, any."""
    owner = None if is_admin(request) else principal_of(request).name
    try:
        revoked = await principals.revoke_token(request.app[NODE].database, token, owner=owner, by=origin_of(request))
    finally:
        # Revoked or not known to be: either way it has to be proved anew.
        forget(request)
    if not revoked:
        raise NotFound("There is no such valid token: Not Found.")
    return web.Response(text="Token revoked")
