"""Walks over the replicas of a shard, over all blobs, and verdicts on shards: a bounded statement for each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from repo_node.db.pool import Database, Statement
from sharding.model import ShardId

WALK = Statement("shard_walk", "SELECT at_shard, at_kind, stepped, acted, ended FROM walk_shard($1, $2, $3)")
CENSUS = Statement("census", "SELECT counted, queued, at_blob, last_blob, ended FROM take_census($1, $2::smallint, $3)")
DECLARE = Statement("shards_declare_lost", "SELECT declared, refused FROM declare_lost($1, $2)")
RETURN = Statement("shards_return", "SELECT return_shards() AS shards")


@dataclass(frozen=True, slots=True)
class WalkStep:
    """One step of a walk: so many replicas looked at, and acted upon."""

    shard: ShardId
    kind: str
    walked: int
    acted: int
    ended: bool


@dataclass(frozen=True, slots=True)
class CensusStep:
    """One step of the census, which is at ``at_blob`` of ``last_blob``."""

    counted: int
    queued: int
    at_blob: int
    last_blob: int
    ended: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """The shards declared lost just now, or why none was although some are silent."""

    declared: Sequence[ShardId]
    refused: str | None


async def walk(database: Database, count: int, *, again_seconds: float, lost_again_seconds: float) -> WalkStep | None:
    """Take one step of the walk that is due; None when none is."""
    row = await database.write(WALK, count, again_seconds, lost_again_seconds)
    if row is None:
        return None
    return WalkStep(ShardId(row["at_shard"]), row["at_kind"], row["stepped"], row["acted"], row["ended"])


async def census(database: Database, count: int, *, redundancy: int, period_seconds: float) -> CensusStep | None:
    """Take one step of the census; None when no pass is due, or another node is at it."""
    row = await database.write(CENSUS, count, redundancy, period_seconds)
    if row is None:
        return None
    return CensusStep(row["counted"], row["queued"], row["at_blob"] or 0, row["last_blob"], row["ended"])


async def declare_lost(database: Database, silent_seconds: float, principal: str) -> Verdict:
    """Declare lost what has been silent for so long, within the brakes of ``declare_lost`` in the schema."""
    row: Any = await database.write(DECLARE, silent_seconds, principal)
    return Verdict([ShardId(shard) for shard in row["declared"]], row["refused"])


async def return_shards(database: Database) -> list[ShardId]:
    """Begin the return of shards that a verdict took and that answer again."""
    row: Any = await database.write(RETURN)
    return [ShardId(shard) for shard in row["shards"]]
