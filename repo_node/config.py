"""A node's own TOML: only what it needs to find the database, its disks and its sockets.

Everything the cluster shares is a setting in Postgres (``settings.py``). ``load`` is the one way
in; every complaint names the file, the key and what would be right.
"""

from __future__ import annotations

import os
import re
import tomllib
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from repo_node import keys
from repo_node.dsn import parse_dsn
from sharding.local import CACHED_BYTES_MAX


class ConfigError(Exception):
    """The configuration cannot be used; the message names the file, the key and what would be right."""


class Section(BaseModel):
    """A table of the TOML: unknown keys are errors, values are never coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
IpNetwork = IPv4Network | IPv6Network
Seconds = Annotated[float, Field(gt=0, le=86_400)]
WORKERS_MAX = 64
CONNECTIONS_OF_A_PROCESS_MIN = 2
ADDRESS = re.compile(r"^(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})$")


class Address(BaseModel):
    """A socket address, written ``host:port`` or ``[v6]:port``."""

    model_config = ConfigDict(frozen=True)
    host: str
    port: int

    @model_validator(mode="before")
    @classmethod
    def parse(cls, value: Any) -> Any:
        if isinstance(value, Address):
            return value
        match = ADDRESS.fullmatch(value) if isinstance(value, str) else None
        if not match or not 0 < int(match["port"]) < 65_536:
            raise ValueError('write it as "host:port" with a port from 1 to 65535, for example "0.0.0.0:8081"')
        return {"host": match["host"].strip("[]"), "port": int(match["port"])}

    @property
    def is_wildcard(self) -> bool:
        """Whether it means every interface, which nobody can connect to by this name."""
        return self.host in ("0.0.0.0", "::")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class NodeSection(Section):
    """Who this node is, and how many processes serve for it.

    With the keys of ``accepted_key_files`` peers are let in too: while the cluster's is changed, node by node.
    """

    id: Name
    zone: Name
    cluster_key_file: Path = Field(strict=False)
    accepted_key_files: tuple[Annotated[Path, Field(strict=False)], ...] = Field((), max_length=2, strict=False)
    workers: int = Field(1, ge=1, le=WORKERS_MAX)


class DatabaseSection(Section):
    """Where Postgres is, and how long to wait for it."""

    dsn: str = Field(repr=False)
    pool_connections_max: int = Field(16, ge=2, le=500)
    look_ups_per_round_trip_max: int = Field(64, ge=1, le=1000)
    connect_timeout_seconds: Seconds = 5.0
    statement_timeout_seconds: Seconds = 5.0
    start_timeout_seconds: Seconds = 60.0

    @field_validator("dsn")
    @classmethod
    def check_dsn(cls, value: str) -> str:
        parse_dsn(value)
        return value


class TlsSection(Section):
    """A certificate, with those between it and its authority, and its key. Their files may change at any time."""

    certificate_file: Path = Field(strict=False)
    key_file: Path = Field(strict=False)

    def under(self, anchor: Path) -> Self:
        """Return the section with its relative paths anchored."""
        paths = {name: anchor / value for name, value in self if isinstance(value, Path)}
        return self.model_copy(update=paths)


class PeerTlsSection(TlsSection):
    """TLS between nodes: both ends show a certificate of ``ca_file`` that names their node.

    ``mode`` is for clusters at work: first every node is ``prepared`` to call peers that have TLS, then each one is
    ``introducing`` it, and calls both kinds, then it is ``required``.
    """

    ca_file: Path = Field(strict=False)
    crl_file: Path | None = Field(None, strict=False)
    mode: Literal["required", "introducing", "prepared"] = "required"


class HttpSection(Section):
    """The public listener and what it tolerates from clients."""

    listen: Address
    shared_listen: Address | None = None
    metrics_listen: Address | None = None
    public_url: str | None = None
    trusted_proxies: tuple[IpNetwork, ...] = ()
    header_timeout_seconds: Seconds = 10.0
    idle_timeout_seconds: Seconds = 30.0
    keepalive_timeout_seconds: Seconds = 75.0
    rate_bytes_per_second_min: int = Field(1024, ge=0)
    rate_window_seconds: Seconds = 60.0
    connections_max: int = Field(10_000, ge=1)
    shutdown_timeout_seconds: Seconds = 30.0
    drain_notice_seconds: float = Field(3.0, ge=0, le=600, strict=False)
    stop_timeout_seconds: Seconds = 15.0
    tls: TlsSection | None = None

    @field_validator("public_url")
    @classmethod
    def check_url(cls, value: str | None) -> str | None:
        return value if value is None else check_http_url(value)

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def read_networks(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or any(isinstance(one, int) for one in value):
            raise ValueError('write a list of addresses and networks, for example ["10.0.0.7", "fd00:1::/64"]')
        return tuple(ip_network(one) for one in value)

    @property
    def url(self) -> str:
        """The URL of this node's own address."""
        return f"{scheme_of(self.tls is not None)}://{self.listen}"


class InternalSection(Section):
    """The listener for peers: never on a public network, never behind the load balancer."""

    listen: Address
    advertise_url: str | None = None
    call_timeout_seconds: Seconds = 10.0
    stall_timeout_seconds: Seconds = 15.0
    calls_per_shard_max: int = Field(64, ge=1, le=10_000)
    failures_to_open: int = Field(5, ge=1)
    open_seconds: Seconds = 2.0
    tls: PeerTlsSection | None = None

    @field_validator("advertise_url")
    @classmethod
    def check_url(cls, value: str | None) -> str | None:
        return value if value is None else check_http_url(value)

    @property
    def listens_with_tls(self) -> bool:
        return self.tls is not None and self.tls.mode != "prepared"

    @property
    def url(self) -> str:
        """The URL at which peers reach this node."""
        return self.advertise_url or f"{scheme_of(self.listens_with_tls)}://{self.listen}"


