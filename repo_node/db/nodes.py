"""Nodes, their shards and their heartbeats.

These run on the one connection on which a node also listens, not on the pool: while a heartbeat
comes back on it, announcements do too, and what the node keeps in memory can be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from sharding.model import Member, NodeId, ShardId, ShardState, ZoneId
from sharding.shard import ShardSpace


@dataclass(frozen=True, slots=True)
class NodeRow:
    id: NodeId
    zone: ZoneId
    url: str
    internal_url: str
    version: str
    incarnation: UUID
    up: bool
    heartbeat_age_seconds: float
    schema_version: int | None = None
    """The schema its release was written for; None when it did not tell."""
    leaving: bool = False
    stop_asked: bool = False


@dataclass(frozen=True, slots=True)
class ShardRow:
    """``reason`` is why it takes no writes, as its owner says; one that does not answer has no capacity."""

    member: Member
    path: str
    state: ShardState
    owner: UUID | None
    capacity_bytes: int
    free_bytes: int
    writable: bool
    reason: str = ""

    @property
    def id(self) -> ShardId:
        return self.member.shard


@dataclass(frozen=True, slots=True)
class SpaceReport:
    """What an owner says of a shard: how much room it has, whether it takes writes, and if not, why."""

    space: ShardSpace
    writable: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class KnownShards:
    """The shards a node last had, and which at which path, but for those whose place another disk is to take."""

    ids: Mapping[UUID, ShardId]
    at_path: Mapping[str, UUID]
    replaced: Set[UUID]
    vacated: Set[str] = frozenset()
    """The paths of those."""


@dataclass(frozen=True, slots=True)
class ClusterRows:
    """The whole cluster as Postgres knows it at ``database_time``."""

    cluster_id: UUID
    database_time: datetime
    nodes: Mapping[NodeId, NodeRow]
    shards: Mapping[ShardId, ShardRow]
    schema_version: int = 0


class Fenced(Exception):
    """Another process has taken this node's name, or a shard of it; this one must stop."""


class NameTaken(Exception):
    """Another node of this name is alive."""


