"""Routes that declare the permission they need; one without cannot be added."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum, auto

from aiohttp import web

from repo_node.auth.permissions import Permission

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Permissions = dict[tuple[str, str], Permission]

PERMISSIONS = web.AppKey("permissions", Permissions)


class WhileReadOnly(Enum):
    """What becomes of a request while the cluster is read-only."""

    SERVED = auto()
    REFUSED = auto()
    REFUSED_BY_POSTGRES = auto()
    """Its statement asks Postgres for the switch: the node need not have heard lately how it stands."""


WHILE_READ_ONLY = web.AppKey("while_read_only", dict[tuple[str, str], WhileReadOnly])
HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
NO_ROUTE = "none"


class Routes:
    """Adds routes to an application together with their permissions."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        app[PERMISSIONS] = {}
        app[WHILE_READ_ONLY] = {}

    def add(
        self,
        method: str,
        path: str,
        handler: Handler,
        permission: Permission,
        *,
        while_read_only: WhileReadOnly = WhileReadOnly.REFUSED,
    ) -> None:
        """Serve ``method`` on ``path``; GET serves HEAD too. Reading goes on while the cluster is read-only."""
        for verb in ("GET", "HEAD") if method == "GET" else (method,):
            route = self._app.router.add_route(verb, path, handler)
            assert route.resource is not None
            self._app[PERMISSIONS][verb, route.resource.canonical] = permission
            self._app[WHILE_READ_ONLY][verb, route.resource.canonical] = while_read_only


def template_of(request: web.Request) -> str:
    """Return the route's template, which is a closed set, never the path."""
    resource = request.match_info.route.resource
    return NO_ROUTE if resource is None else resource.canonical


def permission_of(request: web.Request) -> Permission:
    """Return what the request's route needs; what has no route needs the most."""
    return request.app[PERMISSIONS].get((request.method, template_of(request)), Permission.ADMIN)


def while_read_only(request: web.Request) -> WhileReadOnly:
    if request.method in HARMLESS:
        return WhileReadOnly.SERVED
    return request.app[WHILE_READ_ONLY].get((request.method, template_of(request)), WhileReadOnly.REFUSED)
