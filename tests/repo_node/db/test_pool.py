"""The pool: deadlines, honest errors, retries of lost races, and that nothing leaks or hangs."""

from __future__ import annotations

import asyncio
import inspect
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from repo_node.db import (
    artifacts,
    atomic_commits,
    blobs,
    commit_groups,
    durability,
    known,
    migrate,
    principals,
    repositories,
    searches,
    settings,
)
from repo_node.db.errors import CatalogueUnavailable, NotPermitted, OutcomeUnknown
from repo_node.db.pool import ATTEMPTS_MAX, Database, Statement, open_database
from tests.repo_node.db.scene import WAIT_SECONDS, Queries, database_section
from tests.repo_node.db.severing_proxy import open_proxy

ONE = Statement("one", "SELECT 1 AS one")
SLEEP = Statement("sleep", "SELECT pg_sleep($1)")
PID = Statement("pid", "SELECT pg_backend_pid() AS pid")
BAD = Statement("bad", "SELECT 1 / 0")
NOTE = Statement("note", "INSERT INTO events (kind, principal, request_id) VALUES ($1, 'x', 'x')")
COUNT = Statement("count", "SELECT count(*) AS n FROM events")
SESSIONS_SQL = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'holdfast'
"""
ASLEEP_SQL = """
    SELECT pid FROM pg_stat_activity
     WHERE datname = current_database() AND query = $1 AND state = 'active' AND wait_event = 'PgSleep'
