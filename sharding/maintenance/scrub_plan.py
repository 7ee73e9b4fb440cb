"""When passes over a shard are due and how fast they must go. Pure.

A pass is to end within ``SHARE`` of its period, and the next one begins that long after it began: so
each replica is read once in the period, with a rest in hand for a node that was down or a shard that grew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sharding.maintenance.audit_catalogue import ScrubKind, ScrubPass, Volume
from sharding.model import Generation, ShardId

SHARE = 0.8
SECONDS_LEFT_MIN = 60.0
"""A pass that is late is to be over in a minute, as far as the limit of the rate allows."""


@dataclass(frozen=True, slots=True)
class ScrubLimits:
    """The periods, and between which bounds the rate of a node's reads stays."""

    blocks_period_seconds: float
    proof_period_seconds: float
    bytes_per_second_min: float
    bytes_per_second_max: float

    def target_seconds(self, kind: ScrubKind) -> float:
        """Return how long a pass may take, and after how long the next one begins."""
        return SHARE * (self.blocks_period_seconds if kind is ScrubKind.BLOCKS else self.proof_period_seconds)


@dataclass(slots=True)
class PassState:
    """A pass under way, with its start by this process's clock."""

    shard: ShardId
    kind: ScrubKind
    began: float
    position: Generation
    done: Volume
    total: Volume | None
    is_finished: bool
    covered_at: float | None
    is_asked_for: bool = False
    in_haste: bool = False

    @classmethod
    def of(cls, row: ScrubPass, now: float) -> PassState:
        covered = row.covered_age_seconds
        return cls(
            row.shard,
            row.kind,
            now - row.age_seconds,
            row.position,
            row.done,
            row.total,
            row.is_finished,
            None if covered is None else now - covered,
            row.is_asked_for,
            row.in_haste,
        )

    def is_due(self, limits: ScrubLimits, now: float) -> bool:
        """Whether a finished pass should begin anew."""
        return self.is_finished and (self.is_asked_for or now - self.began >= limits.target_seconds(self.kind))

    def bytes_left(self) -> int:
        return max(self.total.cost_bytes - self.done.cost_bytes, 0) if self.total else 0

    def rate(self, limits: ScrubLimits, now: float) -> float:
        """Return the bytes a second at which the pass ends in time; as many as there may be while somebody waits."""
        if self.in_haste:
            return limits.bytes_per_second_max
        left = self.began + limits.target_seconds(self.kind) - now
        return self.bytes_left() / max(left, SECONDS_LEFT_MIN)

    def lead(self, limits: ScrubLimits, now: float) -> float:
        """Return by which share of itself the pass is ahead of its time; negative when it is behind."""
        passed = (now - self.began) / limits.target_seconds(self.kind)
        if self.total is None or self.total.cost_bytes == 0:
            return -passed
        return self.done.cost_bytes / self.total.cost_bytes - passed

    def age_seconds(self, now: float) -> float:
        """Return the time since which every replica has been read, or since the first pass began."""
        return now - (self.began if self.covered_at is None else self.covered_at)


def needed_rate(passes: Iterable[PassState], limits: ScrubLimits, now: float) -> float:
    """Return the bytes a second at which a node reads its shards."""
    needed = sum(one.rate(limits, now) for one in passes if not one.is_finished)
    return min(max(needed, limits.bytes_per_second_min), limits.bytes_per_second_max)
