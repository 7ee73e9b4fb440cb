"""How the cluster stands, as Holdfast's own API tells it (``api/holdfast/status``)."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from aiohttp import web
from typing_extensions import TypedDict

from repo_node.api.documents import json_response
from repo_node.api.members import NodeDocument, node_document
from repo_node.auth.permissions import Permission
from repo_node.db import totals
from repo_node.db.nodes import ClusterRows, ShardRow
from repo_node.db.totals import Totals
from repo_node.web.context import SERVICES
from repo_node.web.descriptions import described
from repo_node.web.routes import Routes
from repo_node.web.state import NODE
from sharding.view import StoreView


class ShardStatus(TypedDict):
    id: int
    uid: UUID
    node: str
    zone: str
    path: str
    state: str
    up: bool
    writable: bool
    trouble: str
    weight: float
    capacity_bytes: int
    free_bytes: int
    replicas: int


class BlobCounts(TypedDict):
    count: int
    bytes: int
    missing_copies: int
    short: int
    unreferenced: int


class Suspicion(TypedDict):
    peer: str
    kind: str


class Status(TypedDict):
    cluster_id: UUID
    schema_version: int
    nodes: list[NodeDocument]
    shards: list[ShardStatus]
    blobs: BlobCounts
    repair_queue: int
    primary: str | None
    partition_suspicions: list[Suspicion]
    deletion_holds: list[str]
    read_only_reason: str


def add_routes(routes: Routes) -> None:
    routes.add("GET", "/artifactory/api/holdfast/status", status, Permission.ADMIN)


@described({200: Status})
async def status(request: web.Request) -> web.StreamResponse:
    """Show the cluster: its nodes, its shards, how many copies are missing, and what holds deletions."""
    node = request.app[NODE]
    cluster, view = node.cluster(), node.view()
    counted, primary = await totals.read(node.database), node.primary()
    return json_response(
        {
            "cluster_id": str(cluster.cluster_id),
            "schema_version": cluster.schema_version,
            "nodes": [node_document(one) for one in sorted(cluster.nodes.values(), key=lambda one: one.id)],
            "shards": [
                shard_status(shard, cluster, view, counted)
                for shard in sorted(cluster.shards.values(), key=lambda shard: shard.id)
            ],
            "blobs": {
                "count": counted.blobs,
                "bytes": counted.bytes,
                "missing_copies": counted.missing_copies,
                "short": counted.short_blobs,
                "unreferenced": counted.unreferenced_blobs,
            },
            "repair_queue": counted.repair_queue,
            "primary": primary and primary.node,
            "partition_suspicions": [{"peer": peer, "kind": kind} for peer, kind in node.suspicions()],
            "deletion_holds": list(node.deletion_holds()),
            "read_only_reason": request.app[SERVICES].settings.now.read_only_reason,
        }
    )


def shard_status(shard: ShardRow, cluster: ClusterRows, view: StoreView, counted: Totals) -> dict[str, Any]:
    return {
        "id": shard.id,
        "uid": str(shard.member.uid),
        "node": shard.member.node,
        "zone": shard.member.zone,
        "path": shard.path,
        "state": shard.state.value,
        "up": cluster.nodes[shard.member.node].up and shard.capacity_bytes > 0,
        "writable": shard.id in view.writable,
        "trouble": "" if shard.writable else shard.reason,
        "weight": shard.member.weight,
        "capacity_bytes": shard.capacity_bytes,
        "free_bytes": shard.free_bytes,
        "replicas": counted.replicas.get(shard.id, 0),
    }
