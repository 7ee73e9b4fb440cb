"""Stands between a node and Postgres, and lets the way be cut or frozen."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

CHUNK_BYTES = 1 << 16
WAIT_SECONDS = 30.0


class Gateway:
    """Forwards connections; ``cut``, ``freeze`` and ``restore`` may be called from any thread."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._loop = asyncio.get_running_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self._accepts = True
        self._sides: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Break every connection and refuse new ones."""
        self._loop.call_soon_threadsafe(self._cut)

    def freeze(self) -> None:
        """Let nothing through any more, in either direction, without breaking anything."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def restore(self) -> None:
        """Let everything through again."""
        self._loop.call_soon_threadsafe(self._restore)

    def _restore(self) -> None:
        self._accepts = True
        self._flows.set()

    def _cut(self) -> None:
        self._accepts = False
        for side in list(self._sides):
            side.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._accepts:
            writer.transport.abort()
            return
        server_reader, server_writer = await asyncio.open_connection(*self._target)
        sides = {writer, server_writer}
        self._sides |= sides
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(reader, server_writer))
                group.create_task(self._forward(server_reader, writer))
        finally:
            self._sides -= sides
            for side in sides:
                side.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError("one side has gone, so the other goes too")


class OpenGateway:
    """The async context of a gateway before the server of ``dsn``."""

    def __init__(self, dsn: str) -> None:
        self._parts = urlsplit(dsn)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> tuple[Gateway, str]:
        gateway = self._gateway = Gateway(self._parts.hostname or "127.0.0.1", self._parts.port or 5432)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        login = f"{self._parts.netloc.rpartition('@')[0]}@" if "@" in self._parts.netloc else ""
        return gateway, self._parts._replace(netloc=f"{login}127.0.0.1:{port}").geturl()

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError, ExceptionGroup):
                await self._gateway.serve(reader, writer)
        finally:
            self._tasks.discard(task)


@contextmanager
def in_thread(context: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enter an async context on a loop and a thread of its own, and leave it with the block."""
    entered: Future[T] = Future()
    ended: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        stop = asyncio.Event()
        ended.set_result((asyncio.get_running_loop(), stop))
        async with context as value:
            entered.set_result(value)
            await stop.wait()

    def work() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            if not entered.done():
                entered.set_exception(error)

    thread = threading.Thread(target=work, name="gateway", daemon=True)
    thread.start()
    try:
        yield entered.result(WAIT_SECONDS)
    finally:
        loop, stop = ended.result(WAIT_SECONDS)
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join(WAIT_SECONDS)
