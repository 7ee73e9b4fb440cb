"""A node's life among others: heartbeats, a broken connection, fencing, leaving."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest

from repo_node.cluster import membership
from repo_node.db import migrate
from repo_node.db.nodes import Fenced
from repo_node.db.servers import Servers
from repo_node.metrics import Metrics
from repo_node.settings import LiveSettings
from sharding.model import NodeId
from tests.repo_node.nodes import (
    RunningCluster,
    RunningNode,
    configure,
    new_path,
    query,
    random_bytes,
    run_nodes,
    wait_until,
)

READINESS = "/artifactory/api/v1/system/readiness"
REPOSITORIES = "/artifactory/api/repositories"
FAST = {"heartbeat_seconds": 0.2, "node_down_seconds": 1.0}


def up(seen_by: RunningNode, name: str) -> bool:
    return next(node.up for node in seen_by.node.cluster().nodes.values() if node.id == name)


def end_heartbeat_connections(cluster: RunningCluster, name: str) -> int:
    """End whatever heartbeat connections there are at this moment and return how many."""
    rows = cluster.sql(
        """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = $1
        """,
        f"holdfast {name}",
    )
    return len(rows)


def break_heartbeat_connection(cluster: RunningCluster, name: str) -> None:
    assert end_heartbeat_connections(cluster, name) == 1


def test_a_node_has_two_connections_of_its_own_for_heartbeats_and_for_the_lease(three: RunningCluster) -> None:
    names = [f"holdfast node-{number}{purpose}" for number in (1, 2, 3) for purpose in ("", " lease")]
    select = (
        "SELECT application_name AS name FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name LIKE 'holdfast node-%'"
    )
    # One more, for a moment, when a node looks at its shards.
    wait_until(lambda: sorted(row["name"] for row in three.sql(select)) == sorted(names))


def test_a_broken_connection_is_distrusted_at_once_and_made_anew(
    three: RunningCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = three.first
    monkeypatch.setattr(membership, "RECONNECT_SECONDS", 1.0)
    client = first.client(f"Bearer {three.token('read')}")
    queries = {"query": "token_find"}
    metric = "holdfast_database_query_duration_seconds_count"
    # Heartbeats so rare that none of them can be what notices.
    with three.settings(node_down_seconds=600, heartbeat_seconds=60):
        client.get(REPOSITORIES)
        before = first.metric(metric, **queries)
        client.get(REPOSITORIES)
        assert first.metric(metric, **queries) == before
        break_heartbeat_connection(three, "node-1")
        wait_until(lambda: not first.is_ready(), 5)
        # Nothing is believed from memory meanwhile, and requests go on.
        assert client.get(REPOSITORIES).status == 200
        assert first.metric(metric, **queries) == before + 1
        wait_until(first.is_ready, 10)
    assert all(node.is_ready() for node in three.nodes)
    assert not first.beating.done()


def test_what_was_announced_while_nobody_listened_is_read_after_the_reconnect(
    ready_dsn: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "RECONNECT_SECONDS", 1.0)
    with run_nodes([configure(ready_dsn, directory)]) as cluster:
        first = cluster.first
        # Heartbeats and looks so rare that none of them can be what tells.
        cluster.set({"node_down_seconds": 600, "heartbeat_seconds": 60, "trim_period_seconds": 86_400})
        reader = first.client(f"Bearer {cluster.token('read', description='to be revoked')}")
        assert reader.get(REPOSITORIES).status == 200
        wait_until(lambda: cluster.sql("SELECT 1 FROM jobs WHERE job = 'backup' AND finished_at IS NOT NULL"))
        break_heartbeat_connection(cluster, "node-1")
        wait_until(lambda: not first.is_ready(), 5)
        cluster.sql("INSERT INTO settings VALUES ('read_only_reason', '\"unheard\"', now(), 'test')")
        cluster.sql("SELECT set_shard_state(1::smallint, 'read_only', 'test', 'test', '')")
        cluster.sql("UPDATE tokens SET revoked_at = now()")
        cluster.sql("UPDATE jobs SET requested_at = clock_timestamp() WHERE job = 'backup'")
        cluster.sql("UPDATE nodes SET stop_asked = incarnation")
        wait_until(lambda: first.holds({"read_only_reason": "unheard"}))
        wait_until(lambda: first.node.view().writable == {2})
        wait_until(lambda: reader.get(REPOSITORIES).status == 401)
        wait_until(first.node.stop_asked.is_set)
        answered = "SELECT answered_at >= requested_at FROM jobs WHERE job = 'backup'"
        wait_until(lambda: cluster.sql(answered)[0][0])


def test_a_node_whose_name_another_process_took_ends(ready_dsn: str, directory: Path) -> None:
    with run_nodes([configure(ready_dsn, directory)]) as cluster:
        cluster.sql("UPDATE nodes SET incarnation = gen_random_uuid()")
        wait_until(cluster.first.beating.done, 10)
        assert isinstance(cluster.first.beating.exception(), Fenced)


def test_a_node_whose_shard_another_claimed_ends(ready_dsn: str, directory: Path) -> None:
    with run_nodes([configure(ready_dsn, directory)]) as cluster:
        cluster.sql("UPDATE shards SET owner = gen_random_uuid() WHERE id = (SELECT min(id) FROM shards)")
        wait_until(cluster.first.beating.done, 10)
        assert isinstance(cluster.first.beating.exception(), Fenced)


def test_a_silent_peer_is_down_in_time_and_its_shards_take_nothing(ready_dsn: str, directory: Path) -> None:
    configs = [configure(ready_dsn, directory, name=f"node-{n}", zone=f"zone-{n}") for n in (1, 2, 3)]
    with run_nodes(configs) as cluster:
        cluster.set(FAST)
        first, third = cluster.nodes[0], cluster.nodes[2]
        path, body = new_path(), random_bytes(2_000_000)
        assert first.admin.put(path, body).status == 201
        began = time.monotonic()
        cluster.loop.call_soon_threadsafe(third.beating.cancel)
        wait_until(lambda: not up(first, "node-3"), 10)
        assert time.monotonic() - began >= 0.5
        assert len(first.node.view().writable) == 4
        assert not third.is_ready()
        for _ in range(5):
            assert first.admin.put(new_path(), random_bytes(1000)).status == 201
        rows = cluster.sql(
            "SELECT count(*) AS n FROM replicas r JOIN shards s ON s.id = r.shard_id "
            "JOIN blobs b ON b.id = r.blob_id WHERE s.node_id = 'node-3' AND b.size = 1000"
        )
        assert rows[0]["n"] == 0
        assert [node.admin.get(path).body for node in cluster.nodes[:2]] == [body] * 2


def test_a_node_that_leaves_says_so_and_finishes(ready_dsn: str, directory: Path) -> None:
    configs = [configure(ready_dsn, directory, name=f"node-{n}", zone=f"zone-{n}") for n in (1, 2)]
    with run_nodes(configs) as cluster:
        first, second = cluster.nodes
        path, body = new_path(), random_bytes(2_000_000)
        with first.admin.raw() as raw:
            raw.send_head("PUT", path, f"Content-Length: {len(body)}")
            raw.send(body[:1_500_000])
            cluster.on_loop(first.node.leave())
            assert first.client().get(READINESS).status == 404
            first.admin.get("/metrics")
            assert first.metric("holdfast_node_leaving_state", node="node-1") == 1
            assert first.client().get("/artifactory/api/system/ping").status == 503
            raw.send(body[1_500_000:])
            status, headers, _ = raw.read_answer()
        assert (status, headers["connection"]) == (201, "close")
        assert first.admin.get(path).body == body
        assert second.is_ready()
    rows = cluster.sql("SELECT stopped_at FROM nodes")
    assert len(rows) == 2 and all(row["stopped_at"] for row in rows)


def test_a_node_asked_to_stop_is_told_whoever_was_asked_and_is_seen_leaving(ready_dsn: str, directory: Path) -> None:
    configs = [configure(ready_dsn, directory, name=f"node-{n}", zone=f"zone-{n}") for n in (1, 2)]
    with run_nodes(configs) as cluster:
        first, second = cluster.nodes
        # Heartbeats so rare that none of them can be what tells.
        cluster.set({"node_down_seconds": 600, "heartbeat_seconds": 60})
        url = "/artifactory/api/holdfast/nodes"
        assert first.admin.post_json(f"{url}/node-2/stop", {}).json() == {"node": "node-2", "outcome": "asked"}
        wait_until(second.node.stop_asked.is_set)
        assert not first.node.stop_asked.is_set()
        cluster.on_loop(second.node.leave())
        cluster.on_loop(second.node.hand_over())
        wait_until(lambda: first.node.cluster().nodes[NodeId("node-2")].leaving)
        listed = {one["id"]: one for one in first.admin.get(url).json()["nodes"]}
        assert {name: one["leaving"] for name, one in listed.items()} == {"node-1": False, "node-2": True}
        assert {one["schema_version"] for one in listed.values()} == {migrate.version_needed()}
        assert first.admin.post_json(f"{url}/nobody/stop", {}).status == 404


def test_a_node_that_left_is_down_at_once_for_its_peers(ready_dsn: str, directory: Path) -> None:
    config = configure(ready_dsn, directory, name="node-2", zone="zone-2")
    with run_nodes([configure(ready_dsn, directory)]) as cluster:
        with run_nodes([config], ready=lambda one: one.node.is_ready()):
            wait_until(lambda: len(cluster.first.node.view().writable) == 4)
        wait_until(lambda: not up(cluster.first, "node-2"), 5)
        assert len(cluster.first.node.view().writable) == 2
        with run_nodes([config], ready=lambda one: one.node.is_ready()):
            wait_until(lambda: len(cluster.first.node.view().writable) == 4)


def test_peers_shards_follow_their_node_to_another_address(ready_dsn: str, directory: Path) -> None:
    names = {"name": "node-2", "zone": "zone-2"}
    path, body = new_path(), random_bytes(3_000_000)
    with run_nodes([configure(ready_dsn, directory)]) as cluster:
        for _ in range(2):
            config = configure(ready_dsn, directory, **names)  # type: ignore[arg-type]
            with run_nodes([config], ready=lambda one: one.node.is_ready()):
                wait_until(lambda: len(cluster.first.node.view().writable) == 4)
                assert cluster.admin.put(path, body + config.internal.url.encode()).status == 201
                assert cluster.admin.get(path).body.startswith(body)
                assert cluster.sql("SELECT count(*) AS n FROM repair_queue")[0]["n"] == 0


async def test_what_was_proved_before_announcements_arrive_is_forgotten(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    class Connection:
        def add_termination_listener(self, _: object) -> None: ...

        async def add_listener(self, *_: object) -> None:
            steps.append("listens")

    async def update(_: object) -> None: ...

    async def beat(_: object) -> None:
        steps.append("beats")
        raise Fenced

    member = membership.Membership(
        configure("postgresql://nowhere", directory),
        Servers("postgresql://nowhere", timeout_seconds=1),
        uuid4(),
        SimpleNamespace(look=lambda: None),  # type: ignore[arg-type]
        LiveSettings(),
        Metrics(),
        on_cluster=update,
        on_principals=lambda: steps.append("forgets who"),
        on_tokens=lambda: steps.append("forgets tokens"),
        on_repositories=lambda: steps.append("forgets where"),
    )
    monkeypatch.setattr(member, "beat", beat)
    with pytest.raises(Fenced):
        await member._run_on(Connection())  # type: ignore[arg-type]
    assert steps == ["listens", "forgets who", "forgets where", "beats"]


def test_the_databases_time_is_known_without_asking_and_never_too_late(one: RunningCluster) -> None:

    async def ask() -> datetime:
        return one.first.node._membership.database_time()

    for _ in range(20):
        told = one.on_loop(ask())
        true = one.sql("SELECT clock_timestamp() AS now")[0]["now"]
        assert timedelta(0) < true - told < timedelta(seconds=5)
        time.sleep(0.05)


def test_shards_of_a_node_that_comes_are_used_by_the_others_at_once(ready_dsn: str, directory: Path) -> None:
    # Heartbeats so rare that none of them can be what tells.
    rare = "INSERT INTO settings (key, value, updated_by) VALUES ('node_down_seconds', '600', 't'), ('heartbeat_seconds', '60', 't')"
    query(ready_dsn, rare)
    configs = [configure(ready_dsn, directory, name=f"node-{n}", zone=f"zone-{n}") for n in (1, 2)]
    began = time.monotonic()
    with run_nodes(configs) as cluster:
        assert time.monotonic() - began < 15
        assert all(len(node.node.view().writable) == 4 for node in cluster.nodes)


def test_a_postgres_that_is_set_to_forget_while_nodes_run_is_told_of(
    ready_dsn: str, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def database_unsafe() -> float:
        return cluster.first.metric("holdfast_database_unsafe_state")

    with run_nodes([configure(ready_dsn, directory)]) as cluster:
        assert database_unsafe() == 0
        name = cluster.sql("SELECT current_database() AS name")[0]["name"]
        # As a server may be that was promoted meanwhile: the new connection finds it so.
        cluster.sql(f'ALTER DATABASE "{name}" SET synchronous_commit = local')
        wait_until(lambda: end_heartbeat_connections(cluster, "node-1"))
        wait_until(lambda: database_unsafe() == 1, 60)
        assert "synchronous_commit = local" in next(
            str(record.facts["cause"])  # type: ignore[attr-defined]
            for record in caplog.records
            if record.levelname == "CRITICAL"
        )
        cluster.sql(f'ALTER DATABASE "{name}" RESET synchronous_commit')
        wait_until(lambda: end_heartbeat_connections(cluster, "node-1"))
        wait_until(lambda: database_unsafe() == 0, 60)


def test_reads_go_on_from_a_postgres_that_takes_no_writes_for_long(ready_dsn: str, directory: Path) -> None:
    """It is no server that a failover left behind: that one would let heartbeats wait."""
    path = new_path()
    query(ready_dsn, "INSERT INTO settings (key, value, updated_by) VALUES ('stale_seconds_max', '0', 't')")
    with run_nodes([configure(ready_dsn, directory)]) as cluster:
        assert cluster.admin.put(path, b"x").status == 201
        name = cluster.sql("SELECT current_database() AS name")[0]["name"]
        member = cluster.first.node._membership
        cluster.sql(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        wait_until(lambda: end_heartbeat_connections(cluster, "node-1"))
        wait_until(lambda: not cluster.first.is_ready())
        refused_at = member._heard_at
        wait_until(lambda: member._heard_at > refused_at)
        answer = cluster.admin.get(path)
        assert (answer.status, answer.body) == (200, b"x")
        assert "X-Holdfast-Stale" not in answer.headers
