"""Chooses shards for one blob, never the same twice, apart from one another as far as the living ones allow."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from sharding.model import Member
from sharding.ring import key_of
from sharding.view import StoreView


class Placer:
    """The candidates of one blob, primaries first, then handoffs."""

    def __init__(self, uid: UUID, view: StoreView) -> None:
        self._key = key_of(uid)
        self._view = view
        self._tried: set[Member] = set()

    def take(self, count: int, apart_from: Iterable[Member] = ()) -> list[Member]:
        """Return up to ``count`` further shards, in zones and nodes other than those of ``apart_from`` if possible."""
        apart = list(apart_from)
        candidates = self._view.ring.candidates(self._key, taken=apart, usable=self._usable)
        chosen = [member for member, _ in zip(candidates, range(count), strict=False)]
        self._tried.update(chosen)
        return chosen

    def _usable(self, member: Member) -> bool:
        return member not in self._tried and self._view.takes(member)
