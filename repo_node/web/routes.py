"""Routes that declare the permission they need; one without cannot be added."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from repo_node.auth.permissions import Permission

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Permissions = dict[tuple[str, str], Permission]

PERMISSIONS = web.AppKey("permissions", Permissions)
SERVED_READ_ONLY = web.AppKey("served_read_only", set[tuple[str, str]])
HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
NO_ROUTE = "none"


class Routes:
    """Adds routes to an application together with their permissions."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        app[PERMISSIONS] = {}
        app[SERVED_READ_ONLY] = set()

    def add(
        self, method: str, path: str, handler: Handler, permission: Permission, *, in_read_only: bool = False
    ) -> None:
        """Serve ``method`` on ``path``; GET serves HEAD too.

        While the cluster is read-only, whatever is no reading is served only where ``in_read_only`` says so.
        """
        for verb in ("GET", "HEAD") if method == "GET" else (method,):
            route = self._app.router.add_route(verb, path, handler)
            assert route.resource is not None
            self._app[PERMISSIONS][verb, route.resource.canonical] = permission
            if in_read_only or verb in HARMLESS:
                self._app[SERVED_READ_ONLY].add((verb, route.resource.canonical))


def template_of(request: web.Request) -> str:
    """Return the route's template, which is a closed set, never the path."""
    resource = request.match_info.route.resource
    return NO_ROUTE if resource is None else resource.canonical


def permission_of(request: web.Request) -> Permission:
    """Return what the request's route needs; what has no route needs the most."""
    return request.app[PERMISSIONS].get((request.method, template_of(request)), Permission.ADMIN)


def is_served_read_only(request: web.Request) -> bool:
    """Say whether the request changes nothing, or what may be changed while the cluster is read-only."""
    return request.method in HARMLESS or (request.method, template_of(request)) in request.app[SERVED_READ_ONLY]
