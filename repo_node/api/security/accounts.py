"""What is done to accounts: changing one's password, asking for another one, letting in who was locked out."""

from __future__ import annotations

import json

from aiohttp import web
from pydantic import ConfigDict, TypeAdapter, ValidationError

from repo_node.api.bodies import ArtifactoryDocument, PlainText, read_as
from repo_node.api.documents import json_response
from repo_node.api.security.requests import forget, name_in
from repo_node.api.security.users import hash_new_password
from repo_node.auth.permissions import Permission
from repo_node.db import login_failures, users
from repo_node.db.users import AccountChanges
from repo_node.errors import RequestError
from repo_node.origin import Origin
from repo_node.read_only import require_writable
from repo_node.web.addresses import client_address, origin_of
from repo_node.web.body import read_document
from repo_node.web.context import REQUEST_ID, SERVICES
from repo_node.web.descriptions import TEXT, described
from repo_node.web.routes import Routes
from repo_node.web.state import NODE

BASE = "/artifactory/api/security"
AUTHORIZATION = f"{BASE}/users/authorization"
NAMES = TypeAdapter(list[PlainText], config=ConfigDict(strict=True))


class PasswordDocument(ArtifactoryDocument):
    userName: PlainText
    oldPassword: PlainText
    newPassword1: PlainText
    newPassword2: PlainText


def add_routes(routes: Routes) -> None:
    # The old password in the body proves who it is, also where nothing else is allowed before it is changed.
    routes.add("POST", f"{AUTHORIZATION}/changePassword", change_password, Permission.PUBLIC)
    routes.add("POST", f"{AUTHORIZATION}/expirePassword/{{name}}", expire_password, Permission.ADMIN)
    routes.add("GET", f"{BASE}/lockedUsers", list_locked, Permission.ADMIN)
    routes.add("POST", f"{BASE}/unlockUsers", unlock_named, Permission.ADMIN)
    routes.add("POST", f"{BASE}/unlockUsers/{{name}}", unlock_one, Permission.ADMIN)
    routes.add("POST", f"{BASE}/unlockAllUsers", unlock_all, Permission.ADMIN)


@described({200: TEXT}, errors={401, 403, 409}, body=PasswordDocument)
async def change_password(request: web.Request) -> web.StreamResponse:
    """Change a user's password, for whoever knows the one before."""
    document = await read_as(request, PasswordDocument)
    services = request.app[SERVICES]
    require_writable(services.settings)
    if document.newPassword1 != document.newPassword2:
        raise RequestError("newPassword1 and newPassword2 differ.")
    user = await services.authenticator.check_login(
        document.userName, document.oldPassword, client_address(request) or ""
    )
    if document.newPassword1 == document.oldPassword:
        raise RequestError("The new password is the old one.")
    hashed = await hash_new_password(request, user.name, document.newPassword1)
    try:
        changed = await users.set_password(
            request.app[NODE].database,
            user.name,
            old_hash=user.password_hash,
            new_hash=hashed,
            by=Origin(user.name, request[REQUEST_ID], client_address(request)),
        )
    finally:
        forget(request)
    if not changed:
        raise RequestError("The password was changed by somebody else at this moment.", status=409)
    return web.Response(text="Password has been successfully changed")


@described({200: TEXT}, errors={409})
async def expire_password(request: web.Request) -> web.StreamResponse:
    """Demand another password of a user before anything else."""
    name = name_in(request, -1)
    try:
        changes = AccountChanges(must_change_password=True)
        await users.save(request.app[NODE].database, name, changes, is_new=False, by=origin_of(request))
    finally:
        forget(request)
    return web.Response(text=f"The password of {name} must be changed now.")


@described({200: list[str]})
async def list_locked(request: web.Request) -> web.StreamResponse:
    """List the users who may not log in now, after too many failures."""
    now = request.app[SERVICES].settings.now
    found = await login_failures.list_locked(
        request.app[NODE].database, user_max=now.login_failures_max, lock_seconds=now.login_lock_seconds
    )
    return json_response(found)


@described({200: TEXT})
async def unlock_one(request: web.Request) -> web.StreamResponse:
    """Let a user log in again."""
    return await unlock(request, [name_in(request, -1)])


@described({200: TEXT}, body=list[PlainText])
async def unlock_named(request: web.Request) -> web.StreamResponse:
    """Let users log in again."""
    try:
        names = json.loads(await read_document(request))
    except (ValueError, RecursionError):
        raise RequestError("The body is not valid JSON.") from None
    try:
        return await unlock(request, NAMES.validate_python(names))
    except ValidationError:
        raise RequestError("The body must be a list of the users' names.") from None


@described({200: TEXT})
async def unlock_all(request: web.Request) -> web.StreamResponse:
    """Let all users log in again."""
    return await unlock(request, None)


async def unlock(request: web.Request, names: list[str] | None) -> web.StreamResponse:
    await login_failures.unlock(request.app[NODE].database, names, by=origin_of(request))
    return web.Response(text="They may log in again.\n")