# A node that holds the very socket its predecessor advertised is its successor, however fresh the
# predecessor's last heartbeat.
REGISTER = """
    INSERT INTO nodes AS n (id, zone, url, internal_url, version, incarnation, schema_version)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (id) DO UPDATE
       SET zone = excluded.zone, url = excluded.url, internal_url = excluded.internal_url,
           version = excluded.version, incarnation = excluded.incarnation, schema_version = excluded.schema_version,
           registered_at = now(), heartbeat_at = now(), stopped_at = NULL
     WHERE n.internal_url = excluded.internal_url OR NOT node_is_up(n)
    RETURNING id
"""
SHARDS_OF_NODE = "SELECT id, uid, path, replaced FROM shards WHERE node_id = $1"
CLAIM_SHARD = "SELECT shard, outcome FROM claim_shard($1, $2, $3, $4, $5, $6)"
RELEASE_SHARD = "UPDATE shards SET owner = NULL WHERE id = $1 AND owner = $2"
HEARTBEAT = """
    UPDATE nodes SET heartbeat_at = clock_timestamp() WHERE id = $1 AND incarnation = $2 RETURNING id
"""
IS_UP = "SELECT node_is_up(n) FROM nodes n WHERE id = $1 AND incarnation = $2"
# A shard that this node just now gave up has no owner: that is nobody's claim.
TAKEN = "SELECT EXISTS (SELECT 1 FROM shards WHERE id = ANY ($1::smallint[]) AND owner <> $2)"
# One that was removed meanwhile keeps no other from being reported.
REPORT_SPACE = """
    INSERT INTO shard_space (shard_id, capacity_bytes, free_bytes, writable, reason)
    SELECT r.* FROM unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::boolean[], $5::text[])
                    AS r (shard_id, capacity_bytes, free_bytes, writable, reason)
      JOIN shards s ON s.id = r.shard_id
    ON CONFLICT (shard_id) DO UPDATE
       SET capacity_bytes = excluded.capacity_bytes, free_bytes = excluded.free_bytes,
           writable = excluded.writable, reason = excluded.reason, reported_at = now()
"""
# Whatever else was this node's is silent: nobody is told of room that nobody looked at.
REPORT_ABSENT = """
    INSERT INTO shard_space (shard_id, capacity_bytes, free_bytes, writable, reason)
    SELECT s.id, 0, 0, false, coalesce(r.reason, 'its node does not have it open')
      FROM shards s LEFT JOIN unnest($3::text[], $4::text[]) AS r (path, reason) ON r.path = s.path
     WHERE s.node_id = $1 AND NOT s.replaced AND s.id <> ALL ($2::smallint[])
    ON CONFLICT (shard_id) DO UPDATE
       SET capacity_bytes = 0, free_bytes = 0, writable = false, reason = excluded.reason, reported_at = now()
"""
# As the triggers on shards say it; what a heartbeat reports has none.
ANNOUNCE = "SELECT pg_notify('holdfast', 'shards')"
ASK_RELOAD = "SELECT pg_notify('holdfast', concat_ws(' ', 'reload', $1::text, $2::text))"
LEAVE = """
    WITH leaving AS (UPDATE nodes SET leaving = $2 WHERE id = $1 AND incarnation = $2 RETURNING id)
    SELECT pg_notify('holdfast', 'nodes') FROM leaving
"""
STOP = """
    WITH stopped AS (UPDATE nodes SET stopped_at = now() WHERE id = $1 AND incarnation = $2 RETURNING id)
    SELECT pg_notify('holdfast', 'nodes') FROM stopped
"""
CLUSTER = """
    SELECT cluster_id, clock_timestamp() AS now, (SELECT max(version) FROM schema_migrations) AS schema_version
      FROM cluster
"""
NODES = """
    SELECT n.id, n.zone, n.url, n.internal_url, n.version, n.incarnation, node_is_up(n) AS up,
           extract(epoch FROM clock_timestamp() - n.heartbeat_at)::double precision AS age, n.schema_version,
           n.leaving IS NOT DISTINCT FROM n.incarnation AS leaving,
           n.stop_asked IS NOT DISTINCT FROM n.incarnation AS stop_asked
      FROM nodes n
"""
SHARDS = """
    SELECT s.id, s.uid, s.node_id, n.zone, s.path, s.weight, s.state, s.owner,
           coalesce(f.capacity_bytes, 0) AS capacity_bytes, coalesce(f.free_bytes, 0) AS free_bytes,
           coalesce(f.writable, false) AS writable, coalesce(f.reason, '') AS reason
      FROM shards s JOIN nodes n ON n.id = s.node_id LEFT JOIN shard_space f ON f.shard_id = s.id
"""


async def register(
    connection: asyncpg.Connection,
    *,
    node: NodeId,
    zone: ZoneId,
    url: str,
    internal_url: str,
    version: str,
    incarnation: UUID,
    schema_version: int,
) -> None:
    """Enter this node, or take over the row of its stopped predecessor. Raises ``NameTaken``."""
    values = (node, zone, url, internal_url, version, incarnation, schema_version)
    if await connection.fetchval(REGISTER, *values) is None:
        raise NameTaken(
            f"a node named {node} is alive elsewhere; give this one a name of its own (node.id), or stop the other"
        )


async def shards_of_node(connection: asyncpg.Connection, node: NodeId) -> KnownShards:
    """Return the shards this node last had."""
    rows = await connection.fetch(SHARDS_OF_NODE, node)
    return KnownShards(
        {row["uid"]: ShardId(row["id"]) for row in rows},
        {row["path"]: row["uid"] for row in rows if not row["replaced"]},
        {row["uid"] for row in rows if row["replaced"]},
        {row["path"] for row in rows if row["replaced"]} - {row["path"] for row in rows if not row["replaced"]},
    )


async def claim_shard(
    connection: asyncpg.Connection,
    *,
    uid: UUID,
    node: NodeId,
    path: str,
    weight: float | None,
    incarnation: UUID,
    share_bytes: int | None = None,
) -> ShardId:
    """Become the owner of a shard.

    ``share_bytes`` is its part of its file system's capacity, from which a new shard without a ``weight`` gets
    one. Raises ``NameTaken`` while another living node, or this one at another path, owns it, and
    ``Fenced`` when this process is no longer the node it registered as.
    """
    row: Any = await connection.fetchrow(CLAIM_SHARD, uid, node, path, weight, incarnation, share_bytes)
    if row["outcome"] == "claimed":
        return ShardId(row["shard"])
    if row["outcome"] == "fenced":
        raise Fenced(f"another process registered as node {node}")
    raise NameTaken(f"{path}: shard {uid} is in use elsewhere: is this disk a clone, or mounted twice?")


