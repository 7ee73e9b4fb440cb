"""Plans: what the options and an existing cluster make together, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.launch.errors import OutOfRange, PlanError
from repo_node.launch.plan import NODES_MAX, ClusterPlan, ExistingNode, Options, make_plan


def left_by(plan: ClusterPlan) -> list[ExistingNode]:
    return [ExistingNode(node.id, node.zone, plan.shards) for node in plan.nodes]


def test_plan_has_three_nodes_in_three_zones_on_following_ports_by_default() -> None:
    plan = make_plan(Options())
    assert [(node.id, node.zone, node.port, node.internal_port) for node in plan.nodes] == [
        ("node-1", "zone-1", 8081, 8181),
        ("node-2", "zone-2", 8082, 8182),
        ("node-3", "zone-3", 8083, 8183),
    ]
    assert (plan.front_url, plan.shards, plan.redundancy) == ("http://127.0.0.1:8080", 2, 2)


def test_plan_spreads_nodes_over_zones_in_turn_when_there_are_fewer_zones() -> None:
    plan = make_plan(Options(nodes=5, zones=2))
    assert [node.zone for node in plan.nodes] == ["zone-1", "zone-2", "zone-1", "zone-2", "zone-1"]


def test_plan_takes_no_more_zones_than_nodes_when_zones_are_not_given() -> None:
    assert {node.zone for node in make_plan(Options(nodes=2)).nodes} == {"zone-1", "zone-2"}


@given(
    nodes=st.integers(1, NODES_MAX),
    zones=st.integers(1, NODES_MAX),
    shards=st.integers(1, 24),
    port=st.integers(1, 60_000),
)
def test_plan_without_options_repeats_what_is_there(nodes: int, zones: int, shards: int, port: int) -> None:
    first = make_plan(Options(nodes, min(zones, nodes), shards, 1, port))
    again = make_plan(Options(redundancy=1), left_by(first), port)
    assert {(node.id, node.port) for node in again.nodes} == {(node.id, node.port) for node in first.nodes}
    zones_before = {node.id: node.zone for node in first.nodes}
    assert all(zones_before[node.id] == node.zone for node in again.nodes)
    assert again.shards == first.shards


@given(before=st.integers(1, 20), added=st.integers(1, 20), zones=st.integers(1, 5))
def test_plan_keeps_the_zone_of_every_node_when_nodes_are_added(before: int, added: int, zones: int) -> None:
    first = make_plan(Options(nodes=before, zones=min(zones, before)))
    grown = make_plan(Options(nodes=before + added), left_by(first))
    assert len(grown.nodes) == before + added
    assert grown.nodes[:before] == first.nodes


def test_plan_keeps_the_number_of_processes_unless_another_is_given() -> None:
    assert make_plan(Options()).workers == 1
    before = [ExistingNode("node-1", "zone-1", 2, 3)]
    assert make_plan(Options(), before).workers == 3
    assert make_plan(Options(workers=2), before).workers == 2


@pytest.mark.parametrize("workers", [0, 9])
def test_plan_refuses_more_processes_than_have_connections_to_postgres(workers: int) -> None:
    with pytest.raises(OutOfRange, match="--workers .* out of range"):
        make_plan(Options(workers=workers))


def test_plan_gives_new_nodes_zones_of_their_own_when_a_single_node_grows() -> None:
    grown = make_plan(Options(nodes=3), left_by(make_plan(Options(nodes=1))))
    assert [node.zone for node in grown.nodes] == ["zone-1", "zone-2", "zone-3"]


def test_plan_fills_the_gap_when_a_node_in_the_middle_was_taken_away() -> None:
    left = [node for node in left_by(make_plan(Options())) if node.id != "node-2"]
    assert [node.id for node in make_plan(Options(), left).nodes] == ["node-1", "node-2", "node-3"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (Options(nodes=2), "node-3"),
        (Options(shards=1), "--shards 1"),
        (Options(zones=2), "node-3 would move from zone-3 to zone-1"),
    ],
)
def test_plan_is_refused_when_it_would_leave_copies_behind(options: Options, named: str) -> None:
    with pytest.raises(PlanError, match=named):
        make_plan(options, left_by(make_plan(Options())))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (Options(nodes=-1), "--nodes -1"),
        (Options(nodes=NODES_MAX + 1), f"from 1 to {NODES_MAX}"),
        (Options(shards=25), "--shards 25"),
        (Options(nodes=2, zones=3), "--zones 3 .* with 2 nodes"),
        (Options(port=65_500), "--port 65500"),
        (Options(nodes=1, shards=2, redundancy=3), "from 1 to 2 with 2 shards"),
        (Options(redundancy=-1), "--redundancy -1"),
    ],
)
def test_plan_is_refused_when_an_option_is_out_of_range(options: Options, named: str) -> None:
    with pytest.raises(PlanError, match=named):
        make_plan(options)


def test_plan_is_refused_when_zero_is_asked_for() -> None:
    for options in (Options(nodes=0), Options(zones=0), Options(shards=0), Options(port=0), Options(redundancy=0)):
        with pytest.raises(PlanError, match=r"--\w+ 0"):
            make_plan(options)
