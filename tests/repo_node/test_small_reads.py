"""Small reads on three nodes: whatever is kept in memory or asked together, each answer is as of now."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.repo_node.nodes import RunningCluster, new_path, random_bytes


def test_what_one_node_changes_is_seen_by_the_next_read_of_each(three: RunningCluster) -> None:
    path = new_path()
    for turn in range(6):
        body = random_bytes(5_000)
        writer = three.nodes[turn % 3].admin
        assert writer.put(path, body).status == 201
        for node in three.nodes * 2:
            found = node.admin.get(path)
            assert (found.status, found.body) == (200, body)
            etag = found.headers["ETag"]
            assert node.admin.request("HEAD", path).headers["ETag"] == etag
        assert writer.delete(path).status == 204
        for node in three.nodes:
            assert node.admin.get(path).status == 404
            assert node.admin.request("HEAD", path).status == 404
    # Somebody has the blob on no disk of their own, and asked a peer for it once.
    kept = [node.node.metrics.hot_blob_looks.labels("yes").value for node in three.nodes]
    assert sum(kept) >= 6


def test_reads_that_come_together_each_get_their_own(three: RunningCluster) -> None:
    bodies = {new_path(): random_bytes(100 + number) for number in range(12)}
    for path, body in bodies.items():
        assert three.nodes[0].admin.put(path, body).status == 201
    missing = [new_path() for _ in range(4)]

    def read(path: str) -> bytes | int:
        answer = three.nodes[1].admin.get(path)
        return answer.body if answer.status == 200 else answer.status

    asked = [*bodies, *missing] * 6
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(read, asked)) == [bodies.get(path, 404) for path in asked]
