"""A shard that another node owns, reached over that node's internal listener."""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import UUID

from sharding import wire
from sharding.digests import block_digests
from sharding.errors import ShardRefused, ShardUnavailable
from sharding.model import BLOCK_BYTES, BlobName, Buffer, Generation, ShardId
from sharding.peer import Peer, ShardCalls
from sharding.remote_staging import open_staged
from sharding.shard import StagedBlob

SIZES_ANSWER_BYTES_MAX = wire.SIZES_NAMES_MAX * 24


class RemoteShard:
    """A ``Shard`` of ``peer``, which knows it by its ``uid``; ``id`` only signs the errors."""

    def __init__(self, id: ShardId, uid: UUID, peer: Peer) -> None:
        self._calls = ShardCalls(id, uid, peer)

    @property
    def id(self) -> ShardId:
        return self._calls.id

    async def put(self, name: BlobName, data: Buffer) -> None:
        if memoryview(data).nbytes > BLOCK_BYTES:
            raise ShardRefused(self.id, f"a blob of more than {BLOCK_BYTES} bytes must be staged")
        headers = self._calls.peer.all_headers() | {wire.BLOCKS_HEADER: block_digests(data).hex()}
        await self._calls.call("PUT", f"/blobs/{name}", 201, data=data, headers=headers)

    async def stage(self, generation: Generation) -> StagedBlob:
        return await open_staged(self._calls, generation)

    async def read(self, name: BlobName, *, size: int, offset: int, length: int) -> Buffer:
        return await self._calls.read(f"/blobs/{name}", f"size={size}&", offset, length)

    async def sizes(self, names: Sequence[BlobName]) -> list[int | None]:
        found: list[int | None] = []
        for start in range(0, len(names), wire.SIZES_NAMES_MAX):
            found += await self._sizes(names[start : start + wire.SIZES_NAMES_MAX])
        return found

    async def delete(self, name: BlobName) -> None:
        await self._calls.call("DELETE", f"/blobs/{name}", 204)

    async def _sizes(self, names: Sequence[BlobName]) -> list[int | None]:
        body = json.dumps({"names": [str(name) for name in names]}).encode()
        answer = await self._calls.call("POST", "/sizes", 200, data=body, answer_bytes_max=SIZES_ANSWER_BYTES_MAX)
        try:
            sizes = json.loads(answer)["sizes"]
            if len(sizes) == len(names) and all(size is None or type(size) is int for size in sizes):
                return list(sizes)
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise ShardUnavailable(self.id, "its owner answered something else than sizes")
