"""Counters of what every request does: counting costs a look-up and an addition.

As with ``timings``: the event loop alone counts, and any thread may collect.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector


class Count:
    """How often something happened with one set of label values, or how many bytes it was."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Count ``amount`` more."""
        self.value += amount


class Counts(Collector):
    """A counter with labels."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str] = (), *, registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._counts: dict[tuple[object, ...], Count] = {}
        registry.register(self)

    def labels(self, *values: object) -> Count:
        """Return the count with these label values."""
        count = self._counts.get(values)
        if count is None:
            count = self._counts[values] = Count()
        return count

    def describe(self) -> Iterable[CounterMetricFamily]:
        return [self._family()]

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = self._family()
        # One call: another thread may be the one that counts.
        for values, count in list(self._counts.items()):
            family.add_metric([str(value) for value in values], count.value)
        return [family]

    def _family(self) -> CounterMetricFamily:
        return CounterMetricFamily(self._name, self._documentation, labels=self._labels)
