"""The life of shards and nodes, as administrators direct it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from repo_node.db.nodes import ASK_RELOAD
from repo_node.db.pool import Database, Statement
from repo_node.db.stretches import stretches
from repo_node.origin import Origin
from sharding.model import NodeId, ShardId, ShardState

CHANGE = Statement("shard_change", "SELECT change_shard($1, $2, $3, $4, $5) AS outcome")
REMOVE = Statement("shard_remove", "SELECT remove_shard($1, $2, $3, $4) AS outcome")
REMOVE_NODE = Statement("node_remove", "SELECT remove_node($1, $2, $3, $4) AS outcome")
STOP_NODE = Statement(
    "node_stop",
    """
    WITH asked AS (
        UPDATE nodes n SET stop_asked = n.incarnation WHERE n.id = $1 AND node_is_up(n) RETURNING n.id
    ), noted AS (
        INSERT INTO events (kind, principal, request_id, address, detail)
        SELECT 'node_stop', $2, $3, $4, jsonb_build_object('node', a.id) FROM asked a
    ), told AS (
        SELECT a.id, pg_notify('holdfast', 'nodes') FROM asked a
    )
    SELECT CASE WHEN t.id IS NOT NULL THEN 'asked' ELSE 'down' END AS outcome
      FROM nodes n LEFT JOIN told t ON t.id = n.id WHERE n.id = $1
    """,
)
RELOAD = Statement(
    "node_reload",
    f"""
    WITH noted AS (
        INSERT INTO events (kind, principal, request_id, address, detail)
        SELECT 'node_reload', $3, $4, $5, jsonb_strip_nulls(jsonb_build_object('node', $1::text, 'shard', $2::text))
          FROM require_writable()
    )
    {ASK_RELOAD}
    """,
)
GIVE_UP = Statement("shard_give_up", "SELECT give_up_last_copies($1, $2, $3, $4, $5) AS outcome")
# Of one stretch of blobs.
LAST_COPIES = Statement(
    "shard_last_copies",
    """
    WITH last AS (
        SELECT r.blob_id FROM replicas r JOIN shards s ON s.id = r.shard_id
         WHERE r.blob_id > $3 AND r.blob_id <= $4 GROUP BY r.blob_id
        HAVING bool_or(r.shard_id = $1)
           AND NOT bool_or(r.shard_id <> $1 AND r.state = 'live' AND s.state <> 'lost')
    ), lost AS (
        SELECT concat_ws('/', g.key, nullif(a.folder, ''), a.name) COLLATE "C" AS path
          FROM last l JOIN artifacts a ON a.blob_id = l.blob_id JOIN repositories g ON g.id = a.repo_id
    )
    SELECT (SELECT count(*) FROM last) AS blobs, (SELECT count(*) FROM lost) AS artifacts,
           ARRAY (SELECT f.path FROM lost f ORDER BY f.path LIMIT $2) AS paths
    """,
)
WEIGH = Statement(
    "shard_weigh",
    """
    WITH weighed AS (
        UPDATE shards SET weight = $2, weight_set = true WHERE id = $1 RETURNING id
    ), noted AS (
        INSERT INTO events (kind, principal, request_id, address, detail)
        SELECT 'shard_weight', $3, $4, $5, jsonb_build_object('shard', w.id, 'weight', $2::double precision)
          FROM weighed w
    )
    SELECT id FROM weighed
    """,
)
COUNTED_MAX = 10_000
"""Copies of a shard that are counted, in milliseconds. Of more, Postgres' statistics tell about how many there are."""

