"""Comparisons of shards with their rows over REST: ordering one, and reading what it found."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from repo_node.api.bodies import OwnDocument, read_as
from repo_node.api.documents import Time, json_response, timestamp
from repo_node.auth.permissions import Permission
from repo_node.db import check_orders
from repo_node.errors import NotFound, RequestError
from repo_node.web.addresses import origin_of
from repo_node.web.context import TARGET
from repo_node.web.descriptions import Body, described
from repo_node.web.routes import Routes
from repo_node.web.state import NODE

BASE = "/artifactory/api/holdfast/fsck"


class CheckDocument(OwnDocument):
    """What may be said of a check that is ordered."""

    shard: int | None = Field(None, ge=1, le=32_767)
    dry_run: bool = False
    repair: bool = False
    rebuild: bool = False


class Ordered(TypedDict):
    request: UUID
    shards: int
    unreached: list[int]


class CheckState(TypedDict):
    shard: int
    node: str
    node_up: bool
    path: str
    dry_run: bool
    repair: bool
    requested_at: Time
    started_at: Time | None
    finished_at: Time | None
    done: int
    total: int | None
    report: Any
    error: str | None


class Checks(TypedDict):
    finished: bool
    checks: list[CheckState]


def add_routes(routes: Routes) -> None:
    routes.add("POST", BASE, order, Permission.ADMIN)
    routes.add("GET", f"{BASE}/{{id}}", show, Permission.ADMIN)


@described({202: Ordered}, body=Body.of(CheckDocument, required=False), errors={404})
async def order(request: web.Request) -> web.StreamResponse:
    """Order a check of one shard or of all; their owners do it after the answer."""
    document = await read_as(request, CheckDocument)
    if document.dry_run and document.repair:
        raise RequestError("A dry run repairs nothing: ask for one of dry_run and repair.")
    database, identity = request.app[NODE].database, uuid4()
    if document.rebuild and (document.dry_run or document.repair):
        raise RequestError("A rebuild goes alone: without dry_run and repair.")
    if document.rebuild and not await check_orders.is_rebuild_on(database):
        raise RequestError("Only a database restored from a backup is rebuilt, while its deletions are held.")
    count = await check_orders.request_checks(
        database,
        identity,
        shard=document.shard,
        dry_run=document.dry_run,
        repair=document.repair,
        rebuild=document.rebuild,
        by=origin_of(request),
    )
    if not count:
        what = "no shard is" if document.shard is None else f"shard {document.shard} is not"
        raise NotFound(f"Nothing can be checked now: {what} open on a living node.")
    unreached = await check_orders.unreached_shards(database)
    skipped = [one for one in unreached if document.shard in (None, one)]
    return json_response({"request": str(identity), "shards": count, "unreached": skipped}, status=202)


@described({200: Checks})
async def show(request: web.Request) -> web.StreamResponse:
    """Say how a check stands, shard by shard, and what it found."""
    text = request[TARGET].segments[4]
    try:
        identity = UUID(text)
    except ValueError:
        raise NotFound(f"There is no check {text}.") from None
    found = await check_orders.list_checks(request.app[NODE].database, identity)
    if not found:
        raise NotFound(f"There is no check {text}; the reports of a shard's last 20 are kept.")
    is_finished = all(one.finished_at is not None for one in found)
    return json_response({"finished": is_finished, "checks": [document_of(one) for one in found]})


def document_of(row: check_orders.CheckRow) -> CheckState:
    return {
        "shard": row.shard,
        "node": row.node,
        "node_up": row.node_up,
        "path": row.path,
        "dry_run": row.dry_run,
        "repair": row.repair,
        "requested_at": timestamp(row.requested_at),
        "started_at": timestamp(row.started_at) if row.started_at else None,
        "finished_at": timestamp(row.finished_at) if row.finished_at else None,
        "done": row.done,
        "total": row.total,
        "report": row.report,
        "error": row.error,
    }
