"""A Postgres of one test's own, with the schema in it, to be frozen and killed."""

from __future__ import annotations

from pathlib import Path

import psutil

from repo_node.db import migrate
from repo_node.launch.postgres import EmbeddedPostgres
from tests.postgres import run_apart, run_statement


class OwnServer:
    """A running server; ``dsn`` is a migrated database on it."""

    def __init__(self, directory: Path) -> None:
        self._postgres = EmbeddedPostgres(directory)
        self._postgres.start()
        run_apart(run_statement(self._postgres.dsn("postgres"), "CREATE DATABASE holdfast"))
        self.dsn = self._postgres.dsn("holdfast")
        run_apart(migrate.apply_schema(self.dsn))

    def _processes(self) -> list[psutil.Process]:
        assert self._postgres.pid is not None
        postmaster = psutil.Process(self._postgres.pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def freeze(self) -> None:
        """Stop every process of the server where it stands."""
        self._frozen = self._processes()
        for process in self._frozen:
            process.suspend()

    def thaw(self) -> None:
        for process in self._frozen:
            process.resume()

    def kill(self) -> None:
        """End the server as a power cut would."""
        for process in self._processes():
            process.kill()

    def start(self) -> None:
        """Start it again; the database is at the same address."""
        self._postgres.start()
        assert self._postgres.dsn("holdfast") == self.dsn

    def stop(self) -> None:
        self._postgres.stop()
