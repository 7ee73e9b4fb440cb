"""Running the supervisor behind the back of the command that started it."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from repo_node.launch import private
from repo_node.launch.errors import LaunchError
from repo_node.launch.reporter import LogReporter, PipeReporter, Reporter, relay


def start_in_background(work: Callable[[Reporter], None], log: Path, reporter: Reporter) -> int:
    """Run ``work`` in a process of its own, writing to ``log``; return its pid once it reports that it is ready.

    Ctrl-C while it starts stops it. Raises ``LaunchError`` with its reason when it ends before it is ready.
    """
    private.make_private_directory(log.parent)
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receiving)
        run_detached(work, log, sending)
    os.close(sending)
    try:
        with os.fdopen(receiving, encoding="utf-8") as pipe:
            is_ready, reason = relay(pipe, reporter)
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        raise
    if not is_ready:
        os.waitpid(pid, 0)
        raise LaunchError(reason or f"the start ended without a word; the end of {log}:\n{private.read_tail(log)}")
    return pid


def run_detached(work: Callable[[Reporter], None], log: Path, sending: int) -> None:
    """Leave the terminal and the session, do the work, and end the process."""
    status = 1
    try:
        os.setsid()
        redirect_streams(log)
        reporter = PipeReporter(LogReporter(sys.stderr), sending)
        try:
            work(reporter)
            status = 0
        except LaunchError as error:
            reporter.fail(str(error))
        except BaseException as error:
            traceback.print_exc()
            reporter.fail(f"{type(error).__name__}: {error}; see {log}")
    finally:
        # Nothing of the parent's is unwound here: its buffers and exit handlers are not this process' own.
        os._exit(status)


def redirect_streams(log: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    with private.open_log(log) as file:
        for source, target in ((nothing, 0), (file.fileno(), 1), (file.fileno(), 2)):
            os.dup2(source, target)
    os.close(nothing)
