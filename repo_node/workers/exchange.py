"""What a process of a node offers its siblings: the calls of peers, its figures, and the main one all metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from repo_node.api.reports import report_route
from repo_node.api.shards import Handler, internal_route, transport_of
from repo_node.api.staged import StagedUploads
from repo_node.assembly import Parts, internal_app_of
from repo_node.metrics.figures import figures_of
from repo_node.support.reports import NodeReports
from repo_node.web.listeners import BACKLOG, running
from repo_node.workers.siblings import check_user, listening_to_siblings

FIGURES_PATH = "/figures"
METRICS_PATH = "/metrics"


@web.middleware
async def own_user_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer no process of another user, whatever it knows."""
    try:
        check_user(transport_of(request).get_extra_info("socket"))
    except PermissionError as error:
        raise web.HTTPForbidden from error
    return await handler(request)


@asynccontextmanager
async def serving_siblings(
    parts: Parts,
    process: int,
    uploads: StagedUploads,
    reports: NodeReports,
    render: Callable[[], Awaitable[bytes]] | None = None,
) -> AsyncIterator[None]:
    """Answer the other processes of the node; ``render`` gives the node's metrics, where this process can."""

    async def figures(request: web.Request) -> web.StreamResponse:
        return web.Response(body=figures_of(parts.metrics.registry.collect()).pack())

    async def metrics(request: web.Request) -> web.StreamResponse:
        if render is None:
            raise web.HTTPNotFound
        return web.Response(body=await render())

    routes = [
        internal_route("GET", FIGURES_PATH, figures),
        internal_route("GET", METRICS_PATH, metrics),
        report_route(reports.own),
    ]
    app = internal_app_of(parts, uploads, more_routes=routes)
    app.middlewares.insert(0, own_user_only)
    with listening_to_siblings(parts.owner, process) as listener:
        runner = web.AppRunner(app)
        async with running(runner):
            await web.SockSite(runner, listener, backlog=BACKLOG).start()
            yield
