"""A shard that another node owns, reached over that node's internal listener."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from uuid import UUID

from sharding import calls
from sharding.calls import CallError
from sharding.errors import ShardRefused, ShardUnavailable
from sharding.model import BLOCK_BYTES, BlobName, Buffer, Generation, ShardId
from sharding.peer import Peer, ShardCalls
from sharding.remote_staging import open_staged
from sharding.shard import StagedBlob


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
        await self._calls.order(calls.put_request(name, data))

    async def stage(self, generation: Generation, length: int | None = None) -> StagedBlob:
        return await open_staged(self._calls, generation, length)

    async def read(self, name: BlobName, *, size: int, offset: int, length: int) -> Buffer:
        return await self._calls.read(partial(calls.Read, name, size), offset, length)

    def recall(self, name: BlobName, *, size: int, offset: int, length: int) -> Buffer | None:
        """See ``Shard.recall``: a peer has to be asked."""
        return None

    async def sizes(self, names: Sequence[BlobName]) -> list[int | None]:
        found: list[int | None] = []
        for start in range(0, len(names), calls.SIZES_NAMES_MAX):
            found += await self._sizes(tuple(names[start : start + calls.SIZES_NAMES_MAX]))
        return found

    async def delete(self, name: BlobName) -> None:
        await self._calls.order(calls.Delete(name))

    async def _sizes(self, names: tuple[BlobName, ...]) -> list[int | None]:
        answer = await self._calls.call(calls.Sizes(names))
        try:
            return calls.parse_sizes(answer, len(names))
        except CallError as error:
            raise ShardUnavailable(self.id, f"its owner was not understood: {error}") from None
