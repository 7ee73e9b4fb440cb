"""The life of shards and nodes over REST: list, drain, bring back, replace, remove."""

from __future__ import annotations

from typing import Annotated, Literal

from aiohttp import web
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from repo_node.api.bodies import OwnDocument, PlainText, read_as
from repo_node.api.documents import Time, json_response, timestamp
from repo_node.auth.permissions import Permission
from repo_node.db import shards
from repo_node.db.nodes import ClusterRows, NodeRow
from repo_node.db.shards import Standing
from repo_node.errors import NotFound, RequestError
from repo_node.web.addresses import origin_of
from repo_node.web.context import TARGET
from repo_node.web.descriptions import Body, described
from repo_node.web.routes import Routes, WhileReadOnly
from repo_node.web.state import NODE
from sharding.model import NodeId

BASE = "/artifactory/api/holdfast"
ACTIONS = ("drain", "readonly", "activate", "replace")
NODE_ACTIONS = ("drain", "activate", "reload")
SHARD_ID_MAX = 32_767
PATHS_MAX = 100
PATH_BYTES_MAX = 4096
WEIGHT_MIN, WEIGHT_MAX = 0.001, 1000.0

REFUSALS = {
    "lost": "is lost: it can be activated (when its disk is back), replaced or removed",
    "replaced": "was replaced: another disk has its place, and it can only be removed",
    "not_drained": "is in use: drain it first, then remove it",
    "in_use": "is open on a living node: take it out of the node's file and `holdfast node reload` it, then remove it",
    "holds": "still holds copies that are to be moved: wait until it is drained",
    "not_lost": "is not lost: its copies are there to be read",
    "not_counted": "has not been walked over yet: remove it first, and wait until its copies are counted",
    "counted_otherwise": "holds another number of last copies now: look at it again",
    "up": "is up: stop it first",
    "down": "is not up: there is nothing to stop",
    "unread": "is not up: it reads its file when it starts",
    "has_shards": "still has shards: drain and remove them first",
}
"""Why an administrator's wish is not fulfilled, after the name of the shard or node."""


def check_length(path: str) -> str:
    if len(path.encode()) > PATH_BYTES_MAX:
        raise ValueError(f"a path has at most {PATH_BYTES_MAX} bytes")
    return path


Directory = Annotated[PlainText, Field(pattern="^/", max_length=PATH_BYTES_MAX), AfterValidator(check_length)]
ShardId = Annotated[int, Field(ge=0, le=SHARD_ID_MAX)]


class Walk(TypedDict):
    kind: str
    walked: int
    kept_back: int
    last_copies: int
    passes: int


class ShardDocument(TypedDict):
    """How a shard stands; ``walk`` is what is done with its copies now."""

    id: int
    node: str
    zone: str | None
    node_up: bool
    path: str | None
    weight: float | None
    state: str
    since: Time
    reason: str
    replaced: bool
    available: bool
    trouble: str
    silent_seconds: float
    replicas: int
    replicas_counted: bool
    free_bytes: int | None
    capacity_bytes: int | None
    walk: Walk | None


class Shards(TypedDict):
    shards: list[ShardDocument]


class NodeDocument(TypedDict):
    id: str
    zone: str
    url: str
    up: bool
    leaving: bool
    version: str
    schema_version: int | None
    heartbeat_age_seconds: float


class ShardOfNode(TypedDict):
    id: int
    state: str
    replicas: int
    replicas_counted: bool


class NodeWithShards(NodeDocument):
    shards: list[ShardOfNode]


class Nodes(TypedDict):
    nodes: list[NodeWithShards]


class ShardOutcome(TypedDict):
    shard: int
    outcome: str


class NodeOutcome(TypedDict):
    node: str
    outcome: str


class NodeShards(TypedDict):
    """What became of each shard of the node."""

    node: str
    shards: dict[str, str]


class LastCopies(TypedDict):
    shard: int
    blobs: int
    artifacts: int
    paths: list[str]


class WeightDocument(OwnDocument):
    weight: float = Field(ge=WEIGHT_MIN, le=WEIGHT_MAX)


class ShardWeight(TypedDict):
    shard: int
    weight: float


class CopiesDocument(OwnDocument):
    copies: int = Field(gt=0, lt=2**63)


class ReloadDocument(OwnDocument):
    """For ``reload`` alone: the directory that may become a new shard."""

    shard: Directory | None = None


