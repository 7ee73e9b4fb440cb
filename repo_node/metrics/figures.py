"""The metrics of a node of several processes, as one: what each has counted is added up.

A gauge that shows the cluster or a disk is the main process' own; those that tell how much is under way add up too.
What a process had counted stays when it ends, as far as it was ever shown: no counter goes back.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

COUNTED = ("counter", "histogram")
LEVELS = frozenset(
    {
        "holdfast_http_requests_in_flight",
        "holdfast_uploads_in_flight",
        "holdfast_database_pool_connections",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
    }
)
"""Gauges of what is under way, or held, in one process."""

Key = tuple[str, str, tuple[tuple[str, str], ...]]
"""A series: its family, its name, its labels."""


@dataclass(slots=True)
class Figures:
    """What one process, or several together, have counted, and what is under way in them."""

    counted: dict[Key, float] = field(default_factory=dict)
    levels: dict[Key, float] = field(default_factory=dict)

    def pack(self) -> bytes:
        return json.dumps([[*self.counted.items()], [*self.levels.items()]]).encode()

    def add(self, other: Figures) -> None:
        for total, more in ((self.counted, other.counted), (self.levels, other.levels)):
            for key, value in more.items():
                total[key] = total.get(key, 0) + value


def unpack(text: bytes) -> Figures:
    """Return what ``pack`` made. Raises ``ValueError``, ``TypeError``."""
    counted, levels = (
        {(family, name, tuple((key, of) for key, of in labels)): value for (family, name, labels), value in one}
        for one in json.loads(text)
    )
    return Figures(counted, levels)


def figures_of(families: Iterable[Metric]) -> Figures:
    """Return what adds up of a process' metrics."""
    found = Figures()
    for family in families:
        if family.type in COUNTED or family.name in LEVELS:
            into = found.counted if family.type in COUNTED else found.levels
            into.update({(family.name, one.name, tuple(one.labels.items())): one.value for one in family.samples})
    return found


def add_up(families: Iterable[Metric], others: Figures) -> list[Metric]:
    """Return the metrics of the main process with what the others have counted, and have under way."""
    by_family: dict[str, dict[Key, float]] = {}
    for key, value in (*others.counted.items(), *others.levels.items()):
        by_family.setdefault(key[0], {})[key] = value
    return [added(family, by_family.get(family.name, {})) for family in families]


def added(family: Metric, others: dict[Key, float]) -> Metric:
    total = Metric(family.name, family.documentation, family.type, family.unit)
    left = dict(others)
    for one in family.samples:
        value = one.value + left.pop((family.name, one.name, tuple(one.labels.items())), 0)
        total.add_sample(one.name, one.labels, value)
    for (_, name, labels), value in left.items():
        total.add_sample(name, dict(labels), value)
    return total


class AddedUp(CollectorRegistry):
    """A registry to be rendered: ``own`` with the figures of others."""

    def __init__(self, own: CollectorRegistry, others: Figures) -> None:
        super().__init__()
        self._own = own
        self._others = others

    def collect(self) -> Iterable[Metric]:
        return add_up(self._own.collect(), self._others)


async def render(registry: Collector) -> bytes:
    """Return every metric as Prometheus reads it; in a thread, because hundreds of histograms take a while."""
    return await asyncio.to_thread(generate_latest, registry)
