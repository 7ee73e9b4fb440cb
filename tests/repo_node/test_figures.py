"""The metrics of several processes as one: no count is lost, none is counted twice, none goes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from repo_node.metrics.figures import AddedUp, Figures, figures_of, unpack

PROCESSES = 3
EVENTS = st.lists(
    st.tuples(st.integers(0, PROCESSES - 1), st.sampled_from("abc"), st.integers(1, 100)), min_size=1, max_size=30
)


class Instruments:
    """Those of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.counter = Counter("holdfast_things_total", "Things", ["kind"], registry=self.registry)
        self.plain = Counter("holdfast_plain_bytes_total", "Plain", registry=self.registry)
        self.histogram = Histogram("holdfast_seconds", "Time", ["kind"], buckets=(10, 50), registry=self.registry)
        self.in_flight = Gauge("holdfast_http_requests_in_flight", "Now", registry=self.registry)
        self.cluster = Gauge("holdfast_ring_members", "Shards", registry=self.registry)
        self.build = Info("holdfast_build", "Release", registry=self.registry)
        self.build.info({"version": "1"})

    def happen(self, kind: str, value: int) -> None:
        self.counter.labels(kind).inc(value)
        self.plain.inc(value)
        self.histogram.labels(kind).observe(value)
        self.in_flight.inc()
        self.cluster.set(8)


def values(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = generate_latest(registry).decode()
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
    found = {(one.name, tuple(sorted(one.labels.items()))): one.value for one in samples}
    assert len(found) == len(samples), "each series once"
    return {key: value for key, value in found.items() if not key[0].endswith("_created")}


@given(EVENTS)
def test_what_processes_counted_apart_adds_up_to_what_one_would_have_counted(
    events: list[tuple[int, str, int]],
) -> None:
    apart, whole = [Instruments() for _ in range(PROCESSES)], Instruments()
    apart[0].cluster.set(8)
    for process, kind, value in events:
        apart[process].happen(kind, value)
        whole.happen(kind, value)
    others = Figures()
    for one in apart[1:]:
        others.add(unpack(figures_of(one.registry.collect()).pack()))
    assert values(AddedUp(apart[0].registry, others)) == values(whole.registry)


def test_of_an_ended_process_its_counts_stay_and_its_levels_go() -> None:
    own, ended = Instruments(), Instruments()
    ended.happen("a", 7)
    past = Figures(counted=figures_of(ended.registry.collect()).counted)
    shown = values(AddedUp(own.registry, past))
    assert shown["holdfast_things_total", (("kind", "a"),)] == 7
    assert shown["holdfast_seconds_bucket", (("kind", "a"), ("le", "10.0"))] == 1
    assert shown["holdfast_http_requests_in_flight", ()] == 0
