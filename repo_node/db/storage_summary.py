"""What is stored, by repository: counted by a job, because that reads every artifact, and kept in one row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from repo_node.db.pool import Database, Statement


class Stored(NamedTuple):
    """``bytes`` are those of the files, each counted wherever it is."""

    folders: int
    files: int
    bytes: int


NOTHING = Stored(0, 0, 0)


@dataclass(frozen=True, slots=True)
class StorageSummary:
    """``repositories`` are those that had anything, by id. ``binaries`` are blobs: each is there once."""

    calculated_at: datetime
    binaries: int
    binaries_bytes: int
    trash: Stored
    repositories: Mapping[int, Stored]


@dataclass(frozen=True, slots=True)
class Space:
    """The room on the shards that answer; a file system that several shards of one node share is counted once."""

    total_bytes: int
    free_bytes: int


CALCULATE = "SELECT calculate_storage_summary() AS calculated FROM require_writable()"
READ = Statement(
    "storage_summary",
    """
    SELECT c.calculated_at, c.binaries, c.binaries_bytes, c.trash_files, c.trash_bytes, c.repositories,
           p.total_bytes, p.free_bytes
      FROM (SELECT coalesce(sum(part.bytes), 0)::bigint AS total_bytes,
                   coalesce(sum(part.bytes * (f.free_bytes::numeric / f.capacity_bytes)), 0)::bigint AS free_bytes
              FROM shards s JOIN shard_space f ON f.shard_id = s.id AND f.capacity_bytes > 0,
                   LATERAL (SELECT least(coalesce(s.share_bytes, f.capacity_bytes), f.capacity_bytes) AS bytes) part
             WHERE s.state <> 'lost') p
      LEFT JOIN storage_summary c ON true
    """,
)


async def calculate(database: Database) -> bool:
    """Count everything, for as long as it takes; False while another one does. Raises ``CatalogueUnavailable``."""
    async with database.apart() as connection:
        return bool(await connection.fetchval(CALCULATE))


async def read(database: Database) -> tuple[StorageSummary | None, Space]:
    """Return what was counted last, None before the first time, and how much room there is."""
    row = await database.fetchrow(READ)
    assert row is not None
    space = Space(row["total_bytes"], row["free_bytes"])
    if row["calculated_at"] is None:
        return None, space
    counted = json.loads(row["repositories"])
    summary = StorageSummary(
        row["calculated_at"],
        row["binaries"],
        row["binaries_bytes"],
        Stored(0, row["trash_files"], row["trash_bytes"]),
        {int(identity): Stored(*figures) for identity, figures in counted.items()},
    )
    return summary, space
