"""Which backups nodes have written to their shards, and who should write the next."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from repo_node.db.pool import Database, Statement
from sharding.model import NodeId, ShardId

# As many nodes keep backups as a blob has copies: the first of those that live.
IS_DUE = Statement(
    "backup_due",
    """
    SELECT (SELECT count(DISTINCT n.id) FROM nodes n JOIN shards s ON s.node_id = n.id
             WHERE node_is_up(n) AND n.id < $1) < $2
       AND NOT EXISTS (SELECT 1 FROM backups b JOIN shards s ON s.id = b.shard_id
                        WHERE s.node_id = $1 AND b.taken_at > clock_timestamp() - $3::interval)
       AND EXISTS (SELECT 1 FROM artifacts)
       AND NOT EXISTS (SELECT 1 FROM holds h WHERE h.reason = 'rebuild' AND h.released_at IS NULL) AS due,
           to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24-MI-SS-MS') AS now
    """,
)
RECORD = Statement(
    "backup_record",
    """
    WITH gone AS (
        DELETE FROM backups WHERE shard_id = $1 AND NOT name = ANY ($4::text[])
    )
    INSERT INTO backups (shard_id, name, bytes) VALUES ($1, $2, $3)
    """,
)


async def due_name(database: Database, node: NodeId, copies: int, period_seconds: float) -> str | None:
    """Return the name of the backup this node should write now, None where it should not.

    A cluster without an artifact has nothing to lose yet. Until a restored database has been looked at, its backups
    would push out those it was restored from.
    """
    row: Any = await database.fetchrow(IS_DUE, node, copies, timedelta(seconds=period_seconds))
    return f"holdfast-{row['now']}Z.backup" if row["due"] else None


async def record(database: Database, shard: ShardId, name: str, count_bytes: int, kept: Sequence[str]) -> None:
    """Note a new backup, and that only ``kept`` are left on its shard."""
    await database.write(RECORD, shard, name, count_bytes, kept)
