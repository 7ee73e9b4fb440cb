"""The node's pool of Postgres connections: deadlines, honest errors, retries of lost races.

Every statement has a deadline on this side. A connection that timed out, broke or turned out to
lead to a demoted server is dropped, never reused. No statement may leave a trace in its session (SET,
LISTEN, a session's advisory lock): connections go back to the pool as they are.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import asyncpg

from repo_node.config import DatabaseSection
from repo_node.db.connections import Connections
from repo_node.db.errors import (
    CatalogueError,
    CatalogueUnavailable,
    ChangesRefused,
    Immutable,
    KeptOut,
    NoSchema,
    NotPermitted,
    OutcomeUnknown,
    QuotaExceeded,
    RacesLost,
)
from repo_node.db.servers import BROKEN, HEEDFUL, SESSION, Servers, describe, drop
from sharding.deadlines import Deadlines

T = TypeVar("T")

REFUSALS = {
    "HF006": ChangesRefused,
    "HF008": NotPermitted,
    "HF009": Immutable,
    "HF010": QuotaExceeded,
    "HF012": KeptOut,
}
"""SQLSTATEs by which the functions of schema.sql refuse a write, wherever it comes from, and what they raise here."""


class NotSent(Exception):
    """The connection had come to its end while nobody used it: Postgres has heard nothing of this."""


RETRIED = (
    NotSent,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    # A migration came between two uses of a prepared statement; asyncpg has forgotten it by now.
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)
ATTEMPTS_MAX = 8

SEARCH_MARGIN_SECONDS = 1.0
"""So much longer than Postgres takes to end a search is waited for its word."""

NOT_IDLE = "cannot switch to state"
"""How asyncpg's refusal begins to send anything on a connection of which it has heard a last word, but not the end."""

