"""A log that nobody reads: it holds nothing up, takes little memory, and says what it lost."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterator
from typing import TextIO

import pytest

from repo_node import logs
from repo_node.log_outlet import KEPT_BYTES_MAX, PIECE_BYTES_MAX, LogOutlet

LINE = "x" * 999 + "\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    reads, writes = os.pipe()
    os.set_blocking(reads, False)
    with os.fdopen(writes, "w") as stream:
        yield reads, stream
    os.close(reads)


def drained(reads: int) -> str:
    found = b""
    while True:
        try:
            data = os.read(reads, 1 << 20)
        except BlockingIOError:
            return found.decode()
        found += data


def test_what_a_stream_takes_is_written_at_once_in_order(pipe: tuple[int, TextIO]) -> None:
    outlet = LogOutlet(pipe[1])
    texts = [f"{number}\n" for number in range(2000)] + ["y" * (3 * PIECE_BYTES_MAX) + "\n", "\ud800\n"]
    for text in texts:
        outlet.put(text)
    outlet.write()
    assert outlet.is_empty
    assert drained(pipe[0]) == "".join(texts[:-1]) + "\\ud800\n"


def test_a_stream_that_takes_nothing_keeps_nobody_waiting_and_no_more_than_allowed(pipe: tuple[int, TextIO]) -> None:
    outlet = LogOutlet(pipe[1])
    count = 2 * KEPT_BYTES_MAX // len(LINE)
    for _ in range(count):
        outlet.put(LINE)
        outlet.write()
    assert not outlet.is_empty and 0 < outlet.lost < count
    found = ""
    while not outlet.is_empty:
        found += drained(pipe[0])
        outlet.write()
    found += drained(pipe[0])
    assert found == LINE * (count - outlet.lost)


def test_a_stream_whose_reader_is_gone_keeps_nothing(pipe: tuple[int, TextIO]) -> None:
    outlet = LogOutlet(pipe[1])
    os.dup2(os.open(os.devnull, os.O_RDONLY), pipe[0])
    outlet.put(LINE)
    with pytest.raises(BrokenPipeError):
        outlet.write()
    assert outlet.is_empty


def test_a_closed_stream_is_not_written_to_by_its_number(pipe: tuple[int, TextIO]) -> None:
    outlet = LogOutlet(pipe[1])
    pipe[1].close()
    outlet.put(LINE)
    with pytest.raises(ValueError, match="closed"):
        outlet.write()
    assert outlet.is_empty


async def test_lines_that_were_lost_are_told_of_once_somebody_reads(pipe: tuple[int, TextIO]) -> None:
    handler = logs.GatheringHandler(pipe[1])
    handler.setFormatter(logs.JsonFormatter())
    for number in range(2000):
        handler.handle(logging.LogRecord("holdfast.x", logging.WARNING, "", 0, f"{number} {LINE}", (), None))
    found = ""
    async with asyncio.timeout(10):
        while "were lost" not in found:
            found += drained(pipe[0])
            await asyncio.sleep(0.01)
    events = [json.loads(line) for line in found.splitlines()]
    kept = len(events) - 1
    assert [int(event["event"].split()[0]) for event in events[:-1]] == list(range(kept))
    assert events[-1]["lines"] == 2000 - kept and events[-1]["level"] == "error"


def test_the_end_of_the_process_waits_for_what_is_left(pipe: tuple[int, TextIO]) -> None:
    pid = os.fork()
    if not pid:
        os.close(pipe[0])
        handler = logs.GatheringHandler(pipe[1])
        for _ in range(300):
            handler.handle(logging.LogRecord(logs.REQUESTS, logging.INFO, "", 0, LINE[:-1], (), None))
        handler.close()
        os._exit(0)
    pipe[1].close()
    os.set_blocking(pipe[0], True)
    found = b""
    while data := os.read(pipe[0], 1 << 16):
        found += data
    os.waitpid(pid, 0)
    assert found.decode() == LINE * 300
