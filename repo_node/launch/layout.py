"""The files of a cluster that ``up`` runs, all under one directory; secrets and configurations are mode 0600.

::

    DIR/lock  cluster.json  cluster.key  admin-password  database-password  up.log
    DIR/postgres/                      the embedded Postgres (server_files)
    DIR/nodes/<id>/node.toml  log  shard-1/  shard-2/ ...
"""

from __future__ import annotations

import json
import re
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repo_node import keys
from repo_node.config import HttpSection, scheme_of
from repo_node.launch import private
from repo_node.launch.errors import PlanError
from repo_node.launch.plan import AUTHORITY_FILE, DEFAULT_WORKERS, ClusterPlan, ExistingNode, NodePlan, Schemes

# A cluster for trying things out shares its disk with everything else on the machine.
SHARD_RESERVE_BYTES = 256 << 20
HEADER = (
    "# Written by holdfast up. At every start it sets the keys that it needs (database, addresses, shards);\n"
    "# other keys you add stay, comments do not. config/node.example.toml explains every key.\n"
)


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node as it stands in ``cluster.json``; ``pid`` is None while it does not run."""

    id: str
    zone: str
    url: str
    internal_url: str
    pid: int | None
    config: str


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    """``cluster.json``: what runs, and where. The pids are None while it does not run."""

    front_url: str
    dsn: str
    up_pid: int | None
    postgres_pid: int | None
    postgres_data: str
    nodes: tuple[NodeRecord, ...]
    ca_file: str | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """The files under ``directory``, which is absolute."""

    directory: Path

    @property
    def postgres(self) -> Path:
        return self.directory / "postgres"

    @property
    def cluster_key(self) -> Path:
        return self.directory / "cluster.key"

    @property
    def admin_password(self) -> Path:
        return self.directory / "admin-password"

    @property
    def database_password(self) -> Path:
        return self.directory / "database-password"

    @property
    def up_log(self) -> Path:
        return self.directory / "up.log"

    @property
    def cluster_json(self) -> Path:
        return self.directory / "cluster.json"

    def node_directory(self, node_id: str) -> Path:
        return self.directory / "nodes" / node_id

    def config(self, node_id: str) -> Path:
        return self.node_directory(node_id) / "node.toml"

    def log(self, node_id: str) -> Path:
        return self.node_directory(node_id) / "log"

    def configs(self) -> list[Path]:
        """Return the configurations of all nodes that there are."""
        return sorted(self.directory.glob("nodes/*/node.toml"))

    def find_nodes(self) -> list[ExistingNode]:
        """Return the nodes that earlier runs configured. Raises ``PlanError`` for a damaged file."""
        return [read_node(path) for path in self.configs()]

    def find_drain_seconds(self) -> float:
        """Return how long the most patient node may take to finish what is in flight and to end."""
        parts = ("drain_notice_seconds", "shutdown_timeout_seconds", "stop_timeout_seconds")
        sections = [read_toml(path).get("http", {}) for path in self.configs()]
        return max(
            (sum(float(one.get(key, HttpSection.model_fields[key].default)) for key in parts) for one in sections),
            default=0.0,
        )

    def find_front_port(self) -> int | None:
        """Return the front port of the last run, or None."""
        record = self.read_record()
        return int(record.front_url.rpartition(":")[2]) if record else None

    def read_record(self) -> ClusterRecord | None:
        """Return ``cluster.json``, or None before the first start. Raises ``PlanError`` when it is damaged."""
        try:
            document = json.loads(self.cluster_json.read_text("utf-8"))
            document["nodes"] = tuple(NodeRecord(**node) for node in document["nodes"])
            return ClusterRecord(**document)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(f"{self.cluster_json} is damaged ({error}); remove it and run up again") from None

    def write_record(self, record: ClusterRecord) -> None:
        private.write_private(self.cluster_json, json.dumps(asdict(record), indent=2) + "\n")

    def ensure_cluster_key(self) -> None:
        """Write a new cluster key unless there is one."""
        if not self.cluster_key.exists():
            private.write_private(self.cluster_key, keys.new_cluster_key() + "\n")

    def ensure_admin_password(self) -> tuple[str, bool]:
        """Return the password in ``admin-password`` and whether it was made just now."""
        return ensure_password(self.admin_password)

    def ensure_database_password(self) -> str:
        """Return the password of the role that nodes log in as."""
        return ensure_password(self.database_password)[0]

    def write_node(self, node: NodePlan, plan: ClusterPlan, dsn: str) -> None:
        """Write a node's TOML and make the directories of its new shards.

        What the user added to an existing file is kept. A shard directory that an earlier run made and
        that is gone now is a lost disk, and is not made again.
        """
        path = self.config(node.id)
        before = read_toml(path) if path.exists() else {}
        private.make_private_directory(path.parent)
        shards = list(before.get("shards", []))
        known = {shard["path"] for shard in shards}
        for name in (f"shard-{number}" for number in range(1, plan.shards + 1)):
            if name not in known:
                private.make_private_directory(path.parent / name)
                # They share one disk, whose capacity says nothing of any of them.
                shards.append({"path": name, "weight": 1.0, "reserve_bytes": SHARD_RESERVE_BYTES})
        if not before:
            # There is no load balancer that would have to notice that a node leaves.
            before = {"http": {"drain_notice_seconds": 0.0}}
        managed = managed_keys(node, plan, dsn)
        document: dict[str, Any] = {
            section: {**before.get(section, {}), **values} for section, values in managed.items()
        }
        rest = {name: value for name, value in before.items() if name not in managed}
        document = {**document, **rest, "shards": shards}
        if document != before:
            private.write_private(path, HEADER + format_toml(document))


def ensure_password(path: Path) -> tuple[str, bool]:
    """Return the password in a file and whether it was made just now."""
    if path.exists():
        return path.read_text("utf-8").strip(), False
    password = secrets.token_urlsafe(18)
    private.write_private(path, password + "\n")
    return password, True


def managed_keys(node: NodePlan, plan: ClusterPlan, dsn: str) -> dict[str, Any]:
    """Return the keys of a node's TOML that follow from the plan."""
    clients = peers = {}
    if plan.tls is not None:
        pair = {"certificate_file": str(plan.tls / f"{node.id}.crt"), "key_file": str(plan.tls / f"{node.id}.key")}
        clients, peers = {"tls": pair}, {"tls": {**pair, "ca_file": str(plan.tls / AUTHORITY_FILE)}}
    return {
        "node": {
            "id": node.id,
            "zone": node.zone,
            "cluster_key_file": "../../cluster.key",
            "workers": plan.workers,
        },
        "database": {"dsn": dsn},
        "http": {"listen": node.address, "shared_listen": plan.front_address, **clients},
        "internal": {"listen": node.internal_address, **peers},
    }


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(f"{path} cannot be read: {error}") from None


