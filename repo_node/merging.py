"""Sorted pages of several sources as one: what two have alike is the earlier one's. Memory: a page of each."""

from __future__ import annotations

import heapq
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar

T = TypeVar("T")

PAGE = 1_000


async def merged(
    sources: Sequence[AsyncGenerator[Sequence[T], None]], place_of: Callable[[T], Any]
) -> AsyncGenerator[list[T], None]:
    """Yield pages of what the sources have, by ``place_of``, in which order each source comes. At least one page.

    All pages but the last have ``PAGE`` items.
    """
    async with AsyncExitStack() as stack:
        items = [one_by_one(await stack.enter_async_context(aclosing(source))) for source in sources]
        heap: list[tuple[Any, int, T]] = []

        async def follow(number: int) -> None:
            async for item in items[number]:
                heapq.heappush(heap, (place_of(item), number, item))
                return

        for number in range(len(items)):
            await follow(number)
        page: list[T] = []
        last: Any = None
        while heap:
            place, number, item = heapq.heappop(heap)
            if place != last:
                page.append(item)
            last = place
            # Before more is asked for: a page is on its way when it is full.
            if len(page) == PAGE:
                yield page
                page = []
            await follow(number)
        yield page


async def one_by_one(pages: AsyncGenerator[Sequence[T], None]) -> AsyncIterator[T]:
    async for page in pages:
        for item in page:
            yield item
