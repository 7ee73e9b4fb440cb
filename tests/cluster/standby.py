"""A primary Postgres and its synchronous streaming standby, to be killed, frozen and promoted.

::

    pair = PostgresPair(directory)
    pair.start()            # both run; a commit is acknowledged when the standby has it on disk
    cluster(..., pair.dsn)  # both hosts in one DSN
    pair.primary.kill()     # or freeze(), thaw()
    pair.promote()          # the standby takes writes; `primary` and `standby` change places
    pair.rebuild()          # the other one is made anew, as a standby of it
    pair.stop()
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from repo_node.db import migrate
from repo_node.launch import private
from repo_node.launch.postgres import EmbeddedPostgres, make_environment
from repo_node.launch.server_files import USER
from tests.cluster.processes import wait_until
from tests.cluster.server import DATABASE, Mistreated
from tests.postgres import run_apart

START_SECONDS = 60.0
SYNCHRONOUS = "ALTER SYSTEM SET synchronous_standby_names = '*'"
ALONE = "ALTER SYSTEM SET synchronous_standby_names = ''"
RELOAD = "SELECT pg_reload_conf()"
IS_SYNCHRONOUS = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')"
PROMOTE = "SELECT pg_promote(true, 60)"


class PostgresPair:
    """Two servers under ``directory``, one after another the primary."""

    def __init__(self, directory: Path) -> None:
        self.primary = Mistreated(EmbeddedPostgres(directory / "first"))
        self.standby = Mistreated(EmbeddedPostgres(directory / "second"))
        self._order = (self.primary, self.standby)

    @property
    def dsn(self) -> str:
        """The DSN that names both servers, always in the same order."""
        first = urlsplit(self._order[0].dsn)
        second = urlsplit(self._order[1].dsn)
        netloc = f"{first.netloc},{second.hostname}:{second.port}"
        return urlunsplit(first._replace(netloc=netloc, query="target_session_attrs=read-write"))

    def start(self) -> None:
        """Start a primary with Holdfast's schema, and its standby."""
        self.primary.postgres.start()
        execute(self.primary, f"CREATE DATABASE {DATABASE}", database="postgres")
        run_apart(migrate.apply_schema(self.primary.dsn))
        self._follow()

    def promote(self) -> None:
        """Make the standby the primary, whatever the primary does; it then waits for no standby."""
        execute(self.standby, PROMOTE)
        self.primary, self.standby = self.standby, self.primary

    def rebuild(self) -> None:
        """Make the other server anew, as the synchronous standby of the primary."""
        self.standby.thaw()
        self.standby.kill()
        files = self.standby.postgres.files
        wait_until(lambda: files.find_pid() is None, "the old server to end", START_SECONDS)
        shutil.rmtree(files.data)
        self._follow()

    def follows(self) -> bool:
        """Say whether both run and the standby follows synchronously."""
        return all(server.postgres.pid for server in self._order) and bool(execute(self.primary, IS_SYNCHRONOUS))

    def stop(self) -> None:
        for server in (self.standby, self.primary):
            server.stop()

    def _follow(self) -> None:
        """Copy the primary to the standby's empty place, start that, and let commits wait for it."""
        source, target = self.primary.postgres, self.standby.postgres
        private.make_private_directory(target.files.directory)
        private.write_private(target.files.directory / "password", source.files.password + "\n")
        identity, binaries = target._settle()
        address = f"host=127.0.0.1 port={source.files.state.port} user={USER} password={source.files.password}"
        command: list[str | Path] = [binaries.directory / "pg_basebackup", "-D", target.files.data, "-d", address]
        command += ["--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf"]
        with private.open_log(target.files.log) as log:
            process = identity.start(command, log, make_environment(), target.files.data.parent)
            assert process.wait(START_SECONDS) == 0, target.files.log.read_text()
        # What the copy holds of its own synchronous standbys would keep it waiting for them once it is promoted.
        with (target.files.data / "postgresql.auto.conf").open("a") as settings:
            settings.write("synchronous_standby_names = ''\n")
        target.start()
        for statement in (SYNCHRONOUS, RELOAD):
            execute(self.primary, statement)
        wait_until(lambda: bool(execute(self.primary, IS_SYNCHRONOUS)), "the standby to follow", START_SECONDS)

    def wait_for_no_standby(self) -> None:
        """Let the primary acknowledge alone from now on, as an operator does who has lost the standby for good."""
        for statement in (ALONE, RELOAD):
            execute(self.primary, statement)


def execute(server: Mistreated, statement: str, *, database: str = DATABASE) -> Any:
    """Run one statement on one server, outside of any transaction, and return the first value of its answer."""

    async def run() -> Any:
        connection = await asyncpg.connect(server.postgres.dsn(database), timeout=30)
        try:
            return await connection.fetchval(statement, timeout=90)
        finally:
            connection.terminate()

    return run_apart(run())