LIST = Statement(
    "shards_list",
    """
    WITH estimates AS (
        SELECT e.shard_id, (e.part * c.reltuples)::bigint AS replicas
          FROM pg_class c, pg_stats p,
               unnest(p.most_common_vals::text::smallint[], p.most_common_freqs) AS e (shard_id, part)
         WHERE c.oid = 'replicas'::regclass AND p.schemaname = current_schema()
           AND p.tablename = 'replicas' AND p.attname = 'shard_id'
    )
    SELECT s.id, s.node_id, s.state, s.state_since, s.state_reason, s.replaced, w.kind, w.walked, w.kept_back, w.passes,
           w.last_copies,
           extract(epoch FROM clock_timestamp() - coalesce(f.silent_since, f.reported_at, s.created_at)
           )::double precision AS silent_seconds,
           (SELECT count(*) FROM (SELECT 1 FROM replicas r WHERE r.shard_id = s.id AND r.blob_id IS NOT NULL
                                   ORDER BY r.generation LIMIT $1::integer + 1) AS found) AS counted,
           coalesce((SELECT e.replicas FROM estimates e WHERE e.shard_id = s.id), 0) AS estimated
      FROM shards s LEFT JOIN shard_walks w ON w.shard_id = s.id LEFT JOIN shard_space f ON f.shard_id = s.id
     ORDER BY s.id
    """,
)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a shard stands. ``walk`` is what goes over its replicas: lost, drain, return, forget, or None.

    Where ``is_counted`` is false, ``replicas`` is about how many there are.
    """

    shard: ShardId
    node: NodeId
    state: ShardState
    since: datetime
    reason: str
    replaced: bool
    silent_seconds: float
    replicas: int
    is_counted: bool
    walk: str | None
    walked: int
    kept_back: int
    passes: int
    last_copies: int


@dataclass(frozen=True, slots=True)
class LastCopies:
    """The blobs that have no live copy but on one shard, the artifacts that would be lost, and some of their paths."""

    blobs: int
    artifacts: int
    paths: Sequence[str]


async def list_all(database: Database, *, counted_max: int = COUNTED_MAX) -> Mapping[ShardId, Standing]:
    """Return how every shard stands, with its replicas counted where there are no more than ``counted_max``."""
    return {
        ShardId(row["id"]): Standing(
            shard=ShardId(row["id"]),
            node=NodeId(row["node_id"]),
            state=ShardState(row["state"]),
            since=row["state_since"],
            reason=row["state_reason"],
            replaced=row["replaced"],
            silent_seconds=row["silent_seconds"],
            replicas=row["counted"] if row["counted"] <= counted_max else max(row["counted"], row["estimated"]),
            is_counted=row["counted"] <= counted_max,
            walk=row["kind"],
            walked=row["walked"] or 0,
            kept_back=row["kept_back"] or 0,
            passes=row["passes"] or 0,
            last_copies=row["last_copies"] or 0,
        )
        for row in await database.fetch(LIST, counted_max)
    }


async def change(database: Database, shard: int, action: str, *, by: Origin) -> str:
    """Drain, readonly, activate or replace a shard; the outcomes are those of ``change_shard`` in the schema."""
    row: Any = await database.write(CHANGE, shard, action, *by)
    return str(row["outcome"])


async def weigh(database: Database, shard: int, weight: float, *, by: Origin) -> bool:
    """Set a shard's weight, whatever its node's configuration says; False when there is no such shard."""
    return await database.write(WEIGH, shard, weight, *by) is not None


async def remove(database: Database, shard: int, *, by: Origin) -> str:
    """Remove a shard; the outcomes are those of ``remove_shard``."""
    row: Any = await database.write(REMOVE, shard, *by)
    return str(row["outcome"])


async def stop_node(database: Database, node: str, *, by: Origin) -> str:
    """Ask a node to leave and to end, as SIGTERM does; the outcome is 'asked', 'down' or 'absent'."""
    row = await database.write(STOP_NODE, node, *by)
    return "absent" if row is None else str(row["outcome"])


async def last_copies(database: Database, shard: int, paths_max: int) -> LastCopies:
    """Return what would be lost with a shard, and the first of the paths; reads the row of every replica."""
    blobs, artifacts, paths = 0, 0, list[str]()
    async for stretch in stretches(database):
        [row] = await database.survey(LAST_COPIES, shard, paths_max, *stretch)
        blobs += row["blobs"]
        artifacts += row["artifacts"]
        paths = sorted((*paths, *row["paths"]))[:paths_max]
    return LastCopies(blobs, artifacts, paths)


async def give_up_last_copies(database: Database, shard: int, copies: int, *, by: Origin) -> str:
    """Let go of the last copies on a lost shard; the outcomes are those of ``give_up_last_copies``."""
    row: Any = await database.write(GIVE_UP, shard, copies, *by)
    return str(row["outcome"])


async def remove_node(database: Database, node: str, *, by: Origin) -> str:
    """Remove a node; the outcomes are those of ``remove_node``."""
    row: Any = await database.write(REMOVE_NODE, node, *by)
    return str(row["outcome"])


async def ask_reload(database: Database, node: str, path: str | None, *, by: Origin) -> None:
    """See ``nodes.ask_reload``."""
    await database.write(RELOAD, node, path, *by)
