"""The circuit breaker, on a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.circuit import Circuit, Pass


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuit(clock: Clock) -> Circuit:
    return Circuit(3, 2.0, clock)


def enter(circuit: Circuit) -> Pass:
    leave = circuit.enter()
    assert leave is not None
    return leave


def open_it(circuit: Circuit) -> None:
    for _ in range(3):
        circuit.fail(enter(circuit))
    assert not circuit.admits


def test_opens_after_the_last_failure_in_a_row(circuit: Circuit) -> None:
    for _ in range(2):
        circuit.fail(enter(circuit))
    assert circuit.admits
    circuit.fail(enter(circuit))
    assert not circuit.admits
    assert circuit.enter() is None


def test_is_closed_until_it_opens_and_again_after_a_trial_that_succeeds(circuit: Circuit, clock: Clock) -> None:
    assert circuit.is_closed
    open_it(circuit)
    assert not circuit.is_closed
    clock.seconds += 2
    assert circuit.admits and not circuit.is_closed
    circuit.succeed(enter(circuit))
    assert circuit.is_closed


def test_stays_closed_when_a_success_comes_between(circuit: Circuit) -> None:
    for _ in range(5):
        circuit.fail(enter(circuit))
        circuit.fail(enter(circuit))
        circuit.succeed(enter(circuit))
    assert circuit.admits


def test_admits_one_trial_at_a_time_after_its_rest(circuit: Circuit, clock: Clock) -> None:
    open_it(circuit)
    clock.seconds += 1.9
    assert circuit.enter() is None
    clock.seconds += 0.1
    assert circuit.admits
    assert circuit.enter() is Pass.TRIAL
    assert not circuit.admits
    assert circuit.enter() is None


def test_closes_when_the_trial_succeeds(circuit: Circuit, clock: Clock) -> None:
    open_it(circuit)
    clock.seconds += 2
    circuit.succeed(enter(circuit))
    assert circuit.enter() is Pass.PLAIN
    circuit.fail(Pass.PLAIN)
    circuit.fail(Pass.PLAIN)
    assert circuit.admits


def test_rests_again_when_the_trial_fails(circuit: Circuit, clock: Clock) -> None:
    open_it(circuit)
    clock.seconds += 2
    circuit.fail(enter(circuit))
    clock.seconds += 1.9
    assert not circuit.admits
    clock.seconds += 0.1
    assert circuit.enter() is Pass.TRIAL


def test_admits_another_trial_at_once_when_the_first_was_given_up(circuit: Circuit, clock: Clock) -> None:
    open_it(circuit)
    clock.seconds += 2
    circuit.forget(enter(circuit))
    assert circuit.enter() is Pass.TRIAL


def test_calls_begun_before_it_opened_change_nothing(circuit: Circuit, clock: Clock) -> None:
    early = [enter(circuit) for _ in range(3)]
    open_it(circuit)
    circuit.succeed(early[0])
    assert not circuit.admits
    clock.seconds += 1.9
    circuit.fail(early[1])
    circuit.forget(early[2])
    clock.seconds += 0.1
    assert circuit.enter() is Pass.TRIAL


@given(st.lists(st.sampled_from(["enter", "succeed", "fail", "forget", "wait"]), max_size=60))
def test_never_more_than_one_trial_and_never_stuck(steps: list[str]) -> None:
    clock = Clock()
    circuit = Circuit(2, 2.0, clock)
    under_way: list[Pass] = []
    for step in steps:
        if step == "wait":
            clock.seconds += 1
        elif step == "enter":
            leave = circuit.enter()
            if leave is not None:
                under_way.append(leave)
        elif under_way:
            getattr(circuit, step)(under_way.pop(0))
        assert under_way.count(Pass.TRIAL) <= 1
    for leave in under_way:
        circuit.fail(leave)
    clock.seconds += 2
    assert circuit.admits
