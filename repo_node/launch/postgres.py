"""One Postgres server that Holdfast starts, finds again after a crash of either side, and stops.

It listens on the loopback alone, wants a SCRAM password, and writes durably. Everything about it
lies under one directory (``server_files``).
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from repo_node.launch import identity as identities
from repo_node.launch import ports, private, processes
from repo_node.launch.binaries import PostgresBinaries, find_binaries
from repo_node.launch.errors import PostgresError
from repo_node.launch.identity import Identity
from repo_node.launch.lock import take_turns
from repo_node.launch.server_files import USER, ServerFiles, ServerState, serves

START_TIMEOUT_SECONDS = 120.0
STOP_TIMEOUT_SECONDS = 60.0
START_ATTEMPTS = 5
RETRY_SECONDS = 0.5
# A server that was killed a moment ago may look alive until the kernel has taken it down.
DYING_SECONDS = 0.1
SETTINGS: Mapping[str, str] = {
    "listen_addresses": ports.LOOPBACK,
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
}


class EmbeddedPostgres:
    """The Postgres under ``directory``. ``start`` and ``stop`` may be called in any state and by any process.

    ``settings`` go over ``SETTINGS``; ``namespaces`` false makes root run it as nobody even where a
    user namespace could be had.
    """

    def __init__(
        self,
        directory: Path,
        *,
        binaries: PostgresBinaries | None = None,
        settings: Mapping[str, str] | None = None,
        namespaces: bool = True,
    ) -> None:
        self.files = ServerFiles(directory.resolve())
        self.settings = {**SETTINGS, **(settings or {})}
        self.namespaces = namespaces
        self._binaries = binaries
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The pid of the running server, whoever started it."""
        return self.files.find_pid()

    def dsn(self, database: str) -> str:
        """Return the URL of a database on this server, with the password in it."""
        return self.files.dsn(database)

    def start(self) -> int:
        """Start the server, or adopt the one that runs; return its pid once it takes connections.

        Raises ``PostgresError``, and ``PostgresMissing`` when there are no programs to run.
        """
        private.make_private_directory(self.files.directory)
        with take_turns(self.files.directory / "lock"):
            if self._adopt():
                pid = self.files.find_pid()
            else:
                identity, binaries = self._settle()
                if not (self.files.data / "PG_VERSION").exists():
                    self._create(identity, binaries)
                pid = self._launch(identity, binaries)
        if pid is None:
            raise PostgresError(f"Postgres ended as soon as it had started; see {self.files.log}")
        return pid

    def stop(self, seconds: float = STOP_TIMEOUT_SECONDS) -> None:
        """Stop the server, after half of ``seconds`` without mercy; do nothing when it does not run."""
        pid, data = self.files.find_pid(), self.files.data
        if pid is not None:
            for number in (signal.SIGINT, signal.SIGQUIT):  # a fast shutdown, an immediate one
                processes.send_signal(pid, number)
                if processes.wait_until(lambda: not serves(pid, data), seconds / 2):
                    break
            else:
                raise PostgresError(f"Postgres (pid {pid}) did not stop within {seconds:.0f} s; see {self.files.log}")
        if self._process is not None:
            self._process.wait(seconds)
            self._process = None

    def remove(self) -> None:
        """Delete a server that does not run, with its data wherever they lie."""
        if self.files.find_pid() is not None:
            raise PostgresError(f"Postgres on {self.files.data} still runs; stop it first")
        home = self.files.state.home
        for path in (self.files.directory, *([Path(home)] if home else [])):
            shutil.rmtree(path, ignore_errors=True)

    def _adopt(self) -> bool:
        """Wait for a server that runs already; return whether there is one and it takes connections."""
        if self.files.find_pid() is None:
            return False
        processes.wait_until(lambda: self.files.find_pid() is None, DYING_SECONDS)
        processes.wait_until(lambda: self.files.is_ready() or self.files.find_pid() is None, START_TIMEOUT_SECONDS)
        if self.files.find_pid() is None:
            return False
        if not self.files.is_ready():
            raise PostgresError(
                f"Postgres (pid {self.files.find_pid()}) takes no connections after {START_TIMEOUT_SECONDS:.0f} s; "
                f"the end of {self.files.log}:\n{private.read_tail(self.files.log)}"
            )
        state = self.files.state
        port = self.files.find_port()
        if port is not None and port != state.port:
            self.files.remember(ServerState(port, state.home))
        return True

    def _settle(self) -> tuple[Identity, PostgresBinaries]:
        """Decide as whom the server runs and out of which directory, as the last run did where there was one."""
        binaries = self._binaries or find_binaries()
        state = self.files.state
        if state.home is None:
            self.files.check_owner()
            user = os.geteuid()
            if user != 0 and identities.has_name(user):
                return Identity(), binaries
            namespace = identities.find_namespace() if self.namespaces else None
            if namespace is not None or user != 0:
                return namespace or Identity(), binaries
            if self.files.data.exists():
                raise PostgresError(
                    f"{self.files.data} was made inside a user namespace, and this system does not allow one now; "
                    "allow them (sysctl user.max_user_namespaces) or start with another --data"
                )
            state = ServerState(state.port, str(identities.make_public_home()))
            self.files.remember(state)
        home = Path(str(state.home))
        if not home.is_dir():
            raise PostgresError(f"{home} is gone; by {self.files.directory}/server.json it holds the database")
        return identities.find_nobody(), binaries.copy_into(home)

    def _create(self, identity: Identity, binaries: PostgresBinaries) -> None:
        """Make the data directory under another name and rename it, so that a half-made one is never used."""
        data = self.files.data
        staged = data.with_name("data.new")
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(mode=0o700)
        password_file = data.with_name("password.new")
        password = secrets.token_urlsafe(32)
        private.write_private(password_file, password + "\n")
        for path in (staged, password_file):
            identity.give(path)
        arguments: list[str | Path] = [binaries.initdb, "-D", staged, "-U", USER, f"--pwfile={password_file}"]
        arguments += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--data-checksums", "--no-instructions"]
        try:
            with private.open_log(self.files.log) as log:
                status = identity.start(arguments, log, make_environment(), data.parent).wait(START_TIMEOUT_SECONDS)
        finally:
            password_file.unlink(missing_ok=True)
        if status != 0:
            tail = private.read_tail(self.files.log)
            raise PostgresError(f"initdb ended with status {status}; the end of {self.files.log}:\n{tail}")
        private.write_private(self.files.directory / "password", password + "\n")
        staged.rename(data)
        private.sync_directory(data.parent)

    def _launch(self, identity: Identity, binaries: PostgresBinaries) -> int:
        """Start the server program on the remembered port, or on a new one when somebody took that."""
        refused: set[int] = set()
        for _ in range(START_ATTEMPTS):
            self.files.discard_stale_pid_file()
            state = self.files.state
            port = ports.find_free_port(state.port, refused)
            if port != state.port:
                self.files.remember(ServerState(port, state.home))
            log_offset = self.files.log.stat().st_size if self.files.log.exists() else 0
            process = self._process = self._spawn(identity, binaries, port)
            if self._wait_until_ready(process):
                return process.pid
            tail = private.read_tail(self.files.log, log_offset)
            # A port may be taken under our hands, and workers of a killed server hold its memory for a moment.
            if "could not bind" in tail:
                refused.add(port)
            elif "is still in use" not in tail:
                break
            processes.wait_until(lambda: False, RETRY_SECONDS)
        raise PostgresError(f"Postgres did not start; the end of {self.files.log}:\n{tail}")

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for a server of our own; return whether it is ready, or has ended."""
        # poll also reaps, so that a dead child is gone for every other look at it.
        processes.wait_until(lambda: process.poll() is not None or self.files.is_ready(), START_TIMEOUT_SECONDS)
        if process.poll() is None and not self.files.is_ready():
            raise PostgresError(
                f"Postgres (pid {process.pid}) takes no connections after {START_TIMEOUT_SECONDS:.0f} s; "
                f"the end of {self.files.log}:\n{private.read_tail(self.files.log)}"
            )
        return process.poll() is None

    def _spawn(self, identity: Identity, binaries: PostgresBinaries, port: int) -> subprocess.Popen[bytes]:
        arguments: list[str | Path] = [binaries.postgres, "-D", self.files.data, "-p", str(port)]
        for name, value in self.settings.items():
            arguments += ["-c", f"{name}={value}"]
        with private.open_log(self.files.log) as log:
            return identity.start(arguments, log, make_environment(), self.files.data)


def make_environment() -> dict[str, str]:
    """Return the environment without what would steer Postgres past its command line or translate its messages."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "LC_")) and name not in ("LANG", "LANGUAGE")
    }
