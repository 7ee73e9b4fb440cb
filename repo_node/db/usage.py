"""What repositories with a quota use: changes, which uploads and deletions only insert, are added up now and then."""

from __future__ import annotations

from typing import Any, NamedTuple

from repo_node.db.pool import Database, Statement

FOLD = Statement("usage_fold", "SELECT f.folded, f.uncounted FROM require_writable(), fold_usage($1) f")
COUNT = "SELECT count_usage($1) AS counted FROM require_writable()"


class Folded(NamedTuple):
    """How many changes were added up, and a repository that has yet to be counted, or None."""

    changes: int
    uncounted: int | None


async def fold(database: Database, *, changes_max: int) -> Folded:
    """Add up to ``changes_max`` changes to what is counted. Two at once add each change once."""
    row: Any = await database.write(FOLD, changes_max)
    return Folded(row["folded"], row["uncounted"])


async def count(database: Database, repository: int) -> bool:
    """Count the artifacts of a repository, for as long as it takes; False when that is done, or somebody is at it.

    Raises ``CatalogueUnavailable``.
    """
    async with database.apart() as connection:
        return bool(await connection.fetchval(COUNT, repository))
