"""Routes that declare the permission they need; one without cannot be added."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto

from aiohttp import web

from repo_node.auth.permissions import Permission
from repo_node.auth.rights import ACTIONS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Proof = Callable[[web.Request], Awaitable[bool]]
"""Says of a request that credentials do not let in whether its body proves who sends it."""

Permissions = dict[tuple[str, str], Permission]

PERMISSIONS = web.AppKey("permissions", Permissions)


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

PLACES = web.AppKey("places", dict[tuple[str, str], Place])
PROOFS = web.AppKey("proofs", dict[tuple[str, str], Proof])
WHILE_READ_ONLY = web.AppKey("while_read_only", dict[tuple[str, str], WhileReadOnly])
HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
NO_ROUTE = "none"


class Routes:
    """Adds routes to an application together with their permissions."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        app[PERMISSIONS] = {}
        app[WHILE_READ_ONLY] = {}
        app[PLACES] = {}
        app[PROOFS] = {}

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

        Raises ``ValueError`` for a permission that is given by places without ``at``, and the other way round.
        """
        if (permission in ACTIONS) is (at is None):
            raise ValueError(f"{method} {path} must say at which path it needs the permission {permission}")
        for verb in ("GET", "HEAD") if method == "GET" else (method,):
            route = self._app.router.add_route(verb, path, handler)
            assert route.resource is not None
            self._app[PERMISSIONS][verb, route.resource.canonical] = permission
            self._app[WHILE_READ_ONLY][verb, route.resource.canonical] = while_read_only
            if at is not None:
                self._app[PLACES][verb, route.resource.canonical] = at
            if proved_by is not None:
                self._app[PROOFS][verb, route.resource.canonical] = proved_by


def template_of(request: web.Request) -> str:
    """Return the route's template, which is a closed set, never the path."""
    resource = request.match_info.route.resource
    return NO_ROUTE if resource is None else resource.canonical


def permission_of(request: web.Request) -> Permission:
    """Return what the request's route needs; what has no route needs the most."""
    return request.app[PERMISSIONS].get((request.method, template_of(request)), Permission.ADMIN)


def place_of(request: web.Request) -> Place | None:
    """Return where the request's route needs its permission; None where no path is meant."""
    return request.app[PLACES].get((request.method, template_of(request)))


async def is_proved_by_body(request: web.Request) -> bool:
    proof = request.app[PROOFS].get((request.method, template_of(request)))
    return proof is not None and await proof(request)


def while_read_only(request: web.Request) -> WhileReadOnly:
    if request.method in HARMLESS:
        return WhileReadOnly.SERVED
    return request.app[WHILE_READ_ONLY].get((request.method, template_of(request)), WhileReadOnly.REFUSED)
