"""The way to the one server that takes writes, among those the DSN names.

Every connection of a node is made here. A server that is frozen or unreachable delays none of them: the others are
asked beside it. And no connection leads back in time: a promotion begins a new timeline, and whoever has worked on it
never again believes a server that is still on an older one, although that answers and takes writes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg
from asyncpg.exceptions import TargetServerAttributeNotMatched

from repo_node.db.errors import CatalogueUnavailable
from repo_node.dsn import name_server, parse_dsn
from sharding.tasks import stop, wait

log = logging.getLogger("holdfast.database")

BROKEN = (
    OSError,
    TimeoutError,
    asyncio.IncompleteReadError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalClientError,
)
"""Failures of the server or of the way to it, not of the statement."""

# A statement that missed its deadline must not wait for a lock on, and its repeats behind it, until
# Postgres has no connection left: the server looks every second whether we are still there.
HEEDFUL = {"client_connection_check_interval": "1000"}
SESSION = {
    # A process that is frozen within a transaction must not keep its locks.
    "idle_in_transaction_session_timeout": "15000",
    **HEEDFUL,
}
"""Settings of every connection that writes."""

HEAD_START_SHARE = 0.1
"""Of the time a connection may take: so long the server of before is asked alone, and others are waited for."""

IDENTIFY = """
    SELECT system_identifier, ('x' || substring(pg_walfile_name(pg_current_wal_lsn()) FOR 8))::bit(32)::int AS timeline
      FROM pg_control_system()
"""

Server = tuple[str, int]
History = tuple[int, int]
"""The identifier of a database system, and the timeline it is on."""

UNTOLD: History = (0, 0)
"""Of a server that does not let this role know."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A connection to a server that takes writes. ``server`` is None where the DSN names none."""

    connection: asyncpg.Connection
    server: Server | None
    history: History


