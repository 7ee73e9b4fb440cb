"""How often artifacts were downloaded, when last and by whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from repo_node.db.pool import Database, Statement
from repo_node.paths import ArtifactPath


@dataclass(frozen=True, slots=True)
class Downloads:
    """Downloads of one artifact: how many, the last one's time and who made it."""

    count: int
    last_at: datetime | None
    last_by: str | None


FIND = Statement(
    "downloads_find",
    """
    SELECT a.downloads, a.downloaded_at, a.downloaded_by
      FROM artifacts a JOIN repositories r ON r.id = a.repo_id WHERE r.key = $1 AND a.folder = $2 AND a.name = $3
    """,
)
# Rows are locked in the order of their paths, as whoever else locks several of them does.
ADD = Statement(
    "downloads_add",
    """
    WITH given AS MATERIALIZED (
        SELECT r.id AS repo_id, g.folder, g.name, g.count, g.at, g.who
          FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::timestamptz[], $6::text[])
               AS g (key, folder, name, count, at, who)
          JOIN repositories r ON r.key = g.key, require_writable()
    ), locked AS MATERIALIZED (
        SELECT a.repo_id, a.folder, a.name
          FROM given g JOIN artifacts a ON a.repo_id = g.repo_id AND a.folder = g.folder AND a.name = g.name
         ORDER BY a.repo_id, a.folder, a.name FOR NO KEY UPDATE OF a
    )
    UPDATE artifacts a
       SET downloads = a.downloads + g.count, downloaded_at = greatest(a.downloaded_at, g.at),
           downloaded_by = CASE WHEN a.downloaded_at > g.at THEN a.downloaded_by ELSE g.who END
      FROM locked l JOIN given g ON g.repo_id = l.repo_id AND g.folder = l.folder AND g.name = l.name
     WHERE a.repo_id = l.repo_id AND a.folder = l.folder AND a.name = l.name AND a.blob_id IS NOT NULL
    """,
)


async def find(database: Database, at: ArtifactPath) -> Downloads | None:
    """Return the downloads of an artifact as far as nodes have told of them; None when nothing is there."""
    row = await database.fetchrow(FIND, at.repository, at.folder, at.name)
    return None if row is None else Downloads(row["downloads"], row["downloaded_at"], row["downloaded_by"])


async def add(database: Database, counted: Sequence[tuple[ArtifactPath, Downloads]]) -> None:
    """Add downloads to what was counted before; what is not there any more is passed over."""
    await database.write(
        ADD,
        [at.repository for at, _ in counted],
        [at.folder for at, _ in counted],
        [at.name for at, _ in counted],
        [downloads.count for _, downloads in counted],
        [downloads.last_at for _, downloads in counted],
        [downloads.last_by for _, downloads in counted],
    )
