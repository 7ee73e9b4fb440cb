"""Long listings as pages, each of which is a short statement that begins behind the page before."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

import asyncpg

P = TypeVar("P")

FIRST_PAGE, PAGE = 1_000, 5_000
"""The first page is on its way soon, the others cost less per item."""


async def pages(
    fetch: Callable[[P, int], Awaitable[list[asyncpg.Record]]],
    start: P,
    place_of: Callable[[asyncpg.Record], P],
    *,
    rows_max: int | None = None,
) -> AsyncGenerator[list[asyncpg.Record], None]:
    """Yield what ``fetch(after, limit)`` returns, from ``start`` on; ``place_of`` tells where a row stands.

    There is at least one page, none has more than ``rows_max`` rows (``PAGE``), and all but the last are full.
    """
    most = PAGE if rows_max is None else rows_max
    after, limit = start, min(FIRST_PAGE, most)
    while True:
        rows = await fetch(after, limit)
        yield rows
        if len(rows) < limit:
            return
        after, limit = place_of(rows[-1]), most
