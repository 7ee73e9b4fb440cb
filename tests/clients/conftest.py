"""One cluster of three nodes for all clients, and a recorder for each."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from tests.clients.recorder import Recorder
from tests.cluster.up import UpCluster

REPOSITORY = "generic-local"


@dataclass(frozen=True)
class Front:
    """Where clients find the cluster, and its administrator's password."""

    url: str
    password: str

    @property
    def base(self) -> str:
        return f"{self.url}/artifactory"

    @property
    def auth(self) -> tuple[str, str]:
        return "admin", self.password


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """The cluster: the first process of a test run that needs it starts it, the last one stops it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    users, made = root / "clients-users", UpCluster(root / "clients")
    with locked(root / "clients-lock"):
        count = int(users.read_text()) if users.exists() else 0
        port = root / "clients-port"
        if not count:
            port.write_text(str(made.port if not port.exists() else int(port.read_text())))
        made.port = int(port.read_text())
        if not count:
            made.up()
            setting = f"{made.record['front_url']}/artifactory/api/holdfast/settings/downloads_flush_seconds"
            made.curl("-X", "PUT", "-d", '{"value": 0.5}', setting)
        users.write_text(str(count + 1))
    try:
        yield Front(made.record["front_url"], made.credentials.partition(":")[2])
    finally:
        with locked(root / "clients-lock"):
            users.write_text(str(int(users.read_text()) - 1))
            if users.read_text() == "0":
                made.down()


@pytest.fixture(scope="module")
def seen(request: pytest.FixtureRequest) -> Recorder:
    """The recorder of the module's client, which ``CLIENT`` names."""
    return Recorder(request.module.CLIENT, about=getattr(request.module, "ABOUT", ""))


@pytest.fixture(autouse=True)
def watched(seen: Recorder, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Have the recorder see what goes through ``requests``, with which the Python clients send."""
    seen.tests.add(request.function.__name__)
    send = requests.Session.send

    def note(self: requests.Session, prepared: requests.PreparedRequest, **options: Any) -> requests.Response:
        response = send(self, prepared, **options)
        seen.note(str(prepared.method), str(prepared.url), response.status_code)
        return response

    monkeypatch.setattr(requests.Session, "send", note)


@pytest.fixture
def settle(seen: Recorder, request: pytest.FixtureRequest) -> Callable[[], None]:
    """Return what compares the table of the module's client with what was seen; skip where only a part has run."""
    everything = {name for name in vars(request.module) if name.startswith("test_")}
    if missing := everything - seen.tests:
        pytest.skip(f"only with all tests of this client; without {', '.join(sorted(missing))} it would be a part")
    return seen.settle


@pytest.fixture
def folder() -> str:
    """A folder of the test's own, as repository and path."""
    return f"{REPOSITORY}/{uuid4().hex[:12]}"
