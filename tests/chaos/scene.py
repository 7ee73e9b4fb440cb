"""What a chaos run plays on: three nodes in three zones with two disks each, a Postgres with a synchronous standby,
HAProxy in front, clients, and on Linux as root a network and disks that can be broken.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from tests.chaos.ledger import Ledger
from tests.chaos.load import Load
from tests.chaos.places import BUILDER, GUEST, OPEN, QUOTA_BYTES, SECOND, VIRTUAL, VIRTUAL_DOCUMENT, target
from tests.cluster.balancers import haproxy
from tests.cluster.network import POSTGRES, Star, can_make_star, star
from tests.cluster.processes import Cluster, NodeProcess, curl, is_ready, set_password
from tests.cluster.standby import PostgresPair
from tests.postgres import run_apart
from tests.sharding import disks
from tests.sharding.disks import mounted_ext4

P = ParamSpec("P")
T = TypeVar("T")

NODES = 3
DISKS_A_NODE = 2
DISK_MIB = 112
WORKERS = 6
PAUSE_SECONDS = 0.25
READY_SECONDS_MAX = 180.0
REST_SECONDS_MAX = 240.0
LEASE_SECONDS = 4.0
GRACE_SECONDS = 2.0
UPLOAD_SECONDS_MAX = 60
"""The least that the setting takes: so long is a file of which nobody knows left alone."""

SETTINGS: dict[str, Any] = {
    "heartbeat_seconds": 0.5,
    "node_down_seconds": 4,
    "lease_renew_seconds": 0.5,
    "lease_seconds": LEASE_SECONDS,
    "lost_after_seconds": 20,
    "repair_idle_seconds": 0.5,
    "repair_retry_seconds": 0.5,
    "repair_retry_seconds_max": 3,
    "repair_claim_seconds": 10,
    "verdict_idle_seconds": 0.5,
    "walk_idle_seconds": 0.5,
    "drain_pass_seconds": 1,
    "census_idle_seconds": 1,
    "rebalance_idle_seconds": 0.5,
    "rebalance_retry_seconds": 1,
    "rebalance_period_seconds": 5,
    "trim_period_seconds": 2,
    "judge_interval_seconds": 0.5,
    "judge_again_seconds": 2,
    "presence_interval_seconds": 1,
    "scrub_interval_seconds": 1,
    "scrub_period_seconds": 5,
    "proof_period_seconds": 20,
    "upload_seconds_max": UPLOAD_SECONDS_MAX,
    "reconcile_margin_seconds": 0,
    "reconcile_period_seconds": 15,
    "reconcile_interval_seconds": 1,
    "gc_grace_seconds": GRACE_SECONDS,
    "gc_idle_seconds": 0.5,
    "gc_feed_seconds": 10,
    "trash_days": 0,
    "trash_idle_seconds": 1,
    "removal_delay_seconds": 1,
    "removal_idle_seconds": 0.5,
}
UNREST_SQL = """
    SELECT (SELECT count(*) FROM blobs b WHERE b.size > 0 AND NOT is_whole(b.id, b.redundancy, ring_zones()))
               AS lacking_copies,
           (SELECT count(*) FROM replicas WHERE state = 'suspect') AS suspect,
           (SELECT count(*) FROM shards WHERE state <> 'active') AS shards_not_active
"""


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that a fault has changed or taken away."""

    path: Path
    sha256: str


