"""Fixtures for tests on real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.processes import Cluster, NodeProcess, cluster


@pytest.fixture(scope="session", autouse=True)
def warm_nodes() -> Iterator[None]:
    """Spare most nodes of these tests the imports, which take most of a start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NodeProcess, "starts_warm", True)
        yield


@pytest.fixture
def three(tmp_path: Path, dsn: str) -> Iterator[Cluster]:
    """Three nodes in three zones, two shards each."""
    with cluster(tmp_path / "cluster", dsn) as made:
        yield made


@pytest.fixture
def two(tmp_path: Path, dsn: str) -> Iterator[Cluster]:
    """Two nodes in two zones, two shards each."""
    with cluster(tmp_path / "cluster", dsn, nodes=2) as made:
        yield made
