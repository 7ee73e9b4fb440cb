"""What the nodes hold in memory is announced when it changes; uploads announce nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from repo_node import settings as typed
from repo_node.db import artifacts, blobs, nodes, principals, repositories, settings, shards
from repo_node.origin import Origin
from sharding.model import NodeId, ShardId
from tests.repo_node.db.scene import REPOSITORY, Scene


class Announcements:
    """What came over the channel ``holdfast``."""

    def __init__(self, listener: asyncpg.Connection, sender: asyncpg.Connection) -> None:
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._listener = listener
        self._sender = sender

    async def listen(self) -> None:
        await self._listener.add_listener("holdfast", lambda *args: self._queue.put_nowait(str(args[3])))

    async def take(self) -> list[str]:
        """Return what was announced since the last call; announcements arrive in the order of the commits."""
        await self._sender.execute("SELECT pg_notify('holdfast', 'end')")
        taken = []
        while (payload := await asyncio.wait_for(self._queue.get(), 10)) != "end":
            taken.append(payload)
        return taken


@pytest.fixture
async def announcements(scene: Scene, connection: asyncpg.Connection) -> AsyncIterator[Announcements]:
    listener = await asyncpg.connect(scene.dsn)
    value = Announcements(listener, connection)
    await value.listen()
    yield value
    listener.terminate()


async def test_changes_of_what_is_kept_in_memory_are_announced(
    scene: Scene, connection: asyncpg.Connection, announcements: Announcements
) -> None:
    database = scene.database
    await settings.write(database, "redundancy", 3, by=Origin("x", "r"), check=typed.combine)
    assert await announcements.take() == ["settings"]
    await repositories.create(database, "new", repositories.Configuration(), by=Origin("x", "r"))
    assert await announcements.take() == ["repositories"]
    await repositories.delete(database, "new", by=Origin("x", "r"))
    assert await announcements.take() == ["repositories"]
    token, _ = await principals.create_token(
        database, "admin", secret_sha256=bytes(32), ending="", description="", scopes=["read"], expires_in=None,
        by=Origin("x", "r"),
    )  # fmt: skip
    # A new token changes nothing of what was proved before: nobody has to be proved anew because of it.
    assert await announcements.take() == []
    await principals.revoke_token(database, token, by=Origin("x", "r"))
    assert await announcements.take() == ["tokens"]
    await connection.execute("UPDATE users SET is_enabled = false")
    assert await announcements.take() == ["users"]
    await connection.execute("UPDATE shards SET state = 'draining' WHERE id = 1")
    assert await announcements.take() == ["shards"]


async def test_new_shard_is_announced_and_who_owns_a_known_one_is_not(
    scene: Scene, connection: asyncpg.Connection, announcements: Announcements
) -> None:
    incarnation = await connection.fetchval("SELECT incarnation FROM nodes WHERE id = 'n1'")

    async def claim(path: str) -> ShardId:
        return await nodes.claim_shard(
            connection, uid=uid, node=NodeId("n1"), path=path, weight=None, incarnation=incarnation
        )

    uid = uuid4()
    shard = await claim("/new")
    assert await announcements.take() == ["shards"]
    await nodes.release_shard(connection, shard, incarnation)
    await claim("/new")
    assert await announcements.take() == [], "a disk that cannot be opened is claimed and released for ever"
    await nodes.release_shard(connection, shard, incarnation)
    await claim("/elsewhere")
    assert await announcements.take() == ["shards"]
    for column, value in {"weight": "2", "state": "'lost'", "replaced": "true"}.items():
        await connection.execute(f"UPDATE shards SET {column} = {value} WHERE id = {shard}")
        assert await announcements.take() == ["shards"], column
    await connection.execute(f"DELETE FROM shards WHERE id = {shard}")
    assert await announcements.take() == ["shards"]


async def test_refused_setting_announces_nothing(scene: Scene, announcements: Announcements) -> None:
    with pytest.raises(typed.SettingError):
        await settings.write(scene.database, "redundancy", 0, by=Origin("x", "r"), check=typed.combine)
    assert await announcements.take() == []


async def test_daily_work_announces_nothing(
    scene: Scene, connection: asyncpg.Connection, announcements: Announcements
) -> None:
    _, [first, *_] = await scene.upload("f/a", b"one")
    await scene.upload("f/b", b"one")
    await scene.upload("f/a", b"two")
    await artifacts.make_folder(scene.database, scene.repository, "g/h", by=Origin("x", "r"))
    await blobs.mark_suspect(scene.database, first.shard, first.generation)
    await artifacts.delete(scene.database, scene.repository, "", "f", by=Origin("x", "r"))
    await artifacts.resolve(scene.database, REPOSITORY, "f", "a")
    incarnation = await connection.fetchval("SELECT incarnation FROM nodes WHERE id = 'n1'")
    await nodes.heartbeat(connection, NodeId("n1"), incarnation, {})
    assert await announcements.take() == []


async def test_node_that_leaves_or_stops_is_announced_once(
    connection: asyncpg.Connection, scene: Scene, announcements: Announcements
) -> None:
    incarnation = await connection.fetchval("SELECT incarnation FROM nodes WHERE id = 'n1'")
    await nodes.leave(connection, NodeId("n1"), incarnation)
    assert await announcements.take() == ["nodes"]
    by = {"by": Origin("p", "r")}
    await shards.stop_node(scene.database, "n1", **by)
    assert await announcements.take() == ["nodes"]
    await nodes.stop(connection, NodeId("n1"), incarnation)
    assert await announcements.take() == ["nodes"]
    await nodes.stop(connection, NodeId("n1"), uuid4())
    await shards.stop_node(scene.database, "n1", **by)
    assert await announcements.take() == [], "nothing changed"
