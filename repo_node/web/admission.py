"""Counts each user's requests under way, so that one user alone cannot take up a whole node."""

from __future__ import annotations

from collections.abc import Callable

from repo_node.errors import TooManyRequests


class Admission:
    """``limit`` gives the most requests of one user at once, asked anew each time."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._under_way: dict[str, int] = {}

    def admitted(self, user: str) -> Admitted:
        """Return what counts one request of ``user`` for the length of a block. Raises ``TooManyRequests``."""
        count = self._under_way.get(user, 0)
        if count >= self._limit():
            raise TooManyRequests(
                f"{user} has {count} requests under way on this node, as many as one user may "
                "(setting requests_per_user_max); retry."
            )
        return Admitted(self._under_way, user)


class Admitted:
    """One request among those under way. Made by ``Admission.admitted``, used once.

    Not by ``contextmanager``, which takes eight calls for each request.
    """

    __slots__ = ("_under_way", "_user")

    def __init__(self, under_way: dict[str, int], user: str) -> None:
        self._under_way = under_way
        self._user = user

    def __enter__(self) -> None:
        self._under_way[self._user] = self._under_way.get(self._user, 0) + 1

    def __exit__(self, *_: object) -> None:
        left = self._under_way[self._user] - 1
        if left:
            self._under_way[self._user] = left
        else:
            del self._under_way[self._user]
