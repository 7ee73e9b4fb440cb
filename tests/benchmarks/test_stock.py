"""The stock: what it makes is what uploads would have left."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import xxhash
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cluster import BenchCluster
from benchmarks.content import Content
from benchmarks.stock import Stock, batches, fill, uuid7_at
from sharding.digests import block_digests
from sharding.files import fan_out_of
from sharding.model import BlobName
from tests.repo_node.nodes import RunningCluster

NODES = ("node-1", "node-2", "node-3")


def stock(directory: Path) -> Stock:
    shards: list[Any] = []
    for number in range(6):
        path = directory / f"shard-{number}"
        (path / "blobs").mkdir(parents=True)
        node = NODES[number // 2]
        row = {"id": number + 1, "uid": uuid4(), "zone": f"zone of {node}", "node": node, "weight": 1.0}
        shards.append(row | {"path": str(path)})
    return Stock(cast(BenchCluster, SimpleNamespace(node_ids=NODES)), shards, 1, "bench/stock")


def test_files_are_where_their_names_say_with_every_digest_right(tmp_path: Path) -> None:
    for made in stock(tmp_path).make(Content(), 5000, range(1000, 1020)):
        sha256, sha1, md5, blocks = made.digests
        for shard, generation in made.replicas:
            name = str(BlobName(sha256, generation))
            body = (tmp_path / f"shard-{shard - 1}" / "blobs" / fan_out_of(name) / name).read_bytes()
            assert (len(body), hashlib.sha256(body).digest(), hashlib.sha1(body).digest()) == (5000, sha256, sha1)
            assert (hashlib.md5(body).digest(), block_digests(body)) == (md5, blocks)
            assert made.stored.digest == xxhash.xxh3_128_digest(body)
        assert made.stored.path.startswith("/artifactory/generic-local/bench/stock/5000B/0001/0001")
        assert [(shard - 1) // 2 for shard, _ in made.replicas] == list(made.stored.nodes)
        assert len(set(made.stored.nodes)) == 2


def test_content_differs(tmp_path: Path) -> None:
    made = stock(tmp_path).make(Content(), 100, range(300))
    assert len({one.digests[0] for one in made}) == 300


def test_rows_without_files_leave_the_disks_alone(tmp_path: Path) -> None:
    made = stock(tmp_path).make(None, 100, range(300))
    assert len({one.digests[0] for one in made}) == len({one.uid for one in made}) == 300
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@given(st.integers(0, (1 << 48) - 1))
def test_uuid_of_an_earlier_time_is_a_uuid7_of_that_time(milliseconds: int) -> None:
    made = UUID(int=uuid7_at(milliseconds).int)
    assert (made.version, made.variant, made.int >> 80) == (7, "specified in RFC 4122", milliseconds)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 30))
def test_batches_are_the_whole_in_order(start: int, length: int, most: int) -> None:
    found = list(batches(range(start, start + length), most))
    assert [number for batch in found for number in batch] == list(range(start, start + length))
    assert all(1 <= len(batch) <= most for batch in found)


def test_what_is_stocked_is_served(one: RunningCluster) -> None:
    cluster: Any = SimpleNamespace(node_ids=[one.first.config.node.id], dsn=one.dsn)
    stored = fill(cluster, 5000, 12, "bench/served")
    for each in stored:
        answer = one.admin.get(each.path)
        assert (answer.status, xxhash.xxh3_128_digest(answer.body)) == (200, each.digest)
        assert answer.headers["X-Checksum-Sha256"] == each.sha256
