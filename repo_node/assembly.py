"""The parts that every process of a node has, put together in the order in which they need one another."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar
from uuid import UUID

from aiohttp import web

from repo_node import keys
from repo_node.api.certified import CertifiedPeers
from repo_node.api.epochs import EpochHandlers
from repo_node.api.internal import STAGED_UPLOADS_MAX, internal_app
from repo_node.api.public import public_app
from repo_node.api.reports import report_route
from repo_node.api.shards import ReadElsewhere
from repo_node.api.staged import StagedUploads
from repo_node.archive_deploy import ArchiveDeploy
from repo_node.artifacts import Artifacts
from repo_node.atomic_deploy import AtomicDeploy
from repo_node.auth.authenticator import Authenticator
from repo_node.checksum_deploy import ChecksumDeploy
from repo_node.cluster.epochs import ShardEpochs
from repo_node.cluster.membership import Membership, NodeShards
from repo_node.cluster.outlook import Outlook
from repo_node.cluster.own_shard import OwnShard
from repo_node.cluster.own_shards import Owner
from repo_node.cluster.topology import Topology
from repo_node.config import NodeConfig
from repo_node.db.known_contents import KnownContents
from repo_node.db.lookups import LookUps
from repo_node.db.pool import Database
from repo_node.downloads import DownloadCounts
from repo_node.folder_download import FolderDownload
from repo_node.item_permissions import WhoMay
from repo_node.item_queries import ItemQueries
from repo_node.logs import request_id
from repo_node.metrics import Metrics
from repo_node.node import Node
from repo_node.properties import Properties
from repo_node.recent import RecentItems
from repo_node.repositories import Repositories
from repo_node.searches import Searches
from repo_node.settings import LiveSettings
from repo_node.support.bundles import SupportBundles
from repo_node.support.reports import NodeReports
from repo_node.tls.watch import Certificates
from repo_node.transfers import Transfers
from repo_node.trash import Trash
from repo_node.trees import Trees
from repo_node.web.admission import Admission
from repo_node.web.context import Services
from repo_node.web.listeners import Service, serving_internal
from sharding import wire
from sharding.hot_blobs import HotBlobs, HotLimits
from sharding.local import LocalShard
from sharding.model import NodeId, ShardId, ZoneId
from sharding.peer import Peer, open_peer_session
from sharding.provider import ShardingProvider, StoreLimits
from sharding.transfer_memory import TransferMemory

T = TypeVar("T")


class OpenShards(NodeShards, Protocol):
    """The node's shards as a process has them open."""

    opened: dict[ShardId, OwnShard]
    shards: dict[ShardId, LocalShard]

    def find(self, uid: UUID) -> LocalShard | None:
        """Return the open shard of this uid."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What a process serves with."""

    config: NodeConfig
    owner: Owner
    shards: OpenShards
    database: Database
    settings: LiveSettings
    metrics: Metrics
    topology: Topology
    store: ShardingProvider
    authenticator: Authenticator
    recent: RecentItems
    repositories: Repositories
    membership: Membership
    epochs: ShardEpochs
    certificates: Certificates


