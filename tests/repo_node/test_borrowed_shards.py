"""The shards that a worker borrows: opened when their disks let it, and given back whatever happened."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

from repo_node.cluster.own_shards import Owner
from repo_node.settings import LiveSettings, Settings
from repo_node.workers import borrowed_shards
from repo_node.workers.borrowed_shards import BorrowedShards
from repo_node.workers.messages import OpenShard
from sharding.errors import ShardUnavailable
from sharding.model import NodeId, ShardId
from tests.repo_node.internal.listener import eventually

SHARD = ShardId(1)


@pytest.mark.parametrize("error", [ShardUnavailable(SHARD, "its disk fails"), OSError("no descriptors"), KeyError(1)])
@pytest.mark.parametrize("closes", [True, False])
async def test_a_shard_is_given_back_whatever_opening_and_closing_it_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, closes: bool
) -> None:
    async def close() -> None:
        if not closes:
            raise error

    own = SimpleNamespace(uid=uuid4(), shard=SimpleNamespace(id=SHARD, is_given_up=True), close=close)
    outcomes: list[object] = [error, error, own]

    async def join(*_: object) -> object:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(borrowed_shards, "join_own_shard", join)
    given_back: list[UUID] = []
    settings = LiveSettings(Settings().model_copy(update={"shard_retry_seconds": 0.01}))
    owner = Owner(uuid4(), NodeId("node-1"), uuid4())
    shards = BorrowedShards(owner, "worker-1-1", settings, given_back.append)
    shards.open(OpenShard(SHARD, own.uid, SimpleNamespace(path=tmp_path)), os.open(tmp_path, os.O_RDONLY))  # type: ignore[arg-type]
    await eventually(lambda: SHARD in shards.shards)
    await asyncio.sleep(0)
    assert given_back == []
    shards.call_back(own.uid)
    await eventually(lambda: given_back == [own.uid])
    assert shards.find(own.uid) is None
    await shards.close()
