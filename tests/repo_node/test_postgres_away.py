"""Postgres cut off, frozen, or silent at the moment of a commit: 503 in time, nothing lost, nothing done twice."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from repo_node.cluster.membership import Membership
from repo_node.db import artifacts as artifact_rows
from repo_node.db.errors import CatalogueUnavailable
from repo_node.web.streaming import STALE_HEADER
from tests.postgres import TestServer
from tests.repo_node.db.severing_proxy import Fate, SeveringProxy, open_proxy
from tests.repo_node.gateway import Gateway, OpenGateway, in_thread
from tests.repo_node.nodes import (
    SOON_SECONDS,
    RunningCluster,
    basic,
    configure,
    new_path,
    prepare,
    random_bytes,
    run_nodes,
    wait_until,
)

SYSTEM = "/artifactory/api/v1/system"
TIMEOUT_SECONDS = 1.2
DEADLINE_SECONDS = 6.0
"""A connection, a statement, and a slow machine."""

DATABASE = {"connect_timeout_seconds": TIMEOUT_SECONDS, "statement_timeout_seconds": TIMEOUT_SECONDS}


@dataclass
class Behind:
    """A node that reaches Postgres through a gateway only."""

    cluster: RunningCluster
    gateway: Gateway
    path: str
    body: bytes
    token: str


@pytest.fixture(scope="module")
def behind(postgres: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """A node behind a gateway, with an artifact and a token that it knows well."""
    path, body = new_path(), random_bytes(3 << 20)
    with postgres.database(postgres.template()) as dsn, in_thread(OpenGateway(dsn)) as (gateway, through):
        prepare(dsn)
        config = configure(through, tmp_path_factory.mktemp("behind"), database=DATABASE)
        with run_nodes([config]) as cluster:
            cluster.dsn = dsn
            # A busy machine may need longer than this node's short deadlines for its first connections.
            wait_until(lambda: cluster.admin.put(path, body).status == 201)
            yield Behind(cluster, gateway, path, body, cluster.token("read", "write", "delete"))


@contextmanager
def away(behind: Behind, how: str) -> Iterator[None]:
    """Keep Postgres away for the length of the block, and wait until the node has it back."""
    getattr(behind.gateway, how)()
    try:
        yield
    finally:
        behind.gateway.restore()
        restored = time.monotonic()
        # Ready is not enough: the node may not have noticed yet that Postgres was away.
        wait_until(lambda: behind.cluster.first.node._membership._beat_at > restored)
        wait_until(behind.cluster.first.is_ready)


@pytest.mark.parametrize("how", ["cut", "freeze"])
def test_while_postgres_is_away_all_but_reads_of_what_it_told_lately_is_503_in_time(behind: Behind, how: str) -> None:
    first, path, unread = behind.cluster.first, new_path(), new_path()
    client = first.client(f"Bearer {behind.token}")
    assert client.put(unread, b"never read").status == 201
    assert client.get(behind.path).body == behind.body
    with away(behind, how):
        for method, target in (
            ("GET", unread),
            ("HEAD", unread),
            ("GET", path),
            ("PUT", path),
            ("DELETE", behind.path),
            ("GET", behind.path.replace("/artifactory/", "/artifactory/api/storage/")),
            ("GET", "/artifactory/api/repositories"),
        ):
            began = time.monotonic()
            answer = client.request(method, target, b"x" if method == "PUT" else None)
            assert time.monotonic() - began < DEADLINE_SECONDS
            assert (answer.status, answer.headers["Retry-After"]) == (503, "2"), (method, target)
        with client.raw() as raw:
            raw.send_head("PUT", path, "Expect: 100-continue", "Content-Length: 10")
            assert raw.read_head()[0] == 503
        wait_until(lambda: client.get(f"{SYSTEM}/readiness").status == 503)
        assert "Retry-After" in client.get(f"{SYSTEM}/readiness").headers
        assert client.get(f"{SYSTEM}/liveness").status == 200
    assert client.get(f"{SYSTEM}/readiness").status == 200
    assert client.get(behind.path).body == behind.body
    assert client.get(path).status == 404


def test_a_password_is_believed_from_memory_for_reading_alone_while_nothing_is_heard(behind: Behind) -> None:
    admin, stranger = behind.cluster.admin, behind.cluster.first.client(basic("admin", "wrong"))
    assert admin.get(behind.path).status == 200
    with away(behind, "cut"):
        wait_until(lambda: not behind.cluster.first.is_ready())
        assert admin.get(behind.path).status == 200
        assert admin.put(new_path(), b"x").status == 503
        assert admin.get("/artifactory/api/holdfast/status").status == 503
        assert stranger.get(behind.path).status == 503
    assert admin.get(behind.path).status == 200


def test_what_changes_unheard_holds_when_postgres_is_back(behind: Behind) -> None:
    cluster = behind.cluster
    made = cluster.admin.post_json("/artifactory/api/holdfast/tokens", {"scopes": ["read"]}).json()
    client = cluster.first.client(f"Bearer {made['token']}")
    assert client.get(behind.path).status == 200
    with away(behind, "cut"):
        cluster.sql("UPDATE tokens SET revoked_at = now() WHERE id = $1", made["id"])
        cluster.sql("INSERT INTO settings (key, value, updated_by) VALUES ('ranges_max', '5', 'test')")
    assert client.get(behind.path).status == 401
    wait_until(lambda: cluster.first.holds({"ranges_max": 5}), 5)


def test_a_download_under_way_ends_while_postgres_is_away(behind: Behind) -> None:
    with behind.cluster.admin.raw() as raw:
        raw.send_head("GET", behind.path)
        assert raw.read_head()[0] == 200
        with away(behind, "cut"):
            assert raw.read(len(behind.body)) == behind.body


def test_an_upload_whose_commit_finds_no_postgres_is_503_and_leaves_nothing(behind: Behind) -> None:
    path, body, cluster = new_path(), random_bytes(2 << 20), behind.cluster
    before = set(cluster.files())
    with cluster.admin.raw() as raw:
        raw.send_head("PUT", path, f"Content-Length: {len(body)}")
        raw.send(body[:-1])
        wait_until(lambda: cluster.first.metric("holdfast_uploads_in_flight") == 1)
        with away(behind, "cut"):
            wait_until(lambda: not cluster.first.is_ready())
            raw.send(body[-1:])
            status, headers, _ = raw.read_answer()
            assert (status, headers["retry-after"]) == (503, "2")
    wait_until(lambda: not set(cluster.files()) - before)
    assert cluster.admin.get(path).status == 404
    assert cluster.admin.put(path, body).status == 201


def test_an_upload_that_comes_while_postgres_stays_away_is_ended_in_the_middle_of_its_body(behind: Behind) -> None:
    cluster, path = behind.cluster, new_path()
    before = set(cluster.files())
    with cluster.settings(upload_silence_seconds_max=2), cluster.admin.raw() as raw:
        raw.send_head("PUT", path, f"Content-Length: {1 << 30}")
        raw.send(random_bytes(1 << 20))
        wait_until(lambda: cluster.first.metric("holdfast_uploads_in_flight") == 1)
        with away(behind, "freeze"):
            deadline = time.monotonic() + SOON_SECONDS
            while raw.is_silent(0.2):
                assert time.monotonic() < deadline
                raw.send(random_bytes(1000))
            status, headers, _ = raw.read_answer()
            assert (status, headers["retry-after"], headers["connection"]) == (503, "2", "close")
    wait_until(lambda: not set(cluster.files()) - before)


# ---------------------------------------------------------------------- reads from memory


@pytest.mark.parametrize("how", ["cut", "freeze"])
def test_reads_of_what_was_read_lately_go_on_and_say_how_old_it_is(behind: Behind, how: str) -> None:
    client, first = behind.cluster.first.client(f"Bearer {behind.token}"), behind.cluster.first
    fresh = client.get(behind.path)
    before = first.metric("holdfast_stale_reads_total")
    with away(behind, how):
        whole, head = client.get(behind.path), client.head(behind.path)
        part = client.get(behind.path, Range="bytes=2000000-2000009")
        same = client.get(behind.path, If_None_Match=fresh.headers["ETag"])
        assert [answer.status for answer in (whole, head, part, same)] == [200, 200, 206, 304]
        assert (whole.body, part.body) == (behind.body, behind.body[2_000_000:2_000_010])
        for answer in (whole, head, part, same):
            assert 0 <= int(answer.headers[STALE_HEADER]) < 300
        assert {**fresh.head(), STALE_HEADER: whole.headers[STALE_HEADER]} == whole.head()
        # Only Postgres says that something is absent.
        assert client.get(f"{behind.path}/").status == 503
        assert client.get(f"{behind.path};colour+=red").status == 503
        assert first.metric("holdfast_stale_reads_total") == before + 6
    again = client.get(behind.path)
    assert (again.status, STALE_HEADER in again.headers) == (200, False)


def test_reads_through_a_virtual_repository_go_on_too_and_what_changed_is_not_among_them(behind: Behind) -> None:
    admin, keys = behind.cluster.admin, [f"away-{n}-{new_path()[-8:-2]}" for n in (1, 2)]
    virtual = f"{keys[0]}-v"
    for key, configuration in ((keys[0], {}), (keys[1], {}), (virtual, {"rclass": "virtual", "repositories": keys})):
        assert admin.put_json(f"/artifactory/api/repositories/{key}", configuration).status == 200
    for name in ("kept", "shadowed"):
        assert admin.put(f"/artifactory/{keys[1]}/a/{name}", b"second").status == 201
        # The first read finds out that the repository is virtual.
        assert [admin.get(f"/artifactory/{virtual}/a/{name}").body for _ in range(2)] == [b"second"] * 2
    assert admin.put(f"/artifactory/{keys[0]}/a/shadowed", b"first").status == 201
    with away(behind, "cut"):
        kept = admin.get(f"/artifactory/{virtual}/a/kept")
        assert (kept.status, kept.body) == (200, b"second") and STALE_HEADER in kept.headers
        assert admin.get(f"/artifactory/{virtual}/a/shadowed").status == 503
        assert admin.get(f"/artifactory/{virtual}/a/never").status == 503
    assert admin.get(f"/artifactory/{virtual}/a/shadowed").body == b"first"


def test_what_was_changed_through_this_node_is_not_read_from_memory(behind: Behind) -> None:
    client = behind.cluster.first.client(f"Bearer {behind.token}")
    overwritten, deleted, folder, restored = (new_path() for _ in range(4))
    inside = f"{folder}/b/c"
    for path in (overwritten, deleted, inside, restored):
        assert client.put(path, b"old").status == 201
        assert client.get(path).body == b"old"
    assert client.put(overwritten, b"new").status == 201
    for path in (deleted, folder, restored):
        assert client.delete(path).status == 204
    assert client.put(restored, b"newer").status == 201
    assert client.get(restored).body == b"newer"
    back = restored.replace("/artifactory/", "/artifactory/api/trash/restore/")
    assert behind.cluster.admin.request("POST", back).status == 202
    with away(behind, "cut"):
        assert [client.get(path).status for path in (overwritten, deleted, inside, restored)] == [503] * 4
        assert client.get(behind.path).status == 200
    assert (client.get(overwritten).body, client.get(restored).body) == (b"new", b"old")
    assert [client.get(path).status for path in (deleted, inside)] == [404, 404]


def test_what_a_folder_brought_back_from_the_trash_replaces_is_not_read_from_memory(behind: Behind) -> None:
    client, folder = behind.cluster.first.client(f"Bearer {behind.token}"), new_path()
    inside = f"{folder}/b/c"
    assert client.put(inside, b"old").status == 201
    assert client.delete(folder).status == 204
    assert client.put(inside, b"newer").status == 201
    assert client.get(inside).body == b"newer"
    back = folder.replace("/artifactory/", "/artifactory/api/trash/restore/") + "?replace=1"
    assert behind.cluster.admin.request("POST", back).status == 202
    with away(behind, "cut"):
        assert client.get(inside).status == 503
    assert client.get(inside).body == b"old"


def test_what_postgres_said_is_gone_is_not_read_from_memory(behind: Behind) -> None:
    client, path = behind.cluster.first.client(f"Bearer {behind.token}"), new_path()
    assert client.put(path, b"x").status == 201
    assert client.get(path).status == 200
    behind.cluster.sql("DELETE FROM artifacts WHERE folder = $1", path.split("/")[-2])
    assert client.get(path).status == 404
    with away(behind, "cut"):
        assert client.get(path).status == 503


def test_who_was_seen_revoked_reads_nothing_from_memory(behind: Behind) -> None:
    cluster = behind.cluster
    made = cluster.admin.post_json("/artifactory/api/holdfast/tokens", {"scopes": ["read"]}).json()
    client = cluster.first.client(f"Bearer {made['token']}")
    assert client.get(behind.path).status == 200
    cluster.sql("UPDATE tokens SET revoked_at = now() WHERE id = $1", made["id"])
    wait_until(lambda: client.get(behind.path).status == 401)
    with away(behind, "cut"):
        assert client.get(behind.path).status == 503


def test_a_statement_that_fails_alone_is_no_reason_to_read_from_memory(
    behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, resolve = 0, artifact_rows.resolve

    async def fail_once(*args: str) -> artifact_rows.LookUp:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise CatalogueUnavailable("the connection broke")
        return await resolve(*args)  # type: ignore[arg-type]

    assert behind.cluster.admin.get(behind.path).status == 200
    monkeypatch.setattr(artifact_rows, "resolve", fail_once)
    answer = behind.cluster.admin.get(behind.path)
    assert (answer.status, STALE_HEADER in answer.headers, asked) == (200, False, 2)


def test_without_stale_seconds_nothing_is_read_from_memory(behind: Behind) -> None:
    with behind.cluster.settings(stale_seconds_max=0):
        assert behind.cluster.admin.get(behind.path).status == 200
        with away(behind, "cut"):
            assert behind.cluster.admin.get(behind.path).status == 503


def test_a_server_that_confirms_no_heartbeat_is_not_believed_for_long_and_never_that_something_is_absent(
    behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be one that a failover has left behind."""
    admin, absent, present = behind.cluster.admin, new_path(), new_path()
    assert admin.put(present, b"never read before").status == 201
    assert admin.get(absent).status == 404
    with monkeypatch.context() as patch:
        patch.setattr(Membership, "is_fresh", False)
        assert admin.get(absent).status == 503
        assert STALE_HEADER not in admin.get(present).headers
        patch.setattr(Membership, "silence_seconds", 42.0)
        found = admin.get(present)
        assert (found.body, found.headers[STALE_HEADER]) == (b"never read before", "42")
        patch.setattr(Membership, "silence_seconds", 301.0)
        assert admin.get(present).status == 503
    assert admin.get(absent).status == 404


