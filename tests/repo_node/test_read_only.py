"""The read-only switch: what is refused with which words, what goes on, what pauses, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from repo_node.db import artifacts as artifact_rows
from repo_node.db import garbage, repositories
from repo_node.db import trash as trash_rows
from repo_node.db.errors import ChangesRefused
from repo_node.db.lease import Lease
from repo_node.errors import answer_for
from repo_node.maintenance.audits import expiry_seconds
from repo_node.origin import Origin
from repo_node.paths import ArtifactPath
from repo_node.read_only import PausedWhileReadOnly, ReadOnly, require_heard, require_writable
from repo_node.recent import RecentItems
from repo_node.settings import LiveSettings, Settings
from repo_node.trash import Trash
from sharding.maintenance.job import Promptable, Step
from tests.postgres import TestServer
from tests.repo_node.db.conftest import clean_dsn, connection, queries, scene, shared_dsn
from tests.repo_node.db.scene import Scene, table
from tests.repo_node.nodes import (
    RunningCluster,
    RunningNode,
    configure,
    errors_of,
    new_path,
    prepare,
    random_bytes,
    run_nodes,
    wait_until,
)

__all__ = ["clean_dsn", "connection", "queries", "scene", "shared_dsn"]

SWITCH = "/artifactory/api/holdfast/settings/read_only_reason"
REASON = "moving house"
WORDS = "The cluster is read-only: moving house. Nothing was changed; retry later."
QUICK = {"gc_idle_seconds": 0.1, "trash_idle_seconds": 0.1, "removal_idle_seconds": 0.1, "repair_idle_seconds": 0.1}


@pytest.fixture(scope="module")
def pair(postgres: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Two nodes in two zones."""
    directory: Path = tmp_path_factory.mktemp("pair")
    with postgres.database(postgres.template()) as dsn:
        prepare(dsn)
        configs = [configure(dsn, directory, name=f"node-{n}", zone=f"zone-{n}") for n in (1, 2)]
        with run_nodes(configs) as cluster:
            # Heartbeats so rare that none of them can be what tells of the switch.
            cluster.set({"node_down_seconds": 600, "heartbeat_seconds": 60, **QUICK})
            yield cluster


def refuses(node: RunningNode) -> bool:
    return node.admin.put(new_path(), b"x").status == 503


API_KEY = "/artifactory/api/security/apiKey"
REFUSED = {
    "upload": ("PUT", new_path()),
    "upload of a folder": ("PUT", new_path("/")),
    "delete": ("DELETE", "/artifactory/generic-local/kept"),
    "repository": ("PUT", "/artifactory/api/repositories/another"),
    "gc": ("POST", "/artifactory/api/system/storage/gc"),
    "job": ("POST", "/artifactory/api/holdfast/jobs/gc/run"),
    "shard": ("POST", "/artifactory/api/holdfast/shards/1/drain"),
    "token": ("POST", "/artifactory/api/holdfast/tokens"),
    "API key": ("PUT", API_KEY),
    "another setting": ("PUT", "/artifactory/api/holdfast/settings/redundancy"),
    "fsck": ("POST", "/artifactory/api/holdfast/checks"),
    "trash": ("POST", "/artifactory/api/holdfast/trash/empty"),
    "what does not exist": ("POST", "/artifactory/api/nothing"),
}


def test_changes_are_refused_with_the_reason_on_every_node_and_reads_go_on(pair: RunningCluster) -> None:
    body = random_bytes(100_000)
    kept = "/artifactory/generic-local/kept"
    assert pair.admin.put(kept, body).status == 201
    secret = pair.admin.post_json("/artifactory/api/holdfast/tokens", {"scopes": ["read"]}).json()
    assert pair.admin.request("POST", API_KEY).status == 201
    before = pair.sql("SELECT count(*) FROM events WHERE kind <> 'setting'")[0][0]
    with pair.settings(read_only_reason=REASON):
        for node in pair.nodes:
            for what, (method, path) in REFUSED.items():
                answer = node.admin.request(method, path, body=b"{}")
                assert errors_of(answer) == (503, WORDS), what
                assert int(answer.headers["Retry-After"]) > 0
            assert node.admin.get(kept).body == body
            assert node.is_ready()
            status = node.admin.get("/artifactory/api/holdfast/status").json()
            assert status["read_only_reason"] == REASON
            node.admin.get("/metrics")
            assert node.metric("holdfast_read_only_state") == 1
        assert pair.first.client().put(kept, b"x").status == 401, "whoever may not know is told nothing"
        # A token that leaked must not wait.
        assert pair.admin.request("DELETE", f"/artifactory/api/holdfast/tokens/{secret['id']}").status == 204
        assert pair.admin.request("DELETE", API_KEY).status == 200
        events = pair.sql("SELECT kind FROM events WHERE kind <> 'setting' ORDER BY id")[before:]
        assert {row["kind"] for row in events} <= {"token_revoke"}
    assert all(not refuses(node) for node in pair.nodes)
    status = pair.admin.get("/artifactory/api/holdfast/status").json()
    assert status["read_only_reason"] == ""


