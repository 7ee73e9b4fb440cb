"""The jobs of every node as rows: how they stand, and which runs operators asked for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from repo_node.db.pool import Database, Statement
from repo_node.origin import Origin
from sharding.maintenance.job import JobState, Report
from sharding.model import NodeId

CHANNEL_PAYLOAD = "jobs"
"""What is announced when an operator asks for a run."""


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job of one node. Ages are by the database's clock."""

    node: NodeId
    node_up: bool
    job: str
    state: JobState
    done: int
    total: int | None
    moved_bytes: int
    seconds_left: float | None
    last_error: str | None
    started_at: datetime | None
    finished_at: datetime | None
    finished_age_seconds: float | None
    requested_at: datetime | None
    answered_at: datetime | None


BEGIN = Statement(
    "job_begin",
    """
    INSERT INTO jobs AS j (node_id, job, state, started_at) VALUES ($1, $2, 'running', clock_timestamp())
    ON CONFLICT (node_id, job) DO UPDATE
       SET state = 'running', done = 0, total = NULL, moved_bytes = 0, seconds_left = NULL,
           started_at = clock_timestamp(), answering = j.requested_at, updated_at = now()
    """,
)
RECORD = Statement(
    "job_record",
    """
    INSERT INTO jobs AS j (node_id, job, state, done, total, moved_bytes, seconds_left, last_error, finished_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, CASE WHEN $9 THEN clock_timestamp() END)
    ON CONFLICT (node_id, job) DO UPDATE
       SET state = excluded.state, done = excluded.done, total = excluded.total, moved_bytes = excluded.moved_bytes,
           seconds_left = excluded.seconds_left, last_error = excluded.last_error,
           finished_at = CASE WHEN $9 THEN clock_timestamp() ELSE j.finished_at END,
           answered_at = CASE WHEN $9 THEN j.answering ELSE j.answered_at END, updated_at = now()
    RETURNING j.requested_at > coalesce(j.answering, '-infinity') AS asked
    """,
)
ASKED = Statement(
    "jobs_asked",
    "SELECT job FROM jobs WHERE node_id = $1 AND requested_at > coalesce(answering, '-infinity')",
)
REQUEST = Statement(
    "job_request",
    """
    WITH asked AS (
        UPDATE jobs j SET requested_at = clock_timestamp()
          FROM nodes n
         WHERE n.id = j.node_id AND node_is_up(n) AND j.job = $1 AND ($2::text IS NULL OR j.node_id = $2)
        RETURNING j.node_id, j.requested_at
    ), noted AS (
        INSERT INTO events (kind, principal, request_id, address, detail)
        SELECT 'job_request', $3, $4, $5, jsonb_build_object('job', $1::text, 'nodes', jsonb_agg(a.node_id))
          FROM asked a HAVING count(*) > 0
    )
    SELECT a.node_id, a.requested_at, pg_notify('holdfast', 'jobs') FROM asked a ORDER BY a.node_id
    """,
)
LIST = Statement(
    "jobs_list",
    """
    SELECT j.node_id, node_is_up(n) AS up, j.job, j.state, j.done, j.total, j.moved_bytes, j.seconds_left,
           j.last_error, j.started_at, j.finished_at,
           extract(epoch FROM clock_timestamp() - j.finished_at)::double precision AS finished_age,
           j.requested_at, j.answered_at
      FROM jobs j JOIN nodes n ON n.id = j.node_id ORDER BY j.job, j.node_id
    """,
)


class NodeJobs:
    """The ``JobBook`` of one node."""

    def __init__(self, database: Database, node: NodeId) -> None:
        self._database = database
        self._node = node

    async def begin(self, job: str) -> None:
        await self._database.write(BEGIN, self._node, job)

    async def record(self, report: Report) -> bool:
        row = await self._database.write(
            RECORD,
            self._node,
            report.job,
            report.state.value,
            report.done,
            report.total,
            report.moved_bytes,
            report.seconds_left,
            report.last_error,
            report.run_ended,
        )
        return bool(row and row["asked"])

    async def asked(self) -> list[str]:
        """Return the jobs whose requested run has not begun."""
        return [row["job"] for row in await self._database.fetch(ASKED, self._node)]


async def request(database: Database, job: str, node: str | None, *, by: Origin) -> dict[NodeId, datetime]:
    """Ask the living nodes, or one of them, for a run of ``job``; return when each was asked."""

    # Not ``write``, which gives one row; a repeat after a doubt asks again, which does no harm.
    async def work(connection: asyncpg.Connection) -> list[asyncpg.Record]:
        return list(await connection.fetch(REQUEST.sql, job, node, *by))

    return {NodeId(row["node_id"]): row["requested_at"] for row in await database.transact(REQUEST, work)}


async def list_all(database: Database) -> list[JobRow]:
    """Return every job of every node, by job and node."""
    return [
        JobRow(
            node=NodeId(row["node_id"]),
            node_up=row["up"],
            job=row["job"],
            state=JobState(row["state"]),
            done=row["done"],
            total=row["total"],
            moved_bytes=row["moved_bytes"],
            seconds_left=row["seconds_left"],
            last_error=row["last_error"],
            started_at=row["started_at"],
            finished_at=row["finished_at"],
            finished_age_seconds=row["finished_age"],
            requested_at=row["requested_at"],
            answered_at=row["answered_at"],
        )
        for row in await database.fetch(LIST)
    ]
