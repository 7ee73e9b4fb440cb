"""Copy and move (``POST api/copy``, ``POST api/move``)."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, Required

from aiohttp import web
from typing_extensions import TypedDict

from repo_node.api.documents import json_response
from repo_node.auth.path_patterns import both
from repo_node.auth.permissions import Permission, Principal
from repo_node.auth.read_scope import ReadScope
from repo_node.db.artifacts import place_of
from repo_node.errors import ErrorOne, Forbidden, RequestError
from repo_node.paths import ArtifactPath
from repo_node.transfers import Limits, Transferred, TransferRequest
from repo_node.web.addresses import origin_of
from repo_node.web.context import SERVICES, TARGET, artifact_at, artifact_in, principal_of, require_below
from repo_node.web.descriptions import Content, Flag, PlacePath, described
from repo_node.web.queries import flag
from repo_node.web.routes import Place, Routes, WhileReadOnly

RESULT = "application/vnd.org.jfrog.artifactory.storage.CopyOrMoveResult+json"
REASONS = {
    "conflict": "a folder is where an artifact should be, or the other way round",
    "length": "the path is too long",
    "overwrite": "nothing is overwritten in this repository",
    "delete": "nothing is deleted from the source's repository",
    "pattern": "the include and exclude patterns of this repository keep it out",
    "quota": "the quota of this repository is used up",
    "forbidden": "it needs read where it is, write where it goes, and delete where something is taken away",
}


class Message(TypedDict):
    level: Literal["INFO", "ERROR"]
    message: str


class TransferResult(TypedDict):
    messages: list[Message]
    errors: NotRequired[list[ErrorOne]]


RESULTS = Content(RESULT, TransferResult)
QUERY = {"to": Required[PlacePath], "dry": Flag, "failFast": Flag, "suppressLayouts": Flag}


def add_routes(routes: Routes) -> None:
    by_postgres = WhileReadOnly.REFUSED_BY_POSTGRES
    at = Place(3, below=True, absent="Unable to find item")
    for name, handler in (("copy", copy), ("move", move)):
        path = f"/artifactory/api/{name}/{{item:.+}}"
        routes.add("POST", path, handler, Permission.READ, at=at, while_read_only=by_postgres)


@described({200: RESULTS, 409: RESULTS}, query=QUERY, root=True)
async def copy(request: web.Request) -> web.StreamResponse:
    """Copy an artifact, or a folder with all that lies in it."""
    return await transfer(request, is_move=False)


@described({200: RESULTS, 409: RESULTS}, query=QUERY, root=True)
async def move(request: web.Request) -> web.StreamResponse:
    """Move an artifact, or a folder with all that lies in it."""
    return await transfer(request, is_move=True)


async def transfer(request: web.Request, *, is_move: bool) -> web.StreamResponse:
    """Answer 200 when everything went, 409 with the first failures when a part did not.

    Each artifact needs ``read`` where it is, and ``delete`` too when it is moved; ``write`` where it goes, and
    ``delete`` too when something else is there. What lacks one is a failure; 403 when that is true of everything.
    """
    asked = request_of(request, await source_of(request, is_move=is_move), is_move=is_move)
    require_below(request, Permission.WRITE, asked.to)
    if is_move:
        require_below(request, Permission.DELETE, asked.source)
    done = await request.app[SERVICES].transfers.run(asked)
    if done.forbidden and not (done.artifacts or done.folders):
        raise Forbidden(f"{asked.by.principal} may not do this to any of it: {REASONS['forbidden']}.", asked.source)
    document: dict[str, Any] = {"messages": (told := messages(asked, done, principal_of(request).readable()))}
    if done.failures:
        # Some clients look here alone for what went wrong.
        document["errors"] = [{"status": 409, "message": told[0]["message"]}]
    return json_response(document, status=409 if done.failures else 200, kind=RESULT)


async def source_of(request: web.Request, *, is_move: bool) -> ArtifactPath:
    """Return where what is copied lies; of a virtual repository, one artifact is."""
    at, services = artifact_at(request, skip=3), request.app[SERVICES]
    if is_move or (view := await services.repositories.view(at.repository)) is None:
        return at
    item = await services.artifacts.get(at, principal_of(request).readable()) if at.name else None
    if item is None or item.blob is None:
        members = ", ".join(source.key for source in view.sources)
        raise RequestError(f"Of a virtual repository, artifacts are copied; folders from its members: {members}.")
    return place_of(item)


def request_of(request: web.Request, source: ArtifactPath, *, is_move: bool) -> TransferRequest:
    if not request.query.get("to", "").strip("/"):
        raise RequestError("Say where to: ?to=/repository/path.")
    if request[TARGET].properties:
        raise RequestError("Copy and move take no matrix parameters: they would go whatever the properties are.")
    flag(request, "suppressLayouts", True)  # there are no layouts: a path is never translated
    return TransferRequest(
        move=is_move,
        source=source,
        to=artifact_in(request, "to"),
        into=request.query["to"].endswith("/"),
        dry=flag(request, "dry", False),
        fail_fast=flag(request, "failFast", False),
        by=origin_of(request),
        limits=limits_of(principal_of(request), source, artifact_in(request, "to"), is_move),
    )


def limits_of(principal: Principal, source: ArtifactPath, to: ArtifactPath, is_move: bool) -> Limits:
    taken = [principal.limit(Permission.READ, source.repository)]
    if is_move:
        taken.append(principal.limit(Permission.DELETE, source.repository))
    return Limits(
        source=both(*taken),
        target=principal.limit(Permission.WRITE, to.repository),
        overwritten=principal.limit(Permission.DELETE, to.repository),
        prunes=principal.may_throughout(Permission.DELETE, source),
    )


def taken_from(asked: TransferRequest, done: Transferred, path: str) -> tuple[str, str]:
    """Return the repository and the path of what was to go to ``path``."""
    return asked.source.repository, f"{asked.source.path}/{path[len(done.target) :].lstrip('/')}".strip("/")


def messages(asked: TransferRequest, done: Transferred, scope: ReadScope) -> list[dict[str, Any]]:
    """Return the failures that are told, and what it came to. What lies beyond ``scope`` has no name here."""
    verb, past = ("moving", "moved") if asked.move else ("copying", "copied")
    what = f"{verb} {asked.source.repository}:{asked.source.path} to {asked.to.repository}:{done.target}"
    counted = f"{done.artifacts} artifacts and {done.folders} folders"
    failed = ((path if scope.allows(*taken_from(asked, done, path)) else None, reason) for path, reason in done.failed)
    named = (f"{asked.to.repository}:{path}: {REASONS[reason]}." for path, reason in failed if path is not None)
    told = [{"level": "ERROR", "message": message} for message in named]
    if len(told) < len(done.failed):
        told.append({"level": "ERROR", "message": f"{asked.to.repository}:{done.target}: {REASONS['forbidden']}."})
    if asked.dry:
        what = f"Dry Run for {what}"
    if not done.failures:
        text = f"{what} completed successfully, {counted} were {past}"
        return [{"level": "INFO", "message": text}]
    return [*told, {"level": "ERROR", "message": f"{what} failed for {done.failures} items; {counted} were {past}"}]
