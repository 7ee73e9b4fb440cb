"""Holdfast's own surface: status, settings, tokens (``/artifactory/api/holdfast``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

from aiohttp import web
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from repo_node.api.bodies import OwnDocument, PlainText, read_as
from repo_node.api.documents import Time, json_response, timestamp
from repo_node.api.members import NodeDocument, node_document
from repo_node.api.security.requests import forget_tokens
from repo_node.api.security.token_documents import SCOPES_MAX
from repo_node.api.security.tokens import record, require_shorter_life
from repo_node.auth.permissions import Permission
from repo_node.db import principals, totals
from repo_node.db import settings as rows
from repo_node.errors import NotFound
from repo_node.read_only import SWITCH, require_heard
from repo_node.settings import SettingError, Settings, lenient, risk_of
from repo_node.web.addresses import origin_of
from repo_node.web.context import SERVICES, TARGET, principal_of
from repo_node.web.descriptions import Digits, described
from repo_node.web.routes import Routes, WhileReadOnly
from repo_node.web.state import NODE

BASE = "/artifactory/api/holdfast"


class NewTokenDocument(OwnDocument):
    """What may be said of a new token."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"scopes": ["read"]}]})
    description: PlainText = Field("", max_length=500)
    scopes: list[PlainText] = Field(min_length=1, max_length=SCOPES_MAX)
    user: PlainText | None = None
    expires_in_seconds: int | None = Field(None, ge=1, le=10 * 366 * 86_400)


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


SettingKey: Any = Literal[tuple(sorted(Settings.model_fields))]


class SettingDocument(TypedDict):
    """``is_set`` tells whether the value differs from the default because somebody said so."""

    key: str
    value: Any
    default: Any
    is_set: bool
    description: str | None
    warning: str | None


class SettingList(TypedDict):
    settings: list[SettingDocument]


class ValueDocument(OwnDocument):
    value: Any = Field(examples=[7])


class TokenState(TypedDict):
    id: int
    user: str
    ending: str
    description: str
    scopes: list[str]
    created_at: Time
    expires_at: Time | None


class Tokens(TypedDict):
    tokens: list[TokenState]


class NewToken(TypedDict):
    id: int
    token: str
    scopes: list[str]
    expires_in_seconds: int | None


def add_routes(routes: Routes) -> None:
    routes.add("GET", f"{BASE}/status", status, Permission.ADMIN)
    routes.add("GET", f"{BASE}/settings", list_settings, Permission.ADMIN)
    routes.add("GET", f"{BASE}/settings/{{key}}", get_setting, Permission.ADMIN)
    # Ends it, too; the others are refused there.
    routes.add("PUT", f"{BASE}/settings/{{key}}", set_setting, Permission.ADMIN, while_read_only=WhileReadOnly.SERVED)
    routes.add(
        "DELETE", f"{BASE}/settings/{{key}}", reset_setting, Permission.ADMIN, while_read_only=WhileReadOnly.SERVED
    )
    routes.add("GET", f"{BASE}/tokens", list_tokens, Permission.ADMIN)
    routes.add("POST", f"{BASE}/tokens", create_token, Permission.ADMIN)
    routes.add("DELETE", f"{BASE}/tokens/{{id}}", revoke_token, Permission.ADMIN, while_read_only=WhileReadOnly.SERVED)


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
                {
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


async def stored_settings(request: web.Request) -> dict[str, Any]:
    return await rows.read(request.app[NODE].database)


def setting_document(key: str, stored: Mapping[str, Any]) -> SettingDocument:
    field = Settings.model_fields[key]
    value = stored.get(key, field.default)
    return {
        "key": key,
        "value": value,
        "default": field.default,
        "is_set": key in stored,
        "description": field.description,
        "warning": risk_of(key, value),
    }


@described({200: SettingList})
async def list_settings(request: web.Request) -> web.StreamResponse:
    """List the settings of the cluster."""
    stored = await stored_settings(request)
    return json_response({"settings": [setting_document(key, stored) for key in sorted(Settings.model_fields)]})


def setting_key(request: web.Request) -> str:
    key = request[TARGET].segments[4]
    if key not in Settings.model_fields:
        raise NotFound(f"There is no setting {key}.")
    return key


@described({200: SettingDocument}, path={"key": SettingKey})
async def get_setting(request: web.Request) -> web.StreamResponse:
    """Answer with a setting."""
    return json_response(setting_document(setting_key(request), await stored_settings(request)))


@described({200: SettingDocument}, path={"key": SettingKey}, body=ValueDocument)
async def set_setting(request: web.Request) -> web.StreamResponse:
    """Change a setting, on every node within a second."""
    key = request[TARGET].segments[4]
    if key not in Settings.model_fields:
        raise SettingError(f"there is no setting {key}")
    document = await read_as(request, ValueDocument)
    if key != SWITCH:
        require_heard(request.app[SERVICES].settings)
    await rows.write(
        request.app[NODE].database,
        key,
        document.value,
        by=origin_of(request),
        check=lenient,  # a newer release may have set what this one does not know
    )
    return json_response(setting_document(key, await stored_settings(request)))


@described({200: SettingDocument}, path={"key": SettingKey})
async def reset_setting(request: web.Request) -> web.StreamResponse:
    """Give a setting its default back; answer with it as it is now."""
    key = setting_key(request)
    if key != SWITCH:
        require_heard(request.app[SERVICES].settings)
    await rows.reset(request.app[NODE].database, key, check=lenient, by=origin_of(request))
    return json_response(setting_document(key, await stored_settings(request)))


@described({200: Tokens})
async def list_tokens(request: web.Request) -> web.StreamResponse:
    """List the valid tokens of all users, without their secrets."""
    found = await principals.list_tokens(request.app[NODE].database)
    return json_response({"tokens": [token_document(token) for token in found]})


def token_document(token: principals.Token) -> TokenState:
    return {
        "id": token.id,
        "user": token.user,
        "ending": token.ending,
        "description": token.description,
        "scopes": list(token.scopes),
        "created_at": timestamp(token.created_at),
        "expires_at": timestamp(token.expires_at) if token.expires_at else None,
    }


@described({201: NewToken}, body=NewTokenDocument)
async def create_token(request: web.Request) -> web.StreamResponse:
    """Make a token of the caller's, or of ``user``; its secret is in this one answer and nowhere else."""
    document = await read_as(request, NewTokenDocument)
    scopes, seconds = sorted(set(document.scopes)), document.expires_in_seconds
    require_shorter_life(request, seconds)
    made = await record(request, document.user or principal_of(request).name, scopes, seconds, document.description)
    answer = {"id": made.id, "token": made.secret, "scopes": scopes, "expires_in_seconds": made.expires_in_seconds}
    return json_response(answer, status=201, headers={"Cache-Control": "no-store"})


@described({204: None}, path={"id": Digits})
async def revoke_token(request: web.Request) -> web.StreamResponse:
    """Revoke a token at once."""
    text = request[TARGET].segments[4]
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise NotFound(f"There is no token {text}.")
    try:
        revoked = await principals.revoke_token(request.app[NODE].database, int(text), by=origin_of(request))
    finally:
        # Revoked or not known to be: either way it has to be proved anew.
        forget_tokens(request)
    if not revoked:
        raise NotFound(f"There is no valid token {text}.")
    return web.Response(status=204)
