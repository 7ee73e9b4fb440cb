"""Nodes and shards as rows: who may take whose name, who owns a disk, who is fenced."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from repo_node.db import nodes, shards
from repo_node.db.nodes import Fenced, NameTaken, SpaceReport
from repo_node.origin import Origin
from sharding.model import NodeId, ShardId, ShardState, ZoneId
from sharding.shard import ShardSpace
from tests.repo_node.db.scene import Scene, only_row, table

NODE = NodeId("alpha")
GB = 1 << 30


async def register(
    connection: asyncpg.Connection, node: str = NODE, url: str = "http://10.0.0.1:8181", zone: str = "z1"
) -> UUID:
    """Register a new process as ``node`` and return its incarnation."""
    incarnation = uuid4()
    await nodes.register(
        connection,
        node=NodeId(node),
        zone=ZoneId(zone),
        url="http://front",
        internal_url=url,
        version="1.2.3",
        incarnation=incarnation,
        schema_version=8,
    )
    return incarnation


async def claim(
    connection: asyncpg.Connection,
    uid: UUID,
    incarnation: UUID,
    node: str = NODE,
    path: str = "/disk",
    weight: float | None = 1,
    share_bytes: int | None = None,
) -> ShardId:
    return await nodes.claim_shard(
        connection,
        uid=uid,
        node=NodeId(node),
        path=path,
        weight=weight,
        incarnation=incarnation,
        share_bytes=share_bytes,
    )


async def silence(connection: asyncpg.Connection, node: str = NODE) -> None:
    await connection.execute("UPDATE nodes SET heartbeat_at = now() - interval '1 minute' WHERE id = $1", node)


async def beat(connection: asyncpg.Connection, incarnation: UUID, *shards: ShardId) -> None:
    reports = {shard: SpaceReport(ShardSpace(100 * GB, 40 * GB), True) for shard in shards}
    await nodes.heartbeat(connection, NODE, incarnation, reports)


# ---------------------------------------------------------------- names


async def test_registered_node_is_in_the_cluster(connection: asyncpg.Connection) -> None:
    incarnation = await register(connection)
    cluster = await nodes.read_cluster(connection)
    node = cluster.nodes[NODE]
    assert (node.id, node.zone, node.url, node.internal_url) == ("alpha", "z1", "http://front", "http://10.0.0.1:8181")
    assert (node.version, node.incarnation, node.up) == ("1.2.3", incarnation, True)
    assert 0 <= node.heartbeat_age_seconds < 10
    assert cluster.cluster_id == await connection.fetchval("SELECT cluster_id FROM cluster")
    assert abs(cluster.database_time - datetime.now().astimezone()) < timedelta(minutes=1)


async def test_name_of_a_living_node_elsewhere_is_taken(connection: asyncpg.Connection) -> None:
    first = await register(connection)
    with pytest.raises(NameTaken, match="alpha"):
        await register(connection, url="http://10.0.0.2:8181")
    row = await only_row(connection, "SELECT incarnation, internal_url FROM nodes")
    assert tuple(row) == (first, "http://10.0.0.1:8181")


async def test_successor_on_the_same_socket_takes_over_at_once(connection: asyncpg.Connection) -> None:
    await register(connection)
    second = await register(connection, zone="z2")
    assert await table(connection, "SELECT incarnation, zone FROM nodes") == [(second, "z2")]


@pytest.mark.parametrize("gone", ["silent", "stopped"])
async def test_name_of_a_node_that_is_down_may_be_taken_from_elsewhere(
    connection: asyncpg.Connection, gone: str
) -> None:
    first = await register(connection)
    if gone == "silent":
        await silence(connection)
    else:
        await nodes.stop(connection, NODE, first)
    second = await register(connection, url="http://10.0.0.2:8181")
    node = (await nodes.read_cluster(connection)).nodes[NODE]
    assert (node.incarnation, node.internal_url, node.up) == (second, "http://10.0.0.2:8181", True)


async def test_of_two_that_take_over_at_once_one_wins(clean_dsn: str, connection: asyncpg.Connection) -> None:
    await register(connection)
    await silence(connection)
    rivals = [await asyncpg.connect(clean_dsn) for _ in range(4)]
    results = await asyncio.gather(
        *(register(rival, url=f"http://10.0.1.{i}:1") for i, rival in enumerate(rivals)), return_exceptions=True
    )
    winners = [result for result in results if isinstance(result, UUID)]
    assert [type(result) for result in results if not isinstance(result, UUID)] == [NameTaken] * 3
    assert await table(connection, "SELECT incarnation FROM nodes") == [(winners[0],)]
    for rival in rivals:
        await rival.close()


async def test_stop_makes_a_node_down_before_it_is_silent(connection: asyncpg.Connection) -> None:
    incarnation = await register(connection)
    await nodes.stop(connection, NODE, uuid4())
    assert (await nodes.read_cluster(connection)).nodes[NODE].up, "only the process itself can say that it left"
    await nodes.stop(connection, NODE, incarnation)
    assert not (await nodes.read_cluster(connection)).nodes[NODE].up


async def test_only_the_process_that_leaves_or_was_asked_to_stop_is_told_so(
    connection: asyncpg.Connection, scene: Scene
) -> None:
    by = {"by": Origin("p", "r")}
    first = await register(connection)
    await nodes.leave(connection, NODE, first)
    assert await shards.stop_node(scene.database, NODE, **by) == "asked"
    row = (await nodes.read_cluster(connection)).nodes[NODE]
    assert (row.leaving, row.stop_asked, row.schema_version) == (True, True, 8)
    second = await register(connection)
    await nodes.leave(connection, NODE, first)
    row = (await nodes.read_cluster(connection)).nodes[NODE]
    assert (row.leaving, row.stop_asked) == (False, False)
    await nodes.stop(connection, NODE, second)
    assert await shards.stop_node(scene.database, NODE, **by) == "down"
    assert await shards.stop_node(scene.database, "nobody", **by) == "absent"
    kinds = await connection.fetch("SELECT detail ->> 'node' AS node FROM events WHERE kind = 'node_stop'")
    assert [row["node"] for row in kinds] == [NODE]


async def test_silent_node_is_down_until_it_is_heard_again(connection: asyncpg.Connection) -> None:
    incarnation = await register(connection)
    await silence(connection)
    assert not (await nodes.read_cluster(connection)).nodes[NODE].up
    await beat(connection, incarnation)
    assert (await nodes.read_cluster(connection)).nodes[NODE].up


# ---------------------------------------------------------------- shards


async def test_new_shard_is_claimed_and_remembered_by_path(connection: asyncpg.Connection) -> None:
    incarnation, uid = await register(connection), uuid4()
    shard = await claim(connection, uid, incarnation, weight=2.5)
    known = await nodes.shards_of_node(connection, NODE)
    assert (known.at_path, known.ids, known.replaced) == ({"/disk": uid}, {uid: shard}, set())
    assert (await nodes.shards_of_node(connection, NodeId("beta"))).ids == {}
    row = (await nodes.read_cluster(connection)).shards[shard]
    assert (row.id, row.path, row.state, row.owner) == (shard, "/disk", ShardState.ACTIVE, incarnation)
    assert (row.member.uid, row.member.zone, row.member.node, row.member.weight) == (uid, "z1", NODE, 2.5)
    assert (row.capacity_bytes, row.free_bytes, row.writable) == (0, 0, False), "not before its first heartbeat"


async def test_claim_by_the_next_process_of_the_node_keeps_id_and_state(connection: asyncpg.Connection) -> None:
    first, uid = await register(connection), uuid4()
    shard = await claim(connection, uid, first)
    await connection.execute("UPDATE shards SET state = 'draining'")
    second = await register(connection)
    assert await claim(connection, uid, second, path="/mnt/other", weight=3) == shard
    row = (await nodes.read_cluster(connection)).shards[shard]
    assert (row.owner, row.path, row.state, row.member.weight) == (second, "/mnt/other", ShardState.DRAINING, 3)


async def weight_of(connection: asyncpg.Connection, shard: ShardId) -> float:
    return (await nodes.read_cluster(connection)).shards[shard].member.weight


async def test_new_shard_without_a_weight_gets_one_by_its_capacity_and_keeps_it(
    connection: asyncpg.Connection,
) -> None:
    first, uid = await register(connection), uuid4()
    one = await claim(connection, uid, first, path="/1", weight=None, share_bytes=8_000 * GB)
    assert await weight_of(connection, one) == 1, "nothing to compare it with"
    shares = {"/2": 8_001 * GB, "/3": 16_000 * GB, "/4": 4_000 * GB, "/5": 1 * GB, "/6": 900_000 * GB}
    weights = [
        await weight_of(connection, await claim(connection, uuid4(), first, path=path, weight=None, share_bytes=share))
        for path, share in shares.items()
    ]
    assert weights == [1, 2, 0.5, 0.1, 10]
    assert await weight_of(connection, await claim(connection, uuid4(), first, path="/7", weight=None)) == 1
    again = await register(connection)
    assert await claim(connection, uid, again, path="/1", weight=None, share_bytes=100 * GB) == one
    assert await weight_of(connection, one) == 1
    await claim(connection, uid, await register(connection), path="/1", weight=3, share_bytes=100 * GB)
    assert await weight_of(connection, one) == 3, "what the configuration says holds"


async def test_weights_that_an_administrator_gave_say_what_a_byte_weighs(connection: asyncpg.Connection) -> None:
    incarnation = await register(connection)
    for number in range(3):
        await claim(connection, uuid4(), incarnation, path=f"/{number}", weight=2, share_bytes=4_000 * GB)
    new = await claim(connection, uuid4(), incarnation, path="/new", weight=None, share_bytes=6_000 * GB)
    assert await weight_of(connection, new) == 3


async def test_shards_registered_at_the_same_time_are_weighed_against_one_another(
    clean_dsn: str, connection: asyncpg.Connection
) -> None:
    incarnation, other = await register(connection), await asyncpg.connect(clean_dsn)
    beta = await register(other, "beta", "http://10.0.0.2:8181")
    one, two = await asyncio.gather(
        claim(connection, uuid4(), incarnation, path="/1", weight=None, share_bytes=1_000 * GB),
        claim(other, uuid4(), beta, "beta", path="/2", weight=None, share_bytes=4_000 * GB),
    )
    await other.close()
    assert await weight_of(connection, two) == 4 * await weight_of(connection, one)


async def test_claim_keeps_a_weight_that_an_administrator_has_set(connection: asyncpg.Connection) -> None:
    first, uid = await register(connection), uuid4()
    shard = await claim(connection, uid, first, weight=2)
    await connection.execute("UPDATE shards SET weight = 5, weight_set = true")
    await claim(connection, uid, await register(connection), weight=3)
    assert (await nodes.read_cluster(connection)).shards[shard].member.weight == 5


async def test_disk_that_was_replaced_is_not_expected_at_its_path_any_more(connection: asyncpg.Connection) -> None:
    incarnation = await register(connection)
    await claim(connection, uuid4(), incarnation)
    await connection.execute("UPDATE shards SET replaced = true")
    known = await nodes.shards_of_node(connection, NODE)
    assert (known.at_path, len(known.replaced)) == ({}, 1)


async def test_claim_repeated_by_its_owner_is_no_error(connection: asyncpg.Connection) -> None:
    incarnation, uid = await register(connection), uuid4()
    assert await claim(connection, uid, incarnation) == await claim(connection, uid, incarnation)


async def test_disk_at_two_paths_of_one_node_is_refused(connection: asyncpg.Connection) -> None:
    incarnation, uid = await register(connection), uuid4()
    await claim(connection, uid, incarnation, path="/disk1")
    with pytest.raises(NameTaken, match=f"/disk2: shard {uid}"):
        await claim(connection, uid, incarnation, path="/disk2")
    assert await table(connection, "SELECT path FROM shards") == [("/disk1",)]


async def test_clone_of_a_living_nodes_disk_is_refused(connection: asyncpg.Connection) -> None:
    first, uid = await register(connection), uuid4()
    await claim(connection, uid, first)
    second = await register(connection, "beta", "http://10.0.0.2:8181")
    with pytest.raises(NameTaken, match="clone"):
        await claim(connection, uid, second, "beta")
    assert await table(connection, "SELECT node_id, owner FROM shards") == [(NODE, first)]
    await beat(connection, first)


@pytest.mark.parametrize("gone", ["silent", "stopped", "restarted without it"])
async def test_disk_moves_from_a_node_that_is_down_to_another(connection: asyncpg.Connection, gone: str) -> None:
    first, uid = await register(connection), uuid4()
    shard = await claim(connection, uid, first)
    match gone:
        case "silent":
            await silence(connection)
        case "stopped":
            await nodes.stop(connection, NODE, first)
        case _:
            await register(connection)
    second = await register(connection, "beta", "http://10.0.0.2:8181", zone="z2")
    assert await claim(connection, uid, second, "beta") == shard
    row = (await nodes.read_cluster(connection)).shards[shard]
    assert (row.member.node, row.member.zone, row.owner) == ("beta", "z2", second)


async def test_of_two_that_claim_a_new_disk_at_once_one_wins(clean_dsn: str, connection: asyncpg.Connection) -> None:
    uid, others = uuid4(), [await asyncpg.connect(clean_dsn) for _ in range(3)]
    incarnations = [await register(connection, f"n{i}", f"http://10.0.0.{i}:1") for i in range(3)]
    results = await asyncio.gather(
        *(claim(other, uid, incarnations[i], f"n{i}") for i, other in enumerate(others)), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["NameTaken", "NameTaken", "int"]
    for other in others:
        await other.close()


async def test_claim_by_a_process_whose_name_was_taken_is_fenced(connection: asyncpg.Connection) -> None:
    """A process that froze between registering and claiming must not take the disk from its successor."""
    first, uid = await register(connection), uuid4()
    second = await register(connection)
    shard = await claim(connection, uid, second)
    with pytest.raises(Fenced, match="alpha"):
        await claim(connection, uid, first)
    with pytest.raises(Fenced):
        await claim(connection, uuid4(), first)
    await beat(connection, second, shard)


async def test_only_new_shards_take_ids(connection: asyncpg.Connection) -> None:
    """There are 32,767 of them, and a disk that cannot be opened is claimed again and again."""
    first, uid = await register(connection), uuid4()
    shard = await claim(connection, uid, first)
    for _ in range(5):
        assert await claim(connection, uid, first) == shard
        with pytest.raises(NameTaken):
            await claim(connection, uid, first, path="/clone")
        with pytest.raises(Fenced):
            await claim(connection, uuid4(), uuid4())
    assert await claim(connection, uuid4(), first, path="/next") == shard + 1


async def test_known_shard_is_claimed_while_another_one_is_being_made(
    clean_dsn: str, connection: asyncpg.Connection
) -> None:
    incarnation, uid = await register(connection), uuid4()
    shard = await claim(connection, uid, incarnation)
    other = await asyncpg.connect(clean_dsn)
    async with other.transaction():
        await claim(other, uuid4(), incarnation, path="/new")
        async with asyncio.timeout(10):
            assert await claim(connection, uid, incarnation) == shard
    await other.close()


# ---------------------------------------------------------------- heartbeats


async def test_heartbeat_reports_the_space_of_shards(connection: asyncpg.Connection) -> None:
    incarnation = await register(connection)
    one = await claim(connection, uuid4(), incarnation, path="/one")
    two = await claim(connection, uuid4(), incarnation, path="/two")
    full = SpaceReport(ShardSpace(GB, 0), False, "full")
    reports = {one: SpaceReport(ShardSpace(100 * GB, 40 * GB), True), two: full}
    await nodes.heartbeat(connection, NODE, incarnation, reports)
    shards = (await nodes.read_cluster(connection)).shards
    assert [(shards[s].capacity_bytes, shards[s].free_bytes, shards[s].writable) for s in (one, two)] == [
        (100 * GB, 40 * GB, True),
        (GB, 0, False),
    ]
    assert shards[two].reason == "full"
    reports = {one: SpaceReport(ShardSpace(100 * GB, 39 * GB), False, "read-only"), two: full}
    await nodes.heartbeat(connection, NODE, incarnation, reports)
    row = (await nodes.read_cluster(connection)).shards[one]
    assert (row.free_bytes, row.writable, row.reason) == (39 * GB, False, "read-only")


async def test_shard_that_its_node_does_not_have_open_is_silent_and_the_reason_told(
    connection: asyncpg.Connection,
) -> None:
    incarnation = await register(connection)
    one = await claim(connection, uuid4(), incarnation, path="/one")
    two = await claim(connection, uuid4(), incarnation, path="/two")
    three = await claim(connection, uuid4(), incarnation, path="/three")
    replaced = await claim(connection, uuid4(), incarnation, path="/four")
    await connection.execute("UPDATE shards SET replaced = true WHERE id = $1", replaced)
    await beat(connection, incarnation, one, two)
    reports = {one: SpaceReport(ShardSpace(100 * GB, 40 * GB), True)}
    await nodes.heartbeat(connection, NODE, incarnation, reports, {"/two": "empty", "/new": "not writable"})
    first = await connection.fetchval("SELECT silent_since FROM shard_space WHERE shard_id = $1", two)
    await nodes.heartbeat(connection, NODE, incarnation, reports, {"/two": "dead", "/new": "not writable"})
    shards = (await nodes.read_cluster(connection)).shards
    assert (shards[two].capacity_bytes, shards[two].writable, shards[two].reason) == (0, False, "dead")
    assert "does not have it open" in shards[three].reason
    assert shards[one].writable
    silent = "SELECT shard_id, silent_since FROM shard_space WHERE silent_since IS NOT NULL ORDER BY 1"
    assert [row["shard_id"] for row in await connection.fetch(silent)] == [two, three]
    assert await connection.fetchval("SELECT silent_since FROM shard_space WHERE shard_id = $1", two) == first


async def test_removed_shard_does_not_keep_the_others_from_being_reported(connection: asyncpg.Connection) -> None:
    incarnation = await register(connection)
    one = await claim(connection, uuid4(), incarnation, path="/one")
    two = await claim(connection, uuid4(), incarnation, path="/two")
    await connection.execute("DELETE FROM shards WHERE id = $1", one)
    await beat(connection, incarnation, one, two)
    assert await table(connection, "SELECT shard_id, free_bytes FROM shard_space") == [(two, 40 * GB)]


async def test_released_shard_may_be_claimed_by_another_node_and_fences_nobody(connection: asyncpg.Connection) -> None:
    incarnation, uid = await register(connection), uuid4()
    shard = await claim(connection, uid, incarnation)
    await nodes.release_shard(connection, shard, uuid4())
    assert await connection.fetchval("SELECT owner FROM shards") == incarnation, "only its owner gives it up"
    await nodes.release_shard(connection, shard, incarnation)
    await beat(connection, incarnation, shard)
    other = await register(connection, "beta", "http://10.0.0.2:8181")
    assert await claim(connection, uid, other, "beta") == shard


async def test_heartbeat_of_a_node_whose_name_was_taken_is_fenced(connection: asyncpg.Connection) -> None:
    first = await register(connection)
    second = await register(connection)
    await silence(connection)
    with pytest.raises(Fenced, match="alpha"):
        await beat(connection, first)
    assert not (await nodes.read_cluster(connection)).nodes[NODE].up, "the fenced one kept its successor alive"
    await beat(connection, second)


async def test_heartbeat_of_a_node_whose_shard_was_taken_is_fenced(connection: asyncpg.Connection) -> None:
    first, uid = await register(connection), uuid4()
    shard = await claim(connection, uid, first)
    await beat(connection, first, shard)
    await silence(connection)
    second = await register(connection, "beta", "http://10.0.0.2:8181")
    await claim(connection, uid, second, "beta")
    with pytest.raises(Fenced, match="shard"):
        await beat(connection, first, shard)
    assert not (await nodes.read_cluster(connection)).nodes[NODE].up, "nothing of a fenced heartbeat stands"
    assert await table(connection, "SELECT free_bytes FROM shard_space") == [(40 * GB,)]


async def test_heartbeat_of_a_node_that_was_never_registered_is_fenced(connection: asyncpg.Connection) -> None:
    with pytest.raises(Fenced):
        await beat(connection, uuid4())


async def test_heartbeats_wait_for_nobody_who_holds_a_shards_row(
    clean_dsn: str, connection: asyncpg.Connection
) -> None:
    """Every upload locks its shards' rows against deletion, by foreign key; no heartbeat may touch those."""
    incarnation = await register(connection)
    shard = await claim(connection, uuid4(), incarnation)
    await beat(connection, incarnation, shard)
    other = await asyncpg.connect(clean_dsn)
    async with other.transaction():
        await other.fetch("SELECT 1 FROM shards FOR UPDATE")
        await asyncio.wait_for(beat(connection, incarnation, shard), 5)
    await other.close()


async def test_read_cluster_shows_the_scene(scene: Scene, connection: asyncpg.Connection) -> None:
    cluster = await nodes.read_cluster(connection)
    assert {(s, row.member.node, row.member.zone) for s, row in cluster.shards.items()} == {
        (1, "n1", "z1"), (2, "n1", "z1"), (3, "n2", "z2"), (4, "n2", "z2"), (5, "n3", "z3"), (6, "n3", "z3"),
    }  # fmt: skip
    assert {row.member.node for row in cluster.shards.values()} == set(cluster.nodes)
