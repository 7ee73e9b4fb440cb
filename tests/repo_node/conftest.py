"""Fixtures of the HTTP tests: one node, and three in three zones, shared by all who leave them as they were."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop

from tests.postgres import TestServer
from tests.repo_node.nodes import RunningCluster, RunningNode, configure, prepare, run_nodes


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests of the node on the event loop that a node runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def one(postgres: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A cluster of one node with two shards."""
    with postgres.database(postgres.template()) as dsn:
        prepare(dsn)
        with run_nodes([configure(dsn, tmp_path_factory.mktemp("one"))]) as cluster:
            yield cluster


@pytest.fixture(scope="session")
def three(postgres: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Three nodes with two shards each, in a zone each."""
    directory = tmp_path_factory.mktemp("three")
    with postgres.database(postgres.template()) as dsn:
        prepare(dsn)
        configs = [configure(dsn, directory, name=f"node-{n}", zone=f"zone-{n}") for n in (1, 2, 3)]
        with run_nodes(configs) as cluster:
            yield cluster


@pytest.fixture
def node(one: RunningCluster) -> RunningNode:
    """The one node of ``one``."""
    return one.first


@pytest.fixture
def ready_dsn(dsn: str) -> str:
    """A database of this test's own whose admin has ``PASSWORD``."""
    prepare(dsn)
    return dsn


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path
