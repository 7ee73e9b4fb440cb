"""Who may do what with an item (``GET api/storage/...?permissions``), told to whoever manages it."""

from __future__ import annotations

from aiohttp import web
from typing_extensions import TypedDict

from repo_node.api.documents import json_response, storage_uri
from repo_node.auth.permissions import Permission
from repo_node.item_permissions import Actions
from repo_node.paths import ArtifactPath
from repo_node.web.context import SERVICES, base_url, require

ITEM_PERMISSIONS = "application/vnd.org.jfrog.artifactory.storage.ItemPermissions+json"
LETTERS = {
    Permission.READ: "r",
    Permission.ANNOTATE: "n",
    Permission.WRITE: "w",
    Permission.DELETE: "d",
    Permission.MANAGE: "m",
}


class Letters(TypedDict):
    users: dict[str, list[str]]
    groups: dict[str, list[str]]


class ItemPermissions(TypedDict):
    uri: str
    principals: Letters


async def permissions(request: web.Request, at: ArtifactPath) -> web.StreamResponse:
    require(request, Permission.MANAGE, at)
    found = await request.app[SERVICES].who_may.at(at)
    principals = {"users": lettered(found.users), "groups": lettered(found.groups)}
    return json_response({"uri": storage_uri(base_url(request), at), "principals": principals}, kind=ITEM_PERMISSIONS)


def lettered(actions: Actions) -> dict[str, list[str]]:
    return {name: [letter for action, letter in LETTERS.items() if action in may] for name, may in actions.items()}
