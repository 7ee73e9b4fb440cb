"""Support bundles over Artifactory's REST (``api/system/support``): order one, see how far it is, fetch it."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from aiohttp import web
from pydantic import BeforeValidator, Field
from typing_extensions import TypedDict

from repo_node.api.bodies import ArtifactoryDocument, PlainText, read_as
from repo_node.api.documents import Time, json_response, timestamp
from repo_node.auth.permissions import Permission
from repo_node.db.support_bundles import SUCCESS, BundleRow
from repo_node.support.wish import DUMPS_MAX, INTERVAL_MILLISECONDS_MAX, Wish
from repo_node.web.addresses import origin_of
from repo_node.web.context import SERVICES, TARGET, base_url
from repo_node.web.descriptions import Content, described
from repo_node.web.routes import Routes, WhileReadOnly
from repo_node.web.streaming import send_pieces

BASE = "/artifactory/api/system/support"
LOG_DAYS = 1
"""Of the log, when nobody says which; nodes seldom keep more."""


def read_day(value: Any) -> Any:
    return date.fromisoformat(value) if isinstance(value, str) else value


Day = Annotated[date, BeforeValidator(read_day)]


class LogsDocument(ArtifactoryDocument):
    """Which lines of the log are wanted; both days are in UTC, and included."""

    include: bool = True
    start_date: Day | None = None
    end_date: Day | None = None


class ThreadDumpDocument(ArtifactoryDocument):
    """How often stacks are dumped, and how many milliseconds lie between."""

    count: int = Field(1, ge=0, le=DUMPS_MAX)
    interval: int = Field(0, ge=0, le=INTERVAL_MILLISECONDS_MAX)


class ParametersDocument(ArtifactoryDocument):
    """What a bundle is to hold: everything by default."""

    configuration: bool = True
    system: bool = True
    logs: LogsDocument = LogsDocument()
    thread_dump: ThreadDumpDocument = ThreadDumpDocument()


class OrderDocument(ArtifactoryDocument):
    """What may be said of a bundle that is ordered."""

    name: PlainText = Field("", max_length=200)
    description: PlainText = Field("", max_length=2000)
    parameters: ParametersDocument = ParametersDocument()


class OfArtifactory(TypedDict):
    service_id: str
    status: str
    bundle_url: str


class BundleDocument(TypedDict):
    id: str
    name: str
    description: str
    created: Time
    created_by: str
    status: str
    artifactory: OfArtifactory
    node: str
    doing: str
    done: int
    total: int
    bytes: int | None


class Bundles(TypedDict):
    count: int
    bundles: list[BundleDocument]


def add_routes(routes: Routes) -> None:
    # While something is wrong, the cluster may be read-only for that very reason.
    routes.add("POST", f"{BASE}/bundle", order, Permission.ADMIN, while_read_only=WhileReadOnly.SERVED)
    routes.add("GET", f"{BASE}/bundles", list_all, Permission.ADMIN)
    routes.add("GET", f"{BASE}/bundle/{{id}}", show, Permission.ADMIN)
    routes.add("GET", f"{BASE}/bundle/{{id}}/archive", download, Permission.ADMIN)
    routes.add("DELETE", f"{BASE}/bundle/{{id}}", delete, Permission.ADMIN, while_read_only=WhileReadOnly.SERVED)


def id_of(request: web.Request) -> str:
    return request[TARGET].segments[5]


@described({201: BundleDocument}, body=OrderDocument, errors={409})
async def order(request: web.Request) -> web.StreamResponse:
    """Begin a bundle; it is made after the answer, which says where to look for it."""
    document = await read_as(request, OrderDocument)
    service, by = request.app[SERVICES].support, origin_of(request)
    bundle = await service.order(document.name, document.description, wish_of(document.parameters), by=by)
    return json_response(bundle_document(request, await service.get(bundle)), status=201)


def wish_of(parameters: ParametersDocument) -> Wish:
    logs, dumps = parameters.logs, parameters.thread_dump
    since = start_of(logs.start_date) if logs.start_date else datetime.now(UTC).timestamp() - LOG_DAYS * 86_400
    until = start_of(logs.end_date + timedelta(days=1)) if logs.end_date else math.inf
    return Wish(
        configuration=parameters.configuration,
        system=parameters.system,
        logs=logs.include,
        since=0.0 if logs.end_date and not logs.start_date else since,
        until=until,
        dumps=dumps.count,
        interval_milliseconds=dumps.interval,
    )


def start_of(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


@described({200: Bundles})
async def list_all(request: web.Request) -> web.StreamResponse:
    """List the bundles that are kept."""
    bundles = [bundle_document(request, one) for one in await request.app[SERVICES].support.list_all()]
    return json_response({"count": len(bundles), "bundles": bundles})


@described({200: BundleDocument}, errors={404})
async def show(request: web.Request) -> web.StreamResponse:
    """Answer with a bundle, and how far it is."""
    bundle = await request.app[SERVICES].support.get(id_of(request))
    return json_response(bundle_document(request, bundle))


@described({200: Content("application/zip")}, errors={404, 409})
async def download(request: web.Request) -> web.StreamResponse:
    """Send a bundle; one that is let go of meanwhile breaks off."""
    service = request.app[SERVICES].support
    bundle = await service.get_ready(id_of(request))
    headers = {
        "Content-Type": "application/zip",
        "Content-Disposition": f'attachment; filename="holdfast-support-{bundle.id}.zip"',
        "Cache-Control": "no-store",
    }
    response = web.StreamResponse(headers=headers)
    response.content_length = bundle.bytes
    if request.method == "HEAD":
        await response.prepare(request)
    else:
        await send_pieces(request, response, service.read(bundle))
    return response


@described({204: None}, errors={404})
async def delete(request: web.Request) -> web.StreamResponse:
    """Let go of a bundle."""
    await request.app[SERVICES].support.delete(id_of(request), by=origin_of(request))
    return web.Response(status=204)


def bundle_document(request: web.Request, bundle: BundleRow) -> BundleDocument:
    """Return what Artifactory tells of a bundle, and how far it is."""
    url = f"{base_url(request)}/api/system/support/bundle/{bundle.id}/archive"
    service_id = f"jfrt@{request.app[SERVICES].support.cluster_id.hex}"
    return {
        "id": bundle.id,
        "name": bundle.name,
        "description": bundle.description,
        "created": timestamp(bundle.created_at),
        "created_by": bundle.created_by,
        "status": bundle.state,
        "artifactory": {"service_id": service_id, "status": bundle.state, "bundle_url": url},
        "node": bundle.node,
        "doing": bundle.doing,
        "done": bundle.done,
        "total": bundle.total,
        "bytes": bundle.bytes if bundle.state == SUCCESS else None,
    }
