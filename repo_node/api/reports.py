"""The internal listener's word for support bundles: what this node, or one of its processes, reports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from repo_node.api.shards import internal_route
from repo_node.support.reports import REPORT_PATH
from repo_node.support.wish import Wish, read_wish
from sharding import wire


def report_route(make: Callable[[Wish], Awaitable[bytes]]) -> web.RouteDef:
    """Return the route that answers with what ``make`` packs."""

    async def report(request: web.Request) -> web.StreamResponse:
        try:
            wish = read_wish(request.query)
        except ValueError as error:
            raise wire.Refusal(wire.BAD_REQUEST, f"a wish that is not understood: {error}") from None
        return web.Response(body=await make(wish), content_type="application/zip")

    return internal_route("GET", REPORT_PATH, report)
