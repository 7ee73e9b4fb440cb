"""Every fault that a run may draw, by its name."""

from __future__ import annotations

from collections.abc import Callable

from tests.chaos.faults import clients, database, disks, network, nodes
from tests.chaos.faults.fault import Fault

FAULTS: dict[str, Callable[[], Fault]] = {
    **nodes.FAULTS,
    **database.FAULTS,
    **disks.FAULTS,
    **network.FAULTS,
    **clients.FAULTS,
}


def available(abilities: frozenset[str]) -> list[str]:
    """Return the names of those that can be made where there is no more than ``abilities``."""
    return sorted(name for name, make in FAULTS.items() if make().needs <= abilities)
