"""The last lines of the log, kept in memory: a node cannot read back what it wrote to standard error."""

from __future__ import annotations

from collections import deque
from heapq import merge

LINE_OVERHEAD_BYTES = 120
"""What Python adds to a line, about."""


class Ring:
    """The newest lines, each with its time, of at most so many bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._lines: deque[tuple[float, str]] = deque()

    def put(self, at: float, line: str) -> None:
        self._lines.append((at, line))
        self._bytes += len(line) + LINE_OVERHEAD_BYTES
        while self._bytes > self._bytes_max and self._lines:
            self._bytes -= len(self._lines.popleft()[1]) + LINE_OVERHEAD_BYTES

    def lines(self) -> list[tuple[float, str]]:
        return list(self._lines)


class LogMemory:
    """Half of ``bytes_max`` for the lines of requests, half for all others, which those would soon push out."""

    def __init__(self, bytes_max: int) -> None:
        self._requests = Ring(bytes_max // 2)
        self._others = Ring(bytes_max // 2)

    def put(self, at: float, line: str, *, is_request: bool) -> None:
        """Keep ``line``, written at a time in seconds since 1970."""
        (self._requests if is_request else self._others).put(at, line)

    def between(self, since: float, until: float) -> list[str]:
        """Return the lines kept of a stretch of time, in the order of their times."""
        kept = merge(self._others.lines(), self._requests.lines(), key=lambda one: one[0])
        return [line for at, line in kept if since <= at < until]
