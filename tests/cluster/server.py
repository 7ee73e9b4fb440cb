"""Postgres servers of one test's own, to be frozen and killed."""

from __future__ import annotations

from pathlib import Path

import psutil

from repo_node.db import migrate
from repo_node.launch.postgres import EmbeddedPostgres
from tests.postgres import run_apart, run_statement

DATABASE = "holdfast"


class Mistreated:
    """An embedded server and what may befall it."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self.postgres = postgres
        self._frozen: list[psutil.Process] = []

    @property
    def dsn(self) -> str:
        return self.postgres.dsn(DATABASE)

    def listen_also(self, address: str) -> None:
        """Listen on a further address from the next start on."""
        self.postgres.settings["listen_addresses"] += f",{address}"

    def let_in(self, subnet: str) -> None:
        """Take connections from a subnet, with a password; the server runs."""
        with (self.postgres.files.data / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {subnet} scram-sha-256\n")
        run_apart(run_statement(self.postgres.dsn("postgres"), "SELECT pg_reload_conf()"))

    def _processes(self) -> list[psutil.Process]:
        if self.postgres.pid is None:
            return []
        postmaster = psutil.Process(self.postgres.pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def freeze(self) -> None:
        """Stop every process of the server where it stands."""
        self._frozen = self._processes()
        for process in self._frozen:
            process.suspend()

    def thaw(self) -> None:
        for process in self._frozen:
            if process.is_running():
                process.resume()
        self._frozen = []

    def kill(self) -> None:
        """End the server as a power cut would."""
        for process in self._processes():
            process.kill()

    def stop(self) -> None:
        self.thaw()
        self.postgres.stop()


class OwnServer(Mistreated):
    """A running server; ``dsn`` is a migrated database on it. With ``address`` it is also reached by that."""

    def __init__(self, directory: Path, address: str | None = None, subnet: str = "") -> None:
        super().__init__(EmbeddedPostgres(directory))
        if address is not None:
            self.listen_also(address)
        self.postgres.start()
        if address is not None:
            self.let_in(subnet)
        run_apart(run_statement(self.postgres.dsn("postgres"), f"CREATE DATABASE {DATABASE}"))
        run_apart(migrate.apply_schema(self.dsn))

    def start(self) -> None:
        """Start it again; the database is at the same address."""
        before = self.dsn
        self.postgres.start()
        assert self.dsn == before
