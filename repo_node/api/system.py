"""Health, version and metrics."""

from __future__ import annotations

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from typing_extensions import TypedDict

from repo_node import __version__
from repo_node.api.documents import json_response
from repo_node.auth.permissions import Permission
from repo_node.web.descriptions import TEXT, described
from repo_node.web.routes import Routes
from repo_node.web.state import NODE


class VersionDocument(TypedDict):
    version: str
    revision: str
    addons: list[str]
    license: str
    holdfast: str


def add_routes(routes: Routes) -> None:
    routes.add("GET", "/artifactory/api/system/ping", ping, Permission.PUBLIC)
    routes.add("GET", "/artifactory/api/system/version", version, Permission.PUBLIC)
    routes.add("GET", "/artifactory/api/v1/system/liveness", liveness, Permission.PUBLIC)
    routes.add("GET", "/artifactory/api/v1/system/readiness", readiness, Permission.PUBLIC)
    routes.add("GET", "/metrics", metrics, Permission.METRICS)


@described({200: TEXT, 503: TEXT})
async def ping(request: web.Request) -> web.StreamResponse:
    """Say whether this node can serve."""
    if not request.app[NODE].is_ready():
        return web.Response(status=503, text="Not ready\n")
    return web.Response(text="OK")


@described({200: VersionDocument})
async def version(request: web.Request) -> web.StreamResponse:
    """Answer with the version of Artifactory whose API this is, and with Holdfast's own."""
    # Below 7.82.2, so that JFrog's clients do not try its multi-part uploads.
    return json_response(
        {"version": "7.77.0", "revision": "77700900", "addons": [], "license": "OSS", "holdfast": __version__}
    )


@described({200: TEXT})
async def liveness(request: web.Request) -> web.StreamResponse:
    """Say that the process answers; it depends on nothing else."""
    return web.Response(text="OK")


@described({200: TEXT, 404: TEXT, 503: TEXT})
async def readiness(request: web.Request) -> web.StreamResponse:
    """Say whether a load balancer should send requests here: 404 while leaving, 503 while not able to."""
    if request.app[NODE].is_leaving:
        return web.Response(status=404, text="Leaving\n")
    if not request.app[NODE].is_ready():
        return web.Response(status=503, text="Not ready\n", headers={"Retry-After": "2"})
    return web.Response(text="OK")


@described({200: TEXT})
async def metrics(request: web.Request) -> web.StreamResponse:
    """Render every metric of the node, whichever of its processes is asked."""
    return web.Response(body=await request.app[NODE].exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})
