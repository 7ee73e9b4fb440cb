"""How a node's process is asked to end, and how it is made to when it does not.

The first SIGTERM or SIGINT asks a node to leave in order, a second one to be quick about it. However
the node ends, its end has a limit: one task that waits for ever must not keep a process from being restarted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from repo_node.config import HttpSection
from repo_node.node import Node

log = logging.getLogger("holdfast")

LAST_WORDS_SECONDS = 2.0
"""How long the log may take over what still runs: its lock may be what the process hangs on."""

FRAMES_SHOWN = 3


class StopRequests:
    """Counts what asks a node to stop; nothing is interrupted, whoever waits looks at it."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()

    def ask(self) -> None:
        """Ask the node to leave; asked again, to cut what is in flight."""
        (self.hurried if self.asked.is_set() else self.asked).set()


def on_signals(act: Callable[[], object]) -> None:
    """Let SIGTERM and SIGINT do ``act`` from now on."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, act)


class EndLimit:
    """Ends the process, with status 1, when its end takes longer than allowed.

    On a thread of its own, so that neither the event loop nor a disk's thread, for which the interpreter waits at its
    end, can keep it from that. What still runs then is told first.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: threading.Timer | None = None

    def allow(self, seconds: float) -> None:
        """Give the end ``seconds`` from now, whatever was allowed before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, self._end, (seconds,))
        self._timer.daemon = True
        self._timer.start()

    def _end(self, seconds: float) -> None:
        backstop = threading.Timer(LAST_WORDS_SECONDS, os._exit, (1,))
        backstop.daemon = True
        backstop.start()
        facts = {"seconds": seconds, "tasks": running_tasks(self._loop), "threads": running_threads()}
        log.critical("the node did not end in time; it is cut off", extra={"facts": facts})
        os._exit(1)


async def drain(node: Node, http: HttpSection, end: EndLimit, stop: StopRequests) -> None:
    """Take the node out of service: the front first, then its part as the primary, while requests are finished.

    Blobs that it alone has, written while others were away, are copied before it goes.
    """
    end.allow(http.drain_notice_seconds + http.shutdown_timeout_seconds + http.stop_timeout_seconds)
    await node.leave()
    await asyncio.gather(
        node.hand_over(), node.drained(http.drain_notice_seconds, http.shutdown_timeout_seconds, stop.hurried)
    )
    if node.in_flight:
        log.warning("requests in flight are cut", extra={"facts": {"in_flight": node.in_flight}})
    if not stop.hurried.is_set() and (blobs := await node.sole_copies()):
        log.warning("some content cannot be read until this node is back", extra={"facts": {"blobs": blobs}})


def running_tasks(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Return the name of each task that has not ended, and where it waits."""
    return [f"{task.get_name()}: {' > '.join(waits_at(task.get_coro()))}" for task in asyncio.all_tasks(loop)]


def waits_at(awaited: Any) -> list[str]:
    """Return the innermost places at which a coroutine is suspended."""
    places = []
    while awaited is not None:
        frame = next(
            (found for name in ("cr_frame", "gi_frame", "ag_frame") if (found := getattr(awaited, name, None))), None
        )
        if frame is not None:
            places.append(place_of(frame))
        awaited = next(
            (found for name in ("cr_await", "gi_yieldfrom", "ag_await") if (found := getattr(awaited, name, None))),
            None,
        )
    return places[-FRAMES_SHOWN:]


def running_threads() -> list[str]:
    """Return each thread that keeps the process from ending, and where it is."""
    frames = sys._current_frames()
    return [
        f"{thread.name}: {place_of(frames[thread.ident])}"
        for thread in threading.enumerate()
        if not thread.daemon and thread.ident in frames
    ]


def place_of(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_qualname} ({os.path.basename(code.co_filename)}:{frame.f_lineno})"
