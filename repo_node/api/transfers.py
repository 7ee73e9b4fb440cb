"""Copy and move (``POST api/copy``, ``POST api/move``)."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from repo_node.api.documents import json_response
from repo_node.auth.permissions import Permission
from repo_node.errors import RequestError
from repo_node.transfers import Transferred, TransferRequest
from repo_node.web.context import REQUEST_ID, SERVICES, artifact_at, artifact_in, principal_of, require
from repo_node.web.queries import flag
from repo_node.web.routes import Routes, WhileReadOnly

RESULT = "application/vnd.org.jfrog.artifactory.storage.CopyOrMoveResult+json"
REASONS = {
    "conflict": "a folder is where an artifact should be, or the other way round",
    "length": "the path is too long",
    "overwrite": "nothing is overwritten in this repository",
    "delete": "nothing is deleted from the source's repository",
    "pattern": "the include and exclude patterns of this repository keep it out",
    "quota": "the quota of this repository is used up",
}


def add_routes(routes: Routes) -> None:
    by_postgres = WhileReadOnly.REFUSED_BY_POSTGRES
    routes.add("POST", "/artifactory/api/copy/{item:.+}", copy, Permission.WRITE, while_read_only=by_postgres)
    routes.add("POST", "/artifactory/api/move/{item:.+}", move, Permission.WRITE, while_read_only=by_postgres)


async def copy(request: web.Request) -> web.StreamResponse:
    return await transfer(request, Permission.READ)


async def move(request: web.Request) -> web.StreamResponse:
    return await transfer(request, Permission.READ, Permission.DELETE)


async def transfer(request: web.Request, *needed: Permission) -> web.StreamResponse:
    """Answer 200 when everything went, 409 with the first failures when a part did not.

    ``needed`` are the permissions at the source, beside the route's own at the target.
    """
    asked = request_of(request, is_move=Permission.DELETE in needed)
    for permission in needed:
        require(request, permission)
    done = await request.app[SERVICES].transfers.run(asked)
    return json_response({"messages": messages(asked, done)}, status=409 if done.failures else 200, kind=RESULT)


def request_of(request: web.Request, *, is_move: bool) -> TransferRequest:
    if not request.query.get("to", "").strip("/"):
        raise RequestError("Say where to: ?to=/repository/path.")
    flag(request, "suppressLayouts", True)  # there are no layouts: a path is never translated
    return TransferRequest(
        move=is_move,
        source=artifact_at(request, skip=3),
        to=artifact_in(request, "to"),
        into=request.query["to"].endswith("/"),
        dry=flag(request, "dry", False),
        fail_fast=flag(request, "failFast", False),
        principal=principal_of(request).name,
        request_id=request[REQUEST_ID],
    )


def messages(asked: TransferRequest, done: Transferred) -> list[dict[str, Any]]:
    """Return the failures that are told, and what it came to."""
    verb, past = ("moving", "moved") if asked.move else ("copying", "copied")
    what = f"{verb} {asked.source.repository}:{asked.source.path} to {asked.to.repository}:{done.target}"
    counted = f"{done.artifacts} artifacts and {done.folders} folders"
    told = [
        {"level": "ERROR", "message": f"{asked.to.repository}:{path}: {REASONS[reason]}."}
        for path, reason in done.failed
    ]
    if asked.dry:
        what = f"Dry Run for {what}"
    if not done.failures:
        text = f"{what} completed successfully, {counted} were {past}"
        return [{"level": "INFO", "message": text}]
    return [*told, {"level": "ERROR", "message": f"{what} failed for {done.failures} items; {counted} were {past}"}]
