"""The schedule: the same seed, the same faults; and every fault has its turn."""

from __future__ import annotations

import random
from itertools import islice

from tests.chaos.faults import FAULTS, available
from tests.chaos.schedule import HOLD_SECONDS, draws


def test_same_seed_draws_the_same_faults_and_another_one_others() -> None:
    names = list(FAULTS)
    first, again, other = (list(islice(draws(seed, names), 80)) for seed in (1, 1, 2))
    assert first == again
    assert [draw.name for draw in first] != [draw.name for draw in other]
    assert first[0].random.random() == again[0].random.random()


def test_order_of_the_names_changes_nothing() -> None:
    names = list(FAULTS)
    shuffled = random.Random(7).sample(names, len(names))
    assert list(islice(draws(1, names), 50)) == list(islice(draws(1, shuffled), 50))


def test_every_round_has_a_fault_of_each_kind_and_in_time_every_fault_comes() -> None:
    kinds = {name.partition(".")[0] for name in FAULTS}
    drawn = list(islice(draws(3, list(FAULTS)), len(kinds) * len(FAULTS)))
    for start in range(0, len(drawn), len(kinds)):
        assert {draw.name.partition(".")[0] for draw in drawn[start : start + len(kinds)]} == kinds
    assert {draw.name for draw in drawn} == set(FAULTS)
    assert all(HOLD_SECONDS[0] <= draw.hold_seconds <= HOLD_SECONDS[1] for draw in drawn)


def test_machine_without_abilities_is_left_the_faults_that_need_none() -> None:
    left = available(frozenset())
    assert "node.killed" in left and "postgres.failed_over" in left
    assert not {"net.peer", "disk.full", "power.all", "node.skewed"} & set(left)
    assert available(frozenset({"disks", "network", "faketime"})) == sorted(FAULTS)
