"""What lies under the directory of an embedded Postgres, and what it tells of the server.

``data`` is Postgres' own, ``log`` its output, ``password`` the password of its owner, and
``server.json`` its port and, where it runs as nobody, the directory made for it (``home``).
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from repo_node.launch import ports, private, processes
from repo_node.launch.errors import PostgresError

USER = "holdfast"
# Lines of postmaster.pid, see src/include/utils/pidfile.h of PostgreSQL.
PID_LINE, PORT_LINE, STATUS_LINE = 0, 3, 7


@dataclass(frozen=True, slots=True)
class ServerState:
    """What is remembered of the server between runs."""

    port: int | None = None
    home: str | None = None


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """The files under ``directory``."""

    directory: Path

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def data(self) -> Path:
        home = self.state.home
        return Path(home) / "data" if home else self.directory / "data"

    @property
    def state(self) -> ServerState:
        path = self.directory / "server.json"
        try:
            return ServerState(**json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            return ServerState()
        except (ValueError, TypeError) as error:
            raise PostgresError(f"{path} is damaged ({error}); remove it if Postgres runs as you") from None

    def remember(self, state: ServerState) -> None:
        private.write_private(self.directory / "server.json", json.dumps(asdict(state)) + "\n")

    @property
    def password(self) -> str:
        path = self.directory / "password"
        try:
            return path.read_text("ascii").strip()
        except FileNotFoundError:
            raise PostgresError(f"{path}, which holds the password of the embedded Postgres, is gone") from None

    def dsn(self, database: str, role: str = USER, password: str | None = None) -> str:
        """Return the URL of a database on the server, with the password in it: of its own role or of another."""
        return f"postgresql://{role}:{password or self.password}@{ports.LOOPBACK}:{self.state.port}/{database}"

    def find_pid(self) -> int | None:
        """Return the pid of the running server of this data directory, whoever started it."""
        data = self.data
        pid = read_pid(read_pid_file(data))
        return pid if pid is not None and serves(pid, data) else None

    def is_ready(self) -> bool:
        """Return whether the server runs and takes connections."""
        lines = read_pid_file(self.data)
        return len(lines) > STATUS_LINE and lines[STATUS_LINE].strip() == "ready" and self.find_pid() is not None

    def find_port(self) -> int | None:
        """Return the port by the pid file of the server."""
        lines = read_pid_file(self.data)
        return int(lines[PORT_LINE]) if len(lines) > PORT_LINE and lines[PORT_LINE].isdigit() else None

    def discard_stale_pid_file(self) -> None:
        """Remove the pid file of a server that is gone; Postgres refuses to start when a stranger has its pid now."""
        if self.find_pid() is None:
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def check_owner(self) -> None:
        """Raise ``PostgresError`` when the data belong to another user than the one who runs this."""
        if self.data.exists() and self.data.stat().st_uid != os.geteuid():
            owner = self.data.stat().st_uid
            raise PostgresError(f"{self.data} belongs to the user with id {owner}; run this as that user")


def read_pid_file(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def read_pid(lines: list[str]) -> int | None:
    text = lines[PID_LINE].strip() if lines else ""
    return int(text) if text.isdigit() else None


def serves(pid: int, data: Path) -> bool:
    """Return whether ``pid`` is a Postgres server on ``data``, by the command line that it was started with."""
    command_line = processes.read_command_line(pid)
    return (
        bool(command_line)
        and Path(command_line[0]).name == "postgres"
        and ("-D", str(data)) in itertools.pairwise(command_line)
    )
