"""Long files are written around the page cache where that is possible, and have the same bytes in any case."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import random
from pathlib import Path

import pytest

from sharding.direct_writes import DirectWrites
from sharding.model import BLOCK_BYTES, BlobName, Buffer
from sharding.room import CLEARED_BYTES_MAX, PAGE_BYTES, is_aligned, room_for
from tests.sharding.local_shards import open_at
from tests.sharding.shard_contract import block_digests, make_generation, replica_file


def block_of(data: bytes) -> memoryview:
    """Return ``data`` in memory as uploads have it."""
    room = room_for(len(data))
    room[:] = data
    return room


@pytest.mark.parametrize("length", [CLEARED_BYTES_MAX + 1, 300_000, BLOCK_BYTES])
def test_longer_memory_begins_with_a_page(length: int) -> None:
    room = room_for(length)
    assert len(room) == length
    assert is_aligned(room[: length - length % PAGE_BYTES])
    assert not is_aligned(room[1 : 1 + PAGE_BYTES])
    assert not is_aligned(room[: PAGE_BYTES + 1])


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each write to a staged file so far was a direct one."""
    found: list[bool] = []
    real = os.write

    def write(file: int, data: Buffer) -> int:
        if Path(os.readlink(f"/proc/self/fd/{file}")).parent.name == "tmp":
            found.append(bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT))
        return real(file, data)

    monkeypatch.setattr(os, "write", write)
    return found


async def store(root: Path, pieces: list[Buffer], *, kept: int, length: int | None = None) -> bytes:
    """Return what lies in the file of a blob that came in ``pieces``, of ``length`` in all as its writer says."""
    data = b"".join(pieces)
    async with open_at(root, cached_bytes_max=kept) as shard:
        name = BlobName(hashlib.sha256(data).digest(), make_generation())
        staged = await shard.stage(name.generation, length)
        for piece in pieces:
            await staged.write(piece)
        await staged.commit(name.sha256, block_digests(data))
        return replica_file(root, name).read_bytes()


async def test_whole_blocks_of_a_long_file_are_written_directly(tmp_path: Path, written: list[bool]) -> None:
    pieces: list[Buffer] = [block_of(os.urandom(BLOCK_BYTES)) for _ in range(4)]
    assert await store(tmp_path / "shard", [*pieces, b"the end"], kept=2 * BLOCK_BYTES) == b"".join(pieces) + b"the end"
    # Before them the shard has tested itself.
    assert written[-5:] == [False, False, True, True, False]


async def test_a_file_that_is_known_to_become_long_is_written_directly_from_its_first_block(
    tmp_path: Path, written: list[bool]
) -> None:
    pieces: list[Buffer] = [*(block_of(os.urandom(BLOCK_BYTES)) for _ in range(3)), b"the end"]
    whole = b"".join(pieces)
    assert await store(tmp_path / "long", pieces, kept=2 * BLOCK_BYTES, length=len(whole)) == whole
    assert written[-4:] == [True, True, True, False]
    assert await store(tmp_path / "short", pieces[:2], kept=2 * BLOCK_BYTES, length=2 * BLOCK_BYTES) == whole[: 2 << 20]
    assert written[-2:] == [False, False]


@pytest.mark.parametrize("length", [0, 1, 10**15])
async def test_a_length_that_is_wrong_does_no_harm(tmp_path: Path, length: int) -> None:
    pieces: list[Buffer] = [block_of(os.urandom(BLOCK_BYTES)) for _ in range(3)]
    assert await store(tmp_path / "shard", pieces, kept=2 * BLOCK_BYTES, length=length) == b"".join(pieces)


async def test_what_was_written_directly_is_read_at_any_place_before_it_is_committed(tmp_path: Path) -> None:
    data = os.urandom(4 * BLOCK_BYTES)
    async with open_at(tmp_path / "shard", cached_bytes_max=BLOCK_BYTES) as shard:
        staged = await shard.stage(make_generation())
        for start in range(0, len(data), BLOCK_BYTES):
            await staged.write(block_of(data[start : start + BLOCK_BYTES]))
        for offset, length in ((0, len(data)), (1, 1000), (2 * BLOCK_BYTES + 77, BLOCK_BYTES)):
            assert bytes(await staged.read(offset, length)) == data[offset : offset + length]
        reading = [staged.read(start, 5000) for start in range(0, 20_000, 5000)]
        found = await asyncio.gather(staged.write(block_of(data[:BLOCK_BYTES])), *reading)
        assert b"".join(found[1:]) == data[:20_000]
        await staged.abort()


@pytest.mark.parametrize("seed", range(8))
async def test_pieces_of_any_size_and_place_in_memory_add_up(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    pieces: list[Buffer] = []
    for _ in range(24):
        length = draw.choice([1, 511, 512, PAGE_BYTES, 3 * PAGE_BYTES, 20_000, 16 * PAGE_BYTES])
        start = draw.choice([0, 0, 1, 512])
        pieces.append(block_of(draw.randbytes(length + CLEARED_BYTES_MAX + start))[start : start + length])
    assert await store(tmp_path / "shard", pieces, kept=PAGE_BYTES) == b"".join(pieces)


async def test_a_file_system_that_takes_no_direct_writes_is_written_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, real = 0, os.write

    def write(file: int, data: Buffer) -> int:
        nonlocal refused
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            refused += 1
            raise OSError(errno.EINVAL, "no")
        return real(file, data)

    monkeypatch.setattr(os, "write", write)
    pieces: list[Buffer] = [block_of(os.urandom(BLOCK_BYTES)) for _ in range(4)]
    assert await store(tmp_path / "shard", pieces, kept=0) == b"".join(pieces)
    assert refused == 1, "it is asked once for each file"


async def test_what_is_written_in_part_goes_on_as_usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def write(file: int, data: Buffer) -> int:
        """Take less than asked for, so that the rest fits no direct write."""
        return real(file, memoryview(data)[:1000])

    monkeypatch.setattr(os, "write", write)
    pieces: list[Buffer] = [block_of(os.urandom(2 * CLEARED_BYTES_MAX)) for _ in range(3)]
    assert await store(tmp_path / "shard", pieces, kept=0) == b"".join(pieces)


def test_a_flag_that_is_refused_is_no_error_and_any_other_failure_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "file").open("wb") as file:
        writes, real = DirectWrites(file.fileno()), fcntl.fcntl
        number = errno.EINVAL

        def refuse(descriptor: int, command: int, value: int = 0) -> int:
            if command == fcntl.F_SETFL:
                raise OSError(number, os.strerror(number))
            return real(descriptor, command, value)

        monkeypatch.setattr(fcntl, "fcntl", refuse)
        writes.prefer(0, block_of(bytes(BLOCK_BYTES)))
        assert (writes.is_on, writes.is_possible) == (False, False)
        number = errno.EIO
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            writes.set(True)
