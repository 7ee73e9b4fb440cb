"""What Postgres knows of the cluster and of itself, for people who look for what is wrong: named columns, no secrets.

Of running statements the names are told that they have here, never their text, which may hold anything.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import asyncpg

from repo_node.db.errors import CatalogueUnavailable
from repo_node.db.pool import Database, Statement

Rows = list[dict[str, Any]]

QUERY_CHARACTERS = 1_000
"""Postgres keeps at least so much of a statement's text."""

CLUSTER: Mapping[str, Statement] = {
    "migrations": Statement(
        "inspect_migrations", "SELECT version, name, applied_at FROM schema_migrations ORDER BY version"
    ),
    "nodes": Statement(
        "inspect_nodes",
        """
        SELECT n.id, n.zone, n.version, n.schema_version, n.incarnation, n.registered_at, n.heartbeat_at, n.stopped_at,
               node_is_up(n) AS up, n.leaving IS NOT NULL AS leaving, n.stop_asked IS NOT NULL AS stop_asked
          FROM nodes n ORDER BY n.id
        """,
    ),
    "shards": Statement(
        "inspect_shards",
        """
        SELECT s.id, s.uid, s.node_id, n.zone, s.path, s.weight, s.weight_set, s.state, s.state_since, s.state_reason,
               s.replaced, s.share_bytes, s.owner IS NOT NULL AS claimed, f.capacity_bytes, f.free_bytes, f.writable,
               f.reported_at, f.silent_since, f.reason
          FROM shards s JOIN nodes n ON n.id = s.node_id LEFT JOIN shard_space f ON f.shard_id = s.id ORDER BY s.id
        """,
    ),
    "lease": Statement("inspect_lease", "SELECT epoch, holder, acquired_at, renewed_at, expires_at FROM lease"),
    "holds": Statement(
        "inspect_holds", "SELECT reason, detail, since, released_at, released_by, allowance FROM holds ORDER BY since"
    ),
    "jobs": Statement(
        "inspect_jobs",
        """
        SELECT node_id, job, state, done, total, moved_bytes, seconds_left, last_error, started_at, finished_at,
               requested_at, answered_at, updated_at
          FROM jobs ORDER BY job, node_id
        """,
    ),
    "schedules": Statement("inspect_schedules", "SELECT job, cron, served_at FROM schedules ORDER BY job"),
    "walks": Statement(
        "inspect_walks",
        """
        SELECT shard_id, kind, walked, kept_back, last_copies, passes, due_at, started_at FROM shard_walks
         ORDER BY shard_id
        """,
    ),
    "scrubs": Statement(
        "inspect_scrubs",
        """
        SELECT shard_id, kind, started_at, done_replicas, total_replicas, finished_at, covered_since FROM scrubs
         ORDER BY shard_id, kind
        """,
    ),
    "backups": Statement("inspect_backups", "SELECT shard_id, name, bytes, taken_at FROM backups ORDER BY taken_at"),
    "repositories": Statement(
        "inspect_repositories",
        """
        SELECT id, key, rclass, package_type, redundancy, created_at, trash, digests, layout, includes_pattern,
               excludes_pattern, checksum_policy, blacked_out, priority, allow_overwrite, allow_delete, quota_bytes
          FROM repositories ORDER BY key LIMIT 10000
        """,
    ),
    # Not all of them: there may be millions.
    "repair_queue": Statement(
        "inspect_repair_queue",
        """
        SELECT q.reason, q.urgency, count(*) AS blobs, min(q.queued_at) AS oldest, max(q.attempts) AS attempts_max
          FROM (SELECT reason, urgency, queued_at, attempts FROM repair_queue LIMIT 100000) q
         GROUP BY q.reason, q.urgency ORDER BY q.urgency, q.reason
        """,
    ),
}
POSTGRES: Mapping[str, Statement] = {
    "server": Statement(
        "inspect_server",
        """
        SELECT version() AS version, pg_is_in_recovery() AS in_recovery, pg_postmaster_start_time() AS started_at,
               clock_timestamp() AS now, pg_database_size(current_database()) AS database_bytes
        """,
    ),
    "settings": Statement(
        "inspect_postgres_settings",
        """
        SELECT name, setting, unit FROM pg_settings
         WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes', 'max_connections', 'shared_buffers',
                        'work_mem', 'maintenance_work_mem', 'effective_cache_size', 'max_wal_size', 'wal_level',
                        'checkpoint_timeout', 'autovacuum', 'default_transaction_read_only',
                        'track_activity_query_size', 'idle_in_transaction_session_timeout',
                        'max_prepared_transactions', 'random_page_cost',
                        'server_encoding', 'data_checksums', 'wal_keep_size', 'hot_standby_feedback')
         ORDER BY name
        """,
    ),
    "tables": Statement(
        "inspect_tables",
        """
        SELECT relname AS name, pg_total_relation_size(relid) AS bytes, pg_table_size(relid) AS table_bytes,
               n_live_tup AS rows_about, n_dead_tup AS dead_about, seq_scan, idx_scan, last_vacuum, last_autovacuum,
               last_analyze, last_autoanalyze
          FROM pg_stat_user_tables WHERE schemaname = 'public' ORDER BY 2 DESC
        """,
    ),
    "replication": Statement(
        "inspect_replication",
        "SELECT state, sync_state, write_lag::text, flush_lag::text, replay_lag::text FROM pg_stat_replication",
    ),
}
ACTIVITY = Statement(
    "inspect_activity",
    f"""
    SELECT a.pid, a.backend_type, a.application_name, a.state, a.wait_event_type, a.wait_event,
           a.backend_start, a.xact_start, a.query_start, a.state_change, pg_blocking_pids(a.pid) AS blocked_by,
           left(a.query, {QUERY_CHARACTERS}) AS query
      FROM pg_stat_activity a WHERE a.datname = current_database() ORDER BY a.xact_start NULLS LAST LIMIT 1000
    """,
)


async def inspect(database: Database, statement: Statement) -> Rows:
    """Return the rows of one of the statements here. Raises ``CatalogueError``."""
    try:
        return [dict(row) for row in await database.survey(statement)]
    except asyncpg.PostgresError as error:  # whatever one cannot tell, the others may
        raise CatalogueUnavailable(f"{statement.name}: {error}") from error


async def activity(database: Database) -> Rows:
    """Return the sessions of this database. Errors as ``inspect``."""
    names = statement_names()
    return [
        {**row, "query": names.get(row["query"], "(not one of Holdfast's)")}
        for row in await inspect(database, ACTIVITY)
    ]


def statement_names() -> dict[str, str]:
    """Return the names of Holdfast's statements, by the beginning of their text."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(f"{__package__}.")]
    known = [value for module in modules for value in vars(module).values() if isinstance(value, Statement)]
    return {"": "", **{one.sql[:QUERY_CHARACTERS]: one.name for one in known}}
