"""Real nodes in this process, on a loop and a thread of their own, so that a test may block as a client does."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import uvloop
from prometheus_client import generate_latest

from repo_node import keys
from repo_node.app import running_node
from repo_node.config import Address, DatabaseSection, HttpSection, InternalSection, NodeConfig, NodeSection
from repo_node.config import ShardSection as Disk
from repo_node.launch.ports import find_free_port
from repo_node.node import Node
from sharding import wire
from tests import canaries
from tests.canaries import DATABASE_AWAY, WATCH
from tests.postgres import run_apart, run_statement
from tests.repo_node.http import Answer, Client

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
PROXY = "127.0.0.2"
"""An address that every node takes for that of a load balancer."""
PASSWORD = canaries.password("admin")
CLUSTER_KEY = bytes.fromhex("c0ffee00" + "9f1d2b3c4a5e6f708192a3b4c5d6e7f8" * 2)
for name, secret in (
    ("the cluster key", CLUSTER_KEY.hex()),
    ("the cluster key", CLUSTER_KEY.decode("latin-1")),
    ("the key of calls", keys.derive(CLUSTER_KEY, wire.TOKEN_PURPOSE)),
):
    WATCH.keep(name, secret)
HTTP_OF_TESTS = {"shutdown_timeout_seconds": 2.0, "trusted_proxies": [PROXY]}
# Tests log in wrongly from one address, and often.
PREPARE_SQL = """
UPDATE users SET password_hash = '{password_hash}' WHERE name = 'admin';
UPDATE cluster SET cluster_id = gen_random_uuid();
INSERT INTO settings (key, value, updated_by)
    VALUES ('login_failures_max', '0', 'test'), ('login_failures_per_address_max', '0', 'test');
"""
START_SECONDS = 60.0
SOON_SECONDS = 20.0


@dataclass
class RunningNode:
    """A node, its configuration, and its parts for the tests that look inside."""

    config: NodeConfig
    loop: asyncio.AbstractEventLoop
    node: Node = field(init=False)
    beating: asyncio.Task[None] = field(init=False)
    sections: Sequence[Disk] = field(init=False)
    """The shards that its file names by now."""

    def __post_init__(self) -> None:
        self.sections = self.config.shards

    @property
    def port(self) -> int:
        return self.config.http.listen.port

    @property
    def disks(self) -> list[Path]:
        return [shard.path for shard in self.config.shards]

    def client(self, authorization: str | None = None) -> Client:
        return Client(LOOPBACK, self.port, authorization)

    @property
    def admin(self) -> Client:
        """A client with the admin's password."""
        return self.client(basic("admin", PASSWORD))

    def is_ready(self) -> bool:
        """Say what a load balancer is told."""
        return self.client().get("/artifactory/api/v1/system/readiness").status == 200

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Say whether these settings hold on this node."""
        now = self.node._membership._settings.now
        return all(getattr(now, key) == value for key, value in values.items())

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a metric, 0 while it was never set."""
        return self.node.metrics.registry.get_sample_value(name, labels) or 0.0

    def files(self) -> list[Path]:
        """Return every blob and staged file on this node's disks."""
        found = (path for disk in self.disks for part in ("blobs", "tmp") for path in (disk / part).rglob("*"))
        return [path for path in found if path.is_file()]


