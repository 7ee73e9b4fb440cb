"""Histograms of hot paths are what ``prometheus_client`` would have made of the same observations."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics, generate_latest

from repo_node.metrics.timings import Timings

BOUNDS = (0.0005, 0.001, 0.25, 1.0, 2.5)
VALUES = st.one_of(st.floats(0, 5), st.sampled_from((*BOUNDS, 0.0)))
LABELS = st.tuples(st.sampled_from(("GET", "PUT")), st.sampled_from((1, '/a\n"b\\', "x")))


@given(st.lists(st.tuples(LABELS, VALUES)))
def test_timings_render_as_a_histogram_does(observations: list[tuple[tuple[str, object], float]]) -> None:
    disable_created_metrics()  # type: ignore[no-untyped-call]
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    timings = Timings("holdfast_x_seconds", "What it is", ["method", "route"], bounds=BOUNDS, registry=ours)
    histogram = Histogram("holdfast_x_seconds", "What it is", ["method", "route"], buckets=BOUNDS, registry=theirs)
    for labels, value in observations:
        timings.labels(*labels).observe(value)
        histogram.labels(*labels).observe(value)
    assert generate_latest(ours) == generate_latest(theirs)
