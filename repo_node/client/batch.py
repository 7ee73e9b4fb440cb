"""Several transfers at once, from one list that may still be growing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def run_batch(items: AsyncIterator[T], jobs: int, work: Callable[[T], Awaitable[bool]]) -> bool:
    """Do ``work`` on every item, ``jobs`` at a time; False from it lets no further item start.

    Returns whether it ran to the end of ``items``.
    """
    turn = asyncio.Lock()
    stopped = False

    async def run_worker() -> None:
        nonlocal stopped
        while True:
            async with turn:
                if stopped:
                    return
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
            if not await work(item):
                stopped = True

    async with asyncio.TaskGroup() as group:
        for _ in range(jobs):
            group.create_task(run_worker())
    return not stopped
