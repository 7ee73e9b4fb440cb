"""Node processes forked from one that has imported all a node needs: an import takes longer than the rest of a start.

Each is a process as any other, the leader of a session of its own; only the interpreter's start is not repeated.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from subprocess import TimeoutExpired

PRELOADED = ("tests.cluster.warm", "repo_node.cli.node", "repo_node.app")
POLL_SECONDS = 0.001
IMPORTED_IN = dict(os.environ)
OF_A_TEST = "PYTEST_CURRENT_TEST"
"""A variable that differs from test to test, and of which no node knows."""
LOCK = threading.Lock()
"""How a process ended can be read once, and starting another reads it too."""


def is_fit(environment: Mapping[str, str]) -> bool:
    """Say whether a node with this environment may be forked: some modules look into it when they are imported."""
    return {**environment, OF_A_TEST: ""} == {**IMPORTED_IN, OF_A_TEST: ""}


class WarmProcess:
    """A node's process with what tests use of ``subprocess.Popen``."""

    def __init__(self, config: Path, log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        # A daemon ends with the process that runs the tests.
        self._process: ForkServerProcess = context.Process(target=run_node, args=(config, log), daemon=True)
        with LOCK:
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        while self.poll() is None and os.getpgid(self.pid) != self.pid:
            time.sleep(POLL_SECONDS)

    def poll(self) -> int | None:
        """Return its exit status, negative for a signal; None while it runs."""
        with LOCK:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status once it has ended. Raises ``TimeoutExpired``."""
        wait([self._process.sentinel], timeout)
        status = self.poll()
        if status is None:
            raise TimeoutExpired("node", timeout or 0)
        return status


def run_node(config: Path, log: Path) -> None:
    """Be ``python -m repo_node node --config CONFIG`` in a session of its own, whose output is appended to ``log``."""
    with log.open("ab") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    os.setsid()

    from repo_node.cli import main

    main(["node", "--config", str(config)], prog_name="holdfast")