@dataclass
class Scene:
    """Everything that faults can be done to, and the clients' ledger. Made by ``open_scene``."""

    directory: Path
    cluster: Cluster
    pair: PostgresPair
    url: str
    network: Star | None
    images: dict[Path, Path]
    ledger: Ledger
    load: Load
    tokens: Mapping[str, str]
    """Of ordinary users, by their names."""
    resting: set[str] = field(default_factory=set)
    """The nodes that a fault has ended or will end."""
    damages: list[Damage] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def nodes(self) -> list[NodeProcess]:
        return self.cluster.nodes

    @property
    def abilities(self) -> frozenset[str]:
        """What the faults may need that is not there on every machine."""
        found = {"disks"} if self.images else set()
        found |= {"network"} if self.network is not None else set()
        return frozenset(found | ({"faketime"} if find_faketime() else set()))

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", file=sys.stderr, flush=True)

    async def apart(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what blocks in a thread."""
        return await asyncio.to_thread(work, *args, **kwargs)

    # ------------------------------------------------------------------ nodes

    async def end_node(self, node: NodeProcess) -> None:
        """Kill a node."""
        self.resting.add(node.id)
        await self.apart(node.kill)

    async def start_node(self, node: NodeProcess) -> None:
        """Start a node, if it does not run, and wait until it is ready."""
        if not node.running:
            await self.apart(node.start)
        await self.until(lambda: is_ready(node), f"{node.id} to be ready", READY_SECONDS_MAX)
        self.resting.discard(node.id)

    async def stop_node(self, node: NodeProcess) -> None:
        """Stop a node as an operator does: it leaves by itself, and well."""
        self.resting.add(node.id)
        try:
            status = await self.apart(node.stop, 90)
        except subprocess.TimeoutExpired:
            self.ledger.violate("drain", f"{node.id} did not end within 90 s after SIGTERM")
            await self.apart(node.kill)
        else:
            if status != 0:
                self.ledger.violate("drain", f"{node.id} ended with status {status} after SIGTERM")

    def primary(self) -> NodeProcess | None:
        """Return the node that holds the lease, if any does; blocks."""
        rows = self.query("SELECT holder FROM lease WHERE expires_at > clock_timestamp()")
        return next((node for node in self.nodes if rows and node.id == rows[0][0]), None)

    # ------------------------------------------------------------------ rows and rest

    def query(self, sql: str, *arguments: Any) -> list[Any]:
        """Return the rows of one statement; blocks."""
        return self.cluster.query(sql, *arguments)

    async def until(self, condition: Callable[[], bool], what: str, wait_seconds: float) -> None:
        """Wait for ``condition``, which runs in a thread; what fails meanwhile is not yet true, but for a node's end."""
        deadline, last = time.monotonic() + wait_seconds, ""
        while True:
            try:
                if await self.apart(condition):
                    return
                last = ""
            except AssertionError:
                raise
            except Exception as error:
                last = f"; the last look ended with {type(error).__name__}: {error}"
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {wait_seconds:g} s in vain for {what}{last}")
            await asyncio.sleep(0.3)

    async def recover(self) -> None:
        """Wait until the cluster is whole again after a fault."""
        for node in self.nodes:
            await self.start_node(node)
        await self.until(self.cluster.is_whole, "every node to write to every shard", READY_SECONDS_MAX)
        await self.rest()

    async def rest(self, unless: Callable[[], bool] = lambda: False) -> None:
        """Wait until every copy is there and every damage is found and made good, or until ``unless``."""
        seen: list[str] = []
        try:
            await self.until(lambda: unless() or self._is_at_rest(seen), "the cluster to be whole", REST_SECONDS_MAX)
        except AssertionError as error:
            raise AssertionError(f"{error}: {seen[-1] if seen else 'nothing could be seen'}") from None

    def _is_at_rest(self, seen: list[str]) -> bool:
        self.damages = [damage for damage in self.damages if not self._is_healed(damage)]
        [row] = self.query(UNREST_SQL)
        seen[:] = [f"{dict(row)}, {len(self.damages)} damaged files"]
        return not any(row.values()) and not self.damages

    def _is_healed(self, damage: Damage) -> bool:
        """Say whether no row counts on a damaged file any more, or the file is right."""
        generation = damage.path.name.partition(".")[2]
        live = self.query("SELECT 1 FROM replicas WHERE generation = $1::uuid AND state <> 'condemned'", generation)
        return not live


def find_faketime() -> Path | None:
    """Return the library that gives a process another clock, if it is installed."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)


@contextmanager
def open_scene(seed: int, *, workers: int = WORKERS) -> Iterator[Scene]:
    """Set the scene, and clear it away at the end; its directory stays, for whoever wants to look."""
    directory = Path(tempfile.mkdtemp(prefix="holdfast-chaos-"))
    directory.chmod(0o755)
    with ExitStack() as stack:
        network = stack.enter_context(star(NODES)) if can_make_star() else None
        images = mount_disks(stack, directory)
        pair = PostgresPair(directory / "postgres")
        stack.callback(pair.stop)
        dsn = start_pair(pair, network)
        made = Cluster(directory / "cluster", pair.dsn)
        stack.callback(made.stop)
        run_apart(set_password(pair.dsn))
        for number in range(1, NODES + 1):
            where = {"host": network.address(number), "wrapper": network.wrapper(number)} if network else {}
            paths = [disk for disk in images if disk.parent.name == f"disks-{number}"]
            made.add_node(shard_paths=paths, shards=DISKS_A_NODE, dsn=dsn, **where)
        for node in made.nodes:
            node.extra_environment["HOLDFAST_TEST_WITHOUT_GRACE"] = "1"
        made.start()
        for key, value in SETTINGS.items():
            made.set_setting(key, value)
        tokens = make_places(made)
        url = stack.enter_context(haproxy(made, directory))
        ledger = Ledger()
        load = Load(url, ledger, seed, workers=workers, pause_seconds=PAUSE_SECONDS, tokens=tokens)
        yield Scene(directory, made, pair, url, network, images, ledger, load, tokens)


def make_places(cluster: Cluster) -> dict[str, str]:
    """Make the repositories, and the ordinary users with their rights; return these users' tokens."""
    base = f"{cluster.live.url}/artifactory/api"

    def put(url: str, document: object) -> None:
        curl(
            "-X", "PUT", "-d", json.dumps(document), "-H", "Content-Type: application/json", f"{base}/{url}", fail=True
        )

    put(f"repositories/{SECOND}", {"rclass": "local", "quotaBytes": QUOTA_BYTES})
    put(f"repositories/{VIRTUAL}", VIRTUAL_DOCUMENT)
    for user in (BUILDER, GUEST):
        put(f"security/users/{user}", {"email": f"{user}@example.org", "internalPasswordDisabled": True})
    put(f"security/permissions/{BUILDER}s", target(BUILDER, f"*/{OPEN}/**", "rwnd"))
    return {user: make_token(base, user) for user in (BUILDER, GUEST)}


def make_token(base: str, user: str) -> str:
    form = f"username={user}&scope=applied-permissions/user&expires_in=0"
    answer = json.loads(curl("-d", form, f"{base}/security/token", fail=True)[1])
    return str(answer["access_token"])


def mount_disks(stack: ExitStack, directory: Path) -> dict[Path, Path]:
    """Mount a small file system for each shard and return their images; none where that needs more than we may."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        return {}
    images = {}
    for number in range(1, NODES + 1):
        parent = directory / f"disks-{number}"
        parent.mkdir()
        for name in range(1, DISKS_A_NODE + 1):
            disk = parent / f"disk-{name}"
            stack.enter_context(mounted_ext4(disk, DISK_MIB))
            (disk / "lost+found").rmdir()
            images[disk] = disk.with_suffix(".img")
    return images


def start_pair(pair: PostgresPair, network: Star | None) -> str:
    """Start both servers and return the DSN by which nodes reach them."""
    servers = (pair.primary, pair.standby)
    if network is not None:
        for server in servers:
            server.listen_also(network.address(POSTGRES))
    pair.start()
    if network is None:
        return pair.dsn
    for server in servers:
        server.let_in(network.subnet)
    return pair.dsn.replace("127.0.0.1", network.address(POSTGRES))


def restore_disk(disk: Path, image: Path) -> None:
    """Mount a disk again that has lost its power; no process may have it open."""
    for _ in range(50):
        try:
            disks.unmount(disk)
            break
        except subprocess.CalledProcessError:
            time.sleep(0.2)
    else:
        disks.detach(disk)
    disks.mount_image(image, disk)
