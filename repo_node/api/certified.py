"""Who calls on the internal listener, as its certificate says."""

from __future__ import annotations

from collections.abc import Callable, Collection

from aiohttp import web

from repo_node.api.shards import transport_of
from repo_node.tls.certificates import names_of
from sharding import wire
from sharding.model import NodeId


class CertifiedPeers:
    """Lets in nodes of this cluster, by the name in the certificate that the handshake has proved.

    ``nodes`` gives those that the cluster has now: one that was removed is let in no more, whatever it shows.
    """

    def __init__(self, nodes: Callable[[], Collection[NodeId] | None]) -> None:
        self._nodes = nodes

    def check(self, request: web.Request) -> None:
        """Raise ``web.HTTPForbidden`` for who is not the node it says it is, ``Refusal`` for one that is not known."""
        said = NodeId(request.headers.get(wire.NODE_HEADER, ""))
        if said not in names_of(transport_of(request).get_extra_info("peercert")):
            raise web.HTTPForbidden
        if said not in (self._nodes() or ()):
            # It may have joined just now.
            raise wire.Refusal(wire.UNAVAILABLE, f"{said} is not known to be a node of this cluster")
