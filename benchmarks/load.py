"""The load: generators in processes of their own, so that their CPU time is not the cluster's."""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection as Pipe
from typing import Any

from benchmarks.cells import Cell
from benchmarks.generator import FAULTS, Generator, Outcome, Stored, Target

Order = tuple[str, tuple[Any, ...]]
"""A method of ``Generator`` and what it is called with."""

DEALT_OUT_MIN = 1000


class LoadFailed(Exception):
    """The load could not be made."""


def serve(number: int, processes: int, target: Target, pipe: Pipe) -> None:
    """Do what comes through ``pipe`` until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    generator = Generator(number, processes, target)
    with suppress(EOFError, OSError), asyncio.Runner() as runner:
        while True:
            method, given = pipe.recv()
            try:
                done = getattr(generator, method)(*given)
                answer: Outcome | LoadFailed = runner.run(done) if inspect.iscoroutine(done) else done
            except FAULTS as error:
                answer = LoadFailed(f"{method}: {type(error).__name__}: {error}")
            pipe.send(answer)


class Load:
    """All generators together; one call at a time. Made by ``open_load``."""

    def __init__(self, pipes: Sequence[Pipe]) -> None:
        self._pipes = pipes

    def run(self, cell: Cell, seconds: float, rate: float | None = None) -> Outcome:
        """Run one cell, with ``rate`` as an open loop of so many requests a second. Raises ``LoadFailed``."""
        whole, extra = divmod(cell.concurrency, len(self._pipes))
        shares = [whole + (number < extra) for number in range(len(self._pipes))]
        busy = [replace(cell, concurrency=share) for share in shares if share]
        each = None if rate is None else rate / len(busy)
        return self._ask([("run", (one, seconds, each)) for one in busy])

    def adopt(self, stored: Sequence[Stored]) -> None:
        """Ask for ``stored``, objects of one size, from now on: many are dealt out. Raises ``LoadFailed``."""
        count = len(self._pipes)
        # Of a few each generator knows all, so that every node has some of them and lacks others.
        shares = [stored[number::count] if len(stored) >= DEALT_OUT_MIN else stored for number in range(count)]
        self._ask([("adopt", (share,)) for share in shares])

    def _ask(self, orders: Sequence[Order]) -> Outcome:
        try:
            for pipe, order in zip(self._pipes, orders, strict=False):
                pipe.send(order)
            answers = [pipe.recv() for pipe, _ in zip(self._pipes, orders, strict=False)]
        except (EOFError, OSError) as error:
            raise LoadFailed("a process of the load generator has ended") from error
        for answer in answers:
            if isinstance(answer, LoadFailed):
                raise answer
        return merge(answers)


def merge(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome of several processes as one."""
    return Outcome(
        latencies=sorted(latency for outcome in outcomes for latency in outcome.latencies),
        errors=sum((outcome.errors for outcome in outcomes), Counter()),
        began=min(outcome.began for outcome in outcomes),
        ended=max(outcome.ended for outcome in outcomes),
        cpu_seconds=sum(outcome.cpu_seconds for outcome in outcomes),
    )


@contextmanager
def open_load(target: Target, processes: int) -> Iterator[Load]:
    """Start the generators; they end with the block."""
    context = multiprocessing.get_context("spawn")
    pipes, children = [], []
    try:
        for number in range(processes):
            ours, theirs = context.Pipe()
            child = context.Process(target=serve, args=(number, processes, target, theirs), daemon=True)
            child.start()
            theirs.close()
            pipes.append(ours)
            children.append(child)
        yield Load(pipes)
    finally:
        for pipe in pipes:
            pipe.close()
        for child in children:
            child.join(5)
            child.kill()
