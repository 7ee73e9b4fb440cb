"""The node processes of a cluster: start one, see whether it is ready, find those that run, stop them all."""

from __future__ import annotations

import http.client
import itertools
import os
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from repo_node.launch import private, processes
from repo_node.launch.plan import NodePlan
from repo_node.launch.ports import LOOPBACK

NODE_COMMAND: tuple[str, ...] = (sys.executable, "-m", "repo_node", "node")
READINESS_PATH = "/artifactory/api/v1/system/readiness"
PROBE_TIMEOUT_SECONDS = 2.0
KILL_TIMEOUT_SECONDS = 10.0


@dataclass(slots=True)
class NodeProcess:
    """One node: what it should be, and the process that it is now, if any.

    ``child`` is None for a process that somebody else started. ``log_offset`` is where its own part
    of the log begins.
    """

    plan: NodePlan
    config: Path
    log: Path
    pid: int | None = None
    child: subprocess.Popen[bytes] | None = None
    log_offset: int = 0

    def start(self, command: Sequence[str]) -> None:
        """Start the node in a session of its own, so that Ctrl-C on the terminal does not reach it."""
        with private.open_log(self.log) as log:
            self.log_offset = log.tell()
            self.child = subprocess.Popen(
                [*command, "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Not the directory of the user, whose Python files would come before the library's.
                cwd=self.config.parent,
                start_new_session=True,
            )
        self.pid = self.child.pid

    def adopt(self, pid: int) -> None:
        """Look after a process that somebody else started."""
        self.pid, self.child = pid, None

    def find_end(self) -> str | None:
        """Return how the process ended, once; None while it runs, and when there is none."""
        if self.pid is None:
            return None
        if self.child is not None:
            status = self.child.poll()
            if status is None:
                return None
            ended = describe_status(status)
        elif processes.is_running(self.pid):
            return None
        else:
            ended = "ended"
        self.pid, self.child = None, None
        return ended

    def is_ready(self) -> bool:
        """Return whether the node answers its readiness probe with 200."""
        connection = self._probe()
        try:
            connection.request("GET", READINESS_PATH)
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _probe(self) -> http.client.HTTPConnection:
        if self.plan.schemes.clients == "http":
            return http.client.HTTPConnection(LOOPBACK, self.plan.port, timeout=PROBE_TIMEOUT_SECONDS)
        # Only whether it is ready is asked, of a port that was free before: nothing is told that is to be kept.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection(LOOPBACK, self.plan.port, timeout=PROBE_TIMEOUT_SECONDS, context=context)

    def read_log_tail(self) -> str:
        """Return the last lines that the process wrote."""
        return private.read_tail(self.log, self.log_offset)


def describe_status(status: int) -> str:
    """Return in words how a process ended, from the return code that ``subprocess`` gives."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def start_command(config: Path) -> str:
    """Return the command line that starts a node by hand, ready to be pasted."""
    beside = Path(sys.executable).with_name("holdfast")
    if shutil.which("holdfast"):
        program = ["holdfast"]
    elif beside.exists():
        program = [str(beside)]
    else:
        program = [sys.executable, "-m", "repo_node"]
    return shlex.join([*program, "node", "--config", str(config)])


def find_nodes(configs: Iterable[Path]) -> dict[Path, list[int]]:
    """Return the pids of the nodes that run on each of ``configs``, whoever started them.

    Every process that runs ``node --config FILE`` counts, so nothing depends on a record that a
    killed ``up`` did not come to write.
    """
    found: dict[Path, list[int]] = {config: [] for config in configs}
    for pid in processes.list_pids():
        config = find_config(processes.read_command_line(pid), pid)
        if config in found and pid != os.getpid():
            found[config].append(pid)
    return found


def find_config(command_line: Sequence[str], pid: int) -> Path | None:
    """Return the configuration that a ``node`` command line names, relative ones by the process' directory."""
    if "node" not in command_line:
        return None
    named = [after for before, after in itertools.pairwise(command_line) if before == "--config"]
    named += [word.removeprefix("--config=") for word in command_line if word.startswith("--config=")]
    anchor = processes.read_working_directory(pid)
    return (anchor or Path("/")).joinpath(named[0]).resolve() if named else None


def stop_nodes(configs: Sequence[Path], seconds: float, hurry: Callable[[], bool] = lambda: False) -> list[Path]:
    """Ask the nodes on ``configs`` to drain and end, and kill those still there after ``seconds`` or on ``hurry``.

    Returns the configurations of those that were killed.
    """
    pids = [pid for group in find_nodes(configs).values() for pid in group]
    for pid in pids:
        processes.send_signal(pid, signal.SIGTERM)
    processes.wait_until(lambda: hurry() or not any(map(processes.is_running, pids)), seconds)
    # Looked up anew, because a pid may belong to somebody else by now.
    late = {config: group for config, group in find_nodes(configs).items() if group}
    killed = [pid for group in late.values() for pid in group]
    for pid in killed:
        processes.send_signal(pid, signal.SIGKILL)
    processes.wait_until(lambda: not any(map(processes.is_running, killed)), KILL_TIMEOUT_SECONDS)
    return list(late)
