"""The outbox: everything leaves once and in order, in few writes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.model import Buffer
from sharding.outbox import JOINED_BYTES_MAX, Outbox


class Recorder(asyncio.Transport):
    """A transport that notes what each write was given."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.ended = False

    def is_closing(self) -> bool:
        return self.ended

    def write(self, data: Buffer) -> None:
        self.writes.append(bytes(data))

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        self.writes.append(b"".join(list_of_data))


sizes = st.integers(0, 40) | st.sampled_from([JOINED_BYTES_MAX, JOINED_BYTES_MAX + 1])


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=9), sizes, st.booleans(), st.booleans()), max_size=20))
def test_everything_leaves_once_and_in_order(messages: list[tuple[bytes, int, bool, bool]]) -> None:
    async def run() -> list[bytes]:
        transport = Recorder()
        outbox = Outbox(transport)
        for start, size, alone, turn in messages:
            outbox.put(start, bytes(size), alone=alone)
            if turn:
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return transport.writes

    assert b"".join(asyncio.run(run())) == b"".join(start + bytes(size) for start, size, _, _ in messages)


async def test_what_comes_in_one_turn_of_the_loop_is_one_write() -> None:
    transport = Recorder()
    outbox = Outbox(transport)
    for _ in range(16):
        outbox.put(b"head", b"data")
    assert transport.writes == []
    await asyncio.sleep(0)
    assert transport.writes == [b"headdata" * 16]


async def test_a_message_that_is_alone_and_many_bytes_are_written_at_once() -> None:
    transport = Recorder()
    outbox = Outbox(transport)
    outbox.put(b"alone", alone=True)
    outbox.put(b"first")
    outbox.put(b"many", bytes(JOINED_BYTES_MAX))
    assert transport.writes == [b"alone", b"firstmany" + bytes(JOINED_BYTES_MAX)]


async def test_what_is_left_when_the_connection_ends_is_dropped() -> None:
    transport = Recorder()
    outbox = Outbox(transport)
    outbox.put(b"late")
    transport.ended = True  # a write to it now would raise
    await asyncio.sleep(0)
    assert transport.writes == []


async def test_who_waits_goes_on_when_the_peer_takes_bytes_again() -> None:
    outbox = Outbox(Recorder())
    outbox.pause()
    waiting = asyncio.create_task(outbox.until_writable())
    await asyncio.sleep(0)
    assert not outbox.is_writable and not waiting.done()
    outbox.resume()
    await waiting
    assert outbox.is_writable
