"""What can go wrong when a cluster is started or stopped; every message is a sentence for the user.

LaunchError
|-- PostgresMissing     there are no Postgres programs to run
|-- PostgresError       the server did not do what was asked
|-- PlanError           the options contradict one another or what is on disk
|   `-- OutOfRange      an option has a value that no cluster could have
|-- PortTaken           somebody else has a port that the cluster needs
|-- DirectoryBusy       another ``up`` or ``down`` works on the directory
|-- NodeFailed          a node did not become ready
`-- StartInterrupted    somebody asked to stop before the start was over
"""

from __future__ import annotations

import shlex
from pathlib import Path


class LaunchError(Exception):
    """The cluster could not be started or stopped; the message says why and what to do."""


class PostgresMissing(LaunchError):
    """There are no Postgres programs to run; the message says how to get them."""


class PostgresError(LaunchError):
    """The server did not do what was asked; the message says what, and ends with its last log lines."""


class PlanError(LaunchError):
    """The options contradict one another or what is on disk."""


class OutOfRange(PlanError):
    """An option has a value that no cluster could have."""


class PortTaken(LaunchError):
    """Somebody else has ``port``, which the cluster needs."""

    def __init__(self, port: int, message: str) -> None:
        super().__init__(message)
        self.port = port


class DirectoryBusy(LaunchError):
    """Another process holds the lock on ``directory``; ``pid`` is the one that wrote itself there, if any."""

    def __init__(self, directory: Path, pid: int | None) -> None:
        stop = shlex.join(["holdfast", "down", "--data", str(directory)])
        who = f"by process {pid}" if pid else "by another process"
        super().__init__(f"{directory} is in use {who}; stop that cluster with: {stop}")
        self.directory = directory
        self.pid = pid


class NodeFailed(LaunchError):
    """A node did not become ready; the message ends with its last log lines."""


class StartInterrupted(LaunchError):
    """Somebody asked to stop while the cluster was starting."""
