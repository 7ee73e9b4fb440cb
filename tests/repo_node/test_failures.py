"""Bad copies, full disks, too few shards, and Postgres away: what clients see, and what is kept."""

from __future__ import annotations

import hashlib
import http.client
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.repo_node.nodes import (
    RunningCluster,
    configure,
    errors_of,
    new_path,
    random_bytes,
    run_nodes,
    wait_until,
)

BLOCK = 1 << 20
SIZE = 4 * BLOCK + 321


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"trailing")


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "first bit": (lambda path: flip(path, 0), "corrupt"),
    "bit in the middle": (lambda path: flip(path, 2 * BLOCK + 7), "corrupt"),
    "last bit": (lambda path: flip(path, SIZE - 1), "corrupt"),
    "truncated": (lambda path: os.truncate(path, SIZE - 1), "corrupt"),
    "emptied": (lambda path: os.truncate(path, 0), "corrupt"),
    "trailing bytes": (append, "corrupt"),
    "missing": (Path.unlink, "missing"),
}


def copies(cluster: RunningCluster, body: bytes) -> list[Path]:
    sha256 = hashlib.sha256(body).hexdigest()
    return [path for path in cluster.files() if path.name.startswith(sha256)]


def states(cluster: RunningCluster, body: bytes) -> list[str]:
    rows = cluster.sql(
        "SELECT r.state FROM replicas r JOIN blobs b ON b.id = r.blob_id WHERE b.sha256 = $1 ORDER BY 1",
        hashlib.sha256(body).digest(),
    )
    return [row["state"] for row in rows]


def repairs(cluster: RunningCluster, body: bytes) -> list[str]:
    rows = cluster.sql(
        "SELECT q.reason FROM repair_queue q JOIN blobs b ON b.id = q.blob_id WHERE b.sha256 = $1",
        hashlib.sha256(body).digest(),
    )
    return [row["reason"] for row in rows]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_copy_is_replaced_by_a_good_one_in_mid_stream(three: RunningCluster, fault: str) -> None:
    path, body = new_path(), random_bytes(SIZE)
    assert three.admin.put(path, body).status == 201
    spoil, kind = FAULTS[fault]
    spoiled = copies(three, body)[0]
    spoil(spoiled)
    node = next(node for node in three.nodes if any(spoiled.is_relative_to(disk) for disk in node.disks))
    before = node.metric("holdfast_replicas_found_bad_total", fault=kind)
    # The node that has the bad copy on its own disk reads that one first.
    assert node.admin.get(path).body == body
    wait_until(lambda: states(three, body) == ["live", "suspect"])
    assert repairs(three, body) == ["suspect"]
    assert node.metric("holdfast_replicas_found_bad_total", fault=kind) == before + 1
    for other in three.nodes:
        assert other.admin.get(path, Range=f"bytes={BLOCK - 1}-{3 * BLOCK}").body == body[BLOCK - 1 : 3 * BLOCK + 1]


def test_a_small_bad_copy_is_replaced_as_well(three: RunningCluster) -> None:
    path, body = new_path(), random_bytes(1000)
    assert three.admin.put(path, body).status == 201
    flip(copies(three, body)[0], 500)
    assert [node.admin.get(path).body for node in three.nodes] == [body] * 3
    wait_until(lambda: states(three, body) == ["live", "suspect"])


def test_two_bad_copies_give_the_right_bytes_between_them(three: RunningCluster) -> None:
    path, body = new_path(), random_bytes(SIZE)
    with three.settings(redundancy=3):
        assert three.admin.put(path, body).status == 201
    found = copies(three, body)
    assert len(found) == 3
    flip(found[0], 5)
    flip(found[1], 3 * BLOCK)
    assert [node.admin.get(path).body for node in three.nodes] == [body] * 3


@pytest.mark.parametrize("size", [1000, SIZE])
def test_an_artifact_without_any_good_copy_is_503_and_never_404(three: RunningCluster, size: int) -> None:
    path, body = new_path(), random_bytes(size)
    assert three.admin.put(path, body).status == 201
    for copy in copies(three, body):
        flip(copy, 0)
    for node in three.nodes:
        answer = node.admin.get(path)
        assert errors_of(answer)[0] == 503
        assert answer.headers["Retry-After"] == "2"
        assert node.admin.head(path).status == 200


