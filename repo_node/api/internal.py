"""The internal listener's application: who may call, which cluster is meant, and how errors are said.

It listens on its own socket; none of its routes is ever on the public one.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Awaitable, Callable, Iterable
from uuid import UUID

from aiohttp import web

from repo_node import keys
from repo_node.api.certified import CertifiedPeers
from repo_node.api.shards import ReadElsewhere, ShardHandlers, internal_route
from repo_node.api.staged import LINGER_SECONDS, StagedUploads
from repo_node.logs import request_id
from sharding import wire
from sharding.model import NodeId
from sharding.shard import Shard

IDLE_SECONDS = 30.0
"""How long a peer may send no byte of a body, or take none of an answer."""

STAGED_UPLOADS_MAX = 256
"""Each holds one block in memory; what comes while it is being written waits in the kernel."""

KEEPALIVE_SECONDS = 75.0

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def internal_app(
    *,
    shards: Callable[[UUID], Shard | None],
    node_id: NodeId,
    incarnation: UUID,
    cluster_id: Callable[[], UUID | None],
    accepted: Iterable[bytes],
    more_routes: Iterable[web.RouteDef] = (),
    idle_seconds: float = IDLE_SECONDS,
    uploads: StagedUploads | None = None,
    elsewhere: ReadElsewhere | None = None,
    certified: CertifiedPeers | None = None,
) -> web.Application:
    """Return the application of the internal listener over the shards that this node owns.

    ``accepted`` are the cluster keys that let callers in. ``cluster_id`` gives None until the node has joined.
    ``uploads`` are those staged by this process, ``elsewhere`` reads from those that its siblings stage, ``certified``
    looks at certificates. It carries its own options for the server.
    """
    gate = Gate(cluster_id, [keys.derive(key, wire.TOKEN_PURPOSE) for key in accepted], certified)
    identity = json.dumps({"node": node_id, "incarnation": str(incarnation)}).encode()

    async def tell_identity(request: web.Request) -> web.StreamResponse:
        return web.Response(body=identity, content_type="application/json")

    app = web.Application(
        middlewares=[gate.middleware],
        handler_args={
            "auto_decompress": False,
            "handler_cancellation": True,  # a peer that is gone wants nothing any more
            "keepalive_timeout": KEEPALIVE_SECONDS,
            "lingering_time": LINGER_SECONDS,
            "access_log": None,
        },
    )
    uploads = uploads or StagedUploads(STAGED_UPLOADS_MAX)
    handlers = ShardHandlers(shards, uploads, idle_seconds=idle_seconds, elsewhere=elsewhere)
    app.add_routes([internal_route("GET", "/node", tell_identity), *handlers.routes(), *more_routes])
    app.on_response_prepare.append(echo_request_id)
    app.on_shutdown.append(handlers.leave)
    return app


class Gate:
    """Lets in the peers of this cluster, and says errors in the listener's own words."""

    def __init__(
        self, cluster_id: Callable[[], UUID | None], tokens: Iterable[str], certified: CertifiedPeers | None = None
    ) -> None:
        self._cluster_id = cluster_id
        self._certified = certified
        self._accepted = [f"{wire.AUTHORIZATION_SCHEME} {token}".encode() for token in tokens]

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Look at who calls before anything else, then answer."""
        refused = self._refuse(request)
        if refused is not None:
            refused.force_close()
            return refused
        if given := accepted_request_id(request):
            request_id.set(given)
        try:
            return await handler(request)
        except wire.REFUSABLE as error:
            return _say(request, wire.refusal_of(error))

    def _refuse(self, request: web.Request) -> web.Response | None:
        given = request.headers.get(wire.AUTHORIZATION, "").encode("utf-8", "surrogateescape")
        if not any([hmac.compare_digest(given, accepted) for accepted in self._accepted]):
            return web.Response(status=401)
        cluster = self._cluster_id()
        if cluster is None:
            return _answer(wire.Refusal(wire.UNAVAILABLE, "this node has not joined its cluster yet"))
        if request.headers.get(wire.CLUSTER_HEADER) != str(cluster):
            return web.Response(status=403)
        try:
            if self._certified is not None:
                self._certified.check(request)
        except web.HTTPForbidden:
            return web.Response(status=403)
        except wire.Refusal as refusal:
            return _answer(refusal)
        return None


def accepted_request_id(request: web.Request) -> str | None:
    """Return the request id that the peer gave, if it is fit for a log and a header."""
    given = request.headers.get(wire.REQUEST_ID_HEADER)
    return given if given is not None and REQUEST_ID.fullmatch(given) else None


async def echo_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """Give an accepted request id back with the answer."""
    if given := accepted_request_id(request):
        response.headers[wire.REQUEST_ID_HEADER] = given


def _say(request: web.Request, refusal: wire.Refusal) -> web.Response:
    answer = _answer(refusal)
    if not request.content.is_eof():
        answer.force_close()
    return answer


def _answer(refusal: wire.Refusal) -> web.Response:
    return web.Response(status=refusal.status, body=refusal.body(), content_type="application/json")
