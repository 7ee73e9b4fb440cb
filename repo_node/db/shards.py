"""The life of shards and nodes, as administrators direct it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from repo_node.db.nodes import ASK_RELOAD
from repo_node.db.pool import Database, Statement
from sharding.model import NodeId, ShardId, ShardState

CHANGE = Statement("shard_change", "SELECT change_shard($1, $2, $3, $4) AS outcome")
REMOVE = Statement("shard_remove", "SELECT remove_shard($1, $2, $3) AS outcome")
REMOVE_NODE = Statement("node_remove", "SELECT remove_node($1, $2, $3) AS outcome")
STOP_NODE = Statement(
    "node_stop",
    """
    WITH asked AS (
        UPDATE nodes n SET stop_asked = n.incarnation WHERE n.id = $1 AND node_is_up(n) RETURNING n.id
    ), noted AS (
        INSERT INTO events (kind, principal, request_id, detail)
        SELECT 'node_stop', $2, $3, jsonb_build_object('node', a.id) FROM asked a
    ), told AS (
        SELECT a.id, pg_notify('holdfast', 'nodes') FROM asked a
    )
    SELECT CASE WHEN t.id IS NOT NULL THEN 'asked' ELSE 'down' END AS outcome
      FROM nodes n LEFT JOIN told t ON t.id = n.id WHERE n.id = $1
    """,
)
RELOAD = Statement("node_reload", ASK_RELOAD)
WEIGH = Statement(
    "shard_weigh",
    """
    WITH weighed AS (
        UPDATE shards SET weight = $2, weight_set = true WHERE id = $1 RETURNING id
    ), noted AS (
        INSERT INTO events (kind, principal, request_id, detail)
        SELECT 'shard_weight', $3, $4, jsonb_build_object('shard', w.id, 'weight', $2::double precision) FROM weighed w
    )
    SELECT id FROM weighed
    """,
)
LIST = Statement(
    "shards_list",
    """
    SELECT s.id, s.node_id, s.state, s.state_since, s.state_reason, s.replaced, w.kind, w.walked, w.kept_back, w.passes,
           extract(epoch FROM clock_timestamp() - coalesce(f.silent_since, f.reported_at, s.created_at)
           )::double precision AS silent_seconds,
           (SELECT count(*) FROM replicas r WHERE r.shard_id = s.id AND r.blob_id IS NOT NULL) AS replicas
      FROM shards s LEFT JOIN shard_walks w ON w.shard_id = s.id LEFT JOIN shard_space f ON f.shard_id = s.id
     ORDER BY s.id
    """,
)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a shard stands. ``walk`` is what goes over its replicas: lost, drain, return, forget, or None."""

    shard: ShardId
    node: NodeId
    state: ShardState
    since: datetime
    reason: str
    replaced: bool
    silent_seconds: float
    replicas: int
    walk: str | None
    walked: int
    kept_back: int
    passes: int


async def list_all(database: Database) -> Mapping[ShardId, Standing]:
    """Return how every shard stands. Counts every replica."""
    return {
        ShardId(row["id"]): Standing(
            shard=ShardId(row["id"]),
            node=NodeId(row["node_id"]),
            state=ShardState(row["state"]),
            since=row["state_since"],
            reason=row["state_reason"],
            replaced=row["replaced"],
            silent_seconds=row["silent_seconds"],
            replicas=row["replicas"],
            walk=row["kind"],
            walked=row["walked"] or 0,
            kept_back=row["kept_back"] or 0,
            passes=row["passes"] or 0,
        )
        for row in await database.fetch(LIST)
    }


async def change(database: Database, shard: int, action: str, *, principal: str, request_id: str) -> str:
    """Drain, readonly, activate or replace a shard; the outcomes are those of ``change_shard`` in the schema."""
    row: Any = await database.write(CHANGE, shard, action, principal, request_id)
    return str(row["outcome"])


async def weigh(database: Database, shard: int, weight: float, *, principal: str, request_id: str) -> bool:
    """Set a shard's weight, whatever its node's configuration says; False when there is no such shard."""
    return await database.write(WEIGH, shard, weight, principal, request_id) is not None


async def remove(database: Database, shard: int, *, principal: str, request_id: str) -> str:
    """Remove a shard; the outcomes are those of ``remove_shard``."""
    row: Any = await database.write(REMOVE, shard, principal, request_id)
    return str(row["outcome"])


async def stop_node(database: Database, node: str, *, principal: str, request_id: str) -> str:
    """Ask a node to leave and to end, as SIGTERM does; the outcome is 'asked', 'down' or 'absent'."""
    row = await database.write(STOP_NODE, node, principal, request_id)
    return "absent" if row is None else str(row["outcome"])


async def remove_node(database: Database, node: str, *, principal: str, request_id: str) -> str:
    """Remove a node; the outcomes are those of ``remove_node``."""
    row: Any = await database.write(REMOVE_NODE, node, principal, request_id)
    return str(row["outcome"])


async def ask_reload(database: Database, node: str) -> None:
    """Have a node read the list of shards in its file anew, if it runs."""
    await database.write(RELOAD, node)