@pytest.mark.parametrize("asked", [None, f"bytes=5-{SIZE - 1}", f"bytes=0-9,{BLOCK}-{SIZE - 1}"])
def test_a_stream_that_cannot_go_on_breaks_and_never_ends_cleanly(three: RunningCluster, asked: str | None) -> None:
    path, body = new_path(), random_bytes(SIZE)
    assert three.admin.put(path, body).status == 201
    for copy in copies(three, body):
        flip(copy, 3 * BLOCK)
    with three.admin.raw() as raw:
        raw.send_head("GET", path, *([f"Range: {asked}"] if asked else []))
        status, headers = raw.read_head()
        assert status == (206 if asked else 200)
        received = b""
        try:
            while piece := raw.socket.recv(1 << 20):
                received += piece
        except ConnectionResetError:
            pass
    # The reader of the head may hold some of the body; what came in all is short in any case.
    assert len(received) < int(headers["content-length"]) - BLOCK // 2
    headers_sent = {"Range": asked} if asked else {}
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        three.admin.get(path, **headers_sent)


def test_a_re_upload_heals_an_artifact_whose_copies_are_all_gone(three: RunningCluster) -> None:
    path, body = new_path(), random_bytes(SIZE)
    assert three.admin.put(path, body).status == 201
    for copy in copies(three, body):
        copy.unlink()
    assert three.admin.get(path).status == 503
    assert three.admin.put(new_path(), body).status == 201
    assert three.admin.get(path).body == body


# ---------------------------------------------------------------------- disks and shards


def test_a_node_whose_disks_are_all_full_answers_507_and_serves_on(ready_dsn: str, directory: Path) -> None:
    path, body = new_path(), random_bytes(SIZE)
    config = configure(ready_dsn, directory)
    with run_nodes([config]) as cluster:
        assert cluster.admin.put(path, body).status == 201
    full = config.model_copy(
        update={"shards": tuple(shard.model_copy(update={"reserve_bytes": 1 << 60}) for shard in config.shards)}
    )
    with run_nodes([full], ready=lambda one: one.node.is_ready()) as cluster:
        wait_until(lambda: len(cluster.first.node.view().full) == 2)
        status, message = errors_of(cluster.admin.put(new_path(), body))
        assert status == 507 and "Nothing was stored" in message
        with cluster.admin.raw() as raw:
            raw.send_head("PUT", new_path(), "Expect: 100-continue", "Content-Length: 10")
            assert raw.read_head()[0] == 507
        assert cluster.admin.get(path).body == body
        assert cluster.admin.delete(path).status == 204
        assert cluster.first.client().get("/artifactory/api/v1/system/readiness").status == 200


def test_fewer_shards_than_the_quorum_is_503_before_the_body(ready_dsn: str, directory: Path) -> None:
    with run_nodes([configure(ready_dsn, directory, shards=1)]) as cluster:
        answer = cluster.admin.put(new_path(), b"x")
        assert errors_of(answer)[0] == 503
        assert answer.headers["Retry-After"] == "2"
        with cluster.admin.raw() as raw:
            raw.send_head("PUT", new_path(), "Expect: 100-continue", "Content-Length: 10")
            assert raw.read_head()[0] == 503
        with cluster.settings(retry_after_seconds=9):
            assert cluster.admin.put(new_path(), b"x").headers["Retry-After"] == "9"
        assert cluster.files() == []
        with cluster.settings(write_quorum=1):
            assert cluster.admin.put(new_path(), b"x").status == 201
        assert [row["reason"] for row in cluster.sql("SELECT reason FROM repair_queue")] == ["short_write"]
        assert cluster.first.metric("holdfast_replicas_written_short_total") == 1


def test_an_offline_shard_takes_no_writes_and_gives_no_reads(three: RunningCluster) -> None:
    path, body = new_path(), random_bytes(2000)
    assert three.admin.put(path, body).status == 201
    rows = three.sql(
        "SELECT r.shard_id FROM replicas r JOIN blobs b ON b.id = r.blob_id WHERE b.sha256 = $1",
        hashlib.sha256(body).digest(),
    )
    shard = rows[0]["shard_id"]
    three.sql("UPDATE shards SET state = 'offline' WHERE id = $1", shard)
    try:
        wait_until(lambda: all(shard not in node.node.view().writable for node in three.nodes), 5)
        assert [node.admin.get(path).body for node in three.nodes] == [body] * 3
    finally:
        three.sql("UPDATE shards SET state = 'active' WHERE id = $1", shard)
        wait_until(lambda: all(shard in node.node.view().writable for node in three.nodes), 5)
