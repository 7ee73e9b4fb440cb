"""How ``up`` and ``down`` tell what they do: a live line on a terminal, plain lines elsewhere, or over a pipe."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import datetime
from typing import IO, Protocol

from rich.console import Console
from rich.status import Status


class Reporter(Protocol):
    """Where progress goes. ``step`` is what happens now, ``say`` what the user should keep.

    None of them raises when nobody can be told any more (a closed terminal, a full disk): taking a
    cluster down does not depend on an audience.
    """

    def step(self, text: str) -> None:
        """Tell what is being done; the next step takes its place."""

    def say(self, text: str) -> None:
        """Tell a fact that stays on the screen."""

    def ready(self) -> None:
        """Tell that the start is over and the cluster serves."""


class ConsoleReporter:
    """Writes to a console; steps are a live line where it is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None

    def step(self, text: str) -> None:
        if not self._console.is_terminal:
            self.say(f"{text} ...")
            return
        with without_audience():
            if self._status is None:
                self._status = self._console.status(text)
                self._status.start()
            else:
                self._status.update(text)

    def say(self, text: str) -> None:
        with without_audience():
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def ready(self) -> None:
        self.close()

    def close(self) -> None:
        """Take the live line away."""
        if self._status is not None:
            with without_audience():
                self._status.stop()
            self._status = None


@contextlib.contextmanager
def without_audience() -> Iterator[None]:
    """Go on when what is written cannot be; rich ends the program over a closed pipe."""
    with contextlib.suppress(OSError, SystemExit):
        yield


class LogReporter:
    """Writes to a file, each message with the time."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def step(self, text: str) -> None:
        self.say(f"{text} ...")

    def say(self, text: str) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        with without_audience():
            print(now, text, file=self._file, flush=True)

    def ready(self) -> None:
        self.say("ready")


class PipeReporter:
    """Writes to a log, and until the cluster is ready also as JSON lines to the process that waits at a pipe."""

    def __init__(self, log: Reporter, pipe: int) -> None:
        self._log = log
        self._pipe: int | None = pipe

    def step(self, text: str) -> None:
        self._log.step(text)
        self._send("step", text)

    def say(self, text: str) -> None:
        self._log.say(text)
        self._send("say", text)

    def ready(self) -> None:
        self._log.ready()
        self._send("ready", "")
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def fail(self, text: str) -> None:
        """Tell why the start failed."""
        self._log.say(text)
        self._send("fail", text)

    def _send(self, kind: str, text: str) -> None:
        if self._pipe is not None:
            with without_audience():
                os.write(self._pipe, json.dumps({"kind": kind, "text": text}).encode() + b"\n")


def relay(pipe: IO[str], reporter: Reporter) -> tuple[bool, str]:
    """Pass on what a ``PipeReporter`` at the other end tells, until it is ready or gone.

    Returns whether it became ready, and why not.
    """
    for kind, text in read_messages(pipe):
        match kind:
            case "step":
                reporter.step(text)
            case "say":
                reporter.say(text)
            case "ready":
                reporter.ready()
                return True, ""
            case _:
                return False, text
    return False, ""


def read_messages(pipe: IO[str]) -> Iterator[tuple[str, str]]:
    for line in pipe:
        message = json.loads(line)
        yield message["kind"], message["text"]
