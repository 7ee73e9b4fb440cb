"""Which times of the cluster's schedules have been served. Only the primary writes here, and proves that it is."""

from __future__ import annotations

from datetime import datetime

import asyncpg

from repo_node.db.garbage import as_primary
from repo_node.db.jobs import CHANNEL_PAYLOAD
from repo_node.db.lease import Lease
from repo_node.db.pool import Database, Statement

REQUIRE = "SELECT require_lease($1, $2)"
# An expression that is new begins now: no time before it was missed.
BEGIN = Statement(
    "schedule_begin",
    """
    INSERT INTO schedules AS s (job, cron) VALUES ($1, $2)
    ON CONFLICT (job) DO UPDATE
       SET cron = excluded.cron,
           served_at = CASE WHEN s.cron = excluded.cron THEN s.served_at ELSE clock_timestamp() END
    RETURNING served_at
    """,
)
SERVE = Statement(
    "schedule_serve",
    "UPDATE schedules SET served_at = $3 WHERE job = $1 AND cron = $2 AND served_at < $3 RETURNING job",
)
REQUEST = f"""
    WITH asked AS (
        UPDATE jobs j SET requested_at = clock_timestamp() FROM nodes n
         WHERE n.id = j.node_id AND node_is_up(n) AND j.job = $1 RETURNING j.node_id
    )
    SELECT count(*), pg_notify('holdfast', '{CHANNEL_PAYLOAD}') FROM asked
"""


async def served(database: Database, lease: Lease, job: str, cron: str) -> datetime:
    """Return the last time of a job's schedule that has been served, now for a new one. Raises ``NotPrimary``."""

    async def work(connection: asyncpg.Connection) -> asyncpg.Record:
        await connection.execute(REQUIRE, lease.epoch, lease.token)
        row = await connection.fetchrow(BEGIN.sql, job, cron)
        assert row is not None
        return row

    row = await as_primary(database.transact(BEGIN, work))
    assert row is not None
    served_at: datetime = row["served_at"]
    return served_at


async def serve(database: Database, lease: Lease, job: str, cron: str, at: datetime, *, request: bool) -> bool:
    """Note that a time has been served; False when it had been. Raises ``NotPrimary``.

    ``request`` asks every living node for a run in the same transaction.
    """

    async def work(connection: asyncpg.Connection) -> asyncpg.Record | None:
        await connection.execute(REQUIRE, lease.epoch, lease.token)
        row = await connection.fetchrow(SERVE.sql, job, cron, at)
        if row is not None and request:
            await connection.execute(REQUEST, job)
        return row

    return await as_primary(database.transact(SERVE, work)) is not None
