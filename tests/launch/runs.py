"""Running ``up`` and ``down`` with fake nodes, as a user would in a terminal."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from repo_node.launch import ports
from repo_node.launch.layout import ClusterRecord, Layout
from repo_node.launch.nodes import find_nodes
from repo_node.launch.postgres import EmbeddedPostgres
from repo_node.launch.reporter import LogReporter
from repo_node.launch.shutdown import bring_down

REPOSITORY = Path(__file__).parents[2]
DRIVER = (sys.executable, "-m", "tests.launch.driver")


def find_front_port() -> int:
    """Return a port that is free together with those of up to five nodes."""
    for _ in range(100):
        port = random.randrange(15_000, 29_000)
        if all(ports.is_free(port + offset) for offset in (0, *range(1, 6), *range(101, 106))):
            return port
    raise AssertionError("no free block of ports")


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)


class ClusterRun:
    """A cluster under ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.layout = Layout(directory.resolve())
        self.port = find_front_port()
        self.output = directory.with_name("up.out")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def record(self) -> ClusterRecord:
        record = self.layout.read_record()
        assert record is not None
        return record

    def pid(self, node_id: str) -> int | None:
        return next(node.pid for node in self.record.nodes if node.id == node_id)

    def text(self) -> str:
        return self.output.read_text()

    def plant(self, seed: Path) -> None:
        """Start from the database of a cluster that is stopped, where it lies in the cluster's directory."""
        if EmbeddedPostgres(seed / "postgres").files.state.home is None:
            self.layout.directory.mkdir(mode=0o700)
            shutil.copytree(seed / "postgres", self.layout.postgres)
            shutil.copy(seed / "admin-password", self.layout.admin_password)

    def arguments(self, command: str, *options: str) -> list[str]:
        return [*DRIVER, command, "--data", str(self.layout.directory), *options]

    def run(self, command: str, *options: str, seconds: float = 60) -> tuple[int, str]:
        """Run a command to its end; return its exit status and output."""
        done = subprocess.run(
            self.arguments(command, *options),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            text=True,
        )
        return done.returncode, done.stdout

    def start(self, *options: str) -> None:
        """Start ``up`` in the foreground of a session of its own, and wait until it says that the cluster is ready."""
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                self.arguments("up", "--port", str(self.port), *options),
                cwd=REPOSITORY,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_for(lambda: self.has_ended() or "Stop it with" in self.text(), "the start")
        assert not self.has_ended(), self.text()

    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def interrupt(self) -> int:
        """Press Ctrl-C: every process in the foreground gets it. Return the exit status of ``up``."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(60)

    def kill(self) -> None:
        """Kill ``up`` alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def behave(self, node_id: str, behaviour: str) -> None:
        (self.layout.node_directory(node_id) / "behaviour").write_text(behaviour)

    def find_running(self) -> set[int]:
        """Return every process of this cluster, found by the directory in its command line."""
        directory = str(self.layout.directory)
        found = {pid for pids in find_nodes(self.layout.configs()).values() for pid in pids}
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            if any(directory in word for word in words) and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        return found

    def close(self) -> None:
        if self.process is not None and not self.has_ended():
            self.kill()
        bring_down(self.layout, LogReporter(sys.stdout))
