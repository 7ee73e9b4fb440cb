"""What is known of a process that somebody else started: is it there, is it the one we mean, is it gone.

A process is recognised by its command line, so that a pid which the kernel gave to a stranger is
never taken for ours. A zombie counts as gone: it holds nothing, whoever ought to reap it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

POLL_SECONDS = 0.02


def read_command_line(pid: int) -> tuple[str, ...]:
    """Return the arguments with which ``pid`` was started; none when it is gone or a zombie."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(os.fsdecode(part) for part in raw.rstrip(b"\0").split(b"\0")) if raw else ()


def read_working_directory(pid: int) -> Path | None:
    """Return the working directory of ``pid``, or None when it is gone or not ours to look at."""
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None


def list_pids() -> Iterator[int]:
    """Yield the pid of every process that this one can see."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            yield int(entry.name)


def send_signal(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that is already gone is no error."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll ``condition`` until it holds or ``seconds`` have passed; return whether it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def is_running(pid: int) -> bool:
    """Return whether ``pid`` is a process that is neither gone nor a zombie."""
    return bool(read_command_line(pid))
