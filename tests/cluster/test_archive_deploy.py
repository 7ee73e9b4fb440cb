"""A node that dies while it unpacks an archive: no part of one is left behind that is not an artifact."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from sharding.crash_points import ALLOWED, AT
from tests.cluster.processes import Cluster, curl, is_ready, until
from tests.repo_node.archive_files import packed

FILES = {f"sub/{number}": f"content {number}".encode() for number in range(40)}
COUNT_SQL = "SELECT count(*) FROM artifacts WHERE blob_id IS NOT NULL AND folder = $1"


@pytest.mark.timeout(240)
async def test_death_while_unpacking_leaves_all_or_what_was_stored(two: Cluster, dsn: str, tmp_path: Path) -> None:
    other, node = two.nodes
    archive = tmp_path / "a.tgz"
    archive.write_bytes(packed("tgz", FILES))
    connection = await asyncpg.connect(dsn)
    for step, header, expected in (
        ("explode.spooled", "X-Explode-Archive: true", range(1)),
        ("explode.member:5", "X-Explode-Archive: true", range(4, 40)),
        ("explode.durable", "X-Explode-Archive-Atomic: true", range(1)),
        ("explode.committed", "X-Explode-Archive-Atomic: true", range(40, 41)),
    ):
        top = step.partition(":")[0]
        put = ("-H", "Expect:", "-T", str(archive), "-H", header)
        node.kill()
        node.extra_environment = {AT: step, ALLOWED: "1"}
        node.start()
        await until(lambda: is_ready(node), "the node to be ready", 60)
        url = f"artifactory/generic-local/{top}/a.tgz"
        assert curl(*put, f"{node.url}/{url}")[0] == 0, "no answer came"
        assert await connection.fetchval(COUNT_SQL, f"{top}/sub") in expected, step
        assert curl(*put, f"{other.url}/{url}")[0] == 201
        assert await connection.fetchval(COUNT_SQL, f"{top}/sub") == len(FILES)
        assert curl(f"{other.url}/artifactory/generic-local/{top}/sub/39") == (200, b"content 39")
        assert await connection.fetchval(COUNT_SQL, top) == 0, "the archive itself is none"
    node.kill()
    node.extra_environment = {}
    node.start()
    await until(lambda: is_ready(node), "the node to be ready", 60)
    assert [path for path in (tmp_path / "cluster").rglob("tmp/*") if path.is_file()] == []
    await connection.close()
