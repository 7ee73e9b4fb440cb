"""The frames of a staged upload: any cut of the stream means the same, and garbage is called garbage."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.frames import (
    ABORT_FRAME,
    ALIVE_FRAME,
    ANSWER_BYTES_MAX,
    DONE_FRAME,
    FRAME_BYTES_MAX,
    HEAD,
    Commit,
    FrameError,
    Signal,
    StreamReceiver,
    commit_frame,
    data_head,
    parse_answer,
    refusal_frame,
)
from sharding.model import BLOCK_BYTES, block_count

SHA256 = bytes(range(32))
PIECES = st.lists(st.integers(0, 40) | st.sampled_from([BLOCK_BYTES - 1, BLOCK_BYTES, 400_000]), max_size=6)
CUTS = st.lists(st.integers(1, 7) | st.integers(1, 3 * BLOCK_BYTES), min_size=1, max_size=5)


def receive(stream: bytes, cuts: Iterator[int]) -> tuple[list[bytes], Commit | Signal | None]:
    """Feed ``stream`` in pieces of at most ``cuts`` bytes; return the blocks of data and how it ended."""
    receiver = StreamReceiver()
    blocks = []
    position = 0
    event: Commit | Signal | None = None
    while position < len(stream) and not receiver.ended:
        room = receiver.room()
        assert len(room) > 0
        piece = stream[position : position + min(len(room), next(cuts))]
        room[: len(piece)] = piece
        position += len(piece)
        event = receiver.advance(len(piece))
        if event is Signal.BLOCK:
            blocks.append(bytes(receiver.block))
            receiver.take_block()
    blocks.append(bytes(receiver.block[: receiver.filled]))
    assert position == len(stream)
    return blocks, event


def data_frames(data: bytes, lengths: list[int]) -> bytes:
    """Return ``data`` as frames of ``lengths``."""
    frames = []
    start = 0
    for length in lengths:
        frames.append(data_head(length) + data[start : start + length])
        start += length
    return b"".join(frames)


@settings(max_examples=60, deadline=None)
@given(lengths=PIECES, cuts=CUTS)
def test_stream_means_the_same_however_it_is_cut(lengths: list[int], cuts: list[int]) -> None:
    data = random.Random(1).randbytes(sum(lengths))
    digests = bytes(8 * block_count(len(data)))
    if min(cuts) < 8:
        cuts = [*cuts, BLOCK_BYTES]
    blocks, end = receive(data_frames(data, lengths) + commit_frame(SHA256, digests), cycle(cuts))
    assert b"".join(blocks) == data
    assert all(len(block) == BLOCK_BYTES for block in blocks[:-1])
    assert end == Commit(SHA256, digests)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 50), max_size=5), cuts=st.lists(st.integers(1, 9), min_size=1))
def test_abort_ends_the_stream_wherever_it_comes(lengths: list[int], cuts: list[int]) -> None:
    data = bytes(sum(lengths))
    blocks, end = receive(data_frames(data, lengths) + ABORT_FRAME, cycle(cuts))
    assert end is Signal.ABORT
    assert b"".join(blocks) == data


@settings(deadline=None)
@given(garbage=st.binary(max_size=200), cuts=st.lists(st.integers(1, 9), min_size=1))
def test_s11_garbage_is_a_frame_error_or_an_unfinished_stream(garbage: bytes, cuts: list[int]) -> None:
    receiver = StreamReceiver()
    rest = memoryview(garbage)
    try:
        for cut in cycle(cuts):
            if not rest or receiver.ended:
                break
            length = min(cut, len(rest), len(receiver.room()))
            receiver.room()[:length] = rest[:length]
            rest = rest[length:]
            receiver.advance(length)
    except FrameError:
        return
    assert receiver.before + receiver.filled <= len(garbage)


def test_stream_cut_anywhere_has_no_end() -> None:
    stream = data_head(20) + bytes(20) + ALIVE_FRAME + commit_frame(SHA256, bytes(8))
    for length in range(len(stream)):
        assert receive(stream[:length], cycle([3]))[1] is None


def head(kind: bytes, length: int) -> bytes:
    return HEAD.pack(kind[0], length)


@pytest.mark.parametrize(
    "wrong",
    [
        head(b"D", FRAME_BYTES_MAX + 1),
        head(b"D", 0xFFFFFFFF),
        head(b"A", 1),
        head(b"C", 31),
        head(b"C", 32 + 8),
        head(b"C", 0xFFFFFFFF),
        head(b"R", 0),
        head(b"\0", 0),
        head(b"d", 1),
    ],
    ids=bytes.hex,
)
def test_frame_is_refused_when_its_kind_or_length_is_wrong(wrong: bytes) -> None:
    with pytest.raises(FrameError):
        receive(wrong, cycle([1]))


@pytest.mark.parametrize(("size", "digests"), [(0, 0), (1, 1), (BLOCK_BYTES, 1), (BLOCK_BYTES + 1, 2)])
def test_commit_has_exactly_the_digests_that_its_data_calls_for(size: int, digests: int) -> None:
    lengths = [min(size, BLOCK_BYTES), max(0, size - BLOCK_BYTES)]
    frames = data_frames(bytes(size), lengths)
    assert receive(frames + commit_frame(SHA256, bytes(8 * digests)), cycle([BLOCK_BYTES]))[1] == Commit(
        SHA256, bytes(8 * digests)
    )
    for wrong in (digests - 1, digests + 1):
        if wrong >= 0:
            with pytest.raises(FrameError):
                receive(frames + commit_frame(SHA256, bytes(8 * wrong)), cycle([BLOCK_BYTES]))


@given(body=st.binary(max_size=300), cut=st.integers(0, 305))
def test_answer_is_complete_only_with_its_last_byte(body: bytes, cut: int) -> None:
    frame = refusal_frame(body)
    assert parse_answer(frame) == body
    if cut < len(frame):
        assert parse_answer(frame[:cut]) is None
    with pytest.raises(FrameError):
        parse_answer(frame + b"x")


def test_answer_without_a_body_says_done() -> None:
    assert parse_answer(DONE_FRAME) == b""


@given(st.binary(min_size=5, max_size=40))
def test_other_bytes_are_no_answer(stream: bytes) -> None:
    kind, length = HEAD.unpack_from(stream)
    if kind == b"R"[0] and length <= ANSWER_BYTES_MAX and len(stream) <= 5 + length:
        return
    with pytest.raises(FrameError):
        parse_answer(stream)
