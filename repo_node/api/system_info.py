"""What Artifactory's clients ask of the system besides its health: who it is, its licence, what it has nothing of."""

from __future__ import annotations

import platform
from typing import Any

from aiohttp import web
from typing_extensions import TypedDict

from repo_node import __version__
from repo_node.api.documents import json_response
from repo_node.auth.permissions import Permission
from repo_node.web.body import read_json
from repo_node.web.descriptions import TEXT, described
from repo_node.web.routes import Routes, WhileReadOnly
from repo_node.web.state import NODE

BASE = "/artifactory/api/system"


class LicenceDocument(TypedDict):
    type: str
    validThrough: str
    licensedTo: str


class NodeLicence(LicenceDocument):
    licenseHash: str
    expired: bool
    nodeId: str
    nodeUrl: str


class Licences(TypedDict):
    licenses: list[NodeLicence]


LICENCE: LicenceDocument = {"type": "Free", "validThrough": "Dec 31, 9999", "licensedTo": "Everybody"}
"""Clients expect the type, a date as Americans write it, and a name. Those of Artifactory's free editions are not used:
for them the Prometheus exporter does not ask for users, groups, certificates and replications."""


def add_routes(routes: Routes) -> None:
    routes.add("GET", BASE, system_text, Permission.ADMIN)
    routes.add("GET", f"{BASE}/info", system_info, Permission.ADMIN)
    routes.add("GET", f"{BASE}/service_id", service_id, Permission.ADMIN)
    routes.add("GET", f"{BASE}/license", licence, Permission.ADMIN)
    routes.add("GET", f"{BASE}/licenses", licences, Permission.ADMIN)
    # Nothing is kept of it: it is no change.
    routes.add("POST", f"{BASE}/usage", usage, Permission.ACCOUNT, while_read_only=WhileReadOnly.SERVED)
    routes.add("GET", f"{BASE}/security/certificates", nothing, Permission.ADMIN)
    routes.add("GET", "/artifactory/api/replications", nothing, Permission.ADMIN)


def node_headers(request: web.Request) -> dict[str, str]:
    """Return the header by which the clients of Artifactory's system API know who answered."""
    return {"X-Artifactory-Node-Id": request.app[NODE].view().node}


@described({200: TEXT})
async def service_id(request: web.Request) -> web.StreamResponse:
    """Answer with the cluster's id in the form of Artifactory's service ids."""
    return web.Response(text=f"jfrt@{request.app[NODE].cluster().cluster_id.hex}")


@described({200: LicenceDocument})
async def licence(request: web.Request) -> web.StreamResponse:
    """Answer with the licence, which is free and does not end."""
    return json_response(LICENCE, headers=node_headers(request))


@described({200: Licences})
async def licences(request: web.Request) -> web.StreamResponse:
    """Answer with the licence of every node, as a cluster of Artifactory has one each."""
    nodes = sorted(request.app[NODE].cluster().nodes.values(), key=lambda one: one.id)
    own = {**LICENCE, "licenseHash": "", "expired": False}
    return json_response({"licenses": [{**own, "nodeId": one.id, "nodeUrl": one.url} for one in nodes]})


@described({200: dict[str, Any]}, body=dict[str, Any])
async def usage(request: web.Request) -> web.StreamResponse:
    """Take what a client tells of its use, which nobody wants to know here."""
    await read_json(request)
    return json_response({})


@described({200: list[Any]})
async def nothing(request: web.Request) -> web.StreamResponse:
    """Answer that there is none of these."""
    return json_response([], headers=node_headers(request))


@described({200: dict[str, Any]})
async def system_info(request: web.Request) -> web.StreamResponse:
    """Answer with facts about the node that was asked and its cluster."""
    return json_response(describe(request), headers=node_headers(request))


@described({200: TEXT})
async def system_text(request: web.Request) -> web.StreamResponse:
    """Answer with the same as text, a fact a line."""
    lines = "".join(f"{name:<24} {value}\n" for name, value in describe(request).items())
    return web.Response(text=f"HOLDFAST SYSTEM INFO\n\n{lines}")


def describe(request: web.Request) -> dict[str, Any]:
    """Return facts about the node that was asked and its cluster: named one by one, so that none is a secret."""
    node = request.app[NODE]
    cluster, primary = node.cluster(), node.primary()
    size, idle = node.database.connections
    return {
        "node": node.view().node,
        "holdfast": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "ready": node.is_ready(),
        "cluster_id": str(cluster.cluster_id),
        "schema_version": cluster.schema_version,
        "nodes": len(cluster.nodes),
        "nodes_up": sum(one.up for one in cluster.nodes.values()),
        "shards": len(cluster.shards),
        "shards_writable": len(node.view().writable),
        "primary": None if primary is None else primary.node,
        "deletion_holds": ", ".join(node.deletion_holds()),
        "requests_in_flight": node.in_flight,
        "database_connections": size,
        "database_connections_idle": idle,
    }
