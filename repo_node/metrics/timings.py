"""Histograms of what every request does several times over: observing costs a look-up and two additions.

``prometheus_client``'s own take a lock twice and a dozen calls for each observation, because any thread may make
one. Here the event loop alone observes; any thread may collect.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Series:
    """What was observed with one set of label values."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Observations by the first bound that is not below them; the last are above all bounds."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Timings(Collector):
    """A histogram with labels. ``bounds`` are in ascending order; one for all that is above them is added."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._bounds = bounds
        self._bound_names = (*map(floatToGoString, bounds), "+Inf")
        self._series: dict[tuple[object, ...], Series] = {}
        registry.register(self)

    def labels(self, *values: object) -> Series:
        """Return the series with these label values."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = Series(self._bounds)
        return series

    def describe(self) -> Iterable[HistogramMetricFamily]:
        return [self._family()]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = self._family()
        # One call each: another thread may be the one that observes.
        for values, series in list(self._series.items()):
            at_most, buckets = 0, []
            for bound, count in zip(self._bound_names, tuple(series.counts), strict=True):
                at_most += count
                buckets.append((bound, float(at_most)))
            family.add_metric([str(value) for value in values], buckets, series.total)
        return [family]

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
