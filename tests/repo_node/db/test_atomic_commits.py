"""Uploads that become visible together, as rows."""

from __future__ import annotations

import asyncpg
import pytest

from repo_node.db import atomic_commits
from repo_node.db.atomic_commits import commit_together
from repo_node.db.blobs import CommitOutcome
from repo_node.db.commit_groups import UploadToCommit
from repo_node.db.errors import RacesLost
from tests.repo_node.db.scene import DAY_SECONDS, Scene, copies, paths


def uploads(scene: Scene, *names: str) -> list[UploadToCommit]:
    made = [
        UploadToCommit(scene.deployment(name, name.encode()), copies(1, 3), "{}", DAY_SECONDS, short=False)
        for name in names
    ]
    return sorted(made, key=lambda one: one.deployment.digests.sha256)


async def test_who_gets_no_turn_has_done_nothing_and_knows_it(
    scene: Scene, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic_commits, "TURN_WAIT", "20ms")
    both = uploads(scene, "a", "b")
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(2, $1)", scene.repository)
        with pytest.raises(RacesLost):
            await commit_together(scene.database, both, {})
        assert await paths(connection) == []
    results = await commit_together(scene.database, both, {})
    assert {result.outcome for result in results} == {CommitOutcome.ADOPTED}
    assert await paths(connection) == ["a", "b"]


async def test_one_that_cannot_be_committed_leaves_nothing_of_the_others(
    scene: Scene, connection: asyncpg.Connection
) -> None:
    old, new = uploads(scene, "a"), uploads(scene, "b")
    too_old = UploadToCommit(old[0].deployment, old[0].replicas, "{}", -1, short=False)
    results = await commit_together(scene.database, [*new, too_old], {})
    assert [result.outcome for result in results] == [CommitOutcome.ADOPTED, CommitOutcome.TOO_OLD]
    assert await paths(connection) == []
    for name in ("blobs", "replicas", "events"):
        assert await connection.fetchval(f"SELECT count(*) FROM {name}") == 0
