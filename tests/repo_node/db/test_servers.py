"""The way to the server that takes writes: past frozen and dead ones, never to a standby, never back in time."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from repo_node.db import servers as servers_module
from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.servers import History, Server, Servers
from repo_node.launch.ports import find_free_port
from tests.cluster.standby import PostgresPair, execute

TIMEOUT_SECONDS = 10.0


def among(dsn: str, *others: int, last: bool = True) -> str:
    """Return ``dsn`` with servers on other ports of this machine before its own, or behind it."""
    parts = urlsplit(dsn)
    auth, _, own = parts.netloc.rpartition("@")
    strangers = [f"127.0.0.1:{port}" for port in others]
    return urlunsplit(parts._replace(netloc=f"{auth}@{','.join([*strangers, own] if last else [own, *strangers])}"))


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word, as a frozen server's does."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresPair]:
    made = PostgresPair(tmp_path_factory.mktemp("pair"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


async def ask(connection: asyncpg.Connection, sql: str) -> object:
    return await connection.fetchval(sql)


async def test_frozen_and_dead_servers_leave_time_for_the_one_that_answers(dsn: str, silent: int) -> None:
    servers = Servers(among(dsn, silent, find_free_port()), timeout_seconds=TIMEOUT_SECONDS)
    connections = [await servers.connect() for _ in range(3)]
    assert [await ask(connection, "SELECT 1") for connection in connections] == [1, 1, 1]
    for connection in connections:
        connection.terminate()


async def test_when_none_answers_each_is_named_with_its_reason(dsn: str, silent: int) -> None:
    dead = find_free_port()
    url = among(urlunsplit(urlsplit(dsn)._replace(netloc=f"u:canary@127.0.0.1:{dead}")), silent)
    with pytest.raises(CatalogueUnavailable, match="timed out"):
        await Servers(url, timeout_seconds=1).connect()
    url = urlunsplit(urlsplit(dsn)._replace(netloc=f"u:canary@127.0.0.1:{dead},localhost:{dead}"))
    with pytest.raises(CatalogueUnavailable, match=f"127.0.0.1:{dead}: .*; localhost:{dead}: ") as failure:
        await Servers(url, timeout_seconds=TIMEOUT_SECONDS).connect()
    assert "canary" not in str(failure.value)


async def test_a_cancelled_connection_leaves_none_behind(dsn: str, silent: int) -> None:
    servers = Servers(among(dsn, silent), timeout_seconds=TIMEOUT_SECONDS)
    task = asyncio.create_task(servers.connect(server_settings={"application_name": "cancelled"}))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(asyncio.all_tasks()) == 1
    watcher = await Servers(dsn, timeout_seconds=TIMEOUT_SECONDS).connect()
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while await ask(watcher, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cancelled'"):
            await asyncio.sleep(0.05)
    watcher.terminate()


async def test_a_standby_is_never_connected_to(pair: PostgresPair) -> None:
    port = urlsplit(pair.standby.dsn).port
    assert port is not None
    for url in (among(pair.primary.dsn, port), among(pair.primary.dsn, port, last=False)):
        connection = await Servers(url, timeout_seconds=TIMEOUT_SECONDS).connect()
        assert await ask(connection, "SELECT pg_is_in_recovery()") is False
        connection.terminate()
    with pytest.raises(CatalogueUnavailable, match="is a standby"):
        await Servers(pair.standby.dsn, timeout_seconds=TIMEOUT_SECONDS).connect()


async def test_a_server_that_takes_no_writes_any_more_is_left_by_every_connection(pair: PostgresPair) -> None:
    servers = Servers(pair.dsn, timeout_seconds=TIMEOUT_SECONDS)
    idle, busy = await servers.connect(), await servers.connect()
    execute(pair.primary, "ALTER SYSTEM SET default_transaction_read_only = on")
    execute(pair.primary, "SELECT pg_reload_conf()")
    try:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError) as refusal:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while True:
                    await busy.execute("UPDATE cluster SET cluster_id = cluster_id")
        servers.doubt(refusal.value)
        assert idle.is_closed() and busy.is_closed()
        with pytest.raises(CatalogueUnavailable, match="takes no writes"):
            await servers.connect()
    finally:
        execute(pair.primary, "ALTER SYSTEM RESET default_transaction_read_only")
        execute(pair.primary, "SELECT pg_reload_conf()")


async def test_after_a_promotion_no_connection_leads_back(pair: PostgresPair, caplog: pytest.LogCaptureFixture) -> None:
    """The last test on this pair: the old primary goes on as if nothing had been, as it does behind a partition."""
    old = pair.primary
    servers = Servers(pair.dsn, timeout_seconds=TIMEOUT_SECONDS)
    before, idle = await servers.connect(), await servers.connect()
    old.freeze()
    pair.promote()
    after = await servers.connect()
    assert await ask(after, "SELECT inet_server_port()") == urlsplit(pair.primary.dsn).port
    assert before.is_closed() and idle.is_closed(), "they would have believed the old one as soon as it wakes"
    old.thaw()
    with caplog.at_level(logging.CRITICAL):
        for one in (servers, Servers(pair.dsn, timeout_seconds=TIMEOUT_SECONDS)):
            one.doubt(TimeoutError())
            connection = await one.connect()
            assert await ask(connection, "SELECT inet_server_port()") == urlsplit(pair.primary.dsn).port
            connection.terminate()
    assert "left behind" in caplog.text
    pair.primary.freeze()
    servers._timeout_seconds = 4.0  # all of which it waits for the frozen one
    with pytest.raises(CatalogueUnavailable, match="left it behind; stop it"):
        await servers.connect()
    pair.primary.thaw()
    after.terminate()


# ---------------------------------------------------------------------- who answers when, decided by the test

A, B = ("a", 1), ("b", 2)
OLD, NEW = (7, 1), (7, 2)


class Line:
    """A connection that leads nowhere."""

    closed = False

    def __init__(self, history: History) -> None:
        self.history = history

    def terminate(self) -> None:
        self.closed = True


class Field:
    """Servers whose answers are made by ``answers``: a line, sooner or later, or an error."""

    def __init__(self) -> None:
        self.answers: dict[Server, Callable[[], Awaitable[Line]]] = {}

    async def connect(self, url: str, *, host: str, port: int, **options: object) -> Line:
        return await self.answers[host, port]()

    async def read_history(self, line: Line) -> History:
        return line.history


@pytest.fixture
def field(monkeypatch: pytest.MonkeyPatch) -> Field:
    made = Field()
    monkeypatch.setattr(servers_module.asyncpg, "connect", made.connect)
    monkeypatch.setattr(servers_module, "read_history", made.read_history)
    return made


def answers(history: History, after_seconds: float = 0) -> Callable[[], Awaitable[Line]]:
    async def answer() -> Line:
        await asyncio.sleep(after_seconds)
        return Line(history)

    return answer


async def refuses() -> Line:
    raise ConnectionRefusedError("refused")


async def hangs() -> Line:
    return await asyncio.Event().wait()  # type: ignore[return-value]


async def test_a_server_left_behind_does_not_end_the_wait_for_the_right_one(
    field: Field, caplog: pytest.LogCaptureFixture
) -> None:
    servers = Servers("postgresql://u@a:1,b:2/d", timeout_seconds=5)
    field.answers = {A: refuses, B: answers(NEW)}
    await servers.connect()
    servers.doubt(TimeoutError())
    field.answers = {A: answers(OLD), B: answers(NEW, after_seconds=1)}
    with caplog.at_level(logging.CRITICAL):
        found = await servers.connect()
    assert found.history == NEW  # type: ignore[attr-defined]
    assert caplog.text.count("left behind") == 1


async def test_when_only_a_server_left_behind_answers_that_is_the_error_beside_the_others(field: Field) -> None:
    servers = Servers("postgresql://u@a:1,b:2/d", timeout_seconds=1)
    field.answers = {A: refuses, B: answers(NEW)}
    await servers.connect()
    field.answers = {A: answers(OLD), B: hangs}
    with pytest.raises(CatalogueUnavailable, match="a:1: the server that answers .*; stop it; b:2: timed out"):
        await servers.connect()


async def test_a_connection_that_ends_late_does_not_lead_back_to_the_server_left_meanwhile(field: Field) -> None:
    servers, may_end, ending = (
        Servers("postgresql://u@a:1,b:2/d", timeout_seconds=5),
        asyncio.Event(),
        asyncio.Event(),
    )

    async def ends_late() -> Line:
        try:
            return await hangs()
        finally:
            ending.set()
            await may_end.wait()

    field.answers = {A: answers(OLD), B: ends_late}
    early = asyncio.create_task(servers.connect())
    await ending.wait()
    servers.doubt(TimeoutError())
    field.answers = {A: refuses, B: answers(NEW)}
    assert (await servers.connect()).history == NEW  # type: ignore[attr-defined]
    may_end.set()
    line = await early
    assert line.closed, "its server was left while it was being made"  # type: ignore[attr-defined]
    assert servers._last == B, "the next connections go there first"
