"""What happened, for those who follow it by polling (``/artifactory/api/holdfast/events``)."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from repo_node.api.documents import json_response, timestamp
from repo_node.auth.permissions import Permission
from repo_node.db import events
from repo_node.db.events import Event
from repo_node.web.queries import number
from repo_node.web.routes import Routes
from repo_node.web.state import NODE

EVENTS_MAX = 5_000


def add_routes(routes: Routes) -> None:
    routes.add("GET", "/artifactory/api/holdfast/events", follow, Permission.ADMIN)


async def follow(request: web.Request) -> web.StreamResponse:
    """Answer with a page of events after an id, and with the id after which the next page begins.

    A page may be empty, or end before the youngest event: what a running transaction may still precede comes later.
    """
    after, count = number(request, "after", 0), number(request, "limit", EVENTS_MAX)
    found = await events.page(request.app[NODE].database, after, max(1, min(count, EVENTS_MAX)))
    return json_response(
        {"events": [event_document(one) for one in found], "next_after": found[-1].id if found else after}
    )


def event_document(one: Event) -> dict[str, Any]:
    return {
        "id": one.id,
        "at": timestamp(one.at),
        "kind": one.kind,
        "repository": one.repository,
        "path": one.path,
        "sha256": None if one.sha256 is None else one.sha256.hex(),
        "principal": one.principal,
        "request_id": one.request_id,
        "address": one.address,
        "detail": one.detail,
    }