def test_upload_under_way_at_the_switch_leaves_nothing(pair: RunningCluster) -> None:
    path, body = new_path(), random_bytes(2_000_000)
    before = set(pair.files())
    with pair.first.admin.raw() as raw:
        raw.send_head("PUT", path, f"Content-Length: {len(body)}")
        raw.send(body[:1_500_000])
        with pair.settings(read_only_reason=REASON):
            raw.send(body[1_500_000:])
            status, headers, _ = raw.read_answer()
            assert status == 503 and "retry-after" in headers
            assert pair.admin.get(path).status == 404
            wait_until(lambda: set(pair.files()) <= before)


def test_upload_is_refused_before_its_body_is_sent(pair: RunningCluster) -> None:
    with pair.settings(read_only_reason=REASON), pair.first.admin.raw() as raw:
        raw.send_head("PUT", new_path(), "Content-Length: 1000000", "Expect: 100-continue")
        assert raw.read_answer()[0] == 503


def test_nothing_is_deleted_while_read_only_and_what_waited_goes_after_it(pair: RunningCluster) -> None:
    path, body = new_path(), random_bytes(5_000)
    assert pair.admin.put(path, body).status == 201
    with pair.settings(read_only_reason=REASON):
        pair.sql(
            """
            WITH gone AS (DELETE FROM artifacts WHERE folder = $1 RETURNING blob_id)
            INSERT INTO gc_candidates (blob_id, since) SELECT blob_id, now() - interval '9 days' FROM gone
            """,
            path.split("/")[3],
        )
        for job in ("gc", "trash", "removal", "trim", "rebalance", "reconcile"):
            pair.sql("UPDATE jobs SET requested_at = clock_timestamp() WHERE job = $1", job)
        pair.sql("SELECT pg_notify('holdfast', 'jobs')")
        asked = "SELECT count(*) FROM jobs WHERE requested_at > coalesce(answered_at, '-infinity')"
        wait_until(lambda: pair.sql(asked)[0][0] == 0)
        assert pair.sql("SELECT count(*) FROM gc_candidates")[0][0] == 1
    wait_until(lambda: pair.sql("SELECT count(*) FROM gc_candidates")[0][0] == 0)
    assert pair.admin.get(path).status == 404


def test_copies_are_made_while_read_only(pair: RunningCluster) -> None:
    path = new_path()
    assert pair.admin.put(path, random_bytes(5_000)).status == 201
    count = """
        SELECT count(*) FROM replicas r JOIN artifacts a ON a.blob_id = r.blob_id
         WHERE a.folder = $1 AND r.state = 'live'
    """
    folder = path.split("/")[3]
    with pair.settings(read_only_reason=REASON):
        pair.sql(
            """
            UPDATE replicas SET state = 'suspect' WHERE generation =
                (SELECT r.generation FROM replicas r JOIN artifacts a ON a.blob_id = r.blob_id WHERE a.folder = $1 LIMIT 1)
            """,
            folder,
        )
        pair.sql(
            "INSERT INTO repair_queue (blob_id, reason) SELECT blob_id, 'suspect' FROM artifacts WHERE folder = $1",
            folder,
        )
        wait_until(lambda: pair.sql(count, folder)[0][0] >= 2)


class Counting:
    name = "counting"
    steps = prompts = 0

    async def step(self) -> Step:
        self.steps += 1
        return Step(done=1)

    def prompt(self) -> None:
        self.prompts += 1


async def test_paused_job_does_nothing_and_hears_what_an_operator_wants() -> None:
    job, settings = Counting(), LiveSettings()
    paused = PausedWhileReadOnly(job, settings)
    assert isinstance(paused, Promptable) and paused.name == "counting"
    assert not (await paused.step()).idle
    settings.now = Settings(read_only_reason=REASON)
    assert (await paused.step()).idle
    paused.prompt()
    assert (job.steps, job.prompts) == (1, 1)


async def test_node_that_has_not_heard_of_the_settings_for_long_changes_nothing_unasked() -> None:
    settings = LiveSettings(Settings(node_down_seconds=10, heartbeat_seconds=2))
    require_heard(settings)
    settings.confirm(time.monotonic() - 9)
    require_heard(settings)
    settings.confirm(time.monotonic() - 11)
    with pytest.raises(ReadOnly, match=r"not heard for 11 s.* Nothing was changed"):
        require_heard(settings)
    job = Counting()
    assert (await PausedWhileReadOnly(job, settings).step()).idle and job.steps == 0
    require_writable(settings)
    settings.confirm(time.monotonic())
    require_heard(settings)
    settings.now = Settings(read_only_reason=REASON)
    for require in (require_heard, require_writable):
        with pytest.raises(ReadOnly, match=REASON):
            require(settings)


