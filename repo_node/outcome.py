"""Asks again until the outcome of a write is known."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from repo_node.db.errors import CatalogueUnavailable, OutcomeUnknown

T = TypeVar("T")

PAUSE_SECONDS = 0.2


async def until_known(write: Callable[[], Awaitable[T]], *, wait_seconds: float) -> T:
    """Run an idempotent ``write``; when its outcome stays unknown, run it again for up to ``wait_seconds``.

    Once a first attempt may have been committed, being unable to ask is no answer: only the write's
    own result, or an error that Postgres gives for it, ends the doubt. Raises ``OutcomeUnknown``.
    """
    deadline = asyncio.get_running_loop().time() + wait_seconds
    doubt: OutcomeUnknown | None = None
    while True:
        try:
            return await write()
        except OutcomeUnknown as error:
            doubt = error
        except CatalogueUnavailable:
            if doubt is None:
                raise
        if asyncio.get_running_loop().time() >= deadline:
            raise doubt
        await asyncio.sleep(PAUSE_SECONDS)