def test_nothing_is_said_to_be_absent_while_no_heartbeat_comes_back(
    behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, api, nowhere = behind.cluster.admin, "/artifactory/api", "r-that-is-nowhere"
    present, absent = behind.path.removeprefix("/artifactory/"), new_path().removeprefix("/artifactory/")
    requests = [
        ("GET", f"/artifactory/{absent}"),
        ("GET", f"/artifactory/{present}/"),
        ("GET", f"/artifactory/{present};colour+=red"),
        ("GET", f"/artifactory/{nowhere}/a"),
        ("PUT", f"/artifactory/{nowhere}/a"),
        ("PUT", f"/artifactory/{nowhere}/a/"),
        ("DELETE", f"/artifactory/{absent}"),
        ("DELETE", f"/artifactory/{nowhere}/a"),
        ("GET", f"{api}/storage/{absent}"),
        ("GET", f"{api}/storage/{present}?properties=colour"),
        ("GET", f"{api}/storage/{nowhere}"),
        ("GET", f"{api}/repositories/{nowhere}"),
        ("POST", f"{api}/repositories/{nowhere}"),
        ("DELETE", f"{api}/repositories/{nowhere}"),
        ("POST", f"{api}/trash/restore/{absent}"),
        ("DELETE", f"{api}/holdfast/tokens/999999999"),
        ("DELETE", f"{api}/holdfast/shards/999"),
        ("POST", f"{api}/holdfast/nodes/{nowhere}/stop"),
    ]

    def answers() -> dict[tuple[str, str], int]:
        body = {"POST": b'{"trash": true}', "PUT": b""}
        return {one: admin.request(*one, body.get(one[0])).status for one in requests}

    assert answers() == dict.fromkeys(requests, 404)
    with monkeypatch.context() as patch:
        patch.setattr(Membership, "is_fresh", False)
        assert answers() == dict.fromkeys(requests, 503)


# ---------------------------------------------------------------------- the outcome unknown


@pytest.fixture(scope="module")
def severed(
    postgres: TestServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningCluster, SeveringProxy]]:
    """A node behind a proxy that loses chosen requests and answers."""
    with postgres.database(postgres.template()) as dsn, in_thread(open_proxy(dsn)) as (proxy, through):
        prepare(dsn)
        with run_nodes([configure(through, tmp_path_factory.mktemp("severed"), database=DATABASE)]) as cluster:
            cluster.dsn = dsn
            yield cluster, proxy