class Servers:
    """Makes a process' connections to Postgres, and ends those that a failover has made worthless."""

    def __init__(self, dsn: str, *, timeout_seconds: float) -> None:
        self._dsn = parse_dsn(dsn)
        self._timeout_seconds = timeout_seconds
        self._last: Server | None = None
        self._history = UNTOLD
        self._connections: WeakKeyDictionary[asyncpg.Connection, History] = WeakKeyDictionary()

    async def connect(self, **options: Any) -> asyncpg.Connection:
        """Connect to the server that takes writes, within ``timeout_seconds``; ``options`` are asyncpg's.

        Raises ``CatalogueUnavailable``.
        """
        return (await self._race(options)).connection

    def doubt(self, error: BaseException) -> None:
        """Ask every server next time: one that let itself be connected to failed with ``error``.

        Where several are named, one that takes no writes any more is left by all connections at once.
        """
        self._last = None
        if isinstance(error, asyncpg.ReadOnlySQLTransactionError) and self._dsn.target == "read-write":
            self._drop(list(self._connections))

    async def _race(self, options: dict[str, Any]) -> Candidate:
        """Return the best of the servers that answer in time: that of before, else that with the longest history."""
        failed = asyncio.Event()
        servers: list[Server | None] = [*self._dsn.servers] or [None]
        attempts = {
            asyncio.create_task(
                self._attempt(server, options, failed if self._last not in (None, server) else None)
            ): server
            for server in servers
        }
        best: Candidate | None = None
        try:
            best = self._choose(*await self._hear(attempts, failed))
            return best
        finally:
            await stop(attempts)
            for attempt in attempts:
                if not attempt.cancelled() and attempt.exception() is None and attempt.result() is not best:
                    drop(attempt.result().connection)

    async def _hear(
        self, attempts: Mapping[asyncio.Task[Candidate], Server | None], failed: asyncio.Event
    ) -> tuple[list[Candidate], list[CatalogueUnavailable]]:
        """Return who answers in time, and why the others don't: when one did, they get a head start's length more."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_seconds
        found: list[Candidate] = []
        errors: list[CatalogueUnavailable] = []
        pending = set(attempts)
        while pending and not any(one.server == self._last for one in found):
            left_seconds = max(deadline - loop.time(), 0)
            wait_seconds = min(self._timeout_seconds * HEAD_START_SHARE, left_seconds) if found else left_seconds
            done, pending = await asyncio.wait(pending, timeout=wait_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            for attempt in done:
                try:
                    found.append(self._admit(attempt.result()))
                except CatalogueUnavailable as error:
                    errors.append(error)
                    failed.set()
        return found, errors + [CatalogueUnavailable(f"{self._name(attempts[one])}timed out") for one in pending]

    async def _attempt(self, server: Server | None, options: dict[str, Any], failed: asyncio.Event | None) -> Candidate:
        """Connect to one server; with ``failed``, when the one before it had time to answer, or has failed."""
        if failed is not None:
            await wait(failed, self._timeout_seconds * HEAD_START_SHARE)
        where: dict[str, Any] = {"target_session_attrs": self._dsn.target}
        if server is not None:
            where |= {"host": server[0], "port": server[1]}
        connection: asyncpg.Connection | None = None
        try:
            connection = await asyncpg.connect(self._dsn.url, timeout=self._timeout_seconds, **where, **options)
            return Candidate(connection, server, await read_history(connection))
        except BaseException as error:
            if connection is not None:
                drop(connection)
            if not isinstance(error, (*BROKEN, asyncpg.PostgresError)):
                raise
            raise CatalogueUnavailable(self._name(server) + describe(error)) from error

    def _name(self, server: Server | None) -> str:
        """Return how an error about one of several servers begins."""
        return f"{name_server(server)}: " if server is not None and len(self._dsn.servers) > 1 else ""

    def _admit(self, one: Candidate) -> Candidate:
        """Return a candidate for the choice. Raises ``CatalogueUnavailable`` when a failover has left it behind."""
        if one.history[0] == self._history[0] and one.history < self._history:
            tell_left_behind(one, self._history)
            raise CatalogueUnavailable(
                f"{self._name(one.server)}the server that answers is on timeline {one.history[1]}, and this node "
                f"has worked on timeline {self._history[1]}: a failover left it behind; stop it"
            )
        return one

    def _choose(self, found: list[Candidate], errors: list[CatalogueUnavailable]) -> Candidate:
        """Return the candidate with the longest history, and end the connections to servers it has left behind."""
        if not found:
            raise CatalogueUnavailable(f"no connection to Postgres: {'; '.join(map(str, errors))}") from errors[0]
        best = max(found, key=lambda one: one.history)
        for one in found:
            if one.history[0] == best.history[0] and one.history < best.history:
                tell_left_behind(one, best.history)
        # Another connection may have seen a failover since this one was admitted.
        self._admit(best)
        if best.history not in (UNTOLD, self._history):
            self._drop(one for one, history in list(self._connections.items()) if history != best.history)
            self._history = best.history
        # Together with the history: whoever awaits in between may bring back a server that was left.
        self._last = best.server
        self._connections[best.connection] = best.history
        return best

    def _drop(self, connections: Iterable[asyncpg.Connection]) -> None:
        for connection in connections:
            drop(connection)


async def read_history(connection: asyncpg.Connection) -> History:
    try:
        row = await connection.fetchrow(IDENTIFY)
    except BROKEN:
        raise
    except asyncpg.PostgresError:
        return UNTOLD
    assert row is not None
    return row["system_identifier"], row["timeline"]


def tell_left_behind(one: Candidate, history: History) -> None:
    facts = {
        "server": name_server(one.server) if one.server else "",
        "timeline": one.history[1],
        "newest_timeline": history[1],
    }
    log.critical("a Postgres that a failover left behind still takes writes: stop it", extra={"facts": facts})


def drop(connection: asyncpg.Connection) -> None:
    """Close without a word to the server: it may be frozen, and a cancel request would wait for it."""
    # One that broke by itself is out of our hands already, and says so by this error.
    with suppress(asyncpg.InterfaceError):
        connection.terminate()


def describe(error: BaseException) -> str:
    """Return what an operator reads of ``error``; a bare timeout has no text of its own."""
    if isinstance(error, TargetServerAttributeNotMatched):
        return "the server takes no writes: it is a standby, or set to be read-only"
    return str(error) or ("timed out" if isinstance(error, TimeoutError) else type(error).__name__)
