"""Checks of shards as operators order them and read their reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from repo_node.db.pool import Database, Statement
from repo_node.origin import Origin
from sharding.model import ShardId

REBUILD_ON = Statement("check_rebuild_on", "SELECT rebuild_is_on() AS is_on")
REQUEST = Statement(
    "checks_request",
    """
    WITH asked AS (
        INSERT INTO checks (request, shard_id, dry_run, repair, rebuild, principal)
        SELECT $1, s.id, $3, $4, $8, $5
          FROM shards s JOIN nodes n ON n.id = s.node_id AND n.incarnation = s.owner AND node_is_up(n)
         WHERE $2::smallint IS NULL OR s.id = $2 ORDER BY s.id
        RETURNING id
    ), noted AS (
        INSERT INTO events (kind, principal, request_id, address, detail)
        SELECT 'check', $5, $6, $7, jsonb_build_object(
               'request', $1::uuid, 'dry_run', $3::boolean, 'repair', $4::boolean, 'rebuild', $8::boolean)
         WHERE EXISTS (SELECT 1 FROM asked)
    )
    SELECT count(*) AS shards FROM asked
    """,
)
LIST = Statement(
    "checks_list",
    """
    SELECT c.id, c.shard_id, s.node_id, s.path, node_is_up(n) AS up, c.dry_run, c.repair, c.requested_at,
           c.started_at, c.finished_at, c.done, c.total, c.report, c.error
      FROM checks c JOIN shards s ON s.id = c.shard_id JOIN nodes n ON n.id = s.node_id
     WHERE c.request = $1 ORDER BY c.shard_id
    """,
)
UNREACHED = Statement(
    "checks_unreached",
    """
    SELECT s.id FROM shards s JOIN nodes n ON n.id = s.node_id
     WHERE NOT (node_is_up(n) AND s.owner IS NOT DISTINCT FROM n.incarnation) ORDER BY s.id
    """,
)


@dataclass(frozen=True, slots=True)
class CheckRow:
    """A check of one shard as it stands."""

    id: int
    shard: ShardId
    node: str
    node_up: bool
    path: str
    dry_run: bool
    repair: bool
    requested_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    done: int
    total: int | None
    report: Mapping[str, Any] | None
    error: str | None


async def request_checks(
    database: Database,
    request: UUID,
    *,
    shard: int | None,
    dry_run: bool,
    repair: bool,
    by: Origin,
    rebuild: bool = False,
) -> int:
    """Order a check of a shard, or of all whose nodes are up; return of how many."""
    row: Any = await database.write(REQUEST, request, shard, dry_run, repair, *by, rebuild)
    return int(row["shards"])


async def list_checks(database: Database, request: UUID) -> list[CheckRow]:
    """Return the checks of one request, by shard."""
    return [
        CheckRow(
            id=row["id"],
            shard=ShardId(row["shard_id"]),
            node=row["node_id"],
            node_up=row["up"],
            path=row["path"],
            dry_run=row["dry_run"],
            repair=row["repair"],
            requested_at=row["requested_at"],
            started_at=row["started_at"],
            finished_at=row["finished_at"],
            done=row["done"],
            total=row["total"],
            report=None if row["report"] is None else json.loads(row["report"]),
            error=row["error"],
        )
        for row in await database.fetch(LIST, request)
    ]


async def unreached_shards(database: Database) -> list[int]:
    """Return the shards that nobody can look at now."""
    return [row["id"] for row in await database.fetch(UNREACHED)]


async def is_rebuild_on(database: Database) -> bool:
    """Say whether rows may be made from files now."""
    row: Any = await database.fetchrow(REBUILD_ON)
    return bool(row["is_on"])
