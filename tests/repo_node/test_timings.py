"""Instruments of hot paths are what ``prometheus_client`` would have made of the same observations."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from repo_node.metrics.counts import Counts
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


@given(st.lists(st.tuples(LABELS, st.integers(0, 1 << 40))))
def test_counts_render_as_a_counter_does(events: list[tuple[tuple[str, object], int]]) -> None:
    disable_created_metrics()  # type: ignore[no-untyped-call]
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts = Counts("holdfast_x_total", "What it is", ["method", "route"], registry=ours)
    counter = Counter("holdfast_x_total", "What it is", ["method", "route"], registry=theirs)
    bytes_ours = Counts("holdfast_y_bytes_total", "What it is", registry=ours).labels()
    bytes_theirs = Counter("holdfast_y_bytes_total", "What it is", registry=theirs)
    for labels, amount in events:
        counts.labels(*labels).inc(amount)
        counter.labels(*labels).inc(amount)
        bytes_ours.inc(amount)
        bytes_theirs.inc(amount)
    assert generate_latest(ours) == generate_latest(theirs)