async def assemble(
    stack: AsyncExitStack,
    config: NodeConfig,
    owner: Owner,
    shards: OpenShards,
    database: Database,
    settings: LiveSettings,
    metrics: Metrics,
    certificates: Certificates,
    *,
    purpose: str = "",
) -> Parts:
    """Make the parts of a process; nothing runs yet. ``purpose`` tells its connections apart in Postgres' views."""
    topology = await build_topology(stack, config, owner.cluster_id, shards.opened, metrics, certificates)
    store = ShardingProvider(
        lambda: topology.view,
        lambda: StoreLimits(settings.now.commit_wait_seconds, settings.now.read_hedge_seconds),
        HotBlobs(lambda: HotLimits(settings.now.hot_blob_bytes_max, settings.now.hot_blobs_bytes_max), metrics),
        TransferMemory(lambda: settings.now.transfer_blocks_max, lambda: settings.now.transfer_wait_seconds),
    )
    authenticator = Authenticator(database, lambda: membership.is_fresh, settings, config.cluster_key)
    stack.push_async_callback(authenticator.close)
    recent = RecentItems(settings)
    repositories = Repositories(database, lambda: membership.is_fresh, recent, settings)
    membership = Membership(
        config,
        database.servers,
        owner.incarnation,
        shards,
        settings,
        metrics,
        purpose=purpose,
        on_cluster=topology.update,
        on_principals=authenticator.forget,
        on_tokens=authenticator.forget_tokens,
        on_repositories=repositories.forget,
    )
    epochs = ShardEpochs(owner.node, lambda: shards.shards, lambda: membership.rows, topology.peer_at)
    return Parts(
        config,
        owner,
        shards,
        database,
        settings,
        metrics,
        topology,
        store,
        authenticator,
        recent,
        repositories,
        membership,
        epochs,
        certificates,
    )


async def build_topology(
    stack: AsyncExitStack,
    config: NodeConfig,
    cluster_id: UUID,
    own: Mapping[ShardId, OwnShard],
    metrics: Metrics,
    certificates: Certificates,
) -> Topology:
    internal = config.internal
    peer_session = open_peer_session(
        call_seconds=internal.call_timeout_seconds,
        tls=certificates.to_peers,
        tls_only=internal.tls is not None and internal.tls.mode == "required",
    )
    session = await stack.enter_async_context(peer_session)
    token = keys.derive(config.cluster_key, wire.TOKEN_PURPOSE)

    @cache
    def peer_at(node: NodeId, url: str) -> Peer:
        return Peer(
            url,
            session,
            token,
            cluster_id,
            node=node,
            caller=NodeId(config.node.id),
            headers=lambda: {"X-Request-Id": request_id.get()},
            call_seconds=internal.call_timeout_seconds,
            stall_seconds=internal.stall_timeout_seconds,
        )

    return Topology(NodeId(config.node.id), ZoneId(config.node.zone), own, peer_at, internal, metrics)


def internal_app_of(
    parts: Parts,
    uploads: StagedUploads,
    *,
    elsewhere: ReadElsewhere | None = None,
    more_routes: Iterable[web.RouteDef] = (),
    certified: CertifiedPeers | None = None,
) -> web.Application:
    """Build the application for peers: the node's shards, and what they know of primaries.

    ``certified`` looks at their certificates.
    """
    return internal_app(
        shards=parts.shards.find,
        node_id=parts.owner.node,
        incarnation=parts.owner.incarnation,
        cluster_id=lambda: parts.owner.cluster_id,
        accepted=(parts.config.cluster_key, *parts.config.accepted_keys),
        more_routes=[*EpochHandlers(parts.epochs).routes(), *more_routes],
        uploads=uploads,
        elsewhere=elsewhere,
        certified=certified,
    )


async def serve_peers(
    stack: AsyncExitStack,
    parts: Parts,
    uploads: StagedUploads,
    listener: socket.socket,
    elsewhere: ReadElsewhere | None,
    reports: NodeReports,
) -> Service:
    """Serve peers on ``listener`` until the stack is left, those with a certificate alone where there is TLS."""
    tls, certified = parts.certificates.internal, None
    if tls is not None:
        certified = CertifiedPeers(lambda: None if parts.membership.rows is None else parts.membership.rows.nodes)
    routes = [report_route(reports.whole)]
    app = internal_app_of(parts, uploads, elsewhere=elsewhere, more_routes=routes, certified=certified)
    return await stack.enter_async_context(serving_internal(app, parts.config, listener, tls))


