"""The last lines of the log in memory: bounded, in order, and not only those of requests."""

from __future__ import annotations

import io
import logging
import math

from hypothesis import given
from hypothesis import strategies as st

from repo_node import logs
from repo_node.log_memory import LINE_OVERHEAD_BYTES, LogMemory


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=200), st.integers(0, 20_000))
def test_lines_are_bounded_and_the_newest_of_each_kind(lines: list[tuple[int, bool]], bytes_max: int) -> None:
    memory = LogMemory(bytes_max)
    for number, (length, is_request) in enumerate(lines):
        memory.put(number, f"{number}:{'x' * length}", is_request=is_request)
    kept = memory.between(0, math.inf)
    assert sum(len(line) + LINE_OVERHEAD_BYTES for line in kept) <= bytes_max
    numbers = [int(line.partition(":")[0]) for line in kept]
    assert numbers == sorted(numbers)
    for kind in (True, False):
        of_kind = [number for number, (_, is_request) in enumerate(lines) if is_request is kind]
        mine = [number for number in numbers if lines[number][1] is kind]
        assert mine == of_kind[len(of_kind) - len(mine) :]


def test_a_stretch_of_time_is_returned() -> None:
    memory = LogMemory(10_000)
    for number in range(10):
        memory.put(number, str(number), is_request=number % 2 == 0)
    assert memory.between(3, 7) == ["3", "4", "5", "6"]


def test_warnings_of_requests_outlive_the_requests_that_come_after_them() -> None:
    handler = logs.GatheringHandler(io.StringIO(), LogMemory(20_000))
    handler.setFormatter(logs.TextFormatter())
    for level, name, text in [(logging.WARNING, logs.REQUESTS, "failed"), (logging.INFO, "holdfast", "ready")]:
        handler.handle(logging.LogRecord(name, level, "", 0, text, (), None))
    for _ in range(1000):
        handler.handle(logging.LogRecord(logs.REQUESTS, logging.INFO, "", 0, "request", (), None))
    kept = "\n".join(handler.memory.between(0, math.inf))
    assert "failed" in kept and "ready" in kept and 10 < kept.count("request") < 1000
