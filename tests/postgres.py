"""The Postgres that the tests run on: an embedded one per session, or the one that HOLDFAST_TEST_DSN names.

Every test gets a database of its own, copied from a template into which the schema was applied once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from repo_node.launch.postgres import EmbeddedPostgres

T = TypeVar("T")
DSN_VARIABLE = "HOLDFAST_TEST_DSN"
MEMORY = Path("/dev/shm")
MEMORY_BYTES_MIN = 8 << 30


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a thread of its own, so that the loop of a test is not disturbed."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def run_statement(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn, timeout=30)
    try:
        await connection.execute(statement, timeout=60)
    finally:
        await connection.close()


class TestServer:
    """A Postgres server for one test session. ``embedded`` is None where it is somebody else's."""

    __test__ = False

    def __init__(self, admin_dsn: str, embedded: EmbeddedPostgres | None = None) -> None:
        self.admin_dsn = admin_dsn
        self.embedded = embedded
        self._prefix = f"holdfast_test_{secrets.token_hex(4)}"
        self._count = 0
        self._template: str | None = None

    def dsn(self, database: str) -> str:
        return urlunsplit(urlsplit(self.admin_dsn)._replace(path=f"/{database}"))

    def execute(self, statement: str) -> None:
        """Run one statement as the administrator of the server, outside of any transaction."""
        run_apart(run_statement(self.admin_dsn, statement))

    def template(self) -> str:
        """Return the name of the template with the schema in it, made at the first call."""
        if self._template is None:
            # Imported late: tests of the launcher and of pure things need no schema.
            from repo_node.db import migrate

            name = f"{self._prefix}_template"
            self.execute(f'CREATE DATABASE "{name}"')
            try:
                run_apart(migrate.apply_schema(self.dsn(name)))
            except BaseException:
                self.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
                raise
            self._template = name
        return self._template

    @contextlib.contextmanager
    def database(self, template: str | None = None) -> Iterator[str]:
        """Create a database, yield its DSN, and drop it with whoever is still connected."""
        self._count += 1
        name = f"{self._prefix}_{self._count}"
        copied = f' TEMPLATE "{template}"' if template else ""
        self.execute(f'CREATE DATABASE "{name}"{copied}')
        try:
            yield self.dsn(name)
        finally:
            self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def close(self) -> None:
        if self._template is not None:
            self.execute(f'DROP DATABASE IF EXISTS "{self._template}" WITH (FORCE)')
            self._template = None


@contextlib.contextmanager
def quick_directory(otherwise: Path) -> Iterator[Path]:
    """Yield a directory in memory where the machine has plenty, else ``otherwise``.

    Tests kill Postgres' processes, never the machine: files in memory survive that as well, and no other program's
    writing to the disk can hold up a commit of a test.
    """
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < MEMORY_BYTES_MIN:
        yield otherwise
        return
    with tempfile.TemporaryDirectory(prefix="holdfast-test-postgres-", dir=MEMORY) as name:
        yield Path(name)


@contextlib.contextmanager
def run_server(directory: Path) -> Iterator[TestServer]:
    """Yield the server for this session, in memory or under ``directory``, unless HOLDFAST_TEST_DSN names one."""
    named = os.environ.get(DSN_VARIABLE)
    if named:
        server = TestServer(named)
        try:
            yield server
        finally:
            server.close()
        return
    with quick_directory(directory) as chosen:
        embedded = EmbeddedPostgres(chosen)
        try:
            embedded.start()
            yield TestServer(embedded.dsn("postgres"), embedded)
        finally:
            embedded.stop()
            embedded.remove()
