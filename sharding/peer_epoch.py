"""A peer's highest epoch over its internal listener: asked for, and told."""

from __future__ import annotations

import asyncio
import json

import aiohttp
from yarl import URL

from sharding import wire
from sharding.peer import Peer, PeerError
from sharding.upgrade import read_body

EPOCH_URL_PATH = f"{wire.PREFIX}/epoch"
REFUSED_STATUS = 409
"""The answer to an epoch that is over."""

ANSWER_BYTES_MAX = 4 << 10


class EpochOver(Exception):
    """A shard knows a later primary; ``known`` is its epoch."""

    def __init__(self, known: int) -> None:
        super().__init__(f"a shard knows the primary of epoch {known}")
        self.known = known


async def ask_epoch(peer: Peer, seconds: float) -> int:
    """Return the highest epoch on the shards of ``peer``. Raises ``PeerError``."""
    return await call(peer, "GET", None, seconds)


async def tell_epoch(peer: Peer, epoch: int, seconds: float) -> None:
    """Let the shards of ``peer`` remember ``epoch``. Raises ``PeerError``, and ``EpochOver`` when they know a later."""
    await call(peer, "PUT", json.dumps({"epoch": epoch}).encode(), seconds)


async def call(peer: Peer, method: str, data: bytes | None, seconds: float) -> int:
    try:
        async with (
            asyncio.timeout(seconds),
            peer.session.request(
                method,
                URL(peer.url + EPOCH_URL_PATH),
                data=data,
                headers=peer.all_headers(),
                allow_redirects=False,
                server_hostname=peer.node,
            ) as response,
        ):
            body = await read_body(response, ANSWER_BYTES_MAX)
        if response.status not in (200, REFUSED_STATUS):
            raise PeerError(f"{peer.url} answered {response.status}")
        epoch = int(json.loads(body)["epoch"])
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PeerError(f"{peer.url} gave no epoch: {str(error) or type(error).__name__}") from error
    if response.status == REFUSED_STATUS:
        raise EpochOver(epoch)
    return epoch
