"""Asks again until the outcome of a write is known."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from repo_node.db.errors import CatalogueUnavailable, OutcomeUnknown

T = TypeVar("T")

PAUSE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Known(Generic[T]):
    """What a write returned. ``doubted``: an attempt before it never answered, and may still arrive."""

    result: T
    doubted: bool


async def until_known(write: Callable[[], Awaitable[T]], *, wait_seconds: float) -> Known[T]:
    """Run an idempotent ``write``; when its outcome stays unknown, run it again for up to ``wait_seconds``.

    Once an attempt may have been committed, or may still be, an error is no answer: only the write's
    own result ends the doubt. Raises ``OutcomeUnknown``.
    """
    deadline = asyncio.get_running_loop().time() + wait_seconds
    doubt: OutcomeUnknown | None = None
    while True:
        try:
            return Known(await write(), doubt is not None)
        except OutcomeUnknown as error:
            doubt = error
        except CatalogueUnavailable:
            if doubt is None:
                raise
        except Exception as error:
            if doubt is None:
                raise
            raise doubt from error
        if asyncio.get_running_loop().time() >= deadline:
            raise doubt
        await asyncio.sleep(PAUSE_SECONDS)