class ShardSection(Section):
    """One shard directory of this node. Without a weight, a new shard gets one from its capacity."""

    path: Path = Field(strict=False)
    weight: float | None = Field(None, gt=0, le=1000)
    reserve_bytes: int = Field(1 << 30, ge=0)
    cached_bytes_max: int = Field(CACHED_BYTES_MAX, ge=0)
    threads: int = Field(4, ge=1, le=64)


class LogSection(Section):
    """How the node writes its log, on standard error, and how much of it each process keeps for support bundles."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"
    kept_bytes_max: int = Field(4 << 20, ge=0, le=64 << 20)


class NodeConfig(Section):
    """A whole node configuration. The keys are read from the files that ``node`` names."""

    node: NodeSection
    database: DatabaseSection
    http: HttpSection
    internal: InternalSection
    shards: tuple[ShardSection, ...] = Field(strict=False)
    log: LogSection = LogSection()
    cluster_key: bytes = Field(default=b"", exclude=True, repr=False)
    accepted_keys: tuple[bytes, ...] = Field(default=(), exclude=True, repr=False)

    @field_validator("shards")
    @classmethod
    def check_shards(cls, value: tuple[ShardSection, ...]) -> tuple[ShardSection, ...]:
        # Not ``min_length``: a fault in the only shard would be reported as the lack of any, too.
        if not value:
            raise ValueError("at least one [[shards]] section is required")
        return value

    def share_of(self, process: int) -> NodeConfig:
        """Return the configuration of one of the node's processes: what a node may use at most is divided."""
        workers = self.node.workers
        pool, rest = divmod(self.database.pool_connections_max, workers)
        database = {"pool_connections_max": pool + (process < rest)}
        http = {"connections_max": -(-self.http.connections_max // workers)}
        internal = {"calls_per_shard_max": -(-self.internal.calls_per_shard_max // workers)}
        return self.model_copy(
            update={
                "database": self.database.model_copy(update=database),
                "http": self.http.model_copy(update=http),
                "internal": self.internal.model_copy(update=internal),
            }
        )


def scheme_of(has_tls: bool) -> str:
    return "https" if has_tls else "http"


def check_http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or parts.query or parts.fragment:
        raise ValueError('write an http or https URL, for example "http://10.0.0.5:8181"')
    return value.rstrip("/")


def load(path: Path) -> NodeConfig:
    """Read and check the TOML at ``path``; relative paths in it are relative to its directory.

    Raises ``ConfigError``.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None
    if inline := {"cluster_key", "accepted_keys"} & document.keys():
        raise ConfigError(f"{path}: {min(inline)}: belongs in a file of its own, which node.cluster_key_file names")
    try:
        config = NodeConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(explain(path, error)) from None
    return resolve(path, config)


def resolve(path: Path, config: NodeConfig) -> NodeConfig:
    """Anchor relative paths, check what spans sections, and read the cluster key."""
    anchor = path.resolve().parent
    if config.internal.listen.is_wildcard and config.internal.advertise_url is None:
        raise ConfigError(
            f"{path}: internal.advertise_url: is required while internal.listen is {config.internal.listen}; "
            'write the URL at which peers reach this node, for example "http://10.0.0.5:8181"'
        )
    check_advertised(path, config.internal)
    connections_min = CONNECTIONS_OF_A_PROCESS_MIN * config.node.workers
    if config.database.pool_connections_max < connections_min:
        raise ConfigError(
            f"{path}: database.pool_connections_max: must be at least {connections_min}, "
            f"{CONNECTIONS_OF_A_PROCESS_MIN} for each of the node's {config.node.workers} workers"
        )
    shards = tuple(shard.model_copy(update={"path": anchor / shard.path}) for shard in config.shards)
    if len({os.path.realpath(shard.path) for shard in shards}) < len(shards):
        raise ConfigError(f"{path}: shards: two shards have the same path; each needs a directory of its own")
    key = read_key(path, "cluster_key_file", config.node.cluster_key_file)
    accepted = tuple(read_key(path, "accepted_key_files", file) for file in config.node.accepted_key_files)
    sections = {
        name: section.model_copy(update={"tls": section.tls.under(anchor)})
        for name, section in (("http", config.http), ("internal", config.internal))
        if section.tls is not None
    }
    return config.model_copy(update={"shards": shards, "cluster_key": key, "accepted_keys": accepted, **sections})


def read_key(path: Path, entry: str, file: Path) -> bytes:
    """Return the key in a file that an entry of the node's section names. Raises ``ConfigError``."""
    try:
        return keys.read_cluster_key(path.resolve().parent / file)
    except keys.KeyFileError as error:
        raise ConfigError(f"{path}: node.{entry}: {error}") from None


def check_advertised(path: Path, internal: InternalSection) -> None:
    """Check that peers are not told to call without TLS where there is nothing else. Raises ``ConfigError``."""
    if internal.listens_with_tls and urlsplit(internal.url).scheme != "https":
        raise ConfigError(
            f"{path}: internal.advertise_url: must begin with https://, because the listener for peers has TLS"
        )


def explain(path: Path, error: ValidationError) -> str:
    """Return one line for each wrong key: where it is and what would be right."""
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"]) or "(the whole file)"
        match fault["type"]:
            case "missing":
                what = "is required and missing"
            case "extra_forbidden":
                what = "is not a known key; config/node.example.toml lists every key"
            case _:
                what = fault["msg"].removeprefix("Value error, ")
        lines.append(f"{path}: {where}: {what}")
    return "\n".join(lines)
