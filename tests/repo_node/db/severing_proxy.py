"""A TCP proxy in front of Postgres that loses one request, or one answer, at a chosen byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

CHUNK_BYTES = 1 << 16


class Fate(StrEnum):
    """What becomes of the request that carries the marker."""

    LOST = "the request is lost"
    CUT = "the request is cut short"
    ABANDONED = "the connection is cut as soon as the request is out"
    UNANSWERED = "the answer is lost"
    HALF_ANSWERED = "the answer is cut short"
    SILENCE = "the answer never comes and nothing is cut"


@dataclass
class Trap:
    """``offset`` is where CUT cuts the request, counted from its end, and HALF_ANSWERED the answer, from its start."""

    marker: bytes
    fate: Fate
    offset: int = 1
    sprung: bool = False


class SeveringProxy:
    """Forwards everything until a trap springs; a trap springs once."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._trap: Trap | None = None
        self.accepts = True
        self._open: dict[tuple[asyncio.StreamWriter, ...], list[Trap]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def sever_others(self) -> None:
        """Break, from any thread, the connections that no trap has caught."""

        def work() -> None:
            for sides, caught in self._open.items():
                if not caught:
                    sever(sides)

        assert self._loop is not None
        self._loop.call_soon_threadsafe(work)

    def set_trap(self, marker: bytes, fate: Fate, offset: int = 1) -> Trap:
        self._trap = Trap(marker, fate, offset)
        return self._trap

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._loop = asyncio.get_running_loop()
        if not self.accepts:
            writer.transport.abort()
            return
        server_reader, server_writer = await asyncio.open_connection(*self._target)
        sides = (writer, server_writer)
        caught = self._open[sides] = []
        tasks = [
            asyncio.ensure_future(self._forward_requests(reader, server_writer, sides, caught)),
            asyncio.ensure_future(self._forward_answers(server_reader, writer, sides, caught)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._open[sides]
            sever(sides)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward_requests(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        sides: tuple[asyncio.StreamWriter, ...],
        caught: list[Trap],
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            trap = self._trap
            if trap is not None and not trap.sprung and trap.marker in data:
                trap.sprung = True
                if trap.fate is Fate.LOST:
                    return
                if trap.fate is Fate.CUT:
                    writer.write(data[: -trap.offset])
                    await writer.drain()
                    writer.close()
                    with suppress(OSError):
                        await writer.wait_closed()
                    return
                caught.append(trap)
            writer.write(data)
            await writer.drain()
            if caught and caught[-1].fate is Fate.ABANDONED:
                return

    async def _forward_answers(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        sides: tuple[asyncio.StreamWriter, ...],
        caught: list[Trap],
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if caught:
                match caught[-1].fate:
                    case Fate.UNANSWERED | Fate.ABANDONED:  # the answer may be quicker than the cut
                        return
                    case Fate.HALF_ANSWERED:
                        writer.write(data[: caught[-1].offset])
                        await writer.drain()
                        writer.close()
                        return
                    case Fate.SILENCE:
                        continue
            writer.write(data)
            await writer.drain()


def sever(sides: tuple[asyncio.StreamWriter, ...]) -> None:
    for side in sides:
        if not side.is_closing():
            side.transport.abort()


@asynccontextmanager
async def open_proxy(dsn: str) -> AsyncIterator[tuple[SeveringProxy, str]]:
    """Yield a proxy before the server of ``dsn``, and the DSN that leads through it."""
    parts = urlsplit(dsn)
    proxy = SeveringProxy(parts.hostname or "127.0.0.1", parts.port or 5432)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(OSError):
                await proxy.serve(reader, writer)
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    try:
        yield proxy, parts._replace(netloc=f"{login}127.0.0.1:{port}").geturl()
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
