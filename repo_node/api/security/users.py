"""Users (``/artifactory/api/security/users``): made, changed and deleted by administrators."""

from __future__ import annotations

from aiohttp import web
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from repo_node.api.bodies import ArtifactoryDocument, PlainText, read_as
from repo_node.api.documents import json_response
from repo_node.api.security.requests import Named, check_user_name, forget, is_admin, listed, name_in
from repo_node.auth.password_policy import fault_of
from repo_node.auth.permissions import ANONYMOUS, Permission
from repo_node.db import users
from repo_node.db.principals import NO_PASSWORD
from repo_node.db.users import Account, AccountChanges
from repo_node.errors import Forbidden, NotFound, RequestError
from repo_node.web.addresses import origin_of
from repo_node.web.context import SERVICES, principal_of
from repo_node.web.descriptions import TEXT, described
from repo_node.web.routes import Routes
from repo_node.web.state import NODE

BASE = "/artifactory/api/security/users"


class UserDocument(ArtifactoryDocument):
    """What may be said of a user; the rest of what Artifactory's clients send means nothing here."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"email": "someone@example.org", "internalPasswordDisabled": True}]}
    )
    name: str | None = None
    email: PlainText | None = Field(None, max_length=254)
    password: PlainText | None = None
    admin: bool | None = None
    enabled: bool | None = None
    internalPasswordDisabled: bool | None = None
    mustChangePassword: bool | None = None
    groups: list[PlainText] | None = Field(None, max_length=1000)


class NamedUser(Named):
    realm: str


class UserState(TypedDict):
    name: str
    email: str | None
    admin: bool
    enabled: bool
    profileUpdatable: bool
    disableUIAccess: bool
    internalPasswordDisabled: bool
    mustChangePassword: bool
    realm: str
    groups: list[str]


def add_routes(routes: Routes) -> None:
    routes.add("GET", BASE, list_all, Permission.ADMIN)
    routes.add("GET", f"{BASE}/{{name}}", read, Permission.ACCOUNT)
    routes.add("PUT", f"{BASE}/{{name}}", put, Permission.ADMIN)
    routes.add("POST", f"{BASE}/{{name}}", change, Permission.ACCOUNT)
    routes.add("DELETE", f"{BASE}/{{name}}", delete, Permission.ADMIN)


@described({200: list[NamedUser]})
async def list_all(request: web.Request) -> web.StreamResponse:
    """List the users."""
    names = await users.list_names(request.app[NODE].database)
    return json_response([{**one, "realm": "internal"} for one in listed(request, "users", names)])


@described({200: UserState})
async def read(request: web.Request) -> web.StreamResponse:
    """Answer with a user: with oneself or, for administrators, with anybody."""
    name = name_in(request)
    refuse_others(request, name)
    account = await users.find(request.app[NODE].database, name)
    if account is None:
        raise NotFound(f"There is no user {name}: Not Found.")
    return json_response(document_of(account))


def refuse_others(request: web.Request, name: str) -> None:
    if name != principal_of(request).name and not is_admin(request):
        raise Forbidden("Only an administrator may see or change another user.")


def document_of(account: Account) -> UserState:
    return {
        "name": account.name,
        "email": account.email,
        "admin": account.is_admin,
        "enabled": account.is_enabled,
        "profileUpdatable": account.name != ANONYMOUS,
        "disableUIAccess": False,
        "internalPasswordDisabled": not account.has_password,
        "mustChangePassword": account.must_change_password,
        "realm": "internal",
        "groups": list(account.groups),
    }


@described({200: None, 201: None}, body=UserDocument, errors={409})
async def put(request: web.Request) -> web.StreamResponse:
    """Make a user, or say anew all of one who is there: 201 and 200."""
    name = check_user_name(name_in(request))
    document = await read_as(request, UserDocument)
    if document.email is None:
        raise RequestError("A user needs an email.")
    if document.password is None and not document.internalPasswordDisabled:
        raise RequestError("A user needs a password, or internalPasswordDisabled.")
    made = await save(request, name, document, whole=True)
    return web.Response(status=201 if made else 200)


@described({200: None}, body=UserDocument, errors={409})
async def change(request: web.Request) -> web.StreamResponse:
    """Change what is said of a user. Who is no administrator may change their own email."""
    name = name_in(request)
    refuse_others(request, name)
    document = await read_as(request, UserDocument)
    if not is_admin(request):
        said = document.model_dump(exclude_none=True).keys() - {"name", "email"}
        if said:
            raise Forbidden(f"Only an administrator may set {', '.join(sorted(said))}.")
    await save(request, name, document, is_new=False)
    return web.Response(status=200)


async def save(
    request: web.Request, name: str, document: UserDocument, *, whole: bool = False, is_new: bool | None = None
) -> bool:
    """Make or change a user; ``whole``: what is not said gets its default."""
    if document.name not in (None, name):
        raise RequestError(f"The body names the user {document.name}, the URL {name}.")
    if name == ANONYMOUS and (document.admin or document.password):
        raise RequestError(f"The user {ANONYMOUS} has no password, and is no administrator.")
    changes = AccountChanges(
        email=document.email,
        password_hash=await password_hash(request, name, document),
        is_admin=bool(document.admin) if whole else document.admin,
        is_enabled=document.enabled if document.enabled is not None or not whole else True,
        must_change_password=bool(document.mustChangePassword) if whole else document.mustChangePassword,
        groups=document.groups if document.groups is not None or not whole else [],
    )
    try:
        return await users.save(request.app[NODE].database, name, changes, is_new=is_new, by=origin_of(request))
    finally:
        forget(request)


async def password_hash(request: web.Request, name: str, document: UserDocument) -> str | None:
    if document.password is not None and not document.internalPasswordDisabled:
        return await hash_new_password(request, name, document.password)
    return NO_PASSWORD if document.internalPasswordDisabled else None


async def hash_new_password(request: web.Request, name: str, password: str) -> str:
    """Return what is stored of a new password. Raises ``RequestError`` where the policy refuses it."""
    services = request.app[SERVICES]
    now = services.settings.now
    fault = fault_of(password, name, characters_min=now.password_characters_min, kinds_min=now.password_kinds_min)
    if fault is not None:
        raise RequestError(fault)
    return await services.authenticator.hash_password(password)


@described({200: TEXT}, errors={409})
async def delete(request: web.Request) -> web.StreamResponse:
    """Delete a user, with their tokens."""
    name = name_in(request)
    if name in (ANONYMOUS, principal_of(request).name):
        raise RequestError(
            f"{name} cannot be deleted: nobody deletes themselves, nor the user {ANONYMOUS}.", status=409
        )
    try:
        gone = await users.delete(request.app[NODE].database, name, by=origin_of(request))
    finally:
        forget(request)
    if not gone:
        raise NotFound(f"There is no user {name}: Not Found.")
    return web.Response(text=f"The user: '{name}' has been removed successfully.")
