"""What mixed load that lasts is judged by: by how much memory grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bench_long import growth_per_minute, slope


@given(st.floats(-100, 100), st.floats(-100, 100), st.integers(2, 50))
def test_slope_of_a_line_is_its_own(steepness: float, start: float, count: int) -> None:
    points = [(float(x), start + steepness * x) for x in range(count)]
    assert slope(points) == pytest.approx(steepness, abs=1e-6)


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(1.0, 2.0), (1.0, 3.0)]])
def test_there_is_no_slope_without_two_times(points: list[tuple[float, float]]) -> None:
    assert slope(points) == 0


def test_growth_is_that_of_the_second_half_in_a_minute() -> None:
    warming_up = [(float(second), 10.0 * second) for second in range(60)]
    steady = [(float(second), 600.0 + (second - 60) / 60) for second in range(60, 120)]
    assert growth_per_minute(warming_up + steady) == pytest.approx(1.0)