def add_routes(routes: Routes) -> None:
    routes.add("GET", f"{BASE}/shards", list_shards, Permission.ADMIN)
    routes.add("GET", f"{BASE}/shards/{{id}}/last-copies", show_last_copies, Permission.ADMIN)
    routes.add("POST", f"{BASE}/shards/{{id}}/give-up", give_up_last_copies, Permission.ADMIN)
    routes.add("POST", f"{BASE}/shards/{{id}}/{{action}}", change_shard, Permission.ADMIN)
    routes.add("PUT", f"{BASE}/shards/{{id}}/weight", weigh_shard, Permission.ADMIN)
    routes.add("DELETE", f"{BASE}/shards/{{id}}", remove_shard, Permission.ADMIN)
    routes.add("GET", f"{BASE}/nodes", list_nodes, Permission.ADMIN)
    routes.add("POST", f"{BASE}/nodes/{{id}}/stop", stop_node, Permission.ADMIN, while_read_only=WhileReadOnly.SERVED)
    routes.add("POST", f"{BASE}/nodes/{{id}}/{{action}}", change_node, Permission.ADMIN)
    routes.add("DELETE", f"{BASE}/nodes/{{id}}", remove_node, Permission.ADMIN)


@described({200: Shards})
async def list_shards(request: web.Request) -> web.StreamResponse:
    """List the shards, and how each stands."""
    node = request.app[NODE]
    cluster, standings = node.cluster(), await shards.list_all(node.database)
    return json_response({"shards": [shard_document(one, cluster) for one in standings.values()]})


@described({200: Nodes})
async def list_nodes(request: web.Request) -> web.StreamResponse:
    """List the nodes, and the shards of each."""
    node = request.app[NODE]
    cluster, standings = node.cluster(), await shards.list_all(node.database)
    return json_response(
        {
            "nodes": [
                {
                    **node_document(one),
                    "shards": [
                        {
                            "id": shard.shard,
                            "state": shard.state.value,
                            "replicas": shard.replicas,
                            "replicas_counted": shard.is_counted,
                        }
                        for shard in standings.values()
                        if shard.node == one.id
                    ],
                }
                for one in sorted(cluster.nodes.values(), key=lambda one: one.id)
            ]
        }
    )


@described({200: ShardOutcome}, errors={409}, path={"id": ShardId, "action": Literal[ACTIONS]})
async def change_shard(request: web.Request) -> web.StreamResponse:
    """Drain a shard, make it read-only, take it into use again, or let another disk have its place."""
    shard = shard_of(request)
    outcome = await change(request, shard, action_of(request, ACTIONS))
    return json_response({"shard": shard, "outcome": checked(f"Shard {shard}", outcome)})


@described({200: ShardWeight}, path={"id": ShardId}, body=WeightDocument)
async def weigh_shard(request: web.Request) -> web.StreamResponse:
    """Give a shard another share of its zone's copies; rebalance moves what the new ring wants elsewhere."""
    shard, weight = shard_of(request), (await read_as(request, WeightDocument)).weight
    if not await shards.weigh(request.app[NODE].database, shard, weight, by=origin_of(request)):
        raise NotFound(f"There is no shard {shard}.")
    return json_response({"shard": shard, "weight": weight})


@described({200: ShardOutcome, 202: ShardOutcome}, errors={409}, path={"id": ShardId})
async def remove_shard(request: web.Request) -> web.StreamResponse:
    """Remove a shard at once, or (202) begin to forget a lost one, whose copies are made good elsewhere first."""
    shard = shard_of(request)
    outcome = await shards.remove(request.app[NODE].database, shard, by=origin_of(request))
    checked(f"Shard {shard}", outcome)
    return json_response({"shard": shard, "outcome": outcome}, status=202 if outcome == "forgetting" else 200)


@described({200: LastCopies}, path={"id": ShardId})
async def show_last_copies(request: web.Request) -> web.StreamResponse:
    """Say what would be lost for good with a shard."""
    shard = shard_of(request)
    if shard not in request.app[NODE].cluster().shards:
        raise NotFound(f"There is no shard {shard}.")
    found = await shards.last_copies(request.app[NODE].database, shard, PATHS_MAX)
    document = {"shard": shard, "blobs": found.blobs, "artifacts": found.artifacts, "paths": list(found.paths)}
    return json_response(document)


@described({202: ShardOutcome}, errors={409}, path={"id": ShardId}, body=CopiesDocument)
async def give_up_last_copies(request: web.Request) -> web.StreamResponse:
    """Let a lost shard go although it has the last copies of so many blobs; wrong numbers change nothing."""
    shard, copies = shard_of(request), (await read_as(request, CopiesDocument)).copies
    outcome = await shards.give_up_last_copies(request.app[NODE].database, shard, copies, by=origin_of(request))
    return json_response({"shard": shard, "outcome": checked(f"Shard {shard}", outcome)}, status=202)