"""
CONNECTIONS = 3


@asynccontextmanager
async def opened(dsn: str, queries: Queries, **config: Any) -> AsyncIterator[Database]:
    values = {
        "pool_connections_max": CONNECTIONS,
        "connect_timeout_seconds": 0.5,
        "statement_timeout_seconds": 0.5,
    }
    async with open_database(database_section(dsn, **values | config), queries) as database:
        yield database


@pytest.fixture
async def database(clean_dsn: str, queries: Queries) -> AsyncIterator[Database]:
    async with opened(clean_dsn, queries) as value:
        yield value


async def pid(database: Database) -> int:
    row = await database.fetchrow(PID)
    assert row is not None
    return int(row["pid"])


async def count(database: Database) -> int:
    row = await database.fetchrow(COUNT)
    assert row is not None
    return int(row["n"])


async def assert_whole(database: Database, connection: asyncpg.Connection) -> None:
    """Every place of the pool can be used at once, and the server knows of no connection beside them."""
    await asyncio.gather(*(database.fetch(SLEEP, 0.05) for _ in range(CONNECTIONS)))
    assert database.connections == (CONNECTIONS, CONNECTIONS)
    async with asyncio.timeout(WAIT_SECONDS):
        while await connection.fetchval(SESSIONS_SQL) != CONNECTIONS:
            await asyncio.sleep(0.02)


# ---------------------------------------------------------------- answers and errors


async def test_statements_return_rows(database: Database, queries: Queries) -> None:
    assert [tuple(row) for row in await database.fetch(Statement("two", "VALUES (1), (2)"))] == [(1,), (2,)]
    row = await database.fetchrow(ONE)
    assert row is not None and row["one"] == 1
    assert await database.fetchrow(Statement("none", "SELECT 1 WHERE false")) is None
    assert await database.write(NOTE, "x") is None
    assert await count(database) == 1
    assert queries.seen == [("two", "ok"), ("one", "ok"), ("none", "ok"), ("note", "ok"), ("count", "ok")]


async def test_fault_of_a_statement_is_passed_on_and_keeps_the_connection(database: Database, queries: Queries) -> None:
    before = await pid(database)
    for call in (database.fetch, database.fetchrow, database.write):
        with pytest.raises(asyncpg.DivisionByZeroError):
            await call(BAD)
    assert await pid(database) == before
    assert [outcome for name, outcome in queries.seen if name == "bad"] == ["error"] * 3


@pytest.mark.parametrize("value", ["\udc80", "nul\0", 2**40], ids=["surrogate", "nul", "number"])
async def test_argument_that_cannot_be_sent_is_no_outage(database: Database, value: Any) -> None:
    """Else anybody who sends a strange name could have connections dropped and see 503."""
    before = await pid(database)
    statement = Statement("echo", "SELECT $1::text" if isinstance(value, str) else "SELECT $1::smallint")
    with pytest.raises((asyncpg.DataError, asyncpg.CharacterNotInRepertoireError)):
        await database.fetch(statement, value)
    assert await pid(database) == before


async def test_missed_deadline_is_unavailable_for_a_read_and_unknown_for_a_write(
    database: Database, queries: Queries, connection: asyncpg.Connection
) -> None:
    before = await pid(database)
    began = time.monotonic()
    with pytest.raises(CatalogueUnavailable, match="sleep: timed out"):
        await database.fetch(SLEEP, 30)
    with pytest.raises(OutcomeUnknown, match="sleep: timed out"):
        await database.write(SLEEP, 30)
    with pytest.raises(OutcomeUnknown, match="transaction: timed out"):
        await database.transact(Statement("transaction", ""), lambda c: c.fetch(SLEEP.sql, 30))
    assert time.monotonic() - began < 10
    assert await pid(database) != before, "a connection that missed its deadline was used again"
    assert [outcome for _, outcome in queries.seen] == ["ok", "unavailable", "unavailable", "unavailable", "ok"]
    await connection.execute(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query = $1",
        SLEEP.sql,
    )
    await assert_whole(database, connection)


@pytest.mark.parametrize("kind", ["fetch", "write", "transact"])
async def test_connection_that_the_server_closes_is_an_honest_error(
    database: Database, connection: asyncpg.Connection, kind: str
) -> None:
    async def run() -> object:
        if kind == "transact":
            return await database.transact(SLEEP, lambda c: c.fetch(SLEEP.sql, 30))
        return await getattr(database, kind)(SLEEP, 30)

    task = asyncio.create_task(run())
    await terminate(connection)
    with pytest.raises(CatalogueUnavailable if kind == "fetch" else OutcomeUnknown, match="sleep"):
        await task
    await assert_whole(database, connection)


async def test_connection_closed_while_idle_costs_nobody_an_error(
    database: Database, connection: asyncpg.Connection
) -> None:
    before = await pid(database)
    await connection.execute("SELECT pg_terminate_backend($1, 5000)", before)
    await asyncio.sleep(0.05)
    assert await pid(database) != before


async def test_answer_stands_when_the_connection_is_lost_right_after(
    database: Database, connection: asyncpg.Connection
) -> None:
    async def work(inner: asyncpg.Connection) -> int:
        await connection.execute("SELECT pg_terminate_backend($1, 5000)", inner.get_server_pid())
        return 7

    assert await database._run(ONE, work) == 7
    await assert_whole(database, connection)


async def test_server_that_is_not_there_is_unavailable_at_once(clean_dsn: str, queries: Queries) -> None:
    parts = urlsplit(clean_dsn)
    nowhere = parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:1").geturl()
    async with opened(nowhere, queries) as database:
        for call in (database.fetch, database.write):
            with pytest.raises(CatalogueUnavailable, match="no connection to Postgres"):
                await call(ONE)
        assert queries.seen == [("one", "unavailable")] * 2


async def test_refused_login_is_unavailable_and_tells_no_secret(clean_dsn: str, queries: Queries) -> None:
    parts = urlsplit(clean_dsn)
    if not parts.password:
        pytest.skip("this server lets everybody in")
    host = parts.netloc.rpartition("@")[2]
    wrong = parts._replace(netloc=f"{parts.username}:hunter2hunter2@{host}").geturl()
    async with opened(wrong, queries, connect_timeout_seconds=5.0) as database:
        with pytest.raises(CatalogueUnavailable, match="password") as caught:
            await database.fetch(ONE)
    assert "hunter2" not in str(caught.value)


# ---------------------------------------------------------------- transactions and retries


async def test_transaction_that_fails_leaves_nothing_and_keeps_the_connection(
    database: Database, queries: Queries
) -> None:
    before = await pid(database)

    async def work(connection: asyncpg.Connection) -> None:
        await connection.execute(NOTE.sql, "x")
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        await database.transact(NOTE, work)
    assert await count(database) == 0
    assert await pid(database) == before
    assert ("note", "error") in queries.seen


async def test_transaction_that_fails_in_postgres_leaves_nothing(database: Database) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        await connection.execute(NOTE.sql, "x")
        await connection.execute(BAD.sql)

    with pytest.raises(asyncpg.DivisionByZeroError):
        await database.transact(NOTE, work)
    assert await count(database) == 0


async def test_transaction_cancelled_in_the_middle_leaves_nothing(
    database: Database, connection: asyncpg.Connection
) -> None:
    async def work(inner: asyncpg.Connection) -> None:
        await inner.execute(NOTE.sql, "x")
        await inner.execute(SLEEP.sql, 30)

    task = asyncio.create_task(database.transact(NOTE, work))
    await until_asleep(connection)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await terminate(connection)
    assert await count(database) == 0


async def test_deadlock_is_retried_until_both_have_succeeded(clean_dsn: str, queries: Queries) -> None:
    async with opened(clean_dsn, queries, statement_timeout_seconds=10.0) as database:
        for key in ("a", "b"):
            await database.write(
                Statement("key", "INSERT INTO settings (key, value, updated_by) VALUES ($1, '0', 'x')"), key
            )
        gate = asyncio.Barrier(2)
        waited: set[str] = set()

        async def work(connection: asyncpg.Connection, first: str, second: str) -> None:
            await connection.execute("UPDATE settings SET updated_by = updated_by || $1 WHERE key = $1", first)
            if first not in waited:
                waited.add(first)
                await gate.wait()
            await connection.execute("UPDATE settings SET updated_by = updated_by || $2 WHERE key = $1", second, first)

        await asyncio.gather(
            database.transact(Statement("ab", ""), lambda c: work(c, "a", "b")),
            database.transact(Statement("ba", ""), lambda c: work(c, "b", "a")),
        )
        rows = await database.fetch(Statement("read", "SELECT updated_by FROM settings ORDER BY key"))
    assert [sorted(row["updated_by"]) for row in rows] == [["a", "b", "x"]] * 2, "each took effect once"
    assert sorted(outcome for _, outcome in queries.seen[2:5]) == ["error", "ok", "ok"], "one lost the race"


async def test_race_that_is_always_lost_ends(database: Database, queries: Queries) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        await connection.execute("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$")

    with pytest.raises(CatalogueUnavailable, match=f"lost {ATTEMPTS_MAX} races"):
        await database.transact(Statement("racer", ""), work)
    assert queries.seen == [("racer", "error")] * ATTEMPTS_MAX


# ---------------------------------------------------------------- leaks


async def test_exhausted_pool_answers_in_time_and_recovers(
    database: Database, queries: Queries, connection: asyncpg.Connection
) -> None:
    hogs = [asyncio.create_task(database._run(ONE, lambda c: asyncio.sleep(0.45))) for _ in range(CONNECTIONS)]
    await asyncio.sleep(0.1)
    await database.fetch(ONE)
    await asyncio.gather(*hogs)
    began = time.monotonic()
    results = await asyncio.gather(*(database.fetch(SLEEP, 30) for _ in range(CONNECTIONS * 2)), return_exceptions=True)
    assert {type(result) for result in results} == {CatalogueUnavailable}
    assert time.monotonic() - began < 5
    await terminate(connection)
    await assert_whole(database, connection)


async def test_cancellation_at_any_moment_leaks_nothing(
    clean_dsn: str, queries: Queries, connection: asyncpg.Connection
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with opened(clean_dsn, queries, connect_timeout_seconds=5.0, statement_timeout_seconds=5.0) as database:

        async def transaction() -> None:
            await database.transact(NOTE, lambda c: c.execute(NOTE.sql, "x"))

        async def one() -> None:
            call = chance.choice([lambda: database.fetch(ONE), lambda: database.write(NOTE, "x"), transaction])
            task = asyncio.ensure_future(call())
            await asyncio.sleep(chance.choice([0, 0, chance.uniform(0, 0.02)]))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        for _ in range(30):
            await asyncio.gather(*(one() for _ in range(CONNECTIONS * 3)))
        await assert_whole(database, connection)


async def test_cancellation_while_connecting_leaks_nothing(
    clean_dsn: str, queries: Queries, connection: asyncpg.Connection
) -> None:
    async with (
        open_proxy(clean_dsn) as (_, dsn),
        opened(dsn, queries, connect_timeout_seconds=5.0) as database,
    ):
        for step in range(12):
            tasks = [asyncio.create_task(database.fetch(ONE)) for _ in range(CONNECTIONS)]
            await asyncio.sleep(step * 0.002)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await assert_whole(database, connection)


async def test_closing_does_not_wait_for_statements_in_flight(
    clean_dsn: str, queries: Queries, connection: asyncpg.Connection
) -> None:
    began = time.monotonic()
    async with opened(clean_dsn, queries, statement_timeout_seconds=30.0) as database:
        task = asyncio.create_task(database.fetch(SLEEP, 30))
        await asyncio.sleep(0.2)
    with pytest.raises(CatalogueUnavailable):
        await task
    assert time.monotonic() - began < 5
    await terminate(connection)


async def test_abandoned_statement_does_not_wait_for_its_lock_on(
    database: Database, connection: asyncpg.Connection
) -> None:
    """Else each repeat of it would take one more of the server's connections for as long as the lock is held."""
    await database.write(NOTE, "x")
    async with connection.transaction():
        await connection.fetch("SELECT 1 FROM events FOR UPDATE")
        for _ in range(2):
            with pytest.raises(OutcomeUnknown):
                await database.write(Statement("blocked", "UPDATE events SET kind = 'y'"))
        async with asyncio.timeout(WAIT_SECONDS):
            while await connection.fetchval(SESSIONS_SQL):
                await connection.execute("SELECT pg_stat_clear_snapshot()")
                await asyncio.sleep(0.05)
    row = await database.fetchrow(Statement("kind", "SELECT kind FROM events"))
    assert row is not None and row["kind"] == "x"


