"""The settings of the cluster over Holdfast's own API (``api/holdfast/settings``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from repo_node.api.bodies import OwnDocument, read_as
from repo_node.api.documents import json_response
from repo_node.auth.permissions import Permission
from repo_node.db import settings as rows
from repo_node.errors import NotFound
from repo_node.read_only import SWITCH, require_heard
from repo_node.settings import SettingError, Settings, lenient, risk_of
from repo_node.web.addresses import origin_of
from repo_node.web.context import SERVICES, TARGET
from repo_node.web.descriptions import described
from repo_node.web.routes import Routes, WhileReadOnly
from repo_node.web.state import NODE

BASE = "/artifactory/api/holdfast/settings"
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


def add_routes(routes: Routes) -> None:
    # The switch that ends read-only is a setting, too; the others are refused in Postgres.
    served = WhileReadOnly.SERVED
    routes.add("GET", BASE, list_settings, Permission.ADMIN)
    routes.add("GET", f"{BASE}/{{key}}", get_setting, Permission.ADMIN)
    routes.add("PUT", f"{BASE}/{{key}}", set_setting, Permission.ADMIN, while_read_only=served)
    routes.add("DELETE", f"{BASE}/{{key}}", reset_setting, Permission.ADMIN, while_read_only=served)


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
    if key != SWITCH:
        require_heard(request.app[SERVICES].settings)
    document = await read_as(request, ValueDocument)
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