def test_node_whose_heartbeats_are_broken_changes_only_what_postgres_allows(pair: RunningCluster) -> None:
    path, first = new_path(), pair.first
    settings = first.node._membership._settings

    def deafen() -> None:
        settings.confirm(time.monotonic() - 601)

    with pair.settings(read_only_reason=REASON):
        deafen()
        settings.now = settings.now.model_copy(update={"read_only_reason": ""})
        answer = first.admin.put(path, b"x")
        assert answer.status == 503 and b"read-only" in answer.body and b"not heard" not in answer.body
    # Of the switch, which reads as off here already; the next heartbeat is a minute away.
    wait_until(lambda: settings.age_seconds < 60)
    deafen()
    assert first.admin.put(path, b"x").status == 201
    assert first.admin.request("DELETE", path).status == 204
    answer = first.admin.request("POST", "/artifactory/api/holdfast/tokens", body=b"{}")
    assert answer.status == 503 and b"has not heard" in answer.body
    first.loop.call_soon_threadsafe(first.node._membership._wake.set)
    token = {"scopes": ["read"]}
    wait_until(lambda: first.admin.post_json("/artifactory/api/holdfast/tokens", token).status in (200, 201))


async def test_large_deletion_under_way_at_the_switch_ends_at_its_next_step(
    scene: Scene, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact_rows, "DELETE_PAGE", 2)
    for number in range(5):
        await scene.upload(f"f/{number}", b"content %d" % number)
    settings = LiveSettings()

    def check() -> None:
        if steps:
            settings.now = Settings(read_only_reason=REASON)
        steps.append(1)
        require_writable(settings, begun=True)

    steps: list[int] = []
    with pytest.raises(ReadOnly, match="in part at most"):
        await artifact_rows.delete(scene.database, scene.repository, "", "f", by=Origin("x", "r"), check=check)
    assert await table(connection, "SELECT count(*) FROM artifacts WHERE folder = 'f'") == [(3,)]


async def test_trash_under_way_at_the_switch_stays(scene: Scene, connection: asyncpg.Connection) -> None:
    await connection.execute("UPDATE repositories SET trash = true")
    await scene.upload("f/a", b"a")
    await artifact_rows.delete(scene.database, scene.repository, "", "f", by=Origin("x", "r"))
    settings = LiveSettings(Settings(read_only_reason=REASON))
    trash, at = Trash(scene.database, RecentItems(settings), settings), ArtifactPath("generic-local", "", "f")
    with pytest.raises(ReadOnly):
        await trash.empty(at, by=Origin("x", "r"))
    with pytest.raises(ReadOnly):
        await trash.restore(at, at, replace=False, by=Origin("x", "r"))
    assert await table(connection, "SELECT count(*) FROM trash") == [(1,)]


async def test_database_refuses_changes_of_a_node_that_has_not_heard_of_the_switch(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    await connection.execute("UPDATE repositories SET trash = true")
    for path in ("gone", "here"):
        await scene.upload(path, path.encode())
    database, by = scene.database, {"by": Origin("x", "r")}
    await artifact_rows.delete(database, scene.repository, "", "gone", **by)
    token = uuid4()
    lease = Lease(await connection.fetchval("SELECT lease_acquire('x', $1, 0, 60)", token), token)
    settings = LiveSettings()
    trash, at = Trash(database, RecentItems(settings), settings), ArtifactPath("generic-local", "", "gone")
    changes = {
        "upload": lambda: scene.upload("new"),
        "delete": lambda: artifact_rows.delete(database, scene.repository, "", "here", **by),
        "folder": lambda: artifact_rows.make_folder(database, scene.repository, "f", **by),
        "restore": lambda: trash.restore(at, at, replace=False, **by),
        "empty": lambda: trash.empty(at, **by),
        "expire": lambda: trash_rows.expire(database, lease, age_seconds=0, items_max=9),
        "collect": lambda: database.write(garbage.COLLECT, lease.epoch, token, [], [], timedelta(0)),
        "repository": lambda: repositories.delete(database, "generic-local", **by),
    }
    before = await table(connection, "SELECT count(*), max(id) FROM events")
    await connection.execute("INSERT INTO settings VALUES ('read_only_reason', $1, now(), 'x')", f'"{REASON}"')
    for what, change in changes.items():
        with pytest.raises(ChangesRefused, match=f"The cluster is read-only: {REASON}") as refused:
            await change()  # type: ignore[no-untyped-call]
        answer = answer_for(refused.value)
        assert answer is not None and (answer.status, answer.may_retry) == (503, True), what
    assert await table(connection, "SELECT count(*), max(id) FROM events") == before
    assert await table(connection, "SELECT name FROM artifacts") == [("here",)]
    await connection.execute("UPDATE settings SET value = '\"\"'")
    await changes["restore"]()  # type: ignore[no-untyped-call]


def test_quarantines_keep_everything_while_read_only() -> None:
    settings = LiveSettings(Settings(quarantine_seconds=200_000))
    assert expiry_seconds(settings) == 200_000
    settings.now = Settings(quarantine_seconds=200_000, read_only_reason=REASON)
    assert expiry_seconds(settings) is None