async def test_no_task_is_left_behind(database: Database) -> None:
    before = asyncio.all_tasks()
    for _ in range(3):
        with pytest.raises(CatalogueUnavailable):
            await database.fetch(SLEEP, 30)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


def test_no_statement_leaves_a_trace_in_its_session() -> None:
    """Connections go back to the pool as they are: see ``repo_node.db.pool``."""
    # What is set until the end of the transaction is not the session's: that of a lone statement ends with it.
    trace = re.compile(
        r"\b(?:SET\s+(?:SESSION|TIME)|LISTEN \w|PREPARE|TEMP|pg_(?:try_)?advisory_lock)\b"
        r"|\bset_config\s*\((?![^()]*,\s*true\s*\))",
        re.I,
    )
    text = migrate.schema_text()
    for module in (
        artifacts,
        atomic_commits,
        blobs,
        commit_groups,
        durability,
        known,
        principals,
        repositories,
        searches,
        settings,
    ):
        text += inspect.getsource(module)
    assert trace.findall(text) == []
    for statement in ("SELECT pg_advisory_lock(1)", "SELECT set_config('a.b', $1, false)", "set_config($1, $2, $3)"):
        assert trace.search(statement)
    for statement in ("SELECT pg_advisory_xact_lock(1)", "PERFORM set_config('a.b', p_c, true)"):
        assert not trace.search(statement)


