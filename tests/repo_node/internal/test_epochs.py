"""Epochs over the internal listener: asked for before an election, told after it, refused when they are over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import aiohttp
import pytest

from repo_node.api.epochs import EpochHandlers
from repo_node.cluster.epochs import ShardEpochs
from repo_node.db.nodes import ClusterRows, NodeRow
from sharding.errors import ShardRefused
from sharding.local import LocalShard
from sharding.model import NodeId, ShardId, ZoneId
from sharding.peer import PeerError
from sharding.peer_epoch import EpochOver, ask_epoch, tell_epoch
from tests.repo_node.internal.listener import Listener, credentials, run_listener
from tests.sharding.local_shards import open_at
from tests.sharding.shard_contract import make_name

SECONDS = 5.0


@dataclass
class Peerage:
    """A node with one shard behind its listener, and another that knows it as a peer."""

    shard: LocalShard
    listener: Listener
    other: ShardEpochs
    rows: ClusterRows

    def restart(self, incarnation: UUID) -> None:
        """Let the peer be a new process, as the cluster's rows have it."""
        self.rows.nodes[NodeId("node-2")] = replace(  # type: ignore[index]
            self.rows.nodes[NodeId("node-2")], incarnation=incarnation
        )


def rows_of(url: str, *, up: bool = True) -> ClusterRows:
    node = NodeRow(NodeId("node-2"), ZoneId("z"), "", url, "0", uuid4(), up, 0.0)
    return ClusterRows(uuid4(), datetime.now(UTC), {node.id: node}, {})


@pytest.fixture
async def peerage(tmp_path: Path) -> AsyncIterator[Peerage]:
    async with open_at(tmp_path / "shard") as shard:
        served = ShardEpochs(NodeId("node-2"), lambda: {ShardId(7): shard}, lambda: None, lambda node, url: None)  # type: ignore[arg-type, return-value]
        async with run_listener(shard, more_routes=EpochHandlers(served).routes()) as listener:
            rows = rows_of(listener.url)
            other = ShardEpochs(NodeId("node-1"), dict, lambda: rows, lambda node, url: replace(listener.peer, url=url))
            yield Peerage(shard, listener, other, rows)


async def test_peer_tells_the_highest_epoch_of_its_shards(peerage: Peerage) -> None:
    assert await ask_epoch(peerage.listener.peer, SECONDS) == 0
    await peerage.shard.see_epoch(12)
    assert await ask_epoch(peerage.listener.peer, SECONDS) == 12
    assert await peerage.other.highest(SECONDS) == 12


async def test_peer_remembers_what_it_is_told_durably(peerage: Peerage, tmp_path: Path) -> None:
    await peerage.other.announce(5, SECONDS)
    assert (tmp_path / "shard" / "epoch").read_text() == "5\n"


async def test_older_primary_is_refused_with_the_epoch_that_is_known(peerage: Peerage) -> None:
    await peerage.other.announce(7, SECONDS)
    with pytest.raises(EpochOver) as over:
        await tell_epoch(peerage.listener.peer, 6, SECONDS)
    assert over.value.known == 7
    with pytest.raises(EpochOver):
        await peerage.other.announce(6, SECONDS)
    assert await peerage.shard.epoch() == 7


async def test_deletion_in_the_name_of_a_primary_that_is_over_is_refused_by_the_shard(peerage: Peerage) -> None:
    """Two primaries, as when Postgres itself is split: the shard's owner has heard of the later one."""
    name = make_name(b"data")
    await peerage.shard.put(name, b"data")
    await peerage.other.announce(7, SECONDS)
    with pytest.raises(ShardRefused):
        await peerage.shard.remove([name], epoch=6)
    assert await peerage.shard.sizes([name]) == [4]


async def test_peer_is_told_once_and_again_when_it_started_anew(peerage: Peerage) -> None:
    told = []
    session = peerage.listener.peer.session
    plain = session.request

    def counting(method: str, *args: object, **options: object) -> object:
        told.append(method)
        return plain(method, *args, **options)  # type: ignore[arg-type]

    session.request = counting  # type: ignore[assignment, method-assign]
    for _ in range(3):
        await peerage.other.announce(4, SECONDS)
    assert told == ["PUT"]
    peerage.restart(uuid4())
    await peerage.other.announce(4, SECONDS)
    await peerage.other.announce(5, SECONDS)
    assert told == ["PUT"] * 3


async def test_peer_that_does_not_answer_says_nothing(peerage: Peerage) -> None:
    silent = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)
    host, port = silent.sockets[0].getsockname()
    for url in (f"http://{host}:{port}", "http://127.0.0.1:1"):
        other = ShardEpochs(
            NodeId("node-1"),
            dict,
            lambda url=url: rows_of(url),
            lambda node, url: replace(peerage.listener.peer, url=url),
        )
        async with asyncio.timeout(2):
            assert await other.highest(0.2) == 0
            await other.announce(3, 0.2)
    silent.close()


async def test_peer_that_is_down_is_not_asked(peerage: Peerage) -> None:
    await peerage.shard.see_epoch(12)
    other = ShardEpochs(
        NodeId("node-1"), dict, lambda: rows_of(peerage.listener.url, up=False), lambda node, url: peerage.listener.peer
    )
    assert await other.highest(SECONDS) == 0


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"7", b'{"epoch": 0}', b'{"epoch": -1}', b'{"epoch": "7"}', b'{"epoch": true}', b"{" * 900]
)  # fmt: skip
async def test_epoch_that_is_none_is_refused(peerage: Peerage, body: bytes) -> None:
    url = f"{peerage.listener.url}/internal/v1/epoch"
    async with aiohttp.ClientSession() as session:
        async with session.put(url, data=body, headers=credentials()) as response:
            assert response.status == 400
        async with session.put(url, data=b'{"epoch": 9}') as response:
            assert response.status == 401, "only peers are heard"
    assert await peerage.shard.epoch() == 0


async def test_answer_that_is_none_is_no_epoch(peerage: Peerage) -> None:
    peer = replace(peerage.listener.peer, token="wrong")
    with pytest.raises(PeerError):
        await ask_epoch(peer, SECONDS)
    with pytest.raises(PeerError):
        await tell_epoch(peer, 3, SECONDS)
