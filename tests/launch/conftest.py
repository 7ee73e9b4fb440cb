"""Fixtures of the launcher's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch import ordinary_user
from tests.launch.ordinary_user import OrdinaryUser
from tests.launch.runs import ClusterRun


@pytest.fixture(scope="session")
def users() -> Iterator[list[OrdinaryUser]]:
    """Two ordinary users beside root: one the system has a name for, and one it has none for."""
    python = ordinary_user.find_python()
    if python is None:
        pytest.skip("there is no interpreter of this version that a user other than root can run")
    with ordinary_user.make_users(python, [ordinary_user.NAMED_UID, ordinary_user.NAMELESS_UID]) as made:
        yield made


@pytest.fixture(params=[0, 1], ids=["named", "nameless"])
def user(users: list[OrdinaryUser], request: pytest.FixtureRequest) -> OrdinaryUser:
    """Each of the ordinary users in turn."""
    return users[int(request.param)]


@pytest.fixture
def private_home(tmp_path: Path) -> Path:
    """A home directory that only its owner can enter."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o700)
    return home


@pytest.fixture(scope="session")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a cluster that ran once, for others to start from: making a database takes longest."""
    run = ClusterRun(tmp_path_factory.mktemp("seed") / "data")
    try:
        run.start("--nodes", "1")
    finally:
        run.close()
    return run.layout.directory


@pytest.fixture
def cluster(tmp_path: Path, seed: Path) -> Iterator[ClusterRun]:
    """A cluster of fake nodes that is not started yet; whatever the test leaves running is stopped."""
    run = ClusterRun(tmp_path / "data")
    run.plant(seed)
    yield run
    run.close()


@pytest.fixture(scope="module")
def running_home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, int]]:
    """The private home in which ``running`` runs, and the modes from there upwards before it did."""
    home = tmp_path_factory.mktemp("running") / "home"
    home.mkdir(mode=0o700)
    return home, {path: path.stat().st_mode for path in (home, *home.parents)}


@pytest.fixture(scope="module")
def running(running_home: tuple[Path, dict[Path, int]]) -> Iterator[ClusterRun]:
    """A cluster of fake nodes that runs, started from nothing; tests leave it as they found it."""
    run = ClusterRun(running_home[0] / "data")
    try:
        run.start()
        yield run
    finally:
        run.close()
