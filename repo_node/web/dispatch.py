"""Requests for artifacts go straight to their handler; all others by aiohttp's router.

The router takes a path apart from its end, segment by segment, until a route fits; the route of artifacts, which takes
whatever no other does, is the last one that it finds, and the one that nearly every request is for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import web
from aiohttp.web_urldispatcher import UrlMappingMatchInfo

from repo_node.web.context import TARGET
from repo_node.web.middleware import answer

Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]

ROOT, ITEM = "artifactory", "{item}"
ARTIFACTS = f"/{ROOT}/{{item:.+}}"
"""The pattern of every route of artifacts; no other one may have a variable segment in place of the repository."""


class ArtifactRoutes:
    """The routes of artifacts of an application. Raises ``ValueError`` when another one's variable hides them."""

    def __init__(self, app: web.Application) -> None:
        self._matches = {route.method: match_of(app, route) for route in app.router.routes() if is_of_artifacts(route)}
        self._others = other_names(app)

    def match(self, request: web.Request) -> UrlMappingMatchInfo | None:
        """Return the route of a request for an artifact; None for any other, and for one that is refused."""
        if TARGET not in request:
            return None
        segments = request[TARGET].segments
        if len(segments) < 2 or segments[0] != ROOT or segments[1] in self._others:
            return None
        return self._matches.get(request.method)


def dispatcher(app: web.Application) -> Answering:
    """Return what answers the requests of an application whose only middleware is ``answer``."""
    usual, artifacts = cast(Answering, app._handle), ArtifactRoutes(app)

    async def dispatch(request: web.Request) -> web.StreamResponse:
        match = artifacts.match(request)
        if match is None:
            return await usual(request)
        request._match_info = match
        return await answer(request, match.handler)

    return dispatch


def is_of_artifacts(route: web.AbstractRoute) -> bool:
    return route.resource is not None and route.resource.canonical == f"/{ROOT}/{ITEM}"


def match_of(app: web.Application, route: web.AbstractRoute) -> UrlMappingMatchInfo:
    """Return what the router would for a request of ``route``, less the variable: its handler looks at the target."""
    match = UrlMappingMatchInfo({}, route)
    match.add_app(app)
    match.freeze()
    return match


def other_names(app: web.Application) -> frozenset[str]:
    """Return what other routes have in place of the repository. Raises ``ValueError`` where that is a variable."""
    paths = [resource.canonical.split("/") for resource in app.router.resources()]
    names = frozenset(segments[2] for segments in paths if segments[1] == ROOT and segments[2:] != [ITEM])
    if variable := [name for name in names if "{" in name]:
        raise ValueError(f"a route of {', '.join(variable)} below /{ROOT} hides artifacts")
    return names
