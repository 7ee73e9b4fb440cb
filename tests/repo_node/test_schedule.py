"""Schedules: each time is served once, by whoever is the primary, whatever happens to it in between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from repo_node.cron import last_time
from repo_node.db import lease as leases
from repo_node.db.lease import Lease, NotPrimary
from repo_node.db.pool import Database, open_database
from repo_node.maintenance.schedule import Requests, Scheduled, Timetable
from sharding.maintenance.job import Promptable, Step
from sharding.model import NodeId
from tests.repo_node.db.scene import Queries, database_section
from tests.repo_node.nodes import configure, query, run_nodes, wait_until

NIGHTLY = "0 3 * * *"
DAY = timedelta(days=1)


class Work:
    """A job of so many steps a run."""

    name = "gc"

    def __init__(self, steps: int = 2) -> None:
        self.steps = steps
        self.left = steps
        self.runs = 0

    async def step(self) -> Step:
        self.left -= 1
        if self.left:
            return Step(done=1)
        self.left, self.runs = self.steps, self.runs + 1
        return Step(idle=True)


class Term:
    """A primary's term of office, with a schedule of its own; ``today`` is pushed by the test."""

    def __init__(self, database: Database, lease: Lease | None) -> None:
        self.lease = lease
        self.cron = NIGHTLY
        self.days = 0
        self.work = Work()
        self.timetable = Timetable(database, lambda: self.lease, lambda: datetime.now(UTC) + self.days * DAY)
        self.job = Scheduled(self.work, lambda: self.cron, self.timetable, lambda: self.lease)

    async def look(self) -> None:
        """Take steps until one is idle, as the runner does."""
        while not (await self.job.step()).idle:
            pass

    async def runs(self, *, days: int) -> int:
        """Look several times on a later day; return how many runs that were."""
        self.days, before = days, self.work.runs
        for _ in range(3):
            await self.look()
        return self.work.runs - before


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    async with open_database(database_section(dsn), Queries()) as value:
        yield value


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    value = await asyncpg.connect(dsn)
    yield value
    value.terminate()


async def elect(database: Database, connection: asyncpg.Connection) -> Term:
    """Let the next primary take over at once."""
    await connection.execute("UPDATE lease SET expires_at = clock_timestamp()")
    token = uuid4()
    epoch = await leases.acquire(connection, NodeId("n1"), token, known=0, seconds=600)
    assert epoch is not None
    return Term(database, Lease(epoch, token))


async def test_time_is_served_once_and_none_from_before_the_schedule(
    database: Database, connection: asyncpg.Connection
) -> None:
    first = await elect(database, connection)
    assert await first.runs(days=0) == 0, "whatever came before the schedule was not missed"
    assert await first.runs(days=1) == 1
    assert await first.runs(days=2) == 1
    second = await elect(database, connection)
    assert await second.runs(days=2) == 0, "the next primary knows"
    assert await second.runs(days=3) == 1


async def test_times_missed_while_there_was_no_primary_are_served_by_one_run(
    database: Database, connection: asyncpg.Connection
) -> None:
    await (await elect(database, connection)).runs(days=0)
    assert await (await elect(database, connection)).runs(days=9) == 1


async def test_run_that_a_primary_did_not_end_is_repeated_by_the_next(
    database: Database, connection: asyncpg.Connection
) -> None:
    first = await elect(database, connection)
    await first.look()
    first.days = 1
    assert not (await first.job.step()).idle
    second = await elect(database, connection)
    assert await second.runs(days=1) == 1
    # The first one was frozen, and its last step ends now: it may believe what it likes.
    with pytest.raises(NotPrimary):
        await first.job.step()
    assert await (await elect(database, connection)).runs(days=1) == 0


async def test_run_whose_term_ended_meanwhile_does_not_count(
    database: Database, connection: asyncpg.Connection
) -> None:
    first = await elect(database, connection)
    await first.look()
    first.days = 1
    assert not (await first.job.step()).idle
    lease, first.lease = first.lease, None
    assert (await first.job.step()).idle, "there is nothing to do for who is not the primary"

    first.lease, first.work.left = lease, 1

    async def ends_late() -> Step:
        first.lease = None
        return Step(idle=True)

    first.work.step = ends_late  # type: ignore[method-assign]
    with pytest.raises(NotPrimary):
        await first.job.step()
    assert await (await elect(database, connection)).runs(days=1) == 1


async def test_run_that_failed_is_taken_up_again(database: Database, connection: asyncpg.Connection) -> None:
    first = await elect(database, connection)
    await first.look()
    first.days = 1
    right = first.work.step

    async def fail() -> Step:
        raise OSError("a bad moment")

    first.work.step = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="bad moment"):
        await first.look()
    first.work.step = right  # type: ignore[method-assign]
    assert await first.runs(days=1) == 1


