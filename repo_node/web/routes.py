"""Routes that declare the permission they need, and what clients are told of them; one without cannot be added."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto

from aiohttp import web

from repo_node.auth.permissions import Permission
from repo_node.auth.rights import ACTIONS
from repo_node.web.descriptions import Handler, check_description

Proof = Callable[[web.Request], Awaitable[bool]]
"""Says of a request that credentials do not let in whether its body proves who sends it."""


class WhileReadOnly(Enum):
    """What becomes of a request while the cluster is read-only."""

    SERVED = auto()
    REFUSED = auto()
    REFUSED_BY_POSTGRES = auto()
    """Its statement asks Postgres for the switch: the node need not have heard lately how it stands."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a route's permission is needed: at the path behind the first ``skip`` segments of the target.

    ``below``: it is enough to have it at a path that may lie below that one; the handler looks more closely.
    ``absent`` is what the route says of a path where nothing is: whoever may not know of a path hears the same.
    """

    skip: int
    below: bool = False
    absent: str = "File not found."


ANYWHERE = Place(0)
"""The permission is needed in some repository: the handler gives to each what they may have."""

HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Declared:
    """What a route says of itself; ``template`` is its path with names in place of what varies, never a path."""

    template: str
    permission: Permission
    place: Place | None
    while_read_only: WhileReadOnly
    proved_by: Proof | None = None


DECLARED = web.AppKey("declared", dict[web.AbstractRoute, Declared])
NO_ROUTE = "none"
UNROUTED = Declared(NO_ROUTE, Permission.ADMIN, None, WhileReadOnly.REFUSED)
"""Of what no route is for: it needs the most."""


class Routes:
    """Adds routes to an application together with their permissions."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        app[DECLARED] = {}

    def add(
        self,
        method: str,
        path: str,
        handler: Handler,
        permission: Permission,
        *,
        at: Place | None = None,
        while_read_only: WhileReadOnly = WhileReadOnly.REFUSED,
        proved_by: Proof | None = None,
    ) -> None:
        """Serve ``method`` on ``path``; GET serves HEAD too. Reading goes on while the cluster is read-only.

        ``proved_by`` lets in whom credentials do not; its handler does for them what the proof is for, and no more.

        Raises ``ValueError`` for a permission that is given by places without ``at``, and the other way round, and
        for a handler that is not ``described``.
        """
        if (permission in ACTIONS) is (at is None):
            raise ValueError(f"{method} {path} must say at which path it needs the permission {permission}")
        check_description(path, handler)
        for verb in ("GET", "HEAD") if method == "GET" else (method,):
            route = self._app.router.add_route(verb, path, handler)
            assert route.resource is not None
            served = WhileReadOnly.SERVED if verb in HARMLESS else while_read_only
            self._app[DECLARED][route] = Declared(route.resource.canonical, permission, at, served, proved_by)


def declared_by(request: web.Request) -> Declared:
    """Return what the request's route says of itself."""
    return request.app[DECLARED].get(request.match_info.route, UNROUTED)
