"""A fresh cluster of ``holdfast up`` that lives as long as a round of measurements."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.generator import Target
from repo_node.launch.postgres import EmbeddedPostgres

UP_SECONDS_MAX = 180
PORT_STEP = 10
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")


class ClusterFailed(Exception):
    """The cluster did not do what it was told; the message is its own."""


@dataclass(frozen=True, slots=True)
class BenchCluster:
    """A running cluster: its addresses, its processes, a way in, and its database."""

    directory: Path
    url: str
    node_ids: tuple[str, ...]
    node_urls: tuple[str, ...]
    node_pids: tuple[int, ...]
    postgres_pid: int
    authorization: str

    @property
    def pids(self) -> tuple[int, ...]:
        """The roots of everything whose CPU time is the cluster's."""
        return (*self.node_pids, self.postgres_pid)

    @property
    def target(self) -> Target:
        return Target(self.url, self.authorization, self.node_urls)

    @property
    def dsn(self) -> str:
        """The database as its superuser sees it."""
        database = json.loads((self.directory / "cluster.json").read_text())["dsn"].rpartition("/")[2]
        return EmbeddedPostgres(self.directory / "postgres").dsn(database)

    def set(self, **settings: object) -> None:
        """Change settings of the cluster. Raises ``ClusterFailed``."""
        for name, value in settings.items():
            run_holdfast("settings", "set", name, json.dumps(value), "--data", str(self.directory))

    def make_repository(self, key: str, **wanted: object) -> None:
        """Make a local generic repository. Raises ``ClusterFailed``."""
        document = {"rclass": "local", "packageType": "generic", **wanted}
        headers = {"Authorization": admin_authorization(self.directory), "Content-Type": "application/json"}
        url = f"{self.node_urls[0]}/artifactory/api/repositories/{key}"
        request = urllib.request.Request(url, json.dumps(document).encode(), headers, method="PUT")
        try:
            urllib.request.urlopen(request, timeout=30).close()
        except OSError as error:
            raise ClusterFailed(f"the repository {key} could not be made: {error}") from error


@contextmanager
def open_cluster(
    parent: Path,
    port: int | None,
    authentication: str,
    later: ExitStack,
    *,
    keep: bool = False,
    nodes: int = 3,
    workers: int = 1,
) -> Iterator[BenchCluster]:
    """Start nodes of ``workers`` processes with redundancy 2 under ``parent``; stop them afterwards unless ``keep``.

    Their files are removed by ``later``: for half a minute after many files were removed, ext4 takes longer to
    make new ones. ``authentication`` is token, basic or user. Raises ``ClusterFailed``.
    """
    parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="cluster-", dir=parent))
    if not keep:
        later.callback(remove, directory)
    try:
        shape = ("--nodes", str(nodes), "--workers", str(workers), "--redundancy", "2")
        run_holdfast("up", "--detach", *shape, "--port", str(port or find_port()), "--data", str(directory))
        record = json.loads((directory / "cluster.json").read_text())
        yield BenchCluster(
            directory=directory,
            url=record["front_url"],
            node_ids=tuple(node["id"] for node in record["nodes"]),
            node_urls=tuple(node["url"] for node in record["nodes"]),
            node_pids=tuple(node["pid"] for node in record["nodes"]),
            postgres_pid=record["postgres_pid"],
            authorization=authorize(directory, authentication),
        )
    finally:
        if not keep:
            with suppress(ClusterFailed):
                run_holdfast("down", "--data", str(directory))


def authorize(directory: Path, authentication: str) -> str:
    """Return the Authorization header of the load: the administrator's, by token or password, or an ordinary user's."""
    if authentication == "basic":
        return admin_authorization(directory)
    if authentication == "user":
        return f"Bearer {make_token(directory, '--for', make_user(directory), '--all-rights')}"
    return f"Bearer {make_token(directory, '--scope', 'read', '--scope', 'write', '--scope', 'delete')}"


def make_token(directory: Path, *what: str) -> str:
    answer = run_holdfast("token", "create", "--data", str(directory), *what, "--expires", "1d", "--json")
    token: str = json.loads(answer)["token"]
    return token


def make_user(directory: Path) -> str:
    """Return the name of a new user who may work below one folder of all repositories, by a group's patterns."""
    at = ("--data", str(directory))
    run_holdfast("group", "create", "builders", *at)
    run_holdfast("user", "create", "agent", "--email", "agent@example.org", "--group", "builders", "--no-password", *at)
    where = ("--repository", "ANY", "--include", "bench/**", "--exclude", "bench/private/**")
    rights = ("--grant-group", "builders=read,annotate,write,delete")
    run_holdfast("permission", "set", "builds", *where, *rights, *at)
    return "agent"


def admin_authorization(directory: Path) -> str:
    password = (directory / "admin-password").read_text().strip()
    return "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()


def remove(directory: Path) -> None:
    """Stop the cluster and remove its data, also when it never came up."""
    with suppress(ClusterFailed):
        run_holdfast("down", "--data", str(directory))
    EmbeddedPostgres(directory / "postgres").remove()
    shutil.rmtree(directory, ignore_errors=True)


def run_holdfast(*arguments: str) -> str:
    """Return what a command of ``holdfast`` prints. Raises ``ClusterFailed``."""
    command: Sequence[str] = (sys.executable, "-m", "repo_node", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=UP_SECONDS_MAX)
    if done.returncode:
        raise ClusterFailed(f"holdfast {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def find_port() -> int:
    """Return a front port that is free now, and so are those of the nodes that follow from it."""
    for port in range(18080, 19080, PORT_STEP):
        with suppress(OSError), ExitStack() as stack:
            for offset in (0, 1, 2, 3, 101, 102, 103):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            return port
    raise ClusterFailed("no free ports from 18080 to 19080; choose with --port")


def is_in_memory(path: Path) -> bool:
    """Return whether files under ``path`` lie in memory, where an fsync costs nothing."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    kinds = {Path(mount[1]): mount[2] for mount in mounts}
    here = path.resolve()
    return next((kinds[place] for place in (here, *here.parents) if place in kinds), "") in MEMORY_FILE_SYSTEMS