async def test_node_that_is_not_the_primary_does_and_writes_nothing(
    database: Database, connection: asyncpg.Connection
) -> None:
    other = Term(database, None)
    assert await other.runs(days=5) == 0
    assert await connection.fetchval("SELECT count(*) FROM schedules") == 0


async def test_operator_gets_a_run_at_any_time_and_the_schedule_stays(
    database: Database, connection: asyncpg.Connection
) -> None:
    first = await elect(database, connection)
    assert isinstance(first.job, Promptable)
    await first.look()
    first.job.prompt()
    assert await first.runs(days=0) == 1
    assert await first.runs(days=1) == 1


async def test_job_goes_by_its_pace_without_an_expression_and_a_changed_one_begins_anew(
    database: Database, connection: asyncpg.Connection
) -> None:
    first = await elect(database, connection)
    first.cron = ""
    assert await first.runs(days=0) == 3, "whenever the runner says"
    first.cron = NIGHTLY
    assert await first.runs(days=0) == 0
    await connection.execute("UPDATE schedules SET served_at = served_at - interval '30 days'")
    first.cron = "0 4 * * *"
    assert await first.runs(days=0) == 0
    assert await first.runs(days=1) == 1


async def test_run_under_way_is_no_ones_when_its_expression_goes_and_comes_back(
    database: Database, connection: asyncpg.Connection
) -> None:
    first = await elect(database, connection)
    await first.look()
    first.days = 1
    assert not (await first.job.step()).idle
    first.cron = ""
    await first.look()
    first.cron = NIGHTLY
    assert await first.runs(days=2) == 1, "one run for both days"


async def test_run_under_way_is_ended_by_a_changed_expression(
    database: Database, connection: asyncpg.Connection
) -> None:
    first = await elect(database, connection)
    await first.look()
    first.days = 1
    assert not (await first.job.step()).idle
    first.days, first.cron = 0, "0 4 * * *"
    assert (await first.job.step()).idle
    assert first.work.runs == 0
    assert await connection.fetchval("SELECT cron FROM schedules") == "0 4 * * *"


async def test_nodes_are_asked_once_for_what_each_does_for_itself(
    database: Database, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        """
        INSERT INTO nodes (id, zone, url, internal_url, version, incarnation)
        SELECT 'n' || i, 'z', 'u', 'u' || i, '0', gen_random_uuid() FROM generate_series(1, 3) AS i;
        UPDATE nodes SET stopped_at = now() WHERE id = 'n3';
        INSERT INTO jobs (node_id, job, state) SELECT id, 'backup', 'disabled' FROM nodes;
        INSERT INTO jobs (node_id, job, state) SELECT id, 'reconcile', 'idle' FROM nodes;
        """
    )
    heard: list[str] = []
    await connection.add_listener("holdfast", lambda *args: heard.append(str(args[3])))
    first = await elect(database, connection)
    requests = Requests(lambda: (("backup", NIGHTLY), ("reconcile", "")), first.timetable)
    assert (await requests.step()).done == 0
    first.days = 1
    assert (await requests.step()).done == 1
    assert (await requests.step()).done == 0
    asked = await connection.fetch("SELECT node_id, job FROM jobs WHERE requested_at IS NOT NULL ORDER BY 1")
    assert [tuple(row) for row in asked] == [("n1", "backup"), ("n2", "backup")]
    assert "jobs" in heard
    at = last_time(NIGHTLY, datetime.now(UTC) + DAY)
    assert await connection.fetchval("SELECT served_at FROM schedules WHERE job = 'backup'") == at


def test_schedules_set_by_an_operator_run_the_clusters_tasks(ready_dsn: str, directory: Path) -> None:
    crons = {"gc_cron": "0 3 * * *", "backup_cron": "0 4 * * *", "reconcile_cron": "0 5 * * *"}
    for key, cron in crons.items():
        insert = "INSERT INTO schedules (job, cron, served_at) VALUES ($1, $2, now() - interval '2 days')"
        query(ready_dsn, insert, key.removesuffix("_cron"), cron)
    with run_nodes([configure(ready_dsn, directory)]) as cluster:
        assert cluster.admin.put("/artifactory/generic-local/a", b"to be backed up").status == 201
        cluster.set({"schedule_idle_seconds": 0.1, **crons})
        wait_until(lambda: not cluster.sql("SELECT 1 FROM schedules WHERE served_at < now() - interval '1 day'"))
        wait_until(lambda: cluster.sql("SELECT 1 FROM backups"))
        ended = "SELECT bool_and(answered_at >= requested_at) FROM jobs WHERE job IN ('backup', 'reconcile')"
        wait_until(lambda: cluster.sql(ended)[0][0])
