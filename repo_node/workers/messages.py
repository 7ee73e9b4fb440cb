"""What the main process of a node and a worker tell one another."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from repo_node.cluster.outlook import Outlook
from repo_node.cluster.own_shards import Owner
from repo_node.config import NodeConfig, ShardSection
from sharding.model import ShardId


@dataclass(frozen=True, slots=True)
class Begin:
    """The first word to a worker: who it is. Carries its listeners, and what keeps others off the node's addresses."""

    release: str
    process: int
    stage: str
    """The name of its directory in each shard's ``tmp/``, which no other worker has or will have."""
    config: NodeConfig
    owner: Owner


@dataclass(frozen=True, slots=True)
class OpenShard:
    """Open a shard of the node. Carries the descriptor of its directory, and with it the claim."""

    shard: ShardId
    uid: UUID
    section: ShardSection


@dataclass(frozen=True, slots=True)
class CloseShard:
    """Give a shard up, and say ``ShardClosed``."""

    uid: UUID


@dataclass(frozen=True, slots=True)
class Look:
    """How the main process sees the cluster. Sent at the pace of the heartbeats; ``Alive`` is the answer.

    ``has_started`` is whether every process has had its time to start: before that, none says that the node is ready.
    """

    outlook: Outlook
    has_started: bool


@dataclass(frozen=True, slots=True)
class Leave:
    """Take nothing new on the front, and finish what is in flight."""


@dataclass(frozen=True, slots=True)
class End:
    """End now; what is still in flight is cut."""


@dataclass(frozen=True, slots=True)
class Serving:
    """The worker serves from now on."""


@dataclass(frozen=True, slots=True)
class Alive:
    """The worker's loop runs. ``served`` counts the uploads and readers it has begun."""

    served: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class ShardClosed:
    """A shard is open no more in the worker."""

    uid: UUID


ToWorker = Begin | OpenShard | CloseShard | Look | Leave | End
ToMain = Serving | Alive | ShardClosed
