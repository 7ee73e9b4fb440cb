"""A cluster that ``holdfast up`` runs, as a user has it."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.canaries import WATCH
from tests.cluster.processes import free_ports, is_free

TIMEOUT_SECONDS = 100


class UpCluster:
    """A cluster of ``up`` under a directory of this test's own."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port = front_port()

    def holdfast(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "repo_node", *arguments],
            capture_output=True,
            text=True,
            check=check,
            timeout=TIMEOUT_SECONDS,
        )
        self.look_for_secrets()
        if arguments[:2] != ("token", "create"):  # which shows what it made
            WATCH.look(f"holdfast {arguments[0]}", done.stdout + done.stderr)
        return done

    def up(self, *options: str) -> str:
        return self.holdfast("up", "--detach", "--data", str(self.data), "--port", str(self.port), *options).stdout

    def down(self) -> None:
        self.holdfast("down", "--data", str(self.data))

    def look_for_secrets(self) -> None:
        """Look into all that the cluster has written by now."""
        for name in ("admin-password", "database-password", "cluster.key", "postgres/password"):
            with suppress(FileNotFoundError):
                WATCH.keep(name, (self.data / name).read_text().strip())
        for log in (self.data / "up.log", self.data / "postgres" / "log", *self.data.glob("nodes/*/log")):
            if log.exists():
                WATCH.look(str(log), log.read_text(errors="replace"))

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data / "cluster.json").read_text())
        return found

    @property
    def credentials(self) -> str:
        return f"admin:{(self.data / 'admin-password').read_text().strip()}"

    def curl(self, *arguments: str) -> bytes:
        return subprocess.run(
            ["curl", "-sSf", "-u", self.credentials, *arguments], capture_output=True, check=True, timeout=30
        ).stdout

    def url(self, path: str) -> str:
        return f"{self.record['front_url']}/artifactory/generic-local/{path}"


def front_port() -> int:
    """Return a port that is free together with those of the nodes behind it."""
    while True:
        port = free_ports(1)[0]
        if all(is_free(port + offset) for offset in (1, 2, 3, 101, 102, 103)):
            return port
