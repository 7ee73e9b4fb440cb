"""A cluster of real node processes on loopback, for tests that kill, freeze and starve them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import asyncpg

from repo_node import keys
from sharding import wire
from tests import canaries
from tests.canaries import DATABASE_AWAY, WATCH
from tests.cluster.warm import WarmProcess, is_fit
from tests.postgres import run_apart, run_statement

PASSWORD = canaries.password("admin of a cluster")
START_SECONDS = 30.0


def free_ports(count: int) -> list[int]:
    """Return ports that are free, below those the kernel gives to outgoing connections.

    Processes that run tests side by side have ports of their own: those of a node that is down for a while are free.
    """
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    share = (32_000 - 10_000) // int(workers)
    first = 10_000 + share * int(worker.removeprefix("gw"))
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(first, first + share)
        if port not in found and is_free(port):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@dataclass
class NodeProcess:
    """One node: its configuration on disk and, while it runs, its process."""

    starts_warm: ClassVar[bool] = False
    """Whether a node that wants no wrapper and no environment of its own is a ``WarmProcess``."""

    id: str
    zone: str
    port: int
    internal_port: int
    directory: Path
    shards: list[Path]
    process: subprocess.Popen[bytes] | WarmProcess | None = None
    extra_environment: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    wrapper: Sequence[str] = ()
    """A command that runs it, such as one that enters a network namespace."""
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"

    @property
    def config(self) -> Path:
        return self.directory / "node.toml"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, wrapper: Sequence[str] = ()) -> None:
        """Start the process; ``wrapper`` is a command that runs it, such as strace."""
        environment = {**os.environ, **self.extra_environment}
        if self.starts_warm and not (wrapper or self.wrapper) and is_fit(environment):
            self.process = WarmProcess(self.config, self.log)
            return
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*wrapper, *self.wrapper, sys.executable, "-m", "repo_node", "node", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it as a power cut would, and wait until it is gone."""
        if self.running:
            self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(10)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def stop(self, wait_seconds: float = 20) -> int:
        """End it as an operator would and return its exit status."""
        assert self.process is not None
        self.signal(signal.SIGTERM)
        return self.process.wait(wait_seconds)

    def blob_files(self) -> Iterator[Path]:
        """Yield every replica's file on this node's shards."""
        for shard in self.shards:
            yield from sorted((shard / "blobs").glob("*/*"))

    def staged_files(self) -> list[Path]:
        return [path for shard in self.shards for path in (shard / "tmp").rglob("*") if path.is_file()]

    def worker_pids(self) -> list[int]:
        """Return the processes that serve beside the main one, in the order in which they were started."""
        assert self.process is not None
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(parent) == self.process.pid and state != "Z":
                    found.append(int(entry.name))
        return sorted(found)