@described(
    {200: NodeShards, 202: NodeOutcome},
    errors={409},
    path={"action": Literal[NODE_ACTIONS]},
    body=Body.of(ReloadDocument, required=False),
)
async def change_node(request: web.Request) -> web.StreamResponse:
    """Drain every shard of a node, or take them into use again; or let it read its file anew. Lost ones stay."""
    node, action = node_of(request), action_of(request, NODE_ACTIONS)
    if action == "reload":
        return await reload_node(request, node)
    standings = await shards.list_all(request.app[NODE].database)
    own = [one.shard for one in standings.values() if one.node == node]
    if not own and node not in request.app[NODE].cluster().nodes:
        raise NotFound(f"There is no node {node}.")
    outcomes = {str(shard): await change(request, shard, action) for shard in own}
    return json_response({"node": node, "shards": outcomes})


@described({202: NodeOutcome}, errors={409})
async def stop_node(request: web.Request) -> web.StreamResponse:
    """Ask a node to leave and to end, as SIGTERM does; it goes on after the answer."""
    node = node_of(request)
    outcome = await shards.stop_node(request.app[NODE].database, node, by=origin_of(request))
    return json_response({"node": node, "outcome": checked(f"Node {node}", outcome)}, status=202)


async def reload_node(request: web.Request, node: str) -> web.StreamResponse:
    """Let a node read the list of shards in its file, open those that are new and give up those that are gone.

    Where another shard was known, an empty directory becomes a new one only if it is named as "shard".
    """
    path = (await read_as(request, ReloadDocument)).shard
    row = request.app[NODE].cluster().nodes.get(NodeId(node))
    outcome = "absent" if row is None else "asked" if row.up else "unread"
    checked(f"Node {node}", outcome)
    await shards.ask_reload(request.app[NODE].database, node, path, by=origin_of(request))
    return json_response({"node": node, "outcome": outcome}, status=202)


@described({200: NodeOutcome}, errors={409})
async def remove_node(request: web.Request) -> web.StreamResponse:
    """Forget a node that has stopped and has no shards."""
    node = node_of(request)
    outcome = await shards.remove_node(request.app[NODE].database, node, by=origin_of(request))
    return json_response({"node": node, "outcome": checked(f"Node {node}", outcome)})


async def change(request: web.Request, shard: int, action: str) -> str:
    return await shards.change(request.app[NODE].database, shard, action, by=origin_of(request))


def checked(name: str, outcome: str) -> str:
    """Return an outcome that fulfils the wish. Raises ``NotFound``, ``RequestError``."""
    if outcome == "absent":
        raise NotFound(f"There is no {name[0].lower()}{name[1:]}.")
    if outcome in REFUSALS:
        raise RequestError(f"{name} {REFUSALS[outcome]}. Nothing was changed.", status=409)
    return outcome


def shard_of(request: web.Request) -> int:
    text = request[TARGET].segments[4]
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= SHARD_ID_MAX):
        raise NotFound(f"There is no shard {text}.")
    return int(text)


def node_of(request: web.Request) -> str:
    return request[TARGET].segments[4]


def action_of(request: web.Request, known: tuple[str, ...]) -> str:
    action = request[TARGET].segments[5]
    if action not in known:
        raise NotFound(f"There is no action {action}; there are {', '.join(known)}.")
    return action


def node_document(one: NodeRow) -> NodeDocument:
    return {
        "id": one.id,
        "zone": one.zone,
        "url": one.url,
        "up": one.up,
        "leaving": one.leaving,
        "version": one.version,
        "schema_version": one.schema_version,
        "heartbeat_age_seconds": round(one.heartbeat_age_seconds, 3),
    }


def shard_document(one: Standing, cluster: ClusterRows) -> ShardDocument:
    row = cluster.shards.get(one.shard)
    owner = cluster.nodes.get(one.node)
    return {
        "id": one.shard,
        "node": one.node,
        "zone": owner.zone if owner else None,
        "node_up": bool(owner and owner.up),
        "path": row.path if row else None,
        "weight": row.member.weight if row else None,
        "state": one.state.value,
        "since": timestamp(one.since),
        "reason": one.reason,
        "replaced": one.replaced,
        "available": bool(owner and owner.up and row and row.capacity_bytes),
        "trouble": "" if row is None or row.writable else row.reason,
        "silent_seconds": round(one.silent_seconds, 3),
        "replicas": one.replicas,
        "replicas_counted": one.is_counted,
        "free_bytes": row.free_bytes if row else None,
        "capacity_bytes": row.capacity_bytes if row else None,
        "walk": None
        if one.walk is None
        else {
            "kind": one.walk,
            "walked": one.walked,
            "kept_back": one.kept_back,
            "last_copies": one.last_copies,
            "passes": one.passes,
        },
    }