async def release_shard(connection: asyncpg.Connection, shard: ShardId, incarnation: UUID) -> None:
    """Be the owner of a shard no more."""
    await connection.execute(RELEASE_SHARD, shard, incarnation)


async def heartbeat(
    connection: asyncpg.Connection,
    node: NodeId,
    incarnation: UUID,
    reports: Mapping[ShardId, SpaceReport],
    absent: Mapping[str, str] | None = None,
) -> None:
    """Say that this node lives, and how each shard is that it has open.

    Its other shards are reported as silent; ``absent`` says why, by path. Raises ``Fenced`` when another
    process has taken the node's name or one of its shards.
    """
    shards, told, reasons = list(reports), list(reports.values()), absent or {}
    async with connection.transaction():
        if await connection.fetchval(HEARTBEAT, node, incarnation) is None:
            raise Fenced(f"another process registered as node {node}")
        if await connection.fetchval(TAKEN, shards, incarnation):
            raise Fenced(f"another node claimed a shard of node {node}")
        await connection.execute(
            REPORT_SPACE,
            shards,
            [one.space.capacity_bytes for one in told],
            [one.space.free_bytes for one in told],
            [one.writable for one in told],
            [one.reason for one in told],
        )
        await connection.execute(REPORT_ABSENT, node, shards, list(reasons), list(reasons.values()))


async def is_up(connection: asyncpg.Connection, node: NodeId, incarnation: UUID) -> bool:
    """Say whether this start of a node beats. Raises ``Fenced`` when another process has taken the node's name."""
    found: bool | None = await connection.fetchval(IS_UP, node, incarnation)
    if found is None:
        raise Fenced(f"another process registered as node {node}")
    return found


async def announce(connection: asyncpg.Connection) -> None:
    """Have every node read the cluster anew now, not at its next heartbeat."""
    await connection.execute(ANNOUNCE)


async def leave(connection: asyncpg.Connection, node: NodeId, incarnation: UUID) -> None:
    """Say that this node is being taken out of service, and goes on to serve what it has."""
    await connection.execute(LEAVE, node, incarnation)


async def ask_reload(connection: asyncpg.Connection, node: str, path: str | None = None) -> None:
    """Have a node read the list of shards in its file anew, if it runs.

    An empty directory at ``path`` becomes a shard, whatever was known there.
    """
    await connection.execute(ASK_RELOAD, node, path)


async def stop(connection: asyncpg.Connection, node: NodeId, incarnation: UUID) -> None:
    """Say that this node has left; its peers need not wait for its silence."""
    await connection.execute(STOP, node, incarnation)


async def read_cluster(connection: asyncpg.Connection) -> ClusterRows:
    """Return every node and shard."""
    cluster: Any = await connection.fetchrow(CLUSTER)
    # Shards first: the node of each is then among those read after it, unless both were removed meanwhile.
    shards = [shard_row(row) for row in await connection.fetch(SHARDS)]
    nodes = {node.id: node for node in map(node_row, await connection.fetch(NODES))}
    known = {shard.id: shard for shard in shards if shard.member.node in nodes}
    return ClusterRows(cluster["cluster_id"], cluster["now"], nodes, known, cluster["schema_version"])


def node_row(row: asyncpg.Record) -> NodeRow:
    return NodeRow(
        id=NodeId(row["id"]),
        zone=ZoneId(row["zone"]),
        url=row["url"],
        internal_url=row["internal_url"],
        version=row["version"],
        incarnation=row["incarnation"],
        up=row["up"],
        heartbeat_age_seconds=row["age"],
        schema_version=row["schema_version"],
        leaving=row["leaving"],
        stop_asked=row["stop_asked"],
    )


def shard_row(row: asyncpg.Record) -> ShardRow:
    member = Member(ShardId(row["id"]), row["uid"], ZoneId(row["zone"]), NodeId(row["node_id"]), row["weight"])
    return ShardRow(
        member=member,
        path=row["path"],
        state=ShardState(row["state"]),
        owner=row["owner"],
        capacity_bytes=row["capacity_bytes"],
        free_bytes=row["free_bytes"],
        writable=row["writable"],
        reason=row["reason"],
    )