class Cluster:
    """Nodes that share a database. Made by ``cluster``."""

    def __init__(self, directory: Path, dsn: str) -> None:
        self.directory = directory
        self.dsn = dsn
        self.nodes: list[NodeProcess] = []
        self.front_port = free_ports(1)[0]
        directory.mkdir(parents=True, exist_ok=True)
        self.key_file = directory / "cluster.key"
        self.key_file.touch(0o600)
        key = keys.new_cluster_key()
        self.key_file.write_text(key)
        WATCH.keep("the cluster key", key)
        WATCH.keep("the key of calls", keys.derive(bytes.fromhex(key), wire.TOKEN_PURPOSE))

    @property
    def url(self) -> str:
        return f"{self.nodes[0].scheme}://127.0.0.1:{self.front_port}"

    @property
    def auth(self) -> tuple[str, str]:
        return "admin", PASSWORD

    def add_node(
        self,
        *,
        zone: str | None = None,
        shards: int = 2,
        shard_paths: Sequence[Path] = (),
        dsn: str | None = None,
        http: str = "",
        internal: str = "",
        reserve_bytes: int = 0,
        host: str = "127.0.0.1",
        wrapper: Sequence[str] = (),
        workers: int = 1,
    ) -> NodeProcess:
        """Write the configuration of one more node; it is not started."""
        number = len(self.nodes) + 1
        port, internal_port = free_ports(2)
        directory = self.directory / f"node-{number}"
        directory.mkdir()
        paths = list(shard_paths) or [directory / f"shard-{index + 1}" for index in range(shards)]
        node = NodeProcess(
            f"node-{number}",
            zone or f"zone-{number}",
            port,
            internal_port,
            directory,
            paths,
            host=host,
            wrapper=wrapper,
            scheme="https" if "[http.tls]" in http else "http",
        )
        sections = "".join(f'[[shards]]\npath = "{path}"\nreserve_bytes = {reserve_bytes}\n' for path in paths)
        node.config.write_text(
            f"""
[node]
id = "{node.id}"
zone = "{node.zone}"
cluster_key_file = "{self.key_file}"
workers = {workers}
[database]
dsn = "{dsn or self.dsn}"
statement_timeout_seconds = 3
connect_timeout_seconds = 3
[http]
listen = "{host}:{port}"
shared_listen = "127.0.0.1:{self.front_port}"
{http}
[internal]
listen = "{host}:{internal_port}"
{internal}
{sections}
[log]
format = "json"
"""
        )
        self.nodes.append(node)
        return node

    def start(self) -> None:
        """Start every node that does not run and wait until all are ready and know one another."""
        for node in self.nodes:
            if not node.running:
                node.start()
        wait_until(lambda: all(is_ready(node) for node in self.nodes), "the nodes to be ready", START_SECONDS)
        wait_until(self.is_whole, "the nodes to know one another", START_SECONDS)

    def is_whole(self) -> bool:
        """Say whether every node would write to every shard."""
        shards = sum(len(node.shards) for node in self.nodes)
        views = [status(node) for node in self.nodes if is_ready(node)]
        return len(views) == len(self.nodes) and all(
            sum(shard["writable"] for shard in view["shards"]) == shards for view in views
        )

    def stop(self) -> None:
        for node in self.nodes:
            if node.running:
                node.signal(signal.SIGCONT)
            node.kill()

    def look_for_secrets(self) -> None:
        """Look into what the nodes wrote, and into their database where it can be asked."""
        for node in self.nodes:
            if node.log.exists():
                WATCH.look(f"the log of {node.id}", node.log.read_text(errors="replace"))
        with suppress(*DATABASE_AWAY):
            run_apart(WATCH.look_into_database(self.dsn))

    def query(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """Return the rows of one statement on the cluster's database."""
        return run_apart(self._query(sql, arguments))

    async def _query(self, sql: str, arguments: Sequence[Any]) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.dsn, timeout=10)
        try:
            return await connection.fetch(sql, *arguments)
        finally:
            await connection.close()

    def set_setting(self, key: str, value: Any) -> None:
        body = f'{{"value": {value}}}'
        curl("-X", "PUT", "-d", body, f"{self.live.url}/artifactory/api/holdfast/settings/{key}", fail=True)

    @property
    def live(self) -> NodeProcess:
        """Return some node that runs."""
        return next(node for node in self.nodes if node.running)

    def replicas_on_disk(self) -> dict[str, list[tuple[NodeProcess, Path]]]:
        """Return every replica's file by the sha256 in its name."""
        found: dict[str, list[tuple[NodeProcess, Path]]] = {}
        for node in self.nodes:
            for path in node.blob_files():
                found.setdefault(path.name.partition(".")[0], []).append((node, path))
        return found


@contextmanager
def cluster(directory: Path, dsn: str, *, nodes: int = 3, **options: Any) -> Iterator[Cluster]:
    """Configure ``nodes`` nodes, start them, and end them all at the end."""
    made = Cluster(directory, dsn)
    run_apart(set_password(dsn))
    for _ in range(nodes):
        made.add_node(**options)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        made.look_for_secrets()


async def set_password(dsn: str) -> None:
    await run_statement(dsn, f"UPDATE users SET password_hash = '{canaries.hashed(PASSWORD)}'")


def curl(*arguments: str, fail: bool = False, wait_seconds: float = 30) -> tuple[int, bytes]:
    """Run curl as the administrator; return the status (0: no answer) and the body."""
    command = ["curl", "-sS", "-m", str(wait_seconds), "-u", f"admin:{PASSWORD}", "-w", "\n%{http_code}", *arguments]
    result = subprocess.run(command, capture_output=True, check=False)
    body, _, code = result.stdout.rpartition(b"\n")
    status_code = int(code or 0)
    if status_code >= 400:
        WATCH.look(f"{status_code} to {arguments[-1]}", body.decode(errors="replace"))
    if fail and not 200 <= status_code < 300:
        raise AssertionError(f"{arguments}: {status_code} {body!r} {result.stderr!r}")
    return status_code, body


def is_ready(node: NodeProcess) -> bool:
    if not node.running:
        raise AssertionError(f"{node.id} ended:\n{node.log.read_text()[-2000:]}")
    return curl(f"{node.url}/artifactory/api/v1/system/readiness", wait_seconds=2)[0] == 200


def status(node: NodeProcess) -> dict[str, Any]:
    code, body = curl(f"{node.url}/artifactory/api/holdfast/status")
    assert code == 200, (code, body)
    found: dict[str, Any] = json.loads(body)
    return found


def wait_until(condition: Callable[[], bool], what: str, wait_seconds: float, pause_seconds: float = 0.1) -> None:
    """Wait for ``condition``; fail with ``what`` was waited for."""
    deadline = time.monotonic() + wait_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {wait_seconds:g} s in vain for {what}")
        time.sleep(pause_seconds)


async def until(condition: Callable[[], bool], what: str, wait_seconds: float) -> None:
    """``wait_until`` for coroutines: the condition runs in a thread."""
    await asyncio.to_thread(wait_until, condition, what, wait_seconds)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
