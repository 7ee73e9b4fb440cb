"""Counts each user's requests under way, so that one user alone cannot take up a whole node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from repo_node.errors import TooManyRequests


class Admission:
    """``limit`` gives the most requests of one user at once, asked anew each time."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._under_way: dict[str, int] = {}

    @contextmanager
    def admitted(self, user: str) -> Iterator[None]:
        """Count one request of ``user`` for the length of the block. Raises ``TooManyRequests``."""
        count = self._under_way.get(user, 0)
        if count >= self._limit():
            raise TooManyRequests(
                f"{user} has {count} requests under way on this node, as many as one user may "
                "(setting requests_per_user_max); retry."
            )
        self._under_way[user] = count + 1
        try:
            yield
        finally:
            left = self._under_way[user] - 1
            if left:
                self._under_way[user] = left
            else:
                del self._under_way[user]
