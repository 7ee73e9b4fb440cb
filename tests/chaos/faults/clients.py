"""Faults of clients: many that are very slow. Those who leave, or send twice, are among the ordinary load."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

from tests.chaos.faults.fault import Fault
from tests.chaos.scene import Scene
from tests.cluster.processes import PASSWORD

CLIENTS = 600
BYTE_SECONDS = 1.0


class Slow:
    """Hundreds of clients who send a byte of a header, or of a body, now and then."""

    needs = frozenset[str]()

    async def begin(self, scene: Scene, chance: random.Random) -> str:
        parts = urlsplit(scene.url)
        assert parts.hostname and parts.port
        crawls = (crawl(parts.hostname, parts.port, number) for number in range(CLIENTS))
        self._crawling = [asyncio.create_task(one) for one in crawls]
        return f"{CLIENTS} clients"

    async def end(self, scene: Scene) -> None:
        for task in self._crawling:
            task.cancel()
        await asyncio.gather(*self._crawling, return_exceptions=True)


async def crawl(host: str, port: int, number: int) -> None:
    """Be one slow client, until cut off or cancelled. What it sends never becomes a whole request."""
    credentials = base64.b64encode(f"admin:{PASSWORD}".encode())
    head = b"PUT /artifactory/generic-local/slow/%d HTTP/1.1\r\nHost: slow\r\n" % number
    if number % 2:
        head += b"Authorization: Basic " + credentials + b"\r\nContent-Length: 100000\r\n\r\n"
    with suppress(OSError):
        _, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(head)
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(BYTE_SECONDS)
        finally:
            writer.close()


FAULTS: dict[str, Callable[[], Fault]] = {"clients.slow": Slow}
