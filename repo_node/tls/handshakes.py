"""Handshakes under way on a listener: connections that their listener's limit does not know of yet."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from weakref import ref


class TooManyHandshakes(ConnectionRefusedError):
    """There is no room for one more."""


class Handshakes:
    """Counts them, and refuses who comes when there are as many as ``room()`` allows.

    One that fails is counted until its memory is freed, or for ``seconds``, in which any is over.
    """

    def __init__(self, room: Callable[[], int], seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._room = room
        self._seconds = seconds
        self._clock = clock
        # In the order in which they began.
        self._begun: dict[ref[ssl.SSLObject], float] = {}

    def __len__(self) -> int:
        return len(self._begun)

    def check(self) -> None:
        """Raise ``TooManyHandshakes`` when one more has no room."""
        before = self._clock() - self._seconds
        while self._begun and self._begun[oldest := next(iter(self._begun))] <= before:
            del self._begun[oldest]
        if len(self._begun) >= self._room():
            raise TooManyHandshakes

    def begin(self, handshake: ssl.SSLObject) -> None:
        """Count one more."""
        self._begun[ref(handshake, self._forget)] = self._clock()

    def end(self, handshake: ssl.SSLObject) -> None:
        """Count it no more: it has gone well."""
        self._forget(ref(handshake))

    def _forget(self, handshake: ref[ssl.SSLObject]) -> None:
        self._begun.pop(handshake, None)
