"""Which backups nodes have written to their shards, and who should write the next."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from repo_node.db.pool import Database, Statement
from sharding.model import NodeId, ShardId

# As many nodes keep backups as a blob has copies: the first of those that live. One is due where none was begun since
# the period, or since the run an operator or the schedule asked for: also when that run failed, or its process ended.
IS_DUE = Statement(
    "backup_due",
    """
    SELECT (SELECT count(DISTINCT n.id) FROM nodes n JOIN shards s ON s.node_id = n.id
             WHERE node_is_up(n) AND n.id < $1) < $2
       AND since.at IS NOT NULL
       AND NOT EXISTS (SELECT 1 FROM backups b JOIN shards s ON s.id = b.shard_id
                        WHERE s.node_id = $1 AND b.taken_at > since.at)
       AND EXISTS (SELECT 1 FROM artifacts)
       AND NOT EXISTS (SELECT 1 FROM holds h WHERE h.reason = 'rebuild' AND h.released_at IS NULL) AS due,
           clock_timestamp() AS now
      FROM (SELECT greatest(clock_timestamp() - $3::interval,
                            (SELECT j.requested_at FROM jobs j WHERE j.node_id = $1 AND j.job = 'backup')) AS at) since
    """,
)
RECORD = Statement(
    "backup_record",
    """
    WITH gone AS (
        DELETE FROM backups WHERE shard_id = $1 AND NOT name = ANY ($4::text[])
    )
    INSERT INTO backups (shard_id, name, bytes, taken_at) VALUES ($1, $2, $3, $5)
    """,
)


async def due(database: Database, node: NodeId, copies: int, period_seconds: float | None) -> datetime | None:
    """Return the database's time when this node should write a backup now, None where it should not.

    Without a period only what was asked for is due. A cluster without an artifact has nothing to lose yet. Until a
    restored database has been looked at, its backups would push out those it was restored from.
    """
    period = None if period_seconds is None else timedelta(seconds=period_seconds)
    row: Any = await database.fetchrow(IS_DUE, node, copies, period)
    return row["now"] if row["due"] else None


async def record(
    database: Database, shard: ShardId, name: str, count_bytes: int, kept: Sequence[str], began_at: datetime
) -> None:
    """Note a new backup, begun at the database's ``began_at``, and that only ``kept`` are left on its shard."""
    await database.write(RECORD, shard, name, count_bytes, kept, began_at)
