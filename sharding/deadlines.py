"""Limits on the time of what is begun often and seldom takes long: one timer for many deadlines of one length.

``asyncio.timeout`` sets a timer for each block and takes it back. Deadlines of one length end in the order in which
they began, so a single timer, set for the first, is enough: when it goes off it looks at who is still there.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

EARLY_SECONDS = 0.001
"""By so much a deadline may end early: event loops round the times of their timers."""


class Deadlines:
    """Gives blocks of code ``seconds`` each. Belongs to one event loop."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._open: dict[Deadline, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self) -> Deadline:
        """Return the context manager of one block, which raises ``TimeoutError`` as ``asyncio.timeout`` does."""
        return Deadline(self)

    def enter(self, deadline: Deadline) -> asyncio.Task[object]:
        """Count the time of ``deadline`` from now on, and return the task that runs its block."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a deadline needs a task that it can interrupt")
        self._open[deadline] = due = self._loop.time() + self.seconds
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._sweep, self._loop)
        return task

    def leave(self, deadline: Deadline) -> None:
        """Forget ``deadline``."""
        self._open.pop(deadline, None)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the blocks whose time is over, and come back for the next."""
        self._timer = None
        now = loop.time()
        while self._open:
            deadline, due = next(iter(self._open.items()))
            if due > now + EARLY_SECONDS:
                self._timer = loop.call_at(due, self._sweep, loop)
                return
            del self._open[deadline]
            deadline.expire()


class Deadline:
    """One block of code and the task that runs it. Made by ``Deadlines.begin``, used once."""

    __slots__ = ("_cancelling", "_deadlines", "_expired", "_task")

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._expired = False

    def __enter__(self) -> None:
        self._task = self._deadlines.enter(self)
        self._cancelling = self._task.cancelling()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._expired:
            self._deadlines.leave(self)
        # Whoever else cancelled the task meanwhile still wants it cancelled.
        elif self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """Interrupt the block."""
        self._expired = True
        self._task.cancel()
