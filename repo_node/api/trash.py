"""The trash over REST: Artifactory's ``api/trash``, and a listing of Holdfast's own."""

from __future__ import annotations

from typing import Literal

from aiohttp import web
from typing_extensions import TypedDict

from repo_node.api.documents import Sha256, Time, json_response, timestamp
from repo_node.auth.permissions import Permission
from repo_node.db.trash import Position, Trashed
from repo_node.errors import RequestError
from repo_node.web.addresses import origin_of
from repo_node.web.context import SERVICES, artifact_at, artifact_in
from repo_node.web.descriptions import TEXT, Digits, PlacePath, described
from repo_node.web.routes import Routes

BASE = "/artifactory/api/trash"
LIST = "/artifactory/api/holdfast/trash"
PAGE_MAX = 1_000


class TrashedDocument(TypedDict):
    repository: str
    path: str
    size: int
    sha256: Sha256
    reason: str
    trashed_at: Time
    trashed_by: str


class NextTrash(TypedDict):
    """The parameters of the next page."""

    after_repository: str
    after_folder: str
    after_name: str
    after_id: str


class TrashPage(TypedDict):
    items: list[TrashedDocument]
    next: NextTrash | None


def add_routes(routes: Routes) -> None:
    routes.add("GET", LIST, list_trash, Permission.ADMIN)
    routes.add("POST", f"{BASE}/restore/{{item:.+}}", restore, Permission.ADMIN)
    routes.add("POST", f"{BASE}/empty", empty, Permission.ADMIN)
    routes.add("DELETE", f"{BASE}/clean/{{item:.+}}", clean, Permission.ADMIN)


@described(
    {200: TrashPage},
    query={"path": PlacePath, "after_repository": str, "after_folder": str, "after_name": str, "after_id": Digits},
)
async def list_trash(request: web.Request) -> web.StreamResponse:
    """Answer with a page of the trash, at and below ``path`` if it is given; ``next`` names the next one."""
    at = artifact_in(request, "path") if "path" in request.query else None
    page = await request.app[SERVICES].trash.page(at, position_of(request), PAGE_MAX)
    more = len(page) == PAGE_MAX
    return json_response({"items": [document_of(one) for one in page], "next": next_of(page[-1]) if more else None})


def document_of(one: Trashed) -> TrashedDocument:
    return {
        "repository": one.repository,
        "path": one.path,
        "size": one.size,
        "sha256": one.sha256.hex(),
        "reason": one.reason,
        "trashed_at": timestamp(one.trashed_at),
        "trashed_by": one.trashed_by,
    }


def next_of(last: Trashed) -> NextTrash:
    return {
        "after_repository": last.repository,
        "after_folder": last.folder,
        "after_name": last.name,
        "after_id": str(last.id),
    }


def position_of(request: web.Request) -> Position:
    query = request.query
    text = query.get("after_id", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 18) or any("\0" in value for value in query.values()):
        raise RequestError("after_id must be a number; take these parameters from the answer before.")
    return Position(
        query.get("after_repository", ""), query.get("after_folder", ""), query.get("after_name", ""), int(text)
    )


@described({200: TEXT, 202: TEXT, 409: TEXT}, query={"to": PlacePath, "replace": Literal["0", "1"]}, root=True)
async def restore(request: web.Request) -> web.StreamResponse:
    """Bring an artifact or a folder back, to where it was or to ``to``; with ``replace=1`` whatever is there now.

    202 when something came back, 200 when all had come back before: what a repeat is answered. 409 when something
    else is in the place of everything.
    """
    at = artifact_at(request, skip=4)
    to = artifact_in(request, "to") if "to" in request.query else at
    replace = request.query.get("replace", "0")
    if replace not in ("0", "1"):
        raise RequestError("replace must be 0 or 1.")
    done = await request.app[SERVICES].trash.restore(at, to, replace=replace == "1", by=origin_of(request))
    text = f"Restored {artifacts(done.restored)} from {at.repository}/{at.path}."
    if done.already:
        text += f" {artifacts(done.already)} already restored: what is in the place came back from the trash since."
        text += " An artifact's own path and ?replace=1 put what is left over it."
    if done.skipped:
        text += f" {artifacts(done.skipped)} not restored, because something is in the place: see ?replace=1."
    return web.Response(text=text + "\n", status=202 if done.restored else 200 if done.already else 409)


@described({200: TEXT})
async def empty(request: web.Request) -> web.StreamResponse:
    """Take everything out of the trash, for good."""
    gone = await request.app[SERVICES].trash.empty(None, by=origin_of(request))
    return web.Response(text=f"{artifacts(gone)} left the trash.\n")


@described({200: TEXT}, root=True)
async def clean(request: web.Request) -> web.StreamResponse:
    """Take an artifact or a folder out of the trash, for good."""
    gone = await request.app[SERVICES].trash.empty(artifact_at(request, skip=4), by=origin_of(request))
    return web.Response(text=f"{artifacts(gone)} left the trash.\n")


def artifacts(count: int) -> str:
    return "1 artifact" if count == 1 else f"{count} artifacts"