def staged_uploads_of(config: NodeConfig) -> StagedUploads:
    """Return the register of what peers stage in one process of a node."""
    return StagedUploads(-(-STAGED_UPLOADS_MAX // config.node.workers))


def serve_artifacts(stack: AsyncExitStack, parts: Parts) -> Artifacts:
    """Make the service that everything else calls. What it leaves to be done is done before the store closes."""
    stack.push_async_callback(parts.store.close)
    limits = parts.config.database
    look_ups = LookUps(
        parts.database,
        per_round_trip_max=limits.look_ups_per_round_trip_max,
        wait_seconds_max=limits.connect_timeout_seconds,
    )
    stack.push_async_callback(look_ups.close)
    artifacts = Artifacts(
        parts.database,
        look_ups,
        parts.store,
        parts.repositories,
        parts.settings,
        parts.metrics,
        parts.recent,
        parts.membership,
    )
    stack.push_async_callback(artifacts.close)
    return artifacts


def checksum_deploy_of(stack: AsyncExitStack, parts: Parts) -> ChecksumDeploy:
    """Make the service for uploads without bytes."""
    limits = parts.config.database
    contents = KnownContents(
        parts.database,
        per_round_trip_max=limits.look_ups_per_round_trip_max,
        wait_seconds_max=limits.connect_timeout_seconds,
        gather_seconds=lambda: parts.settings.now.commit_gather_milliseconds / 1000,
    )
    stack.push_async_callback(contents.close)
    return ChecksumDeploy(
        contents,
        parts.store,
        parts.repositories,
        parts.settings,
        parts.metrics,
        parts.recent,
        parts.membership,
    )


def node_of(parts: Parts, outlook: Callable[[], Outlook]) -> Node:
    """Return the node as its API sees it."""
    return Node(parts.metrics, parts.database, parts.membership, parts.topology, outlook, parts.settings)


def public_app_of(
    stack: AsyncExitStack, parts: Parts, artifacts: Artifacts, node: Node, reports: NodeReports
) -> web.Application:
    """Build the application for clients. What it counted is written when the stack is left."""
    reports.node = node
    admission = Admission(lambda: parts.settings.now.requests_per_user_max)
    properties = Properties(parts.database, parts.repositories, parts.recent, parts.settings)
    transfers = Transfers(parts.database, artifacts, parts.repositories, parts.recent, parts.settings)
    downloads = DownloadCounts(parts.database, parts.settings, parts.metrics, parts.membership.database_time)
    stack.push_async_callback(downloads.close)
    trees = Trees(parts.database, parts.repositories, parts.settings)
    trash = Trash(parts.database, parts.recent, parts.settings)
    services = Services(
        artifacts,
        checksum_deploy_of(stack, parts),
        archives_of(parts, artifacts),
        parts.repositories,
        properties,
        transfers,
        downloads,
        trees,
        Searches(parts.database, parts.repositories, parts.settings),
        ItemQueries(parts.database, parts.repositories, parts.settings, parts.membership.database_time),
        FolderDownload(artifacts, trees, parts.settings),
        trash,
        WhoMay(parts.database),
        support_of(stack, parts, reports),
        parts.authenticator,
        parts.settings,
        admission,
        parts.metrics,
        parts.config.http,
        parts.store.memory,
    )
    return public_app(services, node)


def support_of(stack: AsyncExitStack, parts: Parts, reports: NodeReports) -> SupportBundles:
    """Make the service for support bundles. One that is being made when the stack is left has failed."""
    membership, peer_at = parts.membership, parts.topology.peer_at
    support = SupportBundles(parts.owner.node, parts.database, reports, membership.cluster, peer_at, parts.settings)
    stack.push_async_callback(support.close)
    return support


def archives_of(parts: Parts, artifacts: Artifacts) -> ArchiveDeploy:
    """Make the service that unpacks archives, each of which lies on a shard of this node meanwhile."""
    atomic = AtomicDeploy(parts.database, parts.store, parts.repositories, parts.settings, parts.metrics, parts.recent)
    return ArchiveDeploy(
        artifacts,
        atomic,
        parts.repositories,
        parts.settings,
        parts.store,
        lambda: parts.shards.shards,
    )


@asynccontextmanager
async def task(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Run ``work`` beside the block, and stop it at the block's end."""
    running = asyncio.create_task(work)
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
