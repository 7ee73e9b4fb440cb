"""Jobs as rows: what a runner records, and that a request is answered by a run that began after it."""

from __future__ import annotations

import asyncpg

from repo_node.db import jobs
from repo_node.db.jobs import NodeJobs
from repo_node.origin import Origin
from sharding.maintenance.job import JobState, Report
from sharding.model import NodeId
from tests.repo_node.db.scene import Scene, only_row

N1, N2 = NodeId("n1"), NodeId("n2")


def report(state: JobState = JobState.IDLE, *, ended: bool = True, done: int = 0, error: str | None = None) -> Report:
    return Report("repair", state, done, 10, 2**40, 1.5, error, run_ended=ended)


async def ask(scene: Scene, node: str | None = None, job: str = "repair") -> set[NodeId]:
    return set(await jobs.request(scene.database, job, node, by=Origin("alice", "r1")))


async def test_runs_are_listed_as_recorded(scene: Scene) -> None:
    book = NodeJobs(scene.database, N1)
    await book.begin("repair")
    [row] = await jobs.list_all(scene.database)
    assert (row.node, row.node_up, row.job, row.state, row.finished_at) == (N1, True, "repair", JobState.RUNNING, None)
    assert not await book.record(report(JobState.RUNNING, ended=False, done=3))
    [row] = await jobs.list_all(scene.database)
    assert (row.done, row.total, row.moved_bytes, row.seconds_left, row.finished_at) == (3, 10, 2**40, 1.5, None)
    assert not await book.record(report(JobState.FAILED, error="no luck"))
    [row] = await jobs.list_all(scene.database)
    assert (row.state, row.last_error) == (JobState.FAILED, "no luck")
    assert row.started_at and row.finished_at and row.started_at <= row.finished_at
    assert row.finished_age_seconds is not None and 0 <= row.finished_age_seconds < 10


async def test_request_reaches_the_living_nodes_that_have_the_job(scene: Scene, connection: asyncpg.Connection) -> None:
    assert await ask(scene) == set()
    assert await connection.fetchval("SELECT count(*) FROM events") == 0
    await connection.execute("UPDATE nodes SET stopped_at = now() WHERE id = 'n3'")
    for node in ("n1", "n2", "n3"):
        await NodeJobs(scene.database, NodeId(node)).record(report())
    assert await ask(scene) == {N1, N2}
    assert await ask(scene, "n2") == {N2}
    assert await ask(scene, "n3") == set()
    assert await ask(scene, job="no-such") == set()
    event = await only_row(connection, "SELECT * FROM events WHERE detail -> 'nodes' = '[\"n1\", \"n2\"]'")
    assert (event["kind"], event["principal"]) == ("job_request", "alice")


async def test_request_is_answered_by_a_run_that_began_after_it(scene: Scene) -> None:
    book = NodeJobs(scene.database, N1)
    await book.begin("repair")
    asked = (await jobs.request(scene.database, "repair", None, by=Origin("a", "r")))[N1]
    # The run under way began before, so its end is no answer.
    assert await book.asked() == ["repair"]
    assert await book.record(report())
    [row] = await jobs.list_all(scene.database)
    assert row.requested_at == asked and row.answered_at is None
    await book.begin("repair")
    assert await book.asked() == []
    assert not await book.record(report(JobState.RUNNING, ended=False))
    [row] = await jobs.list_all(scene.database)
    assert row.answered_at is None
    assert not await book.record(report())
    [row] = await jobs.list_all(scene.database)
    assert row.answered_at == asked
