"""Permission targets (``/artifactory/api/security/permissions`` and ``/artifactory/api/v2/security/permissions``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from aiohttp import web
from pydantic import BeforeValidator, ConfigDict, Field

from repo_node.api.bodies import ArtifactoryDocument, PlainText, read_as
from repo_node.api.documents import json_response
from repo_node.api.security.requests import (
    Named,
    Pattern,
    check_target_name,
    forget,
    listed,
    name_in,
)
from repo_node.auth.permissions import Permission
from repo_node.auth.rights import ALL_WORDS
from repo_node.db import permission_targets as rows
from repo_node.db import users
from repo_node.db.permission_targets import Actions, Target
from repo_node.errors import Forbidden, NotFound, RequestError
from repo_node.paths import check_repository_key
from repo_node.web.addresses import origin_of
from repo_node.web.context import principal_of
from repo_node.web.descriptions import TEXT, described
from repo_node.web.routes import ANYWHERE, Routes
from repo_node.web.state import NODE

V1, V2 = "/artifactory/api/security/permissions", "/artifactory/api/v2/security/permissions"
PATTERNS_MAX = 100

LETTERS = {"r": "read", "n": "annotate", "w": "write", "d": "delete", "m": "manage"}
LETTER_OF = {action: letter for letter, action in LETTERS.items()}
WORDS = {action: action for action in LETTERS.values()}
MEANINGLESS = frozenset({"mxm", "x", "managedXrayMeta", "distribute"})
"""Actions of Artifactory's on what does not exist here."""

Granted = dict[PlainText, list[str]]
Said = Annotated[Granted, BeforeValidator(lambda said: {} if said is None else said)]
"""Some clients say nobody by null."""


class PrincipalsDocument(ArtifactoryDocument):
    users: Said = Field(default_factory=dict)
    groups: Said = Field(default_factory=dict)


class TargetDocument(ArtifactoryDocument):
    """A permission target as the first form of the API has it: patterns separated by commas, actions by letters."""

    name: str | None = None
    repositories: list[PlainText] = Field(max_length=1000)
    includesPattern: Pattern = "**"
    excludesPattern: Pattern = ""
    principals: PrincipalsDocument = PrincipalsDocument()


class RepoDocument(ArtifactoryDocument):
    model_config = ConfigDict(populate_by_name=True)
    repositories: list[PlainText] = Field(max_length=1000)
    include_patterns: list[Pattern] = Field(["**"], alias="include-patterns", max_length=PATTERNS_MAX)
    exclude_patterns: list[Pattern] = Field([], alias="exclude-patterns", max_length=PATTERNS_MAX)
    actions: PrincipalsDocument = PrincipalsDocument()


class TargetDocument2(ArtifactoryDocument):
    """A permission target as the second form has it; its parts for builds and bundles mean nothing here."""

    name: str | None = None
    repo: RepoDocument | None = None


def add_routes(routes: Routes) -> None:
    manage = Permission.MANAGE
    for base, read, put in ((V1, read_v1, put_v1), (V2, read_v2, put_v2)):
        routes.add("GET", base, list_all, manage, at=ANYWHERE)
        routes.add("GET", f"{base}/{{name}}", read, manage, at=ANYWHERE)
        routes.add("PUT", f"{base}/{{name}}", put, manage, at=ANYWHERE)
        routes.add("DELETE", f"{base}/{{name}}", delete, Permission.ADMIN)
    routes.add("POST", f"{V2}/{{name}}", create_v2, Permission.ADMIN)


@described({200: list[Named]})
async def list_all(request: web.Request) -> web.StreamResponse:
    """Answer with all permission targets or, for who is no administrator, with those they manage."""
    refuse_parts(request)
    managed_by = None if manages_all(request) else principal_of(request).name
    names = await rows.list_names(request.app[NODE].database, managed_by)
    return json_response(listed(request, "permissions", names))


def manages_all(request: web.Request) -> bool:
    """Say whether the caller is an administrator, by a token that may manage at least."""
    return principal_of(request).is_unlimited(Permission.MANAGE)


def refuse_parts(request: web.Request) -> None:
    """Refuse a token of groups alone: what its user manages is looked up by their name."""
    if not principal_of(request).is_whole:
        raise Forbidden("A token for groups manages no permission targets.")


async def find(request: web.Request, place: int) -> Target:
    """Return a permission target that the caller may see. Raises ``NotFound``, ``Forbidden``."""
    name, database = name_in(request, place), request.app[NODE].database
    refuse_parts(request)
    if not manages_all(request) and name not in await rows.list_names(database, principal_of(request).name):
        raise Forbidden(f"{principal_of(request).name} does not manage this permission target.")
    target = await rows.find(database, name)
    if target is None:
        raise NotFound(f"There is no permission target {name}: Not Found.")
    return target


@described({200: TargetDocument})
async def read_v1(request: web.Request) -> web.StreamResponse:
    """Answer with a permission target: patterns separated by commas, actions by letters."""
    target = await find(request, 4)

    def letters(granted: Actions) -> Granted:
        return {name: [LETTER_OF[action] for action in actions] for name, actions in granted.items()}

    return json_response(
        {
            "name": target.name,
            "includesPattern": ",".join(target.includes),
            "excludesPattern": ",".join(target.excludes),
            "repositories": list(target.repositories),
            "principals": {"users": letters(target.users), "groups": letters(target.groups)},
        }
    )


