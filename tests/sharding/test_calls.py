"""Calls between nodes: what is sent arrives as it was, however the stream is cut, and garbage is called garbage."""

from __future__ import annotations

import random
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sharding.calls import (
    GATHERED_BYTES,
    HEAD,
    MESSAGE_BYTES_MAX,
    READ_BYTES_MAX,
    SIZES_NAMES_MAX,
    Call,
    CallError,
    Delete,
    Kind,
    Message,
    MessageReceiver,
    Put,
    Read,
    ReadStaged,
    Request,
    Sizes,
    arrived_whole,
    pack_sizes,
    parse_request,
    parse_sizes,
    put_request,
    request_message,
)
from sharding.model import BLOCK_BYTES, BlobName, Generation

names = st.builds(BlobName, st.binary(min_size=32, max_size=32), st.uuids().map(Generation))
offsets, lengths = st.integers(0, 2**64 - 1), st.integers(0, READ_BYTES_MAX)
requests = st.one_of(
    st.builds(put_request, names, st.binary(max_size=100)),
    st.builds(Read, names, offsets, offsets, lengths),
    st.builds(Sizes, st.lists(names, max_size=4).map(tuple)),
    st.builds(Delete, names),
    st.builds(ReadStaged, st.uuids().map(Generation), offsets, lengths),
)
identities = st.text("abcXYZ019._-", max_size=64)
calls = st.builds(Call, st.uuids(), identities, requests)
NAME = BlobName(bytes(range(32)), Generation(uuid.UUID(int=7)))


def travel(number: int, call: Call) -> bytes:
    start, data = request_message(number, call)
    return start + bytes(data)


def feed(stream: bytes, cuts: list[int], gathered_bytes: int = GATHERED_BYTES) -> list[Message]:
    """Give ``stream`` to a receiver in pieces of at most the sizes in ``cuts``, in turns."""
    receiver, messages, turn = MessageReceiver(gathered_bytes), [], 0
    while stream:
        room = receiver.room()
        assert len(room) > 0
        count = min(len(room), len(stream), cuts[turn % len(cuts)])
        room[:count] = stream[:count]
        messages += receiver.advance(count)
        stream, turn = stream[count:], turn + 1
    return messages


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), calls), max_size=5), st.lists(st.integers(1, 300), min_size=1))
def test_calls_arrive_as_they_were_sent_however_the_stream_is_cut(
    sent: list[tuple[int, Call]], cuts: list[int]
) -> None:
    stream = b"".join(travel(number, call) for number, call in sent)
    arrived = [(message.number, parse_request(message)) for message in feed(stream, cuts)]
    assert arrived == sent


@pytest.mark.parametrize("gathered_bytes", [GATHERED_BYTES, 64])
@pytest.mark.parametrize("seed", range(5))
def test_large_messages_arrive_among_small_ones(seed: int, gathered_bytes: int) -> None:
    chance = random.Random(seed)
    sizes = [
        0,
        1,
        GATHERED_BYTES - HEAD.size,
        GATHERED_BYTES - HEAD.size + 1,
        GATHERED_BYTES,
        BLOCK_BYTES,
    ]
    bodies = [chance.randbytes(chance.choice(sizes)) for _ in range(12)]
    stream = b"".join(HEAD.pack(n, Kind.DONE, len(body)) + body for n, body in enumerate(bodies))
    messages = feed(stream, [chance.randint(1, 300_000) for _ in range(7)], gathered_bytes)
    assert [(message.number, bytes(message.body)) for message in messages] == list(enumerate(bodies))


def test_a_message_longer_than_any_is_refused_before_memory_is_taken_for_it() -> None:
    with pytest.raises(CallError, match=str(MESSAGE_BYTES_MAX + 1)):
        feed(HEAD.pack(1, Kind.PUT, MESSAGE_BYTES_MAX + 1), [100])


@given(st.integers(0, 255), st.binary(max_size=200))
@example(Kind.PUT, b"")
@example(Kind.READ, bytes(16) + b"\xff")
@example(Kind.DELETE, bytes(17) + bytes(47))
@example(Kind.SIZES, bytes(17) + bytes(49))
@example(Kind.SIZES, bytes(16) + b"\x01")
@example(Kind.DONE, bytes(17))
def test_a_body_that_is_no_request_is_called_so(kind: int, body: bytes) -> None:
    try:
        call = parse_request(Message(1, kind, body))
    except CallError:
        return
    assert travel(1, call)[HEAD.size :] == body


@pytest.mark.parametrize(
    "request_",
    [
        Read(NAME, 1 << 40, 0, READ_BYTES_MAX + 1),
        ReadStaged(NAME.generation, 0, READ_BYTES_MAX + 1),
        Sizes((NAME,) * (SIZES_NAMES_MAX + 1)),
        put_request(NAME, bytes(BLOCK_BYTES + 1)),
    ],
    ids=["read", "staged", "sizes", "put"],
)
def test_a_request_beyond_a_limit_is_refused(request_: Request) -> None:
    start, data = request_message(1, Call(uuid.UUID(int=1), "", request_))
    with pytest.raises(CallError):
        parse_request(Message(1, HEAD.unpack_from(start)[1], start[HEAD.size :] + bytes(data)))


@given(st.binary(min_size=1, max_size=100), st.integers(0, 99), st.integers(1, 255))
def test_a_put_whose_bytes_changed_has_not_arrived_whole(data: bytes, position: int, change: int) -> None:
    sent = put_request(NAME, data)
    changed = bytearray(data)
    changed[position % len(data)] ^= change
    assert arrived_whole(sent)
    assert not arrived_whole(Put(NAME, bytes(changed), sent.digest))


@given(st.lists(st.none() | st.integers(0, 2**62), max_size=20))
def test_sizes_read_back_and_their_number_must_fit(sizes: list[int | None]) -> None:
    assert parse_sizes(pack_sizes(sizes), len(sizes)) == sizes
    with pytest.raises(CallError):
        parse_sizes(pack_sizes(sizes), len(sizes) + 1)


def test_what_a_call_holds_in_memory_is_known_beforehand() -> None:
    held = [
        Call(uuid.UUID(int=1), "", one).bytes_held
        for one in (put_request(NAME, b"abc"), Read(NAME, 9, 0, 9), Delete(NAME))
    ]
    assert held == [3, 9, 0]
