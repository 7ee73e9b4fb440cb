"""The figures: percentiles, the best of several, aims."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cells import Cell, Operation, Way
from benchmarks.floor import Floor, least
from benchmarks.generator import Outcome
from benchmarks.load import merge
from benchmarks.report import Figures, Spent, best_of, document_of, floor_of, judge, percentile

PUT_SMALL, PUT_LARGE = Cell(Operation.PUT, 4 << 10, 16), Cell(Operation.PUT, 64 << 20, 16)
FLOOR = Floor({"sha256": 0.7, "sha1": 0.6, "md5": 1.6}, 0.2, 0.4, 0.01, {4 << 10: 100.0, 64 << 20: 4.0}, {4 << 10: 2.0})


def figures(cell: Cell, cpu_seconds: float, **changes: object) -> Figures:
    spent = Spent(cpu_seconds * 0.75, cpu_seconds * 0.25, (100.0, 120.0), 1.0)
    made = Figures(cell, 0, 1000, {}, 2.0, 1.0, 2.0, 0.5, spent)
    return replace(made, **changes)  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    ordered = sorted(values)
    found = percentile(ordered, percent)
    assert sum(value <= found for value in ordered) * 100 >= percent * len(ordered)
    assert sum(value < found for value in ordered) * 100 < percent * len(ordered)


def test_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 99) == 0


def test_best_costs_least_among_those_without_errors() -> None:
    cheap_and_wrong = figures(PUT_SMALL, 1.0, errors={"Wrong": 1})
    best = best_of([figures(PUT_SMALL, 3.0), cheap_and_wrong, figures(PUT_LARGE, 9.0), figures(PUT_SMALL, 2.0)])
    assert [(one.cell, one.spent.cpu_seconds) for one in best] == [(PUT_SMALL, 2.0), (PUT_LARGE, 9.0)]


def test_best_of_an_open_loop_has_the_lowest_p99() -> None:
    cell = Cell(Operation.GET, 4 << 10, 64, Way.OPEN)
    best = best_of([figures(cell, 1.0, p99_ms=30.0), figures(cell, 2.0, p99_ms=20.0)])
    assert [one.p99_ms for one in best] == [20.0]


def test_cost_is_told_by_the_thousand_or_by_the_gigabyte() -> None:
    assert figures(PUT_SMALL, 2.0).cost == pytest.approx(2.0)
    assert figures(PUT_LARGE, 2.0).cost == pytest.approx(2.0 / (1000 * (64 << 20)) * 1e9)


def test_every_aim_is_judged() -> None:
    judged = list(judge(figures(PUT_SMALL, 1.6), FLOOR))
    assert [each.verdict for each in judged] == ["MISSED", "ok", "MISSED"]


def test_aim_in_floors_is_judged_by_the_floor_of_the_same_size() -> None:
    one = figures(PUT_LARGE, 1000 * (64 << 20) / 1e9 * 5.9)
    [judged] = judge(one, FLOOR)
    assert judged.value == pytest.approx(5.9 / 4)
    assert judged.verdict == "ok"
    [unknown] = judge(one, None)
    assert unknown.verdict == ""


def test_floor_has_the_unit_of_the_cell() -> None:
    assert floor_of(PUT_SMALL, FLOOR) == pytest.approx(100.0 * 4096 * 1000 / 1e9)
    assert floor_of(PUT_LARGE, FLOOR) == 4.0
    assert floor_of(Cell(Operation.HEAD, 4 << 10, 16), FLOOR) == 0.01
    assert floor_of(Cell(Operation.GET, 64 << 20, 16), FLOOR) is None
    assert floor_of(Cell(Operation.PUT_SHA256, 64 << 20, 16), FLOOR) == pytest.approx(4.0 - 0.6 - 1.6)


def test_least_floor_takes_the_least_of_each_part() -> None:
    other = replace(
        FLOOR, parts={"sha256": 0.6, "sha1": 0.7, "md5": 1.5}, answer=0.02, put={4 << 10: 90.0, 64 << 20: 5.0}
    )
    merged = least([FLOOR, other])
    assert (merged.parts, merged.answer) == ({"sha256": 0.6, "sha1": 0.6, "md5": 1.5}, 0.01)
    assert merged.put == {4 << 10: 90.0, 64 << 20: 4.0}


def test_document_is_json_with_the_verdicts() -> None:
    found = json.loads(json.dumps(document_of([figures(PUT_SMALL, 1.0)], [FLOOR], FLOOR)))
    [best] = found["best"]
    assert best["cell"] == "put:4KiB:16"
    assert [each["verdict"] for each in best["aims"]] == ["ok", "ok", "MISSED"]


def test_outcomes_of_several_processes_are_one() -> None:
    one, two = Outcome([2.0], began=1, ended=5), Outcome([1.0, 3.0], began=2, ended=6, cpu_seconds=1)
    one.errors["Wrong"] += 1
    merged = merge([one, two])
    assert merged.latencies == [1.0, 2.0, 3.0]
    assert (merged.began, merged.ended, merged.errors["Wrong"]) == (1, 6, 1)
