"""What a cluster should consist of, from the options and from what earlier runs left; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from repo_node.launch.errors import OutOfRange, PlanError
from repo_node.launch.ports import LOOPBACK

NODES_MAX = 50
SHARDS_MAX = 24
REDUNDANCY_MAX = 16
PORT_MAX = 65_535
INTERNAL_PORT_OFFSET = 100
DEFAULT_NODES = 3
DEFAULT_ZONES = 3
DEFAULT_SHARDS = 2
DEFAULT_REDUNDANCY = 2
DEFAULT_PORT = 8080
DEFAULT_WORKERS = 1
AUTHORITY_FILE = "ca.crt"
WORKERS_MAX = 8
"""Half of the connections that a node has by default."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for; None where he leaves it to what is there, or to the default."""

    nodes: int | None = None
    zones: int | None = None
    shards: int | None = None
    redundancy: int | None = None
    port: int | None = None
    workers: int | None = None
    tls: Path | None = None
    """A directory with ``ca.crt``, and a certificate and a key for each node."""


@dataclass(frozen=True, slots=True)
class Schemes:
    """How clients and peers speak to a node, and what the authority of its certificates is, as far as that is known."""

    clients: str = "http"
    peers: str = "http"
    authority: str | None = field(default=None, compare=False)


PLAIN = Schemes()


@dataclass(frozen=True, slots=True)
class ExistingNode:
    """A node that an earlier run configured."""

    id: str
    zone: str
    shards: int
    workers: int = 1
    schemes: Schemes = PLAIN


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A node that should run."""

    id: str
    zone: str
    port: int
    internal_port: int
    schemes: Schemes = PLAIN

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def internal_address(self) -> str:
        return f"{LOOPBACK}:{self.internal_port}"

    @property
    def url(self) -> str:
        return f"{self.schemes.clients}://{self.address}"

    @property
    def internal_url(self) -> str:
        return f"{self.schemes.peers}://{self.internal_address}"


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """A cluster that should run. Every node has ``shards`` shards; ``redundancy`` is for its first start alone.

    Every node is ``workers`` processes. ``tls`` is where the certificates are that its nodes are to have from now on.
    """

    port: int
    shards: int
    redundancy: int
    nodes: tuple[NodePlan, ...]
    workers: int = 1
    schemes: Schemes = PLAIN
    tls: Path | None = None

    @property
    def front_address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def front_url(self) -> str:
        return f"{self.schemes.clients}://{self.front_address}"


def make_plan(options: Options, existing: Sequence[ExistingNode] = (), last_port: int | None = None) -> ClusterPlan:
    """Return the cluster that ``options`` ask for, which grows an existing one or leaves it as it is.

    Raises ``PlanError`` for what would lose data or cannot work.
    """
    nodes = pick(options.nodes, max((number_of(node) for node in existing), default=DEFAULT_NODES))
    shards = pick(options.shards, max((node.shards for node in existing), default=DEFAULT_SHARDS))
    zones = pick(options.zones, choose_zones(nodes, existing))
    port = pick(options.port, pick(last_port, DEFAULT_PORT))
    redundancy = pick(options.redundancy, min(DEFAULT_REDUNDANCY, nodes * shards))
    workers = pick(options.workers, max((node.workers for node in existing), default=DEFAULT_WORKERS))
    check_range("--nodes", nodes, NODES_MAX)
    check_range("--shards", shards, SHARDS_MAX)
    check_range("--zones", zones, nodes, f" with {nodes} nodes")
    check_range("--port", port, PORT_MAX - INTERNAL_PORT_OFFSET - nodes, ": the ports of the nodes follow it")
    check_range("--redundancy", redundancy, min(REDUNDANCY_MAX, nodes * shards), f" with {nodes * shards} shards")
    check_range("--workers", workers, WORKERS_MAX, ": they share their node's connections to Postgres")
    schemes = choose_schemes(options.tls, nodes, existing)
    planned = tuple(plan_node(number, zones, port, schemes) for number in range(1, nodes + 1))
    plan = ClusterPlan(port, shards, redundancy, planned, workers, schemes, options.tls)
    check_growth(plan, existing)
    return plan


def pick(given: int | None, otherwise: int) -> int:
    return otherwise if given is None else given


def number_of(node: ExistingNode) -> int:
    digits = node.id.rpartition("-")[2]
    return int(digits) if digits.isdigit() else 1


def choose_zones(nodes: int, existing: Sequence[ExistingNode]) -> int:
    """Return how many zones there should be where the user does not say: never so that a node changes its zone."""
    zones = len({node.zone for node in existing})
    if len(existing) > zones:
        return zones
    return min(nodes, max(zones, DEFAULT_ZONES))


def choose_schemes(tls: Path | None, nodes: int, existing: Sequence[ExistingNode]) -> Schemes:
    """Return how nodes are spoken to: as their files say, unless they get certificates now. Raises ``PlanError``."""
    if tls is not None:
        return Schemes("https", "https", str(tls / AUTHORITY_FILE))
    found = {node.schemes for node in existing}
    if len(found) > 1 or (found and found != {PLAIN} and nodes > len(existing)):
        raise PlanError(
            "some nodes would have TLS and others not; give --tls with certificates for all, "
            "or tls sections to every node.toml"
        )
    return found.pop() if found else PLAIN


def plan_node(number: int, zones: int, port: int, schemes: Schemes) -> NodePlan:
    zone = f"zone-{(number - 1) % zones + 1}"
    return NodePlan(f"node-{number}", zone, port + number, port + INTERNAL_PORT_OFFSET + number, schemes)


def check_range(option: str, value: int, highest: int, why: str = "") -> None:
    if not 1 <= value <= highest:
        raise OutOfRange(f"{option} {value} is out of range; give a number from 1 to {highest}{why}")


def check_growth(plan: ClusterPlan, existing: Sequence[ExistingNode]) -> None:
    """Raise ``PlanError`` when an existing node or shard would be left out, or a node would change its zone."""
    planned = {node.id: node for node in plan.nodes}
    for node in existing:
        if node.id not in planned:
            raise PlanError(
                f"this cluster has {len(existing)} nodes and --nodes {len(plan.nodes)} would leave out {node.id} with "
                f"the copies on it; give at least {len(existing)}, or another --data for a new cluster"
            )
        if planned[node.id].zone != node.zone:
            raise PlanError(
                f"with these --zones {node.id} would move from {node.zone} to {planned[node.id].zone} with the copies "
                "on it; leave --zones out to keep the zones as they are, or give another --data for a new cluster"
            )
        if node.shards > plan.shards:
            raise PlanError(
                f"{node.id} has {node.shards} shards and --shards {plan.shards} would leave one out with the copies on "
                f"it; give at least {node.shards}, or another --data for a new cluster"
            )
