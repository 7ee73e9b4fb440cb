"""The internal listener's words about primaries: a peer asks for, or tells, the highest epoch."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from repo_node.api.shards import internal_route
from repo_node.cluster.epochs import ShardEpochs
from sharding import wire
from sharding.peer_epoch import REFUSED_STATUS, EpochOver

BODY_BYTES_MAX = 1_024
BODY_SECONDS = 5.0
EPOCH_MAX = 1 << 60


class EpochHandlers:
    """The handlers, over the shards of this node."""

    def __init__(self, epochs: ShardEpochs) -> None:
        self._epochs = epochs

    def routes(self) -> list[web.RouteDef]:
        return [internal_route("GET", "/epoch", self.tell), internal_route("PUT", "/epoch", self.hear)]

    async def tell(self, request: web.Request) -> web.StreamResponse:
        """Answer with the highest epoch on this node's shards."""
        return answer(await self._epochs.own_highest())

    async def hear(self, request: web.Request) -> web.StreamResponse:
        """Note a primary's epoch; one that is over is refused with the one that is known."""
        epoch = await read_epoch(request)
        try:
            await self._epochs.see(epoch)
        except EpochOver as error:
            return answer(error.known, status=REFUSED_STATUS)
        return answer(epoch)


def answer(epoch: int, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=json.dumps({"epoch": epoch}).encode(), content_type="application/json")


async def read_epoch(request: web.Request) -> int:
    """Return the epoch that a peer tells. Raises ``wire.Refusal``."""
    if request.content_length is None or request.content_length > BODY_BYTES_MAX:
        raise wire.Refusal(wire.BAD_REQUEST, f"a body needs a Content-Length of at most {BODY_BYTES_MAX}")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            epoch = json.loads(await request.content.read())["epoch"]
    except (ValueError, KeyError, TypeError, RecursionError):
        epoch = None
    if type(epoch) is not int or not 0 < epoch < EPOCH_MAX:
        raise wire.Refusal(wire.BAD_REQUEST, "the body must be an object with epoch, a positive number")
    return epoch
