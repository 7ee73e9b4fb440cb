"""Holds: why nothing may be deleted now, until an operator says that it may."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from repo_node.db.pool import Database, Statement
from repo_node.origin import Origin


@dataclass(frozen=True, slots=True)
class Hold:
    reason: str
    detail: str
    since: datetime
    allowance: int


LIST = Statement(
    "holds_list", "SELECT reason, detail, since, allowance FROM holds WHERE released_at IS NULL ORDER BY since"
)
HELD = Statement("deletions_held", "SELECT deletions_held() AS held")
PLACE = Statement("hold_place", "SELECT place_hold($1, $2, $3, $4, $5, $6) AS placed")
RELEASE = Statement(
    "holds_release",
    """
    WITH released AS (
        UPDATE holds SET released_at = clock_timestamp(), released_by = $1 WHERE released_at IS NULL RETURNING reason
    ), event AS (
        INSERT INTO events (kind, principal, request_id, address, detail)
        SELECT 'release', $1, $2, $3, jsonb_build_object('reason', reason) FROM released
    )
    SELECT coalesce(array_agg(reason ORDER BY reason), '{}') AS reasons FROM released
    """,
)


async def read(database: Database) -> list[Hold]:
    """Return what holds deletions now, oldest first."""
    rows = await database.fetch(LIST)
    return [Hold(row["reason"], row["detail"], row["since"], row["allowance"]) for row in rows]


async def deletions_held(database: Database) -> bool:
    """Say whether anything holds deletions."""
    row = await database.fetchrow(HELD)
    return row is None or bool(row["held"])


async def place(database: Database, reason: str, detail: str, *, by: Origin, allowance: int = 0) -> bool:
    """Hold every deletion; ``allowance`` is what a run of gc may remove after the release. False when held already."""
    row = await database.write(PLACE, reason, detail, allowance, *by)
    return bool(row and row["placed"])


async def release(database: Database, *, by: Origin) -> list[str]:
    """Let deletions go on; return the reasons for which they were held."""
    row = await database.write(RELEASE, *by)
    return [] if row is None else list(row["reasons"])
