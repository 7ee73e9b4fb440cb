"""Counting the durable copies of an upload: may it be acknowledged, and does it need a repair?

Pure: whoever commits the copies feeds a tally, and the tally alone decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sharding.model import Member


@dataclass(frozen=True, slots=True)
class WritePolicy:
    """What an upload asks for. A ``write_quorum`` of None means two copies, or one if only one is wanted.

    Raises ``ValueError`` unless quorum and ``zones_min`` lie between 1 and ``redundancy``.
    """

    redundancy: int = 2
    write_quorum: int | None = None
    zones_min: int = 1

    def __post_init__(self) -> None:
        if self.redundancy < 1:
            raise ValueError(f"redundancy must be at least 1, not {self.redundancy}")
        for name, value in (("write_quorum", self.quorum), ("zones_min", self.zones_min)):
            if not 1 <= value <= self.redundancy:
                raise ValueError(f"{name} must be between 1 and the redundancy {self.redundancy}, not {value}")

    @property
    def quorum(self) -> int:
        """The durable copies an acknowledgement needs."""
        return min(self.redundancy, 2) if self.write_quorum is None else self.write_quorum


class Verdict(StrEnum):
    """What the durable copies of an upload amount to."""

    COMPLETE = "complete"
    """All copies wanted, in as many zones as wanted."""

    SHORT = "short"
    """Enough to acknowledge; a repair makes the rest."""

    REFUSED = "refused"
    """Fewer copies than the quorum, or fewer zones than ``zones_min``: nothing may become visible."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The durable copies of one upload against its policy; copies on one shard count once.

    ``zones_wanted`` is ``min(redundancy, zones with a ring member)``, whether living or not: a zone
    that is down leaves an upload short, a zone that does not exist cannot.
    """

    policy: WritePolicy
    durable: tuple[Member, ...]
    zones_wanted: int

    @property
    def copies(self) -> int:
        """Distinct shards with a durable copy."""
        return len({member.uid for member in self.durable})

    @property
    def zones(self) -> int:
        """Distinct zones with a durable copy."""
        return len({member.zone for member in self.durable})

    @property
    def missing(self) -> int:
        """Copies still to be made; moving one to another zone is not counted."""
        return max(0, self.policy.redundancy - self.copies)

    @property
    def verdict(self) -> Verdict:
        copies, zones = self.copies, self.zones
        if copies < self.policy.quorum or zones < self.policy.zones_min:
            return Verdict.REFUSED
        if copies < self.policy.redundancy or zones < self.zones_wanted:
            return Verdict.SHORT
        return Verdict.COMPLETE
