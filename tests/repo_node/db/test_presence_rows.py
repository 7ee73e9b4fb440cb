"""What a node should hold: samples of it, all of it in order, and no statement that reads a whole table."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from repo_node.db import audits, presence, scrubs
from repo_node.db.presence import PresenceRows
from sharding.maintenance.audit_catalogue import Fault
from sharding.maintenance.comparison import FIRST, RowState
from sharding.model import Generation, ShardId
from tests.repo_node.db.scene import Scene, digests_of
from tests.repo_node.db.test_plans import REPLICA_SQL, filled_dsn, large, whole_scans

__all__ = ["filled_dsn", "large"]

ONE = ShardId(1)


@pytest.fixture
def rows(scene: Scene) -> PresenceRows:
    return PresenceRows(scene.database)


async def generations(scene: Scene, count: int) -> list[Generation]:
    written = [(await scene.upload(f"a{n}", bytes([n]), shards=(1, 3)))[1][0] for n in range(count)]
    return sorted(one.generation for one in written)


async def test_bounds_are_the_first_and_the_last(scene: Scene, rows: PresenceRows) -> None:
    assert await rows.bounds(ONE) is None
    found = await generations(scene, 5)
    assert await rows.bounds(ONE) == (found[0], found[-1])
    assert await rows.bounds(ShardId(2)) is None


async def test_sample_takes_what_follows_each_point_once(scene: Scene, rows: PresenceRows) -> None:
    found = await generations(scene, 6)
    await rows.mark_suspect(ONE, found[1])
    sampled = await rows.sample(ONE, [FIRST, found[0], found[4], found[5]], 2)
    assert [held.name.generation for held in sampled] == [found[0], found[2], found[3], found[5]]
    assert all(held.size == 1 and held.shard == ONE for held in sampled)


async def test_known_files_are_those_of_every_kind_of_row(
    scene: Scene, rows: PresenceRows, connection: asyncpg.Connection
) -> None:
    _, (live, _) = await scene.upload("live", b"live", shards=(1, 3))
    _, (doubted, _) = await scene.upload("doubted", b"doubted", shards=(1, 3))
    _, (bad, _) = await scene.upload("bad", b"bad", shards=(1, 3))
    removed = Generation(uuid4())
    await rows.mark_suspect(ONE, doubted.generation)
    await rows.condemn(ONE, bad.generation, Fault.BYTES)
    await connection.execute(
        "SELECT remove_later(1::smallint, $1, $2, 'gc')",
        removed,
        bytes(32),
    )
    expected = {
        live.generation: (RowState.LIVE, digests_of(b"live").sha256, 4),
        doubted.generation: (RowState.SUSPECT, digests_of(b"doubted").sha256, 7),
        bad.generation: (RowState.CONDEMNED, digests_of(b"bad").sha256, None),
        removed: (RowState.REMOVAL, bytes(32), None),
    }
    for count in (1, 2, 3, 10):
        after, seen = FIRST, []
        while page := await rows.known(ONE, after, count):
            seen += page
            after = page[-1].generation
        assert [row.generation for row in seen] == sorted(expected)
        assert {row.generation: (row.state, row.sha256, row.size) for row in seen} == expected


READS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "suspects": (audits.SUSPECTS.sql, (1, FIRST, 10)),
    "unmoved": (audits.UNMOVED.sql, (1, 10)),
    "scrub": (scrubs.LIVE.sql, (1, FIRST, 128, 1 << 26)),
    "survey": (scrubs.SURVEY.sql, (1, FIRST, 500, 1)),
    "bounds": (presence.BOUNDS.sql, (1,)),
    "sample": (presence.SAMPLE.sql, (1, [FIRST, UUID(int=1 << 127)], 50)),
    "known": (presence.KNOWN.sql, (1, FIRST, 50)),
}


@pytest.mark.parametrize("read", READS)
async def test_read_uses_its_index(large: asyncpg.Connection, read: str) -> None:
    sql, args = READS[read]
    await large.fetch(sql, *args)
    assert await whole_scans(large) == []


@pytest.mark.parametrize("function", ["condemn", "drop", "reinstate", "correct"])
async def test_verdict_uses_indexes_alone(large: asyncpg.Connection, function: str) -> None:
    row = await large.fetchrow(REPLICA_SQL, 8)
    assert row is not None
    match function:
        case "condemn":
            assert await large.fetchval(audits.CONDEMN.sql, *row, "bytes") == "condemned"
        case "drop":
            dropped = await large.fetchrow(audits.DROP_ABSENT.sql, row["shard_id"], [row["generation"]])
            assert dropped is not None and tuple(dropped) == (1, 0)
        case "reinstate":
            assert not await large.fetchval(audits.REINSTATE.sql, *row)
        case _:
            assert await large.fetchval(audits.CORRECT_DIGESTS.sql, *row, b"12345678")
    assert await whole_scans(large) == []
