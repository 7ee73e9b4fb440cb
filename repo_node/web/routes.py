"""Routes that declare the permission they need; one without cannot be added."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from repo_node.auth.permissions import Permission

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Permissions = dict[tuple[str, str], Permission]

PERMISSIONS = web.AppKey("permissions", Permissions)
NO_ROUTE = "none"


class Routes:
    """Adds routes to an application together with their permissions."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        app[PERMISSIONS] = {}

    def add(self, method: str, path: str, handler: Handler, permission: Permission) -> None:
        """Serve ``method`` on ``path``; GET serves HEAD too."""
        for verb in ("GET", "HEAD") if method == "GET" else (method,):
            route = self._app.router.add_route(verb, path, handler)
            assert route.resource is not None
            self._app[PERMISSIONS][verb, route.resource.canonical] = permission


def template_of(request: web.Request) -> str:
    """Return the route's template, which is a closed set, never the path."""
    resource = request.match_info.route.resource
    return NO_ROUTE if resource is None else resource.canonical


def permission_of(request: web.Request) -> Permission:
    """Return what the request's route needs; what has no route needs the most."""
    return request.app[PERMISSIONS].get((request.method, template_of(request)), Permission.ADMIN)
