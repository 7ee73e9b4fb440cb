"""Fixtures for every test: a Postgres per session, a database per test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres import TestServer, run_server


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    """The Postgres server of this session; ``postgres.embedded`` is None where HOLDFAST_TEST_DSN names another."""
    with run_server(tmp_path_factory.mktemp("postgres")) as server:
        yield server


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
