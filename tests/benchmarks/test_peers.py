"""The cheapest of several times at each store; what is not installed is left out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.bench_peers import PeerFigures, cheapest
from benchmarks.cells import Cell, Operation
from benchmarks.peers import PeerMissing, require

CELL = Cell(Operation.PUT, 4 << 10, 16)
ONE = PeerFigures("nginx", CELL, 1000, {}, 100.0, 1.0, 2.0, 3.0)


def test_cheapest_time_without_errors_counts() -> None:
    wrong = replace(ONE, cost=1.0, errors={"Wrong": 1})
    other = replace(ONE, peer="registry", cost=9.0)
    best = cheapest([wrong, ONE, other, replace(ONE, cost=2.5)])
    assert {key: one.cost for key, one in best.items()} == {("nginx", CELL): 2.5, ("registry", CELL): 9.0}


def test_errors_count_where_there_is_nothing_else() -> None:
    wrong = replace(ONE, errors={"Wrong": 1})
    assert cheapest([wrong]) == {("nginx", CELL): wrong}


def test_what_is_not_installed_is_told() -> None:
    with pytest.raises(PeerMissing, match=r"no-such-program is not installed \(Debian's package no-such\)"):
        require("no-such-program", "no-such")
