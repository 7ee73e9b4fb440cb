"""The audit log: what changed, who asked for it, from where (``/artifactory/api/holdfast/audit``)."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from repo_node.api.documents import Sha256, Time, json_response, timestamp
from repo_node.auth.permissions import Permission
from repo_node.db import events
from repo_node.db.events import Event, Wanted
from repo_node.errors import RequestError
from repo_node.web.context import SERVICES
from repo_node.web.descriptions import Count, described
from repo_node.web.queries import number
from repo_node.web.routes import Routes
from repo_node.web.state import NODE

EVENTS_MAX = 5_000
EVENTS_USUAL = 1_000
PARAMETERS = frozenset({"after", "before", "limit", "kind", "principal", "repository", "path"})


class EventDocument(TypedDict):
    id: int
    at: Time
    kind: str
    repository: str | None
    path: str | None
    sha256: Sha256 | None
    principal: str
    address: str | None
    request_id: str | None
    detail: Any


class Events(TypedDict):
    events: list[EventDocument]
    next: int | None
    more: bool


def add_routes(routes: Routes) -> None:
    routes.add("GET", "/artifactory/api/holdfast/audit", read, Permission.ADMIN)


@described(
    {200: Events},
    query={
        "after": Count,
        "before": Count,
        "limit": Count,
        "kind": Annotated[str, Field(description="One kind of events, or several, separated by commas.")],
        "principal": str,
        "repository": str,
        "path": Annotated[str, Field(description="A path in the repository, and what lies below it.")],
    },
)
async def read(request: web.Request) -> web.StreamResponse:
    """Answer with a page of the log: the newest first or, with ``after``, from an id on, which followers poll with.

    ``next`` is the ``before`` or ``after`` of the next page. A page may be short, or empty, and yet not the last: each
    reads a bounded stretch of the log; ``more`` tells.
    """
    if unknown := request.query.keys() - PARAMETERS:
        raise RequestError(f"There is no parameter {min(unknown)}; there are {', '.join(sorted(PARAMETERS))}.")
    wanted, count = wanted_of(request), max(1, min(number(request, "limit", EVENTS_USUAL), EVENTS_MAX))
    database, rows_max = request.app[NODE].database, request.app[SERVICES].settings.now.audit_rows_max
    end = number(request, "before", 0) if "before" in request.query else None
    if "after" in request.query:
        start = number(request, "after", 0)
        page = await events.after(
            database, start, count, wanted, end=events.BEYOND_ALL_IDS if end is None else end, rows_max=rows_max
        )
    else:
        page = await events.before(database, end, count, wanted, rows_max=rows_max)
    return json_response({"events": [event_document(one) for one in page.events], "next": page.next, "more": page.more})


def wanted_of(request: web.Request) -> Wanted:
    """Return which events the query asks for. Raises ``RequestError``."""
    query = request.query
    if "path" in query and "repository" not in query:
        raise RequestError("A path lies in a repository: say which one.")
    if any("\0" in text for text in query.values()):
        raise RequestError("A NUL is in no event.")
    kinds = [kind for text in query.getall("kind", ()) for kind in text.split(",") if kind]
    path = query.get("path", "").strip("/")
    return Wanted(kinds or None, query.get("principal"), query.get("repository"), path or None)


def event_document(one: Event) -> EventDocument:
    return {
        "id": one.id,
        "at": timestamp(one.at),
        "kind": one.kind,
        "repository": one.repository,
        "path": one.path,
        "sha256": None if one.sha256 is None else one.sha256.hex(),
        "principal": one.principal,
        "address": one.address,
        "request_id": one.request_id,
        "detail": one.detail,
    }