async def test_what_a_statement_may_not_do_the_next_one_on_its_connection_may(clean_dsn: str, queries: Queries) -> None:
    """``limit_to`` sets something for its transaction, which is that of a lone statement, or of a batch of them."""
    limited = Statement("limited", "SELECT limit_to('overwrite folder', $1)")
    free = Statement("free", "SELECT refuse_beyond_limit('overwrite', 'x'), refuse_beyond_limit('folder', 'x')")
    both = Statement("both", f"{limited.sql} AS repo, refuse_beyond_limit('folder', 'x')")
    async with opened(clean_dsn, queries, pool_connections_max=2) as database:
        backends = {await database._run(ONE, backend_of)}
        await database.fetchrow(limited, 1)
        await database.fetchrow(free)
        await database.fetch_each(limited, [(1,), (2,)])
        await database.fetchrow(free)
        with pytest.raises(NotPermitted):
            await database.fetchrow(both, 1)
        await database.fetchrow(free)
        backends.add(await database._run(ONE, backend_of))
    assert len(backends) == 1, "it was one connection all the time"


async def backend_of(connection: asyncpg.Connection) -> int:
    return connection.get_server_pid()


async def until_asleep(connection: asyncpg.Connection) -> None:
    """Return once somebody runs ``SLEEP`` in this database."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not await connection.fetchval(f"SELECT EXISTS ({ASLEEP_SQL})", SLEEP.sql):
            await asyncio.sleep(0.01)


async def terminate(connection: asyncpg.Connection) -> None:
    """Wait until somebody runs ``SLEEP``, and end who does."""
    await until_asleep(connection)
    await connection.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM ({ASLEEP_SQL}) AS asleep", SLEEP.sql)


async def test_a_search_may_take_longer_than_other_statements_and_is_ended_by_postgres(
    dsn: str, queries: Queries
) -> None:
    async def sleeping(database: Database, seconds: float, seconds_max: float) -> None:
        async def work(connection: asyncpg.Connection) -> None:
            async with searches.bounded(connection, "slow", seconds_max):
                await connection.execute(f"SELECT pg_sleep({seconds})")

        await database.search(SLEEP, work, seconds_max=seconds_max)

    async with opened(dsn, queries, statement_timeout_seconds=0.1) as database:
        await sleeping(database, 0.2, 5)
        with pytest.raises(searches.SearchTooLong):
            await sleeping(database, 5, 0.2)
        with pytest.raises(searches.SearchTooLong):
            await sleeping(database, 5, 0.0001)


async def test_postgres_looks_whether_who_asked_for_a_long_reading_is_still_there(dsn: str, queries: Queries) -> None:
    async with opened(dsn, queries) as database, database.apart() as connection:
        assert await connection.fetchval("SHOW client_connection_check_interval") == "1s"
