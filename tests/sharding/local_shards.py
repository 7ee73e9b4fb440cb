"""Local shards for tests: made in a temporary directory, opened and closed."""

from __future__ import annotations

import uuid
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from sharding import identity
from sharding.cached_reads import CachedReads
from sharding.local import CACHED_BYTES_MAX, LocalShard, open_local_shard
from sharding.model import ShardId

SHARD = ShardId(7)


def open_at(
    path: Path, *, reserve_bytes: int = 0, cached_bytes_max: int = CACHED_BYTES_MAX, threads: int = 4
) -> AbstractAsyncContextManager[LocalShard]:
    """Open the shard at ``path``, made first where there is none."""
    found = identity.inspect(path) or identity.create(path, uuid.uuid4(), uuid.uuid4())
    return open_local_shard(
        SHARD, path, found, reserve_bytes=reserve_bytes, cached_bytes_max=cached_bytes_max, threads=threads
    )


def forget_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be answered from memory."""
    monkeypatch.setattr(CachedReads, "read", lambda *_: None)
    monkeypatch.setattr(CachedReads, "open", lambda *_: None)
    monkeypatch.setattr(CachedReads, "size", lambda *_: None)