@pytest.mark.parametrize("fate", [Fate.LOST, Fate.CUT, Fate.ABANDONED, Fate.UNANSWERED, Fate.SILENCE])
def test_a_commit_whose_answer_is_lost_is_asked_again_and_done_once(
    severed: tuple[RunningCluster, SeveringProxy], fate: Fate
) -> None:
    cluster, proxy = severed
    name, body = f"marked-{fate.name}", random_bytes(100_000)
    path = f"/artifactory/generic-local/outcome/{name}"
    trap = proxy.set_trap(name.encode(), fate)
    assert cluster.admin.put(path, body).status == 201
    assert trap.sprung
    assert cluster.admin.get(path).body == body
    events = cluster.sql("SELECT count(*) AS n FROM events WHERE kind = 'deploy' AND path = $1", f"outcome/{name}")
    assert events[0]["n"] == 1


def test_while_the_outcome_is_unknown_no_file_is_removed(severed: tuple[RunningCluster, SeveringProxy]) -> None:
    cluster, proxy = severed
    name, body = "unknown", random_bytes(100_000)
    path, sha256 = f"/artifactory/generic-local/outcome/{name}", hashlib.sha256(body).hexdigest()
    with cluster.settings(outcome_wait_seconds=0.5):
        trap = proxy.set_trap(name.encode(), Fate.UNANSWERED)
        with cluster.admin.raw() as raw:
            raw.send_head("PUT", path, f"Content-Length: {len(body)}")
            raw.send(body)
            wait_until(lambda: trap.sprung)
            proxy.accepts = False
            proxy.sever_others()
            try:
                status, headers, answer = raw.read_answer()
            finally:
                proxy.accepts = True
        assert (status, headers["retry-after"]) == (503, "2")
        assert b"did not say" in answer
        assert sum(found.name.startswith(sha256) for found in cluster.files()) == 2
        wait_until(cluster.first.is_ready)
        # It had been committed: the doubt was only on this side.
        assert cluster.admin.get(path).body == body
        assert cluster.admin.put(path, body).status == 201
        assert cluster.first.metric("holdfast_uploads_total", outcome="unknown") == 1
