"""The janitor: what is deleted when, its bounds, and how it ends."""

from __future__ import annotations

import asyncio
import logging

import pytest

from sharding import janitor as janitor_module
from sharding.background import Background
from sharding.guarded import Operation
from sharding.janitor import CLOSE_SECONDS, SECOND_DELETION_SECONDS, Janitor
from sharding.model import BlobName, Generation, ShardId
from tests.sharding.faulty import Fault
from tests.sharding.memory import Cluster, instant, mint

SHA256 = bytes(32)


def janitor_of(cluster: Cluster) -> Janitor:
    return Janitor(cluster.shards.get)


def add_file(cluster: Cluster, shard: int = 0) -> BlobName:
    name = BlobName(SHA256, Generation(mint()))
    cluster.memory[ShardId(shard)].files[name] = b"bytes"
    return name


@instant
async def test_write_given_up_is_deleted_now_and_once_more_when_it_can_no_longer_be_under_way() -> None:
    cluster = Cluster("a1")
    janitor, name = janitor_of(cluster), add_file(cluster)
    janitor.delete_later(cluster.members[0], name)
    await asyncio.sleep(1)
    assert cluster.files() == {}
    cluster.memory[ShardId(0)].files[name] = b"late"
    await asyncio.sleep(SECOND_DELETION_SECONDS - 2)
    assert len(cluster.files()) == 1
    await asyncio.sleep(2)
    assert cluster.files() == {}
    await janitor.close()


@instant
async def test_complete_replica_is_deleted_once() -> None:
    cluster = Cluster("a1")
    janitor, name = janitor_of(cluster), add_file(cluster)
    janitor.delete_replica(ShardId(0), name)
    await asyncio.sleep(1)
    assert cluster.files() == {}
    await janitor.close()
    assert asyncio.get_running_loop().time() < 2


@instant
async def test_deletion_that_fails_is_tried_a_second_time() -> None:
    cluster = Cluster("a1")
    janitor, name = janitor_of(cluster), add_file(cluster)
    cluster.faulty[ShardId(0)].plan(Operation.DELETE, Fault.FAIL)
    janitor.delete_later(cluster.members[0], name)
    await asyncio.sleep(SECOND_DELETION_SECONDS + 1)
    assert cluster.files() == {}
    await janitor.close()


@instant
async def test_shard_that_is_not_known_any_more_is_left_alone() -> None:
    cluster = Cluster("a1 b2")
    janitor = Janitor(lambda shard: None)
    name = add_file(cluster)
    janitor.delete_later(cluster.members[0], name)
    await janitor.close()
    assert len(cluster.files()) == 1


@instant
async def test_error_that_is_no_shards_is_logged_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster("a1 b2")
    names = [add_file(cluster, 0), add_file(cluster, 1)]

    async def delete(name: BlobName) -> None:
        raise ZeroDivisionError

    cluster.memory[ShardId(0)].delete = delete  # type: ignore[method-assign]
    janitor = janitor_of(cluster)
    with caplog.at_level(logging.ERROR):
        for member, name in zip(cluster.members, names, strict=True):
            janitor.delete_later(member, name)
        await janitor.close()
    assert [replica.shard for replica in cluster.files()] == [0]
    assert "ZeroDivisionError" in caplog.text


# ------------------------------------------------------------------ bounds


@instant
async def test_deletions_beyond_the_bound_are_left_and_aborts_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor_module, "DELETIONS_MAX", 3)
    cluster = Cluster("a1")
    janitor = janitor_of(cluster)
    names = [add_file(cluster) for _ in range(5)]
    staged = await cluster.shards[ShardId(0)].stage(Generation(mint()))
    for name in names:
        janitor.delete_later(cluster.members[0], name)
    janitor.abort_later(staged)
    await asyncio.sleep(1)
    assert {name for name in names if name in cluster.memory[ShardId(0)].files} == set(names[3:])
    assert cluster.staged() == []
    await janitor.close()


# ------------------------------------------------------------------ its end


@instant
async def test_close_makes_the_second_deletions_at_once() -> None:
    cluster = Cluster("a1")
    janitor, name = janitor_of(cluster), add_file(cluster)
    janitor.delete_later(cluster.members[0], name)
    await asyncio.sleep(1)
    cluster.memory[ShardId(0)].files[name] = b"late"
    await janitor.close()
    assert cluster.files() == {}
    assert asyncio.get_running_loop().time() < 2


@instant
async def test_close_waits_only_so_long_for_a_shard_that_stalls() -> None:
    cluster = Cluster("a1")
    janitor, name = janitor_of(cluster), add_file(cluster)
    cluster.faulty[ShardId(0)].plan(Operation.DELETE, Fault.STALL, Fault.STALL)
    cluster.faulty[ShardId(0)].plan(Operation.ABORT, Fault.STALL)
    janitor.abort_later(await cluster.shards[ShardId(0)].stage(Generation(mint())))
    janitor.delete_later(cluster.members[0], name)
    await janitor.close()
    assert asyncio.get_running_loop().time() == pytest.approx(CLOSE_SECONDS, abs=0.1)


@instant
async def test_close_given_up_leaves_no_task() -> None:
    cluster = Cluster("a1")
    janitor, name = janitor_of(cluster), add_file(cluster)
    cluster.faulty[ShardId(0)].plan(Operation.DELETE, Fault.STALL, Fault.STALL)
    janitor.delete_later(cluster.members[0], name)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await janitor.close()


@instant
async def test_janitor_does_nothing_any_more_once_it_is_closed() -> None:
    cluster = Cluster("a1")
    janitor, name = janitor_of(cluster), add_file(cluster)
    await janitor.close()
    janitor.delete_later(cluster.members[0], name)
    await asyncio.sleep(SECOND_DELETION_SECONDS + 1)
    assert len(cluster.files()) == 1


@instant
async def test_background_says_whether_work_was_begun() -> None:
    background = Background(1)
    assert background.start(asyncio.sleep(1))
    assert not background.start(asyncio.sleep(1))
    await asyncio.sleep(2)
    assert background.start(asyncio.sleep(1))
    await background.close(5)
    assert not background.start(asyncio.sleep(1))