REFUSED = (asyncpg.ReadOnlySQLTransactionError, asyncpg.CannotConnectNowError, asyncpg.InsufficientResourcesError)
"""Of the failures of a server, those in which Postgres itself says that nothing was done."""


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with a name, under which its time is measured."""

    name: str
    sql: str


class QueryObserver(Protocol):
    """Told how long each statement took; ``outcome`` is ok, error or unavailable."""

    def observe_query(self, name: str, seconds: float, outcome: str) -> None: ...


class Database:
    """Runs statements on pooled connections. Made by ``open_database``; safe to share between tasks."""

    def __init__(self, pool: Connections, servers: Servers, config: DatabaseSection, observer: QueryObserver) -> None:
        self.servers = servers
        """Makes connections outside the pool too."""
        self._pool = pool
        self._config = config
        self._deadlines = Deadlines(config.statement_timeout_seconds)
        self._observer = observer

    @property
    def connections(self) -> tuple[int, int]:
        """The pool's size and how many of its connections are idle."""
        return self._pool.size, self._pool.idle

    async def fetch(self, statement: Statement, *args: Any) -> list[asyncpg.Record]:
        """Return every row. Raises ``CatalogueUnavailable``."""
        return await self._run(statement, lambda connection: connection.fetch(statement.sql, *args))

    async def fetchrow(self, statement: Statement, *args: Any) -> asyncpg.Record | None:
        """Return the first row or None. Raises ``CatalogueUnavailable``."""
        return await self._run(statement, lambda connection: connection.fetchrow(statement.sql, *args))

    async def fetch_each(self, statement: Statement, arguments: Sequence[Sequence[Any]]) -> list[asyncpg.Record]:
        """Run a query that always gives one row for each of ``arguments``, in one round trip; return their rows.

        It costs less than half of as many queries. Raises ``CatalogueUnavailable``.
        """
        return await self._run(statement, lambda connection: connection.fetchmany(statement.sql, arguments))

    async def write(self, statement: Statement, *args: Any, attempts: int = ATTEMPTS_MAX) -> asyncpg.Record | None:
        """Run a write of one statement, retried when it lost a race, and return its first row or None.

        Raises ``OutcomeUnknown`` when it may have been committed, ``CatalogueUnavailable`` when it was not.
        """
        return await self._run(
            statement,
            lambda connection: heed_standby(connection, connection.fetchrow(statement.sql, *args)),
            unknown=OutcomeUnknown,
            attempts=attempts,
        )

    async def transact(self, statement: Statement, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """Run ``work`` in one transaction, again from its start when it lost a race. Errors as ``write``.

        ``statement`` names what is measured.
        """
        return await self._run(
            statement,
            lambda connection: heed_standby(connection, run_transaction(connection, work)),
            unknown=OutcomeUnknown,
        )

    async def search(
        self, statement: Statement, work: Callable[[asyncpg.Connection], Awaitable[T]], *, seconds_max: float
    ) -> T:
        """Run ``work``, which only reads and which Postgres ends after ``seconds_max``, in one transaction.

        That may be longer than other statements have. Raises ``CatalogueUnavailable``.
        """
        deadline_seconds = max(self._deadlines.seconds, seconds_max + SEARCH_MARGIN_SECONDS)

        async def within(connection: asyncpg.Connection) -> T:
            async with asyncio.timeout(deadline_seconds):
                return await run_transaction(connection, work)

        return await self._run(statement, within, has_own_deadline=True)

    async def survey(self, statement: Statement, *args: Any) -> list[asyncpg.Record]:
        """Return every row of a statement that is meant to read whole tables. Raises ``CatalogueUnavailable``."""

        async def work(connection: asyncpg.Connection) -> list[asyncpg.Record]:
            await connection.execute("SET LOCAL enable_seqscan = on")
            return await connection.fetch(statement.sql, *args)

        return await self._run(statement, lambda connection: run_transaction(connection, work))

    @asynccontextmanager
    async def apart(self) -> AsyncIterator[asyncpg.Connection]:
        """Open a connection outside the pool for one long reading, whose time the caller limits.

        Postgres ends it soon after whoever asked is gone: what only one may do at a time, another one can begin.

        Raises ``CatalogueUnavailable``.
        """
        connection = await self.servers.connect(server_settings={"application_name": "holdfast backup", **HEEDFUL})
        try:
            yield connection
        finally:
            drop(connection)

    async def _run(
        self,
        statement: Statement,
        call: Callable[[asyncpg.Connection], Awaitable[T]],
        unknown: type[Exception] = CatalogueUnavailable,
        attempts: int = ATTEMPTS_MAX,
        *,
        has_own_deadline: bool = False,
    ) -> T:
        for attempt in range(attempts):
            try:
                return await self._run_once(statement, call, unknown, has_own_deadline)
            except RETRIED:
                if attempt == attempts - 1:
                    raise RacesLost(f"{statement.name}: lost {attempts} races in a row") from None
                await asyncio.sleep(random.uniform(0, 0.005 * 2**attempt))
        raise AssertionError("unreachable")

    async def _run_once(
        self,
        statement: Statement,
        call: Callable[[asyncpg.Connection], Awaitable[T]],
        unknown: type[Exception],
        has_own_deadline: bool,
    ) -> T:
        started, outcome = time.perf_counter(), "unavailable"
        try:
            connection = self._pool.take_now() or await self._take()
            try:
                with nullcontext() if has_own_deadline else self._deadlines.begin():
                    result = await call(connection)
                outcome = "ok"
                return result
            except REFUSED as error:
                drop(connection)
                raise CatalogueUnavailable(f"{statement.name}: {describe(error)}") from error
            except BROKEN as error:
                drop(connection)
                if isinstance(error, asyncpg.InternalClientError) and str(error).startswith(NOT_IDLE):
                    raise NotSent from error
                raise unknown(f"{statement.name}: {describe(error)}") from error
            except (asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError) as error:
                raise NoSchema(f"{statement.name}: {describe(error)}") from error
            except CatalogueError:
                raise
            except asyncpg.PostgresError as error:
                outcome = "error"
                if (refusal := REFUSALS.get(error.sqlstate or "")) is not None:
                    raise refusal(str(error)) from None
                raise
            except Exception:
                outcome = "error"
                raise
            except BaseException:
                outcome = "error"
                drop(connection)
                raise
            finally:
                self._pool.give_back(connection)
        finally:
            self._observer.observe_query(statement.name, time.perf_counter() - started, outcome)

    async def _take(self) -> asyncpg.Connection:
        try:
            async with asyncio.timeout(self._config.connect_timeout_seconds):
                return await self._pool.take()
        except (*BROKEN, asyncpg.PostgresError) as error:
            raise CatalogueUnavailable(f"no connection to Postgres: {describe(error)}") from error


async def run_transaction(connection: asyncpg.Connection, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    """Run ``work`` and commit.

    Not ``async with connection.transaction()``: that rolls back after a deadline too, and would wait
    for a frozen server for ever. Here whoever gives up drops the connection.
    """
    transaction = connection.transaction()
    await transaction.start()
    try:
        result = await work(connection)
    except BROKEN:
        raise
    except Exception:
        await transaction.rollback()
        raise
    await transaction.commit()
    return result


async def heed_standby(connection: asyncpg.Connection, call: Awaitable[T]) -> T:
    """Await a write. Raises ``OutcomeUnknown`` when Postgres gave up waiting for its synchronous standby.

    It says so in a warning alone: the write stands here, and may be lost in a failover.
    """
    warnings: list[str] = []

    def listen(_: object, message: asyncpg.PostgresLogMessage) -> None:
        # The function's name, because the text is in the server's language.
        if message.server_source_function == "SyncRepWaitForLSN":
            warnings.append(str(message))

    connection.add_log_listener(listen)
    try:
        result = await call
    finally:
        with suppress(asyncpg.InterfaceError):
            connection.remove_log_listener(listen)
    if warnings:
        raise OutcomeUnknown(warnings[0])
    return result


@asynccontextmanager
async def open_database(config: DatabaseSection, observer: QueryObserver) -> AsyncIterator[Database]:
    """Open the pool; connections are made when first needed."""
    servers = Servers(config.dsn, timeout_seconds=config.connect_timeout_seconds)
    session = {
        "application_name": "holdfast",
        **SESSION,
        "jit": "off",
        # A plan is kept until its tables are analyzed again. One made when they were nearly empty would read them
        # whole while they grow: a young cluster's uploads slow down by the minute.
        "enable_seqscan": "off",
        # The functions of schema.sql want a fresh snapshot in each statement, whatever the database's default.
        "default_transaction_isolation": "read committed",
    }
    pool = Connections(lambda: servers.connect(server_settings=session), size_max=config.pool_connections_max)
    try:
        yield Database(pool, servers, config, observer)
    finally:
        pool.close()
