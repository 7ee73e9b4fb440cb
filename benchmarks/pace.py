"""How fast is the processor right now? CPU seconds mean less while neighbours take its caches and pipelines.

A process of its own does the same small piece of work ten times a second and notes the CPU time it took.
"""

from __future__ import annotations

import multiprocessing
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection as Pipe

PERIOD_SECONDS = 0.1
STEPS = 2_000
KEYS = 256
UNDISTURBED_PIECES = 20


class Pace:
    """Tells how much slower than at its best this processor is. Made by ``open_pace``."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def begin(self) -> None:
        """Forget what was noted until now, apart from the best."""
        self._pipe.send(False)

    def slowdown(self) -> float:
        """Return the mean CPU time of a piece of work since ``begin`` over the least one of the whole run."""
        self._pipe.send(True)
        return float(self._pipe.recv())


def work() -> None:
    """Do the piece of work: what an interpreter does all day, over a table that fits the caches."""
    counts: dict[str, int] = {}
    for step in range(STEPS):
        key = f"key-{step % KEYS}"
        counts[key] = counts.get(key, 0) + step


def timed_work() -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def keep_pace(pipe: Pipe) -> None:
    """Work and note until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    best = min(timed_work() for _ in range(UNDISTURBED_PIECES))
    noted: list[float] = []
    with suppress(EOFError, OSError):
        while True:
            if pipe.poll(PERIOD_SECONDS):
                if pipe.recv():
                    pipe.send(statistics.fmean(noted) / best if noted else 1.0)
                noted = []
            noted.append(timed_work())
            best = min(best, noted[-1])


@contextmanager
def open_pace() -> Iterator[Pace]:
    """Start the process; it ends with the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=keep_pace, args=(theirs,), daemon=True)
    child.start()
    theirs.close()
    try:
        yield Pace(ours)
    finally:
        ours.close()
        child.join(5)
        child.kill()