def read_node(path: Path) -> ExistingNode:
    document = read_toml(path)
    try:
        # Shards that the user added elsewhere are his; only those that up names are counted and grown.
        shards = sum(1 for shard in document["shards"] if re.fullmatch(r"shard-\d+", shard["path"]))
        node = document["node"]
        workers = node.get("workers", DEFAULT_WORKERS)
        return ExistingNode(node["id"], node["zone"], shards, workers, read_schemes(document, path.parent))
    except (KeyError, TypeError) as error:
        raise PlanError(f"{path} lacks {error}; repair it, or move its directory away to start without it") from None


def read_schemes(document: Mapping[str, Any], anchor: Path) -> Schemes:
    peers = document.get("internal", {}).get("tls")
    clients = scheme_of("tls" in document.get("http", {}))
    if peers is None:
        return Schemes(clients)
    return Schemes(clients, scheme_of(peers.get("mode") != "prepared"), str(anchor / peers["ca_file"]))


def format_toml(document: Mapping[str, Any]) -> str:
    """Return ``document``, tables and arrays of tables of plain values and tables of such, as TOML."""
    lines: list[str] = []
    for name, value in document.items():
        for table in value if isinstance(value, list) else [value]:
            inner = {f"{name}.{key}": item for key, item in table.items() if isinstance(item, Mapping)}
            lines += ["", f"[[{name}]]" if isinstance(value, list) else f"[{name}]"]
            # JSON writes strings, numbers and booleans as TOML does.
            lines += [f"{key} = {json.dumps(item)}" for key, item in table.items() if f"{name}.{key}" not in inner]
            if inner:
                lines += [format_toml(inner).rstrip("\n")]
    return "\n".join(lines) + "\n"
