"""Fixtures for every test: a Postgres per session, a database per test, and a watch over all secrets."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.canaries import MARK, WATCH, watched_logs
from tests.postgres import TestServer, run_server


@pytest.fixture(scope="session", autouse=True)
def watched() -> Iterator[None]:
    """Look for secrets in whatever is logged (S33), and at last in what the end of the shared nodes showed."""
    yield from watched_logs(WATCH)
    assert WATCH.take() == []


@pytest.fixture(autouse=True)
def s33_no_secret_shows(watched: None) -> Iterator[None]:
    """Fail the test in whose time a secret was logged, answered or stored."""
    yield
    assert WATCH.take() == []


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    """The Postgres server of this session; ``postgres.embedded`` is None where HOLDFAST_TEST_DSN names another."""
    with run_server(tmp_path_factory.mktemp("postgres")) as server:
        WATCH.keep("the database's password", urlsplit(server.admin_dsn).password or MARK)
        yield server
        if server.embedded is not None:
            WATCH.look("the log of Postgres", server.embedded.files.log.read_text(errors="replace"))


@pytest.fixture
def dsn(postgres: TestServer) -> Iterator[str]:
    """A database of this test's own with the schema in it."""
    with postgres.database(postgres.template()) as value:
        yield value


@pytest.fixture
def empty_dsn(postgres: TestServer) -> Iterator[str]:
    """A database of this test's own with nothing in it."""
    with postgres.database() as value:
        yield value
