"""What one process of a node finds out for all of it, as its API and its metrics show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sharding.model import NodeId


class Primary(NamedTuple):
    """The primary node, and its term of office."""

    node: NodeId
    epoch: int


@dataclass(frozen=True, slots=True)
class Outlook:
    primary: Primary | None = None
    epoch: int = 0
    """Of the last primary, whether its time is over or not."""
    is_primary: bool = False
    """Whether this node is it, and sure of that."""
    holds: tuple[str, ...] = ()
    """The reasons for which deletions were held when last looked at."""
    suspicions: tuple[tuple[str, str], ...] = ()
    """Peers that this node and Postgres see differently, each with how."""
