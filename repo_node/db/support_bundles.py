"""Support bundles as rows, their bytes in parts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from repo_node.db.pool import Database, Statement
from repo_node.origin import Origin
from sharding.model import NodeId

IN_PROGRESS = "in progress"
SUCCESS = "success"
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class BundleRow:
    """``doing`` says what is being done, or why it failed; ``done`` of ``total`` steps. One without an end failed."""

    id: str
    name: str
    description: str
    state: str
    node: NodeId
    created_by: str
    created_at: datetime
    done: int
    total: int
    doing: str
    bytes: int


COLUMNS = f"""
    b.id, b.name, b.description, b.node, b.created_by, b.created_at, b.done, b.total, b.bytes,
    CASE WHEN b.state = '{IN_PROGRESS}' AND b.gives_up_at < clock_timestamp() THEN '{FAILED}' ELSE b.state END AS state,
    CASE WHEN b.state = '{IN_PROGRESS}' AND b.gives_up_at < clock_timestamp()
         THEN format('%s did not end it in time', b.node) ELSE b.doing END AS doing
"""
LIST = Statement("support_bundles", f"SELECT {COLUMNS} FROM support_bundles b ORDER BY b.created_at DESC, b.id")
FIND = Statement("support_bundle", f"SELECT {COLUMNS} FROM support_bundles b WHERE b.id = $1")
BEGIN = Statement("support_bundle_begin", "SELECT begin_support_bundle($1, $2, $3, $4, $5, $6, $7, $8) AS begun")
PROGRESS = Statement(
    "support_bundle_progress",
    f"""
    UPDATE support_bundles SET done = $2, total = $3, doing = $4
     WHERE id = $1 AND state = '{IN_PROGRESS}' RETURNING id
    """,
)
ADD_PART = Statement(
    "support_bundle_part",
    """
    INSERT INTO support_bundle_parts (bundle_id, position, data)
    SELECT b.id, $2::integer, $3::bytea FROM support_bundles b WHERE b.id = $1 FOR KEY SHARE
    ON CONFLICT (bundle_id, position) DO NOTHING
    """,
)
END = Statement("support_bundle_end", "SELECT end_support_bundle($1, $2, $3, $4, $5) AS ended")
PART = Statement("support_bundle_read", "SELECT data FROM support_bundle_parts WHERE bundle_id = $1 AND position = $2")
DELETE = Statement(
    "support_bundle_delete",
    """
    WITH gone AS (
        DELETE FROM support_bundles WHERE id = $1 RETURNING id
    ), noted AS (
        INSERT INTO events (kind, principal, request_id, address, detail)
        SELECT 'support_bundle_delete', $2, $3, $4, jsonb_build_object('bundle', id) FROM gone
    )
    SELECT id FROM gone
    """,
)


def bundle_of(row: Any) -> BundleRow:
    return BundleRow(
        row["id"],
        row["name"],
        row["description"],
        row["state"],
        NodeId(row["node"]),
        row["created_by"],
        row["created_at"],
        row["done"],
        row["total"],
        row["doing"],
        row["bytes"],
    )


async def list_all(database: Database) -> list[BundleRow]:
    """Return every bundle, the newest first."""
    return [bundle_of(row) for row in await database.fetch(LIST)]


async def find(database: Database, bundle: str) -> BundleRow | None:
    row = await database.fetchrow(FIND, bundle)
    return None if row is None else bundle_of(row)


async def begin(
    database: Database, bundle: str, name: str, description: str, node: NodeId, seconds: float, *, by: Origin
) -> bool:
    """Note a bundle that is being made, for ``seconds`` at most; False while another one is. May be repeated."""
    row: Any = await database.write(BEGIN, bundle, name, description, node, seconds, *by)
    return bool(row["begun"])


async def tell_progress(database: Database, bundle: str, done: int, total: int, doing: str) -> bool:
    """Say how far a bundle is; False when nobody wants it any more."""
    return await database.write(PROGRESS, bundle, done, total, doing) is not None


async def add_part(database: Database, bundle: str, position: int, data: bytes) -> None:
    """Keep a part, unless the bundle is gone; parts are counted from 0. May be repeated."""
    await database.write(ADD_PART, bundle, position, data)


async def end(database: Database, bundle: str, state: str, doing: str, count_bytes: int, *, kept: int) -> bool:
    """Note how a bundle ended, and let go of all but the last ``kept``; False when it is gone. May be repeated."""
    row: Any = await database.write(END, bundle, state, doing, count_bytes, kept)
    return bool(row["ended"])


async def read_part(database: Database, bundle: str, position: int) -> bytes | None:
    """Return a part; None behind the last one, and of a bundle that is gone."""
    row = await database.fetchrow(PART, bundle, position)
    return None if row is None else bytes(row["data"])


async def delete(database: Database, bundle: str, *, by: Origin) -> bool:
    """Let go of a bundle, whether it is ready or not; False when there is none."""
    return await database.write(DELETE, bundle, *by) is not None
