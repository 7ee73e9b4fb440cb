"""A node that dies in the middle of a move: each artifact is at one place, and the same request goes on elsewhere."""

from __future__ import annotations

import asyncpg

from sharding.crash_points import ALLOWED, AT
from tests.cluster.processes import Cluster, NodeProcess, curl, is_ready, until

ARTIFACTS = 1_500
FILL_SQL = """
    INSERT INTO artifacts (repo_id, folder, name, blob_id, created_by, modified_by)
    SELECT a.repo_id, 'tree', 'n' || i, a.blob_id, 'x', 'x' FROM artifacts a, generate_series(1, $1::integer) AS i
     WHERE a.folder = 'tree' AND a.name = 'first'
"""
COUNT_SQL = "SELECT count(*) FROM artifacts WHERE blob_id IS NOT NULL AND folder = $1"
MOVE = "artifactory/api/move/generic-local/tree?to=/generic-local/moved"


async def test_death_in_a_move_loses_nothing_and_a_repeat_ends_it(two: Cluster, dsn: str) -> None:
    other, node = two.nodes
    for step, moved in (("transfer.page", 1_000), ("transfer.walked", ARTIFACTS + 1)):
        connection = await asyncpg.connect(dsn)
        assert put(other, "generic-local/tree/first") == 201
        await connection.fetchval(FILL_SQL, ARTIFACTS)
        node.kill()
        node.extra_environment = {AT: step, ALLOWED: "1"}
        node.start()
        await until(lambda: is_ready(node), "the node to be ready", 60)
        assert curl("-X", "POST", f"{node.url}/{MOVE}")[0] == 0, "no answer came"
        counts = [await connection.fetchval(COUNT_SQL, folder) for folder in ("tree", "moved")]
        assert sum(counts) == ARTIFACTS + 1
        # The folder itself is the first of the first page.
        assert counts[1] in (moved, moved - 1)
        assert curl("-X", "POST", f"{other.url}/{MOVE}")[0] == 200
        assert await connection.fetchval(COUNT_SQL, "moved") == ARTIFACTS + 1
        assert curl(f"{other.url}/artifactory/api/storage/generic-local/tree")[0] == 404
        assert curl(f"{other.url}/artifactory/generic-local/moved/n{ARTIFACTS}") == (200, b"body")
        assert curl("-X", "DELETE", f"{other.url}/artifactory/generic-local/moved")[0] == 204
        await connection.close()


def put(node: NodeProcess, path: str) -> int:
    return curl("-X", "PUT", "--data-binary", "body", f"{node.url}/artifactory/{path}")[0]