@described({200: TargetDocument2})
async def read_v2(request: web.Request) -> web.StreamResponse:
    """Answer with a permission target: patterns in lists, actions by words."""
    target = await find(request, 5)
    repo = {
        "include-patterns": list(target.includes),
        "exclude-patterns": list(target.excludes) or [""],
        "repositories": list(target.repositories),
        "actions": {"users": dict(target.users), "groups": dict(target.groups)},
    }
    return json_response({"name": target.name, "repo": repo})


@described({200: None, 201: None}, body=TargetDocument, errors={409})
async def put_v1(request: web.Request) -> web.StreamResponse:
    """Make a permission target, or say anew what one is: 201 and 200."""
    document, name = await read_as(request, TargetDocument), name_in(request, 4)
    return await save(
        request,
        name,
        document.name,
        RepoDocument(
            repositories=document.repositories,
            include_patterns=patterns_in(document.includesPattern),
            exclude_patterns=patterns_in(document.excludesPattern),
            actions=document.principals,
        ),
        LETTERS,
    )


def patterns_in(text: str) -> list[str]:
    patterns = [pattern for pattern in map(str.strip, text.split(",")) if pattern]
    if len(patterns) > PATTERNS_MAX:
        raise RequestError(f"A permission target has at most {PATTERNS_MAX} patterns.")
    return patterns


@described({200: None, 201: None}, body=TargetDocument2, errors={409})
async def put_v2(request: web.Request) -> web.StreamResponse:
    """Make a permission target, or say anew what one is: 201 and 200."""
    document = await read_as(request, TargetDocument2)
    return await save(request, name_in(request, 5), document.name, document.repo)


@described({201: None}, body=TargetDocument2, errors={409})
async def create_v2(request: web.Request) -> web.StreamResponse:
    """Make a permission target."""
    document = await read_as(request, TargetDocument2)
    return await save(request, name_in(request, 5), document.name, document.repo, is_new=True)


async def save(
    request: web.Request,
    name: str,
    said_name: str | None,
    repo: RepoDocument | None,
    words: Mapping[str, str] = WORDS,
    *,
    is_new: bool | None = None,
) -> web.StreamResponse:
    """Make a permission target or replace one: 201 and 200."""
    check_target_name(name)
    if said_name not in (None, name):
        raise RequestError(f"The body names the permission target {said_name}, the URL {name}.")
    repo = repo or RepoDocument(repositories=[])
    target = Target(
        name,
        [key if key in ALL_WORDS else check_repository_key(key) for key in repo.repositories],
        [pattern for pattern in repo.include_patterns if pattern] or ["**"],
        [pattern for pattern in repo.exclude_patterns if pattern],
        actions_in(repo.actions.users, words),
        actions_in(repo.actions.groups, words),
    )
    check = await check_of(request)
    try:
        made = await rows.save(
            request.app[NODE].database,
            target,
            is_new=is_new,
            check=lambda one: check(one, target),
            by=origin_of(request),
        )
    finally:
        forget(request)
    return web.Response(status=201 if made else 200)


def actions_in(granted: Granted, words: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the actions that words or letters stand for. Raises ``RequestError``."""
    found: dict[str, list[str]] = {}
    for name, given in granted.items():
        if unknown := set(given) - words.keys() - MEANINGLESS:
            raise RequestError(f"There is no action {min(unknown)!r}; there are {', '.join(words)}.")
        found[name] = sorted({words[word] for word in given if word in words})
    return found


Check = Callable[[Target | None, Target], None]


async def check_of(request: web.Request) -> Check:
    """Return what refuses a change that goes beyond what the caller may.

    A user who manages a permission target may give and take by it the actions that they have by it themselves. Its
    repositories and patterns, and all other targets, are for administrators.
    """
    refuse_parts(request)
    if manages_all(request):
        return lambda before, after: None
    name = principal_of(request).name
    account = await users.find(request.app[NODE].database, name)
    groups = () if account is None else account.groups

    def check(before: Target | None, after: Target) -> None:
        own = own_actions(before, name, groups)
        if before is None or "manage" not in own:
            raise Forbidden(f"{name} does not manage this permission target.")
        if any(
            list(getattr(before, part)) != list(getattr(after, part))
            for part in ("repositories", "includes", "excludes")
        ):
            raise Forbidden("Only an administrator may change the repositories and patterns of a permission target.")
        if beyond := (pairs(before) ^ pairs(after)) - {pair for pair in pairs(before) | pairs(after) if pair[2] in own}:
            raise Forbidden(f"{name} may not give or take the action {min(pair[2] for pair in beyond)}.")

    return check


def own_actions(target: Target | None, user: str, groups: tuple[str, ...]) -> set[str]:
    if target is None:
        return set()
    by_groups = (action for group in groups for action in target.groups.get(group, ()))
    return {*target.users.get(user, ()), *by_groups}


def pairs(target: Target) -> set[tuple[str, str, str]]:
    """Return who has what by a target."""
    return {
        (kind, name, action)
        for kind, granted in (("user", target.users), ("group", target.groups))
        for name, actions in granted.items()
        for action in actions
    }


@described({200: TEXT})
async def delete(request: web.Request) -> web.StreamResponse:
    """Delete a permission target, and with it what it gave."""
    name = name_in(request, -1)
    try:
        gone = await rows.delete(request.app[NODE].database, name, by=origin_of(request))
    finally:
        forget(request)
    if not gone:
        raise NotFound(f"There is no permission target {name}: Not Found.")
    return web.Response(text=f"Permission Target '{name}' has been deleted successfully.")