@dataclass
class RunningCluster:
    """Nodes that share one database; made by ``run_nodes``."""

    dsn: str = field(repr=False)
    nodes: list[RunningNode] = field(repr=False)
    loop: asyncio.AbstractEventLoop = field(repr=False)
    _tokens: dict[tuple[str, ...], str] = field(default_factory=dict, repr=False)

    @property
    def first(self) -> RunningNode:
        return self.nodes[0]

    @property
    def admin(self) -> Client:
        return self.first.admin

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` where the nodes run."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(START_SECONDS)

    def token(self, *scopes: str, **description: Any) -> str:
        """Return a token with these scopes, made once."""
        if description or scopes not in self._tokens:
            answer = self.admin.post_json("/artifactory/api/holdfast/tokens", {"scopes": scopes, **description})
            assert answer.status == 201, answer
            secret: str = answer.json()["token"]
            if description:
                return secret
            self._tokens[scopes] = secret
        return self._tokens[scopes]

    def with_token(self, *scopes: str) -> Client:
        return self.first.client(f"Bearer {self.token(*scopes)}")

    def files(self) -> list[Path]:
        return [path for node in self.nodes for path in node.files()]

    def sql(self, statement: str, *args: Any) -> list[asyncpg.Record]:
        return query(self.dsn, statement, *args)

    @contextmanager
    def settings(self, **values: Any) -> Iterator[None]:
        """Let ``values`` hold on every node for the length of the block."""
        base = "/artifactory/api/holdfast/settings"
        before = {key: self.admin.get(f"{base}/{key}").json()["value"] for key in values}
        self.set(values)
        try:
            yield
        finally:
            self.set(dict(reversed(before.items())))

    def set(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            answer = self.admin.put_json(f"/artifactory/api/holdfast/settings/{key}", {"value": value})
            assert answer.status == 200, answer
        for node in self.nodes:
            wait_until(lambda node=node: node.holds(values))  # type: ignore[misc]


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def query(dsn: str, statement: str, *args: Any) -> list[asyncpg.Record]:
    """Run one statement on a connection of its own and return its rows."""

    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(dsn, timeout=10)
        try:
            return list(await connection.fetch(statement, *args))
        finally:
            await connection.close()

    return run_apart(run())


def wait_until(condition: Callable[[], object], seconds: float = SOON_SECONDS) -> None:
    """Return when ``condition`` holds; fail when it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def configure(
    dsn: str,
    directory: Path,
    *,
    name: str = "node-1",
    zone: str = "zone-1",
    shards: int = 2,
    reserve_bytes: int = 0,
    http: Mapping[str, Any] | None = None,
    database: Mapping[str, Any] | None = None,
    internal: Mapping[str, Any] | None = None,
) -> NodeConfig:
    """Return the configuration of a node under ``directory`` on free ports of the loopback."""
    return NodeConfig(
        node=NodeSection(id=name, zone=zone, cluster_key_file=Path("unused")),
        database=DatabaseSection(dsn=dsn, **{"start_timeout_seconds": 5.0, **(database or {})}),
        http=HttpSection(**{**HTTP_OF_TESTS, "listen": free_address(), **(http or {})}),
        internal=InternalSection(**{"listen": free_address(), **(internal or {})}),
        shards=tuple(
            Disk(path=directory / name / f"shard-{n}", reserve_bytes=reserve_bytes) for n in range(1, shards + 1)
        ),
        cluster_key=CLUSTER_KEY,
    )


def free_address() -> Address:
    return Address.model_validate(f"{LOOPBACK}:{find_free_port()}")


def prepare(dsn: str) -> None:
    """Make a database copied from the template a cluster of its own, whose first user has ``PASSWORD``."""
    run_apart(run_statement(dsn, PREPARE_SQL.format(password_hash=canaries.hashed(PASSWORD))))


@contextmanager
def run_nodes(
    configs: Sequence[NodeConfig], ready: Callable[[RunningNode], bool] | None = None
) -> Iterator[RunningCluster]:
    """Run nodes until the block ends; it begins when each is ``ready``, which is to say that it sees all of them.

    Raises what a start raises.
    """
    shards = sum(len(config.shards) for config in configs)
    is_ready = ready or (lambda one: one.node.is_ready() and len(one.node.view().writable) >= shards)
    started: Future[list[RunningNode]] = Future()
    stop = asyncio.Event()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            nodes = [RunningNode(config, loop) for config in configs]
            for one in nodes:
                running = running_node(one.config, lambda one=one: one.sections)
                one.node, one.beating = await stack.enter_async_context(running)
            while not all(map(is_ready, nodes)):
                await asyncio.sleep(0.02)
            started.set_result(nodes)
            await stop.wait()

    def work() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(run())
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
                return
            raise

    # A daemon, so that nodes which do not stop fail a test and don't keep the whole run from ending.
    thread = threading.Thread(target=work, name="nodes", daemon=True)
    thread.start()
    try:
        nodes = started.result(START_SECONDS)
        cluster = RunningCluster(configs[0].database.dsn, nodes, nodes[0].loop)
        yield cluster
        look_for_secrets(cluster)
    finally:
        if started.done() and started.exception() is None:
            started.result()[0].loop.call_soon_threadsafe(stop.set)
        thread.join(START_SECONDS)
        assert not thread.is_alive(), f"the nodes did not stop; what still runs: {tasks_of(started)}"


def look_for_secrets(cluster: RunningCluster) -> None:
    """Look into the metrics of the nodes, and into their database where it can be asked."""
    for one in cluster.nodes:
        WATCH.look(f"the metrics of {one.config.node.id}", generate_latest(one.node.metrics.registry).decode())
    with suppress(*DATABASE_AWAY):
        run_apart(WATCH.look_into_database(cluster.dsn))


def tasks_of(started: Future[list[RunningNode]]) -> list[str]:
    """Return what each task of the nodes' loop waits for."""
    if not started.done() or started.exception() is not None:
        return []
    loop = started.result()[0].loop
    return [f"{task.get_name()}: {task.get_stack(limit=4)}" for task in asyncio.all_tasks(loop)]


def random_bytes(count: int) -> bytes:
    return os.urandom(count)


def new_path(suffix: str = "") -> str:
    """Return the URL path of an artifact that no other test uses."""
    return f"/artifactory/generic-local/{secrets.token_hex(6)}/a{suffix}"


def errors_of(answer: Answer) -> tuple[int, str]:
    """Return status and message of Artifactory's error body, and check its form."""
    document = json.loads(answer.body)
    assert list(document) == ["errors"] and len(document["errors"]) == 1
    assert document["errors"][0]["status"] == answer.status
    assert answer.headers["Content-Type"] == "application/json"
    return answer.status, document["errors"][0]["message"]


def remove_repositories(admin: Client, prefix: str) -> None:
    """Delete the repositories whose keys begin so, whatever they allow: other tests search in all there are."""
    base = "/artifactory/api/repositories"
    for rclass in ("virtual", "local"):
        for key in [one["key"] for one in admin.get(f"{base}?type={rclass}").json() if one["key"].startswith(prefix)]:
            if rclass == "local":
                admin.post_json(f"{base}/{key}", {"allowDelete": True, "trash": False})
            answer = admin.delete(f"{base}/{key}")
            assert answer.status == 200, answer
