"""What clients do, each time under the id of its request; and what the audit log is to tell of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

NEVER = float("inf")


class Outcome(StrEnum):
    """How an attempt ended, as its client saw it."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    """By an answer that says that nothing was done, or by a client that never sent the whole of it."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Deed:
    """What an operation is in the audit log: its kinds, where it is done, and what else its event tells.

    ``repeats``: done again, it leaves another event, though nothing is left to be changed. Of ``kinds`` the first is
    what a first attempt leaves.
    """

    kinds: tuple[str, ...]
    place: str
    principal: str = "admin"
    sha256: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    repeats: bool = False


@dataclass(slots=True)
class Act:
    """One attempt at an operation, under the id of its request, with an event for each of ``deeds``.

    ``is_first``: no attempt before it was in doubt.
    """

    operation: int
    deeds: tuple[Deed, ...]
    began: float
    is_first: bool
    ended: float = NEVER
    outcome: Outcome = Outcome.UNKNOWN

    def deed_at(self, place: str) -> Deed | None:
        """Return what was to be done at a place."""
        return next((deed for deed in self.deeds if deed.place == place), None)
