"""The channel between two processes of a node: messages in order, with descriptors, and an end that is noticed."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from uuid import uuid4

import pytest

from repo_node.workers.channel import Channel, ChannelBroken
from repo_node.workers.messages import Alive, CloseShard, Leave
from tests.repo_node.internal.listener import eventually


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


async def test_messages_come_in_order_with_their_descriptors(tmp_path: Path) -> None:
    ours, theirs = pair()
    heard: list[tuple[object, list[bytes]]] = []

    def hear(message: object, descriptors: list[int]) -> None:
        heard.append((message, [os.pread(one, 10, 0) for one in descriptors]))
        for one in descriptors:
            assert not os.get_inheritable(one)
            os.close(one)

    (tmp_path / "file").write_bytes(b"inside")
    sender, receiver = Channel(ours, hear, lambda: None), Channel(theirs, hear, lambda: None)
    close = CloseShard(uuid4())
    with (tmp_path / "file").open("rb") as file:
        sender.send(Alive(3, 1))
        sender.send(close, [file.fileno()])
    sender.send(Leave())
    await eventually(lambda: len(heard) == 3)
    assert heard == [(Alive(3, 1), []), (close, [b"inside"]), (Leave(), [])]
    sender.close()
    receiver.close()


async def test_the_end_of_the_other_process_is_told_once() -> None:
    ours, theirs = pair()
    ends: list[str] = []
    channel = Channel(ours, lambda *_: None, lambda: ends.append("gone"))
    theirs.close()
    await eventually(lambda: bool(ends))
    await asyncio.sleep(0.05)
    assert ends == ["gone"]
    with pytest.raises(ChannelBroken):
        channel.send(Leave())
    channel.close()


async def test_a_process_that_takes_nothing_is_told_from_one_that_is_slow() -> None:
    ours, theirs = pair()
    channel = Channel(ours, lambda *_: None, lambda: None)
    for _ in range(100):
        channel.send(Alive(1, 1))
    with pytest.raises(ChannelBroken):
        for _ in range(10_000):
            channel.send(Alive(1, 1))
    channel.close()
    theirs.close()
