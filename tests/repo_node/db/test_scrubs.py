"""The cursors of scrub as rows, and the rows it walks over."""

from __future__ import annotations

from uuid import UUID

import asyncpg
import pytest

from repo_node.db.scrubs import ScrubRows as AuditRows
from sharding.maintenance.audit_catalogue import REPLICA_COST_BYTES, ScrubKind, Volume
from sharding.model import BLOCK_BYTES, Generation, ShardId
from tests.repo_node.db.scene import Scene, digests_of

FIRST = Generation(UUID(int=0))
ONE = ShardId(1)


@pytest.fixture
def rows(scene: Scene) -> AuditRows:
    return AuditRows(scene.database)


async def test_passes_begin_when_first_asked_for(rows: AuditRows) -> None:
    found = await rows.passes([ONE, ShardId(2)])
    assert [(one.shard, one.kind) for one in found] == [
        (shard, kind) for shard in (1, 2) for kind in (ScrubKind.BLOCKS, ScrubKind.PROOF)
    ]
    assert all(one.position == FIRST and one.done == Volume(0, 0) and one.total is None for one in found)
    assert all(0 <= one.age_seconds < 60 and not one.is_finished for one in found)
    assert len(await rows.passes([ONE])) == 2


async def test_pass_goes_on_ends_and_begins_anew(rows: AuditRows, connection: asyncpg.Connection) -> None:
    await rows.passes([ONE])
    position = Generation(UUID(int=7))
    await rows.note_total(ONE, ScrubKind.BLOCKS, Volume(5, 500))
    await rows.advance(ONE, ScrubKind.BLOCKS, Generation(UUID(int=3)), Volume(2, 200))
    await rows.advance(ONE, ScrubKind.BLOCKS, position, Volume(1, 100))
    blocks, proof = await rows.passes([ONE])
    assert (blocks.position, blocks.done, blocks.total) == (position, Volume(3, 300), Volume(5, 500))
    assert proof.done == Volume(0, 0)
    await connection.execute("UPDATE scrubs SET started_at = started_at - interval '1 hour'")
    await rows.finish_pass(ONE, ScrubKind.BLOCKS)
    [blocks, _] = await rows.passes([ONE])
    assert blocks.is_finished and blocks.covered_age_seconds is not None and blocks.covered_age_seconds > 3599
    await rows.begin_pass(ONE, ScrubKind.BLOCKS)
    [blocks, _] = await rows.passes([ONE])
    assert (blocks.position, blocks.done, blocks.total, blocks.is_finished) == (FIRST, Volume(0, 0), None, False)
    assert blocks.age_seconds < 60
    assert blocks.covered_age_seconds is not None and blocks.covered_age_seconds > 3599, "the last whole pass holds"


async def test_walk_sees_every_live_replica_once_by_generation(scene: Scene, rows: AuditRows) -> None:
    written = [(await scene.upload(f"a{n}", bytes([n]) * 10, shards=(1, 3)))[1][0] for n in range(7)]
    await rows.mark_suspect(ONE, written[3].generation)
    after, seen = FIRST, []
    while page := await rows.live_replicas(ONE, after, 2):
        seen += page
        after = page[-1].name.generation
    live = sorted(one.generation for one in written if one is not written[3])
    assert [held.name.generation for held in seen] == live
    digests = {digests_of(bytes([n]) * 10).sha256: digests_of(bytes([n]) * 10).blocks for n in range(7)}
    assert all(held.size == 10 and held.blocks == digests[held.name.sha256] for held in seen)


async def test_digests_of_a_large_blob_do_not_come_along(
    scene: Scene, rows: AuditRows, connection: asyncpg.Connection
) -> None:
    await scene.upload("a", shards=(1, 3))
    size = 100 * BLOCK_BYTES
    await connection.execute("UPDATE blobs SET size = $1::bigint, block_digests = $2", size, bytes(800))
    [held] = await rows.live_replicas(ONE, FIRST, 10)
    assert (held.size, held.blocks) == (size, None)


async def test_survey_counts_page_by_page(scene: Scene, rows: AuditRows) -> None:
    written = [(await scene.upload(f"a{n}", bytes([n]), shards=(1, 3)))[1][0] for n in range(5)]
    await rows.mark_suspect(ONE, written[0].generation)
    end, first = await rows.survey(ONE, FIRST, 3)
    assert end == sorted(one.generation for one in written)[2]
    last, second = await rows.survey(ONE, end, 3)
    assert last is None
    assert first + second == Volume(4, 4 * REPLICA_COST_BYTES)
    assert await rows.survey(ShardId(2), FIRST, 3) == (None, Volume(0, 0))


async def test_request_of_an_operator_is_seen_until_it_is_answered(
    rows: AuditRows, connection: asyncpg.Connection
) -> None:
    [before, _] = await rows.passes([ONE])
    assert not before.is_asked_for and not before.in_haste
    await connection.execute(
        "INSERT INTO jobs (node_id, job, state, requested_at) VALUES ('n1', 'scrub', 'idle', clock_timestamp())"
    )
    [asked, _, other, _] = await rows.passes([ONE, ShardId(3)])
    assert asked.is_asked_for and asked.in_haste and not other.in_haste
    await rows.begin_pass(ONE, ScrubKind.BLOCKS)
    [begun, _] = await rows.passes([ONE])
    assert not begun.is_asked_for and begun.in_haste
    await connection.execute("UPDATE jobs SET answered_at = requested_at")
    [answered, _] = await rows.passes([ONE])
    assert not answered.in_haste
