"""All blobs, a stretch after another: what reads the whole store does so in statements that end in time."""

from __future__ import annotations

from collections.abc import AsyncIterator

from repo_node.db.pool import Database, Statement

IDS = 100_000
"""Of blobs, that one statement looks at, however many there are in all."""

LAST = Statement("stretches_last", "SELECT coalesce(max(b.id), 0) AS last FROM blobs b")


async def stretches(database: Database) -> AsyncIterator[tuple[int, int]]:
    """Yield bounds of ids: those of a stretch are above the first and up to the second. Blobs of later are in none."""
    [last] = await database.survey(LAST)
    for low in range(0, last["last"], IDS):
        yield low, low + IDS
