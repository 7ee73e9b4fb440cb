"""Fixtures of the internal listener's tests: one shard that can be made to fail, behind a listener on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.repo_node.internal.listener import Listener, run_listener
from tests.sharding.faulty import FaultyShard
from tests.sharding.local_shards import open_at


@pytest.fixture
def shard_root(tmp_path: Path) -> Path:
    return tmp_path / "shard"


@pytest.fixture
async def owned(shard_root: Path) -> AsyncIterator[FaultyShard]:
    """The shard behind the listener."""
    async with open_at(shard_root) as shard:
        yield FaultyShard(shard)


@pytest.fixture
async def listener(owned: FaultyShard) -> AsyncIterator[Listener]:
    async with run_listener(owned) as running:
        yield running
